// Vectors of floats, and what else the kernels are made of.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

using std::int64_t;

namespace {

// ------------------------------------------------------------------------------------------------------- vectors

#ifdef __AVX512F__
constexpr int W = 16, ROWS = 8, VECTORS = 3;  // 24 of 32 registers hold the tile
#else
constexpr int W = 8, ROWS = 4, VECTORS = 2;  // 8 of 16
#endif

typedef float Vec __attribute__((vector_size(W * 4), aligned(4), may_alias));
typedef float HalfVec __attribute__((vector_size(W * 2), aligned(4), may_alias));
typedef int32_t IVec __attribute__((vector_size(W * 4), aligned(4), may_alias));

inline Vec load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<Vec*>(p) = v; }

#ifdef __AVX512F__
inline Vec load(const float* p, int count) { return _mm512_maskz_loadu_ps((1u << count) - 1, p); }  // the rest is 0
inline void store(float* p, Vec v, int count) { _mm512_mask_storeu_ps(p, (1u << count) - 1, v); }
#else
inline Vec load(const float* p, int count) {
    if (count == W) return load(p);
    Vec v{};
    std::memcpy(&v, p, count * sizeof(float));
    return v;
}
inline void store(float* p, Vec v, int count) {
    if (count == W) return store(p, v);
    std::memcpy(p, &v, count * sizeof(float));
}
#endif

// Lane i of the result is lane i + SHIFT, round about.
template <int SHIFT, int... J>
inline Vec turn(Vec v, std::integer_sequence<int, J...>) {
    return __builtin_shufflevector(v, v, ((J + SHIFT) % W)...);
}
template <int SHIFT = W / 2, typename Combine>
inline float reduce(Vec v, Combine combine) {
    v = combine(v, turn<SHIFT>(v, std::make_integer_sequence<int, W>()));
    if constexpr (SHIFT > 1) return reduce<SHIFT / 2>(v, combine);
    return v[0];
}
inline float sum(Vec v) {
    return reduce(v, [](Vec a, Vec b) { return a + b; });
}
inline float largest(Vec v) {
    return reduce(v, [](Vec a, Vec b) { return a > b ? a : b; });
}

// e^x to about one unit in the last place: 2^n · e^r with |r| ≤ ln 2 / 2 and a polynomial for e^r (Cephes expf).
inline Vec exp(Vec x) {
    x = x < -87.0f ? Vec{} - 87.0f : x;
    x = x > 88.0f ? Vec{} + 88.0f : x;
    const Vec shifted = x * 1.44269504f + 12582912.0f;  // adding 1.5 · 2^23 rounds to the nearest integer
    const Vec n = shifted - 12582912.0f;
    const Vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
    Vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const IVec power = (__builtin_convertvector(n, IVec) + 127) << 23;
    return p * reinterpret_cast<const Vec&>(power);
}

inline Vec sigmoid(Vec x) { return 1.0f / (1.0f + exp(-x)); }

inline int64_t round_up(int64_t n, int64_t to = W) { return (n + to - 1) / to * to; }

// Distance of rows of n floats: an odd number of vectors, so that the rows of a panel spread over the whole cache.
inline int64_t spread(int64_t n) { return (n + W - 1) / W * W | W; }

// A growing buffer per thread and kind, at the beginning of a cache line.
template <int KIND = 0>
float* scratch(int64_t floats) {
    thread_local std::vector<float> buffer;
    if (static_cast<int64_t>(buffer.size()) < floats + 16) buffer.resize(floats + 16);
    const auto address = reinterpret_cast<std::uintptr_t>(buffer.data());
    return buffer.data() + (64 - address % 64) % 64 / sizeof(float);
}

}  // namespace
