// One step of IF and LIF neurons, forward and backward, and the surrogates' slopes.
//
// The equations are those of if_step and lif_step in neuron.py and of slope in surrogate.py. Their
// operations are done in the same order and compiled without fused multiply-adds (-fmad=false), so
// that a charge close to the threshold is rounded, and fires, as in the reference on the CPU. torch
// on a CUDA device computes a division by tau as a product with a rounded 1 / tau; its LIF charge
// can differ in the last digit unless tau is a power of two.
#pragma once

enum Slope { GIVEN, ATAN, SIGMOID, ERF, SOFT_SIGN, PIECEWISE_QUADRATIC };

// The settings of a layer of neurons. All threads of a launch take the same branches on them, which
// cost next to nothing.
template <typename C>
struct NeuronConstants {
    C tau;  // 1 where not leaky
    C v_threshold;
    C v_rest;  // v_reset if the reset is hard, else 0
    C alpha;
    C scale;       // a factor of u or of the slope, from alpha; see SLOPES in functions.py
    int leaky;     // lif_step; else if_step
    int hard;      // the reset
    int attached;  // a gradient passes through the reset
    int slope;     // a Slope; GIVEN: the slopes are passed to the kernel
};

template <typename C>
__device__ C charge(C input, C v, const NeuronConstants<C> &constants) {
    return constants.leaky ? v + (input - (v - constants.v_rest)) / constants.tau : v + input;
}

template <typename C>
__device__ C reset(C h, bool fires, const NeuronConstants<C> &constants) {
    const C after = constants.hard ? constants.v_rest : h - constants.v_threshold;
    return fires ? after : h;
}

// The surrogate's slope at u = h - v_threshold.
template <typename C>
__device__ C slope_at(C u, const NeuronConstants<C> &constants) {
    switch (constants.slope) {
        case ATAN: {
            const C scaled = constants.scale * u;
            return constants.alpha / 2 / (1 + scaled * scaled);
        }
        case SIGMOID: {
            const C q = 1 / (1 + exp(-constants.alpha * u));
            return constants.alpha * q * (1 - q);
        }
        case ERF: {
            const C scaled = constants.alpha * u;
            return constants.scale * exp(-scaled * scaled);
        }
        case SOFT_SIGN: {
            const C width = 1 + fabs(constants.alpha * u);
            return constants.alpha / (2 * (width * width));
        }
        default: {
            const C triangle = constants.alpha - constants.scale * fabs(u);
            return triangle < 0 ? C(0) : triangle;  // NaN stays
        }
    }
}

// dL/dh of if_step; through_reset is r.
template <typename C>
__device__ C fire_backward(C grad_s, C grad_v, C h, C slope, const NeuronConstants<C> &constants) {
    const C kept = constants.hard && h >= constants.v_threshold ? C(0) : C(1);
    const C jump = constants.hard ? constants.v_rest - h : -constants.v_threshold;
    const C through_reset = constants.attached ? kept + jump * slope : kept;
    return grad_s * slope + grad_v * through_reset;
}

// dL/dx and dL/dv of if_step or lif_step, from dL/dh.
template <typename C>
__device__ C to_input(C grad_h, const NeuronConstants<C> &constants) {
    return constants.leaky ? grad_h / constants.tau : grad_h;
}

template <typename C>
__device__ C to_potential(C grad_h, const NeuronConstants<C> &constants) {
    return constants.leaky ? grad_h - grad_h / constants.tau : grad_h;
}
