// The linear recurrent container around IF or LIF neurons over all steps, in one launch.
//
// The equations are those of linear_recurrent_step in recurrent.py and of the neuron's step;
// `weight` is for_y, and `input` is for_x x + bias.
//
// A block has (features, rows) threads and rows * SAMPLES samples. Thread f of a row has neuron f
// of the row's SAMPLES samples: it keeps their potentials in registers and uses each weight that it
// reads for all of them. Blocks do not depend on each other, so one launch runs all steps. The
// weights lie in shared memory (STAGED) or, if they do not fit, are read through the caches. Arrays
// are [steps, samples, features], or one step of that. A pointer that is called optional may be
// null.
#include "neuron.cuh"
#include "number.cuh"

using Spikes = unsigned long long;     // a byte for each neuron, a bit for each sample
constexpr int AHEAD = sizeof(Spikes);  // weights that are loaded at a time
constexpr int MOST_THREADS = 1024;

__device__ inline void *shared_space() {
    extern __shared__ double shared_memory[];
    return shared_memory;
}

// Reads one number for each sample of the thread's row; 0 behind the last sample.
template <int SAMPLES, typename S, typename C>
__device__ void load_samples(const S *array, int first, int samples, C (&values)[SAMPLES]) {
    const int features = blockDim.x;
#pragma unroll
    for (int r = 0; r < SAMPLES; ++r)
        values[r] = first + r < samples
                        ? load(array[static_cast<long long>(first + r) * features + threadIdx.x])
                        : C(0);
}

template <int SAMPLES, typename S, typename C>
__device__ void store_samples(S *array, int first, int samples, const C (&values)[SAMPLES]) {
    const int features = blockDim.x;
#pragma unroll
    for (int r = 0; r < SAMPLES; ++r)
        if (first + r < samples)
            array[static_cast<long long>(first + r) * features + threadIdx.x] =
                store<S>(values[r]);
}

// totals += weight y for any y, as in the first step. to[j * pitch] is the weight from neuron j.
template <int SAMPLES, typename C>
__device__ void add_state(const C *to, long long pitch, const C *y, int first, int samples,
                          C (&totals)[SAMPLES]) {
    const int features = blockDim.x;
#pragma unroll AHEAD
    for (int j = 0; j < features; ++j)
#pragma unroll
        for (int r = 0; r < SAMPLES; ++r)
            if (first + r < samples)
                totals[r] += to[j * pitch] * y[static_cast<long long>(first + r) * features + j];
}

// totals += weight y for spikes: bit r of byte j of `fired` is set if neuron j of sample r fired.
// Weights of neurons that did not fire are not read. Bytes behind the last neuron are 0.
template <int SAMPLES, typename C>
__device__ void add_spikes(const C *to, long long pitch, const Spikes *fired,
                           C (&totals)[SAMPLES]) {
    const int features = blockDim.x;
    for (int j = 0; j < features; j += AHEAD) {
        const Spikes spikes = fired[j / AHEAD];
        if (!spikes) continue;
        C weight[AHEAD];
#pragma unroll
        for (int a = 0; a < AHEAD; ++a)
            weight[a] = spikes >> 8 * a & 0xff ? to[(j + a) * pitch] : C(0);
#pragma unroll
        for (int a = 0; a < AHEAD; ++a)
#pragma unroll
            for (int r = 0; r < SAMPLES; ++r)
                if (spikes >> (8 * a + r) & 1) totals[r] += weight[a];
    }
}

// Fills s, optionally h (the potential before the reset), y_last and v_last, from input, y and v.
// weight[f * stride_f + j * stride_j] leads from neuron j to neuron f; stride_j = 1 is fastest if
// STAGED, stride_f = 1 if not.
template <typename S, int SAMPLES, bool STAGED>
__global__ void __launch_bounds__(MOST_THREADS)
    recurrent_forward(const S *__restrict__ input, const Compute<S> *__restrict__ weight,
                      long long stride_f, long long stride_j, const Compute<S> *__restrict__ y,
                      const Compute<S> *__restrict__ v, S *__restrict__ s,
                      Compute<S> *__restrict__ h, S *__restrict__ y_last,
                      Compute<S> *__restrict__ v_last, int samples, int steps,
                      NeuronConstants<Compute<S>> constants) {
    using C = Compute<S>;
    const int features = blockDim.x, f = threadIdx.x, thread = threadIdx.y * features + f;
    const int first = (blockIdx.x * blockDim.y + threadIdx.y) * SAMPLES;
    const int words = (features + AHEAD - 1) / AHEAD;  // of a row of spikes
    const int spikes_of_step = blockDim.y * words;
    const long long step = static_cast<long long>(samples) * features;

    // Spikes [2, rows, words], of which each step writes one half and reads the other, and weights
    // [features, features | 1], transposed (the odd pitch spreads them over the banks).
    Spikes *const fired = static_cast<Spikes *>(shared_space());
    C *const staged = reinterpret_cast<C *>(fired + 2 * spikes_of_step);
    const int pitch = features | 1;
    if (STAGED)
        for (int i = thread; i < features * features; i += features * blockDim.y)
            staged[i % features * pitch + i / features] =
                weight[i / features * stride_f + i % features * stride_j];
    for (int i = thread; i < 2 * spikes_of_step; i += features * blockDim.y) fired[i] = 0;
    __syncthreads();

    const C *const to = STAGED ? staged + f : weight + f * stride_f;
    const long long to_pitch = STAGED ? pitch : stride_j;
    C potential[SAMPLES], next[SAMPLES];
    load_samples(v, first, samples, potential);
    load_samples(input, first, samples, next);
    for (int t = 0; t < steps; ++t) {
        C total[SAMPLES], spike[SAMPLES];
#pragma unroll
        for (int r = 0; r < SAMPLES; ++r) total[r] = next[r];
        if (t + 1 < steps) load_samples(input + (t + 1) * step, first, samples, next);
        if (t == 0)
            add_state(to, to_pitch, y, first, samples, total);
        else
            add_spikes(to, to_pitch,
                       fired + (t - 1) % 2 * spikes_of_step + threadIdx.y * words, total);
        unsigned char spikes = 0;
#pragma unroll
        for (int r = 0; r < SAMPLES; ++r) {
            total[r] = charge(total[r], potential[r], constants);
            const bool fires = total[r] >= constants.v_threshold;
            spike[r] = fires ? C(1) : C(0);
            spikes |= fires << r;
            potential[r] = reset(total[r], fires, constants);
        }
        Spikes *const row = fired + t % 2 * spikes_of_step + threadIdx.y * words;
        reinterpret_cast<unsigned char *>(row)[f] = spikes;
        store_samples(s + t * step, first, samples, spike);
        if (h) store_samples(h + t * step, first, samples, total);
        if (t == steps - 1) store_samples(y_last, first, samples, spike);
        __syncthreads();
    }
    store_samples(v_last, first, samples, potential);
}

