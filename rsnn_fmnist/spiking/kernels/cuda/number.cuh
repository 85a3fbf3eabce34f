// The number formats that the kernels read, compute in and write.
//
// Arrays hold S: float, double, Half or BFloat. Kernels compute in Compute<S>: double for double,
// else float.
//
// The two 16-bit formats are converted here, in integer arithmetic, rounding to nearest even. The
// bits are those of the hardware's conversion, but neither cuda_fp16.h nor cuda_bf16.h is needed,
// which NVRTC does not find in every installation, and the tests can run this code on a CPU.
// Subnormals are kept: do not compile with -ftz.
#pragma once

struct Half {
    unsigned short bits;  // 1 sign, 5 exponent, 10 mantissa
};

struct BFloat {
    unsigned short bits;  // the upper 16 of a float's
};

template <typename S>
struct ComputeOf {
    using type = float;
};

template <>
struct ComputeOf<double> {
    using type = double;
};

template <typename S>
using Compute = typename ComputeOf<S>::type;

__device__ inline float load(float x) { return x; }

__device__ inline double load(double x) { return x; }

__device__ inline float load(BFloat x) { return __uint_as_float(unsigned(x.bits) << 16); }

__device__ inline float load(Half x) {
    const unsigned sign = unsigned(x.bits & 0x8000) << 16;
    const unsigned magnitude = unsigned(x.bits & 0x7fff) << 13;
    if (magnitude >= 0x0f800000)  // infinity, or not a number
        return __uint_as_float(sign | magnitude | 0x7f800000);
    const float value = __uint_as_float(magnitude) * 0x1p112f;  // exponents count from 127, not 15
    return __uint_as_float(sign | __float_as_uint(value));
}

// x rounded to the nearest number of type S.
template <typename S>
__device__ S store(Compute<S> x) {
    return x;
}

template <>
__device__ inline BFloat store<BFloat>(float x) {
    const unsigned bits = __float_as_uint(x);
    if ((bits & 0x7fffffff) > 0x7f800000)  // not a number: rounding could make it infinite
        return {static_cast<unsigned short>((bits >> 16) | 0x40)};
    return {static_cast<unsigned short>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

template <>
__device__ inline Half store<Half>(float x) {
    const unsigned sign = __float_as_uint(x) & 0x80000000;
    const unsigned magnitude = __float_as_uint(x) ^ sign;
    unsigned bits;
    if (magnitude > 0x7f800000)
        bits = 0x7e00;  // not a number
    else if (magnitude >= 0x47800000)
        bits = 0x7c00;  // 65536 and above: infinity
    else if (magnitude < 0x38800000)  // below 2^-14: 0.5 has the last place that a subnormal has
        bits = __float_as_uint(__uint_as_float(magnitude) + 0.5f) - 0x3f000000;
    else
        bits = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    return {static_cast<unsigned short>((sign >> 16) | bits)};
}
