// Vectors, products of matrices, transposition: what all kernels are made of.
//
// Products of matrices are one routine, `gemm`, which multiplies by broadcasting one operand and keeps a tile of the result
// in registers. Every sum runs over its terms in an order that depends on the shapes alone, so results are the same bits
// for any number of threads.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
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

// ----------------------------------------------------------------------------------------------- matrix products

// c (M, V·W) = a · b over K terms; a's element (m, k) stands at a[m·am + k·ak]. The last vector has `last` columns.
template <int M, int V, bool WHOLE>
void tile(int64_t K, const float* a, int64_t am, int64_t ak, const float* b, int64_t ldb, float* c, int64_t ldc, bool add,
          int last) {
    Vec acc[M][V];
    const auto at = [&](const float* p, int v) { return WHOLE || v < V - 1 ? load(p + v * W) : load(p + v * W, last); };
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) acc[m][v] = add ? at(c + m * ldc, v) : Vec{};
    for (int64_t k = 0; k < K; ++k, a += ak, b += ldb) {
        Vec row[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) row[v] = at(b, v);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) acc[m][v] += a[m * am] * row[v];
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v)
            if (WHOLE || v < V - 1) store(c + m * ldc + v * W, acc[m][v]);
            else store(c + m * ldc + v * W, acc[m][v], last);
}

// The same for W / 2 columns: processors do two narrow products in the time of a wide one.
template <int M>
void half_tile(int64_t K, const float* a, int64_t am, int64_t ak, const float* b, int64_t ldb, float* c, int64_t ldc,
               bool add, int /* last */) {
    HalfVec acc[M];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) acc[m] = add ? *reinterpret_cast<const HalfVec*>(c + m * ldc) : HalfVec{};
    for (int64_t k = 0; k < K; ++k, a += ak, b += ldb) {
        const HalfVec row = *reinterpret_cast<const HalfVec*>(b);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) acc[m] += a[m * am] * row;
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) *reinterpret_cast<HalfVec*>(c + m * ldc) = acc[m];
}

using Tile = void (*)(int64_t, const float*, int64_t, int64_t, const float*, int64_t, float*, int64_t, bool, int);

template <int M>
Tile tile_of(int vectors, int last) {
    if (vectors == 1 && last == W / 2) return half_tile<M>;
    if constexpr (VECTORS > 2)
        if (vectors == 3) return last == W ? tile<M, 3, true> : tile<M, 3, false>;
    if (vectors == 2) return last == W ? tile<M, 2, true> : tile<M, 2, false>;
    return last == W ? tile<M, 1, true> : tile<M, 1, false>;
}

Tile tile_of(int rows, int vectors, int last) {
    if constexpr (ROWS > 4) {
        switch (rows) {
            case 8: return tile_of<8>(vectors, last);
            case 7: return tile_of<7>(vectors, last);
            case 6: return tile_of<6>(vectors, last);
            case 5: return tile_of<5>(vectors, last);
        }
    }
    switch (rows) {
        case 4: return tile_of<4>(vectors, last);
        case 3: return tile_of<3>(vectors, last);
        case 2: return tile_of<2>(vectors, last);
        default: return tile_of<1>(vectors, last);
    }
}

// Ask for the next rows of `a`: a matrix of weights comes from far, and in too short runs for the processor to guess.
void prefetch(int64_t M, int64_t K, const float* a, int64_t am, int64_t ak) {
    if (ak == 1)
        for (int64_t m = 0; m < M; ++m)
            for (int64_t k = 0; k < K; k += 16) __builtin_prefetch(a + m * am + k, 0, 2);
    else
        for (int64_t k = 0; k < K; ++k) __builtin_prefetch(a + k * ak, 0, 2);
}

