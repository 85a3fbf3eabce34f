// The synapse filter over all steps. A thread has one lane: one synapse of one sample.
//
// Arrays are [steps, lanes], as in neuron.cu. The equations are those of filter_step in synapse.py;
// -fmad=false keeps their rounding. k is *k_learnt, on the device, or k_fixed if that pointer is
// null. A pointer that is called optional may be null.
#include "number.cuh"

constexpr int AHEAD = 8;

// Fills y_seq, optionally trace (y_seq before it is rounded to S), and y_last, from x and y.
template <typename S>
__global__ void filter_forward(const S *__restrict__ x, const Compute<S> *__restrict__ y,
                               const Compute<S> *__restrict__ k_learnt, Compute<S> k_fixed,
                               S *__restrict__ y_seq, Compute<S> *__restrict__ trace,
                               Compute<S> *__restrict__ y_last, long long lanes, int steps) {
    using C = Compute<S>;
    const long long lane = blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x;
    if (lane >= lanes) return;
    const C k = k_learnt ? *k_learnt : k_fixed;
    C now = y[lane];
    for (int t = 0; t < steps; t += AHEAD) {
        C input[AHEAD] = {};
#pragma unroll
        for (int a = 0; a < AHEAD; ++a)
            if (t + a < steps) input[a] = load(x[(t + a) * lanes + lane]);
#pragma unroll
        for (int a = 0; a < AHEAD; ++a) {
            if (t + a >= steps) break;
            now = now - (1 - input[a]) * now * k + input[a];
            y_seq[(t + a) * lanes + lane] = store<S>(now);
            if (trace) trace[(t + a) * lanes + lane] = now;
        }
    }
    y_last[lane] = now;
}

// The sum of value over a block's threads, in an order that depends on their number only. Thread 0
// returns it.
__device__ inline double block_sum(double value) {
    extern __shared__ double shared_memory[];  // one for each thread
    shared_memory[threadIdx.x] = value;
    for (unsigned count = blockDim.x; count > 1;) {
        const unsigned half_of = (count + 1) / 2;
        __syncthreads();
        if (threadIdx.x + half_of < count)
            shared_memory[threadIdx.x] += shared_memory[threadIdx.x + half_of];
        count = half_of;
    }
    return shared_memory[threadIdx.x];
}

// Fills grad_x, optionally grad_y and optionally grad_k (one number for each block; the caller adds
// them), from the gradients of y_seq and y_last (both optional), x, y and trace.
template <typename S>
__global__ void filter_backward(const S *__restrict__ grad_y_seq,
                                const Compute<S> *__restrict__ grad_y_last,
                                const S *__restrict__ x, const Compute<S> *__restrict__ y,
                                const Compute<S> *__restrict__ trace,
                                const Compute<S> *__restrict__ k_learnt, Compute<S> k_fixed,
                                S *__restrict__ grad_x, Compute<S> *__restrict__ grad_y,
                                double *__restrict__ grad_k, long long lanes, int steps) {
    using C = Compute<S>;
    const long long lane = blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x;
    const C k = k_learnt ? *k_learnt : k_fixed;
    C from_k = 0;
    if (lane < lanes) {
        C carried = grad_y_last ? grad_y_last[lane] : C(0);
        for (int t = steps - 1; t >= 0; t -= AHEAD) {
            C grad[AHEAD] = {}, input[AHEAD] = {}, before[AHEAD] = {};
#pragma unroll
            for (int a = 0; a < AHEAD; ++a) {
                const long long at = (t - a) * lanes + lane;
                if (t - a >= 0) {
                    input[a] = load(x[at]);
                    before[a] = t - a > 0 ? trace[at - lanes] : y[lane];
                    if (grad_y_seq) grad[a] = load(grad_y_seq[at]);
                }
            }
#pragma unroll
            for (int a = 0; a < AHEAD; ++a) {
                if (t - a < 0) break;
                const C total = carried + grad[a];
                const C decays = 1 - input[a];
                grad_x[(t - a) * lanes + lane] = store<S>(total * (1 + before[a] * k));
                from_k -= total * decays * before[a];
                carried = total * (1 - decays * k);
            }
        }
        if (grad_y) grad_y[lane] = carried;
    }
    if (grad_k) {
        const double sum = block_sum(from_k);
        if (threadIdx.x == 0) grad_k[blockIdx.x] = sum;
    }
}
