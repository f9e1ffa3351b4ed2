// Products of matrices and transposition.
//
// Products of matrices are one routine, `gemm`, which multiplies by broadcasting one operand and keeps a tile of the result
// in registers. Every sum runs over its terms in an order that depends on the shapes alone, so results are the same bits
// for any number of threads. `Term` says what is multiplied (terms.h).

#pragma once

#include "terms.h"

namespace {

// ----------------------------------------------------------------------------------------------- matrix products

// c (M, V·W) = a · b over K terms; a's element (m, k) stands at a[m·am + k·ak]. The last vector has `last` columns.
template <typename Term, int M, int V, bool WHOLE>
void tile(int64_t K, const float* a, int64_t am, int64_t ak, const float* b, int64_t ldb, float* c, int64_t ldc, bool add,
          int last) {
    Vec acc[M][V];
    const auto at = [&](const float* p, int v) { return WHOLE || v < V - 1 ? load(p + v * W) : load(p + v * W, last); };
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) acc[m][v] = add ? at(c + m * ldc, v) : Vec{};
    for (int64_t k = 0; k < K; ++k, a += ak, b += ldb) {
        asm("" : "+r"(a));  // GCC would make a copy of the loop for ak = 1 whose tile does not stay in registers
        Vec row[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) row[v] = at(b, v);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) acc[m][v] = Term::add(acc[m][v], a[m * am], row[v]);
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v)
            if (WHOLE || v < V - 1) store(c + m * ldc + v * W, acc[m][v]);
            else store(c + m * ldc + v * W, acc[m][v], last);
}

// The same for W / 2 columns: processors do two narrow products in the time of a wide one.
template <typename Term, int M>
void half_tile(int64_t K, const float* a, int64_t am, int64_t ak, const float* b, int64_t ldb, float* c, int64_t ldc,
               bool add, int /* last */) {
    HalfVec acc[M];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) acc[m] = add ? *reinterpret_cast<const HalfVec*>(c + m * ldc) : HalfVec{};
    for (int64_t k = 0; k < K; ++k, a += ak, b += ldb) {
        const HalfVec row = *reinterpret_cast<const HalfVec*>(b);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) acc[m] = Term::add(acc[m], a[m * am], row);
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) *reinterpret_cast<HalfVec*>(c + m * ldc) = acc[m];
}

using Tile = void (*)(int64_t, const float*, int64_t, int64_t, const float*, int64_t, float*, int64_t, bool, int);

template <typename Term, int M>
Tile tile_of(int vectors, int last) {
    if (vectors == 1 && last == W / 2) return half_tile<Term, M>;
    if constexpr (VECTORS > 2)
        if (vectors == 3) return last == W ? tile<Term, M, 3, true> : tile<Term, M, 3, false>;
    if (vectors == 2) return last == W ? tile<Term, M, 2, true> : tile<Term, M, 2, false>;
    return last == W ? tile<Term, M, 1, true> : tile<Term, M, 1, false>;
}

template <typename Term>
Tile tile_of(int rows, int vectors, int last) {
    if constexpr (ROWS > 4) {
        switch (rows) {
            case 8: return tile_of<Term, 8>(vectors, last);
            case 7: return tile_of<Term, 7>(vectors, last);
            case 6: return tile_of<Term, 6>(vectors, last);
            case 5: return tile_of<Term, 5>(vectors, last);
        }
    }
    switch (rows) {
        case 4: return tile_of<Term, 4>(vectors, last);
        case 3: return tile_of<Term, 3>(vectors, last);
        case 2: return tile_of<Term, 2>(vectors, last);
        default: return tile_of<Term, 1>(vectors, last);
    }
}

// Read numbers that come from far, from first to last and no more than stay in a core's cache: only in that order does the
// processor fetch ahead fast. A product goes through several rows at a time, which took up to twice as long.
inline void fetch(const float* numbers, int64_t count) {
    for (int64_t i = 0; i < count && i < 1 << 17; i += 16) asm volatile("" : : "r"(numbers[i]));
}

// c (M, N) = a · b, or += where `add`; b (K, N) with rows ldb apart, c likewise. In one thread.
template <typename Term = Single>
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
                tile_of<Term>(rows, width, last)(depth, a + m * am + k * ak, am, ak, b + k * ldb + n, ldb, c + m * ldc + n, ldc,
                                                 add || k > 0, last);
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

// to (terms of columns, rows) with rows ldt apart = from (rows, columns)ᵀ, where row r begins at from(r). `fill`: whole
// vectors are written, with 0 behind the last row.
template <typename Term = Single, typename Row>
void transpose(int64_t rows, int64_t columns, Row from, float* to, int64_t ldt, bool fill) {
    const int64_t terms = Term::count(columns);
    for (int64_t r = 0; r < rows; r += W) {
        const int height = static_cast<int>(rows - r < W ? rows - r : W);
        for (int64_t c = 0; c < terms; c += W) {
            const int width = static_cast<int>(terms - c < W ? terms - c : W);
            Vec block[W];
#pragma GCC unroll 16
            for (int i = 0; i < W; ++i) block[i] = i < height ? Term::along(from(r + i), c, columns) : Vec{};
            swap_blocks<W / 2>(block, std::make_integer_sequence<int, W>());
            for (int j = 0; j < width; ++j) store(to + (c + j) * ldt + r, block[j], fill ? W : height);
        }
    }
}

// Threads for so much work: waking one up costs what these many numbers do.
inline int team(int threads, int64_t numbers, int64_t enough = 1 << 16) { return numbers < enough ? 1 : threads; }

constexpr int64_t BLOCK = 64;   // rows of tokens that one thread takes at a time
constexpr int64_t LONG = 256;   // tokens summed at a time into a gradient of weights

}  // namespace