// c (M, N) = a · b, or += where `add`; b (K, N) with rows ldb apart, c likewise. In one thread. FAR: `a` is not in the cache.
template <bool FAR = false>
void gemm(int64_t M, int64_t N, int64_t K, const float* a, int64_t am, int64_t ak, const float* b, int64_t ldb, float* c,
          int64_t ldc, bool add) {
    constexpr int64_t DEPTH = 512;  // of b at a time, so that its panel stays in the cache
    const bool half = N % W == W / 2;  // a panel of its own, at the end
    const int64_t vectors = half ? N / W : (N + W - 1) / W, whole = (vectors + VECTORS - 1) / VECTORS, panels = whole + half;
    for (int64_t k = 0; k < K || k == 0; k += DEPTH) {
        const int64_t depth = K - k < DEPTH ? K - k : DEPTH;
        int64_t n = 0;
        for (int64_t panel = 0; panel < panels; ++panel) {  // of as equal widths as can be
            const int width = panel == whole ? 1 : static_cast<int>(vectors / whole + (panel < vectors % whole));
            const int last = static_cast<int>(N - n < width * W ? N - n - (width - 1) * W : W);
            for (int64_t m = 0; m < M; m += ROWS) {
                const int rows = static_cast<int>(M - m < ROWS ? M - m : ROWS);
                const float* block = a + m * am + k * ak;
                if (FAR && panel == 0 && m + ROWS < M)
                    prefetch(M - m - ROWS < ROWS ? M - m - ROWS : ROWS, depth, block + ROWS * am, am, ak);
                tile_of(rows, width, last)(depth, block, am, ak, b + k * ldb + n, ldb, c + m * ldc + n, ldc, add || k > 0, last);
            }
            n += width * W;
        }
    }
}

// Transposes W vectors: swap the blocks off the diagonal, of half the size each time. Inlined and unrolled, which the
// compiler would not do by itself, all of them stay in registers: the experts take a quarter less time for it.
template <int HALF, int... J>
inline __attribute__((always_inline)) void swap_blocks(Vec* rows, std::integer_sequence<int, J...> columns) {
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i)
        if ((i & HALF) == 0) {
            const Vec above = rows[i], below = rows[i + HALF];
            rows[i] = __builtin_shufflevector(above, below, (J & HALF ? J - HALF + W : J)...);
            rows[i + HALF] = __builtin_shufflevector(above, below, (J & HALF ? J + W : J + HALF)...);
        }
    if constexpr (HALF > 1) swap_blocks<HALF / 2>(rows, columns);
}

// Lane i of the result is the sum of all lanes of rows[i], which are lost: blocks are swapped and added up.
template <int HALF, int... J>
inline __attribute__((always_inline)) Vec sums(Vec* rows, std::integer_sequence<int, J...> lanes) {
#pragma GCC unroll 8
    for (int i = 0; i < HALF; ++i) {
        const Vec above = rows[i], below = rows[i + HALF];
        rows[i] = __builtin_shufflevector(above, below, (J & HALF ? J - HALF + W : J)...) +
                  __builtin_shufflevector(above, below, (J & HALF ? J + W : J + HALF)...);
    }
    if constexpr (HALF > 1) return sums<HALF / 2>(rows, lanes);
    return rows[0];
}

// to (columns, rows) with rows ldt apart = from (rows, columns)ᵀ, where row r begins at from(r). `fill`: whole vectors are
// written, with 0 behind the last row.
template <typename Row>
void transpose(int64_t rows, int64_t columns, Row from, float* to, int64_t ldt, bool fill) {
    for (int64_t r = 0; r < rows; r += W) {
        const int height = static_cast<int>(rows - r < W ? rows - r : W);
        for (int64_t c = 0; c < columns; c += W) {
            const int width = static_cast<int>(columns - c < W ? columns - c : W);
            Vec block[W];
#pragma GCC unroll 16
            for (int i = 0; i < W; ++i) block[i] = i < height ? load(from(r + i) + c, width) : Vec{};
            swap_blocks<W / 2>(block, std::make_integer_sequence<int, W>());
            for (int j = 0; j < width; ++j) store(to + (c + j) * ldt + r, block[j], fill ? W : height);
        }
    }
}

// A growing buffer per thread and kind, at the beginning of a cache line.
template <int KIND = 0>
float* scratch(int64_t floats) {
    thread_local std::vector<float> buffer;
    if (static_cast<int64_t>(buffer.size()) < floats + 16) buffer.resize(floats + 16);
    const auto address = reinterpret_cast<std::uintptr_t>(buffer.data());
    return buffer.data() + (64 - address % 64) % 64 / sizeof(float);
}

// Threads for so much work: waking one up costs what these many numbers do.
inline int team(int threads, int64_t numbers, int64_t enough = 1 << 16) { return numbers < enough ? 1 : threads; }

constexpr int64_t BLOCK = 64;   // rows of tokens that one thread takes at a time
constexpr int64_t LONG = 256;   // tokens summed at a time into a gradient of weights

}  // namespace
