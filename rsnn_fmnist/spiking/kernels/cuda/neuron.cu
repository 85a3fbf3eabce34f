// Layers of IF or LIF neurons over all steps. A thread has one lane: one neuron of one sample.
//
// Arrays are [steps, lanes], and neighboring threads have neighboring lanes, so that warps read
// and write whole cache lines. What a thread loads does not depend on what it computes, so it loads
// AHEAD steps at a time. A pointer that is called optional may be null.
#include "neuron.cuh"
#include "number.cuh"

constexpr int AHEAD = 8;

// Fills s, optionally h (the potential before the reset), and v_last, from x and v.
template <typename S>
__global__ void neuron_forward(const S *__restrict__ x, const Compute<S> *__restrict__ v,
                               S *__restrict__ s, Compute<S> *__restrict__ h,
                               Compute<S> *__restrict__ v_last, long long lanes, int steps,
                               NeuronConstants<Compute<S>> constants) {
    using C = Compute<S>;
    const long long lane = blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x;
    if (lane >= lanes) return;
    C potential = v[lane];
    for (int t = 0; t < steps; t += AHEAD) {
        C input[AHEAD] = {};
#pragma unroll
        for (int a = 0; a < AHEAD; ++a)
            if (t + a < steps) input[a] = load(x[(t + a) * lanes + lane]);
#pragma unroll
        for (int a = 0; a < AHEAD; ++a) {
            if (t + a >= steps) break;
            const C charged = charge(input[a], potential, constants);
            const bool fires = charged >= constants.v_threshold;
            s[(t + a) * lanes + lane] = store<S>(fires ? C(1) : C(0));
            if (h) h[(t + a) * lanes + lane] = charged;
            potential = reset(charged, fires, constants);
        }
    }
    v_last[lane] = potential;
}

// Fills grad_x and optionally grad_v, from the gradients of s and v_last (both optional) and h.
// slopes, [steps, lanes], are read if constants.slope is GIVEN.
template <typename S>
__global__ void neuron_backward(const S *__restrict__ grad_s,
                                const Compute<S> *__restrict__ grad_v_last,
                                const Compute<S> *__restrict__ h,
                                const Compute<S> *__restrict__ slopes, S *__restrict__ grad_x,
                                Compute<S> *__restrict__ grad_v, long long lanes, int steps,
                                NeuronConstants<Compute<S>> constants) {
    using C = Compute<S>;
    const long long lane = blockIdx.x * static_cast<long long>(blockDim.x) + threadIdx.x;
    if (lane >= lanes) return;
    C carried = grad_v_last ? grad_v_last[lane] : C(0);
    for (int t = steps - 1; t >= 0; t -= AHEAD) {
        C from_s[AHEAD] = {}, charged[AHEAD] = {}, slope[AHEAD] = {};
#pragma unroll
        for (int a = 0; a < AHEAD; ++a) {
            const long long at = (t - a) * lanes + lane;
            if (t - a >= 0) {
                charged[a] = h[at];
                if (grad_s) from_s[a] = load(grad_s[at]);
                if (constants.slope == GIVEN) slope[a] = slopes[at];
            }
        }
#pragma unroll
        for (int a = 0; a < AHEAD; ++a) {
            if (t - a < 0) break;
            if (constants.slope != GIVEN)
                slope[a] = slope_at(charged[a] - constants.v_threshold, constants);
            const C grad_h = fire_backward(from_s[a], carried, charged[a], slope[a], constants);
            grad_x[(t - a) * lanes + lane] = store<S>(to_input(grad_h, constants));
            carried = to_potential(grad_h, constants);
        }
    }
    if (grad_v) grad_v[lane] = carried;
}
