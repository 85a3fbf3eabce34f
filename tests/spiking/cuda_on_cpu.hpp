// As much of CUDA as this package's kernels use, so that g++ compiles the .cu files unchanged, each
// into a library of its own.
//
// A CUDA thread is a std::thread; the blocks of a grid run one after another. Shared memory is
// dynamic only (`extern __shared__ double shared_memory[]`); warp functions and atomics are left
// out. It is slow: launch few threads.
#pragma once

#include <barrier>
#include <bit>
#include <cmath>
#include <cstddef>
#include <thread>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __shared__
#define __launch_bounds__(threads)

using std::exp;
using std::fabs;
using std::fma;

struct Index {
    unsigned x = 0, y = 0, z = 0;
};

static thread_local Index threadIdx;
static Index blockIdx, blockDim, gridDim;  // the same for all threads of a block
static std::barrier<> *of_block;
double shared_memory[1 << 15];  // of the running block

inline void __syncthreads() { of_block->arrive_and_wait(); }

inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }

inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }

// Run kernel(*arguments[0], *arguments[1], ...) on `grid` blocks of (columns, rows) threads. Shared
// memory is filled with NaN before each block, since a kernel must not rely on its contents.
template <typename... A, std::size_t... I>
void run_kernel(void (*kernel)(A...), unsigned grid, unsigned columns, unsigned rows,
                void **arguments, std::index_sequence<I...>) {
    gridDim = {grid, 1, 1};
    blockDim = {columns, rows, 1};
    for (blockIdx = {}; blockIdx.x < grid; ++blockIdx.x) {
        for (double &word : shared_memory) word = std::bit_cast<double>(0x7ff7ff7f7ff7ff7f);
        std::barrier<> barrier(columns * rows);
        of_block = &barrier;
        std::vector<std::thread> threads;
        for (unsigned thread = 0; thread < columns * rows; ++thread)
            threads.emplace_back([=] {
                threadIdx = {thread % columns, thread / columns, 0};
                kernel(*static_cast<std::remove_reference_t<A> *>(arguments[I])...);
                of_block->arrive_and_drop();  // the others no longer wait for this thread
            });
        for (std::thread &thread : threads) thread.join();
    }
}

// void name(grid, columns, rows, arguments), callable from C, for one __global__ function.
#define EMULATED(name, ...)                                                                  \
    extern "C" void name(unsigned grid, unsigned columns, unsigned rows, void **arguments) { \
        run(__VA_ARGS__, grid, columns, rows, arguments);                                    \
    }

template <typename... A>
void run(void (*kernel)(A...), unsigned grid, unsigned columns, unsigned rows, void **arguments) {
    run_kernel(kernel, grid, columns, rows, arguments, std::index_sequence_for<A...>{});
}