// Fills grad_input, optionally grad_y and optionally grad_v, from the gradients of s, y_last and
// v_last (all optional) and h. slopes, shaped as h, are read if constants.slope is GIVEN. The
// strides are those of recurrent_forward; stride_j = 1 is fastest. The caller computes the gradient
// of the weight.
template <typename S, int SAMPLES, bool STAGED>
__global__ void __launch_bounds__(MOST_THREADS)
    recurrent_backward(const S *__restrict__ grad_s, const S *__restrict__ grad_y_last,
                       const Compute<S> *__restrict__ grad_v_last,
                       const Compute<S> *__restrict__ weight, long long stride_f,
                       long long stride_j, const Compute<S> *__restrict__ h,
                       const Compute<S> *__restrict__ slopes, S *__restrict__ grad_input,
                       Compute<S> *__restrict__ grad_y, Compute<S> *__restrict__ grad_v,
                       int samples, int steps, NeuronConstants<Compute<S>> constants) {
    using C = Compute<S>;
    const int features = blockDim.x, j = threadIdx.x, thread = threadIdx.y * features + j;
    const int first = (blockIdx.x * blockDim.y + threadIdx.y) * SAMPLES;
    const int grads_of_row = features * SAMPLES, grads_of_step = blockDim.y * grads_of_row;
    const long long step = static_cast<long long>(samples) * features;

    // Weights [features, features], and gradients of two steps' input [2, rows, features, SAMPLES].
    C *const staged = static_cast<C *>(shared_space());
    C *const grads = staged + (STAGED ? features * features : 0);
    if (STAGED)
        for (int i = thread; i < features * features; i += features * blockDim.y)
            staged[i] = weight[i / features * stride_f + i % features * stride_j];

    const C *const from = STAGED ? staged + j : weight + j * stride_j;
    const long long from_pitch = STAGED ? features : stride_f;
    C fed_back[SAMPLES] = {}, carried[SAMPLES] = {};
    if (grad_y_last) load_samples(grad_y_last, first, samples, fed_back);
    if (grad_v_last) load_samples(grad_v_last, first, samples, carried);
    for (int t = steps - 1; t >= 0; --t) {
        C from_s[SAMPLES] = {}, charged[SAMPLES], slope[SAMPLES], grad[SAMPLES];
        if (grad_s) load_samples(grad_s + t * step, first, samples, from_s);
        load_samples(h + t * step, first, samples, charged);
        if (constants.slope == GIVEN) load_samples(slopes + t * step, first, samples, slope);
        C *const row = grads + t % 2 * grads_of_step + threadIdx.y * grads_of_row;
#pragma unroll
        for (int r = 0; r < SAMPLES; ++r) {
            if (constants.slope != GIVEN)
                slope[r] = slope_at(charged[r] - constants.v_threshold, constants);
            const C grad_h =
                fire_backward(from_s[r] + fed_back[r], carried[r], charged[r], slope[r], constants);
            grad[r] = to_input(grad_h, constants);
            carried[r] = to_potential(grad_h, constants);
            row[j * SAMPLES + r] = grad[r];
            fed_back[r] = 0;
        }
        store_samples(grad_input + t * step, first, samples, grad);
        if (t == 0 && !grad_y) break;
        __syncthreads();
#pragma unroll AHEAD
        for (int f = 0; f < features; ++f) {
            const C w = from[f * from_pitch];
#pragma unroll
            for (int r = 0; r < SAMPLES; ++r)  // fused is fine: no spike depends on this rounding
                fed_back[r] = fma(w, row[f * SAMPLES + r], fed_back[r]);
        }
    }
    if (grad_y) store_samples(grad_y, first, samples, fed_back);
    if (grad_v) store_samples(grad_v, first, samples, carried);
}
