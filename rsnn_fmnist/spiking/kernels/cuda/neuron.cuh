// One step of IF and LIF neurons, forward and backward, and the surrogates' slopes.
//
// The equations stand in neuron.py and surrogate.py, their derivatives with them; the order of
// operations is theirs too. Compiled without contraction into fused multiply-adds (-fmad=false),
// so that a charge close to the threshold is rounded, and fires, as in the reference on the CPU.
// torch on a CUDA device does not divide by a number: it multiplies by 1 / tau, rounded. Its LIF
// charge can differ in the last digit where tau is no power of two.
#pragma once

enum Slope { GIVEN, ATAN, SIGMOID, ERF, SOFT_SIGN, PIECEWISE_QUADRATIC };

// The neurons of a layer; uniform over a launch, so that its branches cost next to nothing.
template <typename C>
struct Cell {
    C tau;  // 1 where not leaky
    C v_threshold;
    C v_rest;  // v_reset where hard, else 0
    C alpha;
    C scale;       // what u, or the slope, is multiplied by; see functions.SLOPES
    int leaky;     // lif_step, else if_step
    int hard;      // the reset
    int attached;  // a gradient passes through the reset
    int slope;     // a Slope; GIVEN: the slopes come with the call
};

template <typename C>
__device__ C charge(C input, C v, const Cell<C> &cell) {
    return cell.leaky ? v + (input - (v - cell.v_rest)) / cell.tau : v + input;
}

template <typename C>
__device__ C reset(C h, bool fires, const Cell<C> &cell) {
    const C after = cell.hard ? cell.v_rest : h - cell.v_threshold;
    return fires ? after : h;
}

// The surrogate's slope at u = h - v_threshold.
template <typename C>
__device__ C slope_at(C u, const Cell<C> &cell) {
    switch (cell.slope) {
        case ATAN: {
            const C scaled = cell.scale * u;
            return cell.alpha / 2 / (1 + scaled * scaled);
        }
        case SIGMOID: {
            const C q = 1 / (1 + exp(-cell.alpha * u));
            return cell.alpha * q * (1 - q);
        }
        case ERF: {
            const C scaled = cell.alpha * u;
            return cell.scale * exp(-scaled * scaled);
        }
        case SOFT_SIGN: {
            const C width = 1 + fabs(cell.alpha * u);
            return cell.alpha / (2 * (width * width));
        }
        default: {
            const C triangle = cell.alpha - cell.scale * fabs(u);
            return triangle < 0 ? C(0) : triangle;  // NaN stays
        }
    }
}

// dL/dh, from dL/ds and dL/dv of the same step: dL/ds slope + dL/dv dv/dh.
template <typename C>
__device__ C fire_backward(C grad_s, C grad_v, C h, C slope, const Cell<C> &cell) {
    const C kept = cell.hard && h >= cell.v_threshold ? C(0) : C(1);
    const C jump = cell.hard ? cell.v_rest - h : -cell.v_threshold;
    const C through_reset = cell.attached ? kept + jump * slope : kept;
    return grad_s * slope + grad_v * through_reset;
}

// What the charge hands on of dL/dh, to the input and to the potential before.
template <typename C>
__device__ C to_input(C grad_h, const Cell<C> &cell) {
    return cell.leaky ? grad_h / cell.tau : grad_h;
}

template <typename C>
__device__ C to_potential(C grad_h, const Cell<C> &cell) {
    return cell.leaky ? grad_h - grad_h / cell.tau : grad_h;
}
