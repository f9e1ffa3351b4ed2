// The decoder's hot loops on a CPU, in float32: matrix products, experts, attention, norms, rotations.
//
// Why own code: at a few hundred hidden dimensions a step is thousands of products of some fifty rows. A library call for
// each costs more in starting, padding and copying than in computing. Here one call does a whole layer's experts or
// attention, and what lies between two products never leaves the cache.
//
// Products of matrices are one routine, `gemm`, which multiplies by broadcasting one operand and keeps a tile of the result
// in registers. Every sum runs over its terms in an order that depends on the shapes alone, so results are the same bits
// for any number of threads.
// Shapes: T tokens, D hidden, E experts, k experts per token, I expert width, L length, H query and G key heads.
// Everything is row-major. Built and called by native.py; it reads from the functions behind `extern "C"` how many arguments each takes.

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
            for (int64_t k = 0; k < K; k += 16) __builtin_prefetch(a + m * am + k);
    else
        for (int64_t k = 0; k < K; ++k) __builtin_prefetch(a + k * ak);
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

// Transposes W vectors: swap the blocks off the diagonal, of half the size each time.
template <int HALF, int... J>
void swap_blocks(Vec* rows, std::integer_sequence<int, J...> columns) {
    for (int i = 0; i < W; ++i)
        if ((i & HALF) == 0) {
            const Vec above = rows[i], below = rows[i + HALF];
            rows[i] = __builtin_shufflevector(above, below, (J & HALF ? J - HALF + W : J)...);
            rows[i + HALF] = __builtin_shufflevector(above, below, (J & HALF ? J + W : J + HALF)...);
        }
    if constexpr (HALF > 1) swap_blocks<HALF / 2>(rows, columns);
}

// to (columns, rows) with rows ldt apart = from (rows, columns)ᵀ, where row r begins at from(r). `fill`: whole vectors are
// written, with 0 behind the last row.
template <typename Row>
void transpose(int64_t rows, int64_t columns, Row from, float* to, int64_t ldt, bool fill) {
    for (int64_t r = 0; r < rows; r += W) {
        const int height = static_cast<int>(rows - r < W ? rows - r : W);
        for (int64_t c = 0; c < columns; c += W) {
            const int width = static_cast<int>(columns - c < W ? columns - c : W);
            Vec block[W] = {};
            for (int i = 0; i < height; ++i) block[i] = load(from(r + i) + c, width);
            swap_blocks<W / 2>(block, std::make_integer_sequence<int, W>());
            for (int j = 0; j < width; ++j) store(to + (c + j) * ldt + r, block[j], fill ? W : height);
        }
    }
}

float* scratch(int64_t floats) {  // one growing buffer per thread, at the beginning of a cache line
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

extern "C" {

// y (T, O) = x (T, D) · wᵀ for w (O, D), plus bias (O,) where there is one.
void linear(int threads, int64_t T, int64_t D, int64_t O, const float* x, const float* w, const float* bias, float* y) {
    float* turned = scratch(D * O);  // wᵀ, in the memory of the calling thread
#pragma omp parallel num_threads(team(threads, T * D * O, 1 << 21))
    {
#pragma omp for schedule(static)
        for (int64_t o = 0; o < O; o += W)
            transpose(O - o < W ? O - o : W, D, [&](int64_t r) { return w + (o + r) * D; }, turned + o, O, false);
#pragma omp for schedule(static)
        for (int64_t t = 0; t < T; t += BLOCK) {
            const int64_t rows = T - t < BLOCK ? T - t : BLOCK;
            if (bias != nullptr)
                for (int64_t r = 0; r < rows; ++r) std::memcpy(y + (t + r) * O, bias, O * sizeof(float));
            gemm(rows, O, D, x + t * D, D, 1, turned, O, y + t * O, O, bias != nullptr);
        }
    }
}

// From dy (T, O) to dx (T, D) and dw (O, D); either may be null.
void linear_backward(int threads, int64_t T, int64_t D, int64_t O, const float* x, const float* w, const float* dy,
                     float* dx, float* dw) {
#pragma omp parallel num_threads(team(threads, T * D * O, 1 << 21))
    {
        if (dx != nullptr) {
#pragma omp for schedule(static) nowait
            for (int64_t t = 0; t < T; t += BLOCK)
                gemm(T - t < BLOCK ? T - t : BLOCK, D, O, dy + t * O, O, 1, w, D, dx + t * D, D, false);
        }
        if (dw != nullptr) {
            constexpr int64_t SHARE = 2 * ROWS;  // rows of dw; a static schedule gives each to the same thread every time
            for (int64_t t = 0; t < T; t += LONG) {
                const int64_t rows = std::min(LONG, T - t);
#pragma omp for schedule(static) nowait
                for (int64_t o = 0; o < O; o += SHARE)
                    gemm(std::min(SHARE, O - o), D, rows, dy + t * O + o, 1, O, x + t * D, D, dw + o * D, D, t > 0);
            }
        }
    }
}

}  // extern "C"

// ------------------------------------------------------------------------------------------------ gated activation

namespace {

// silu(gate) · up and, from its gradient, those of gate and up.
inline Vec swiglu(Vec gate, Vec up) { return gate * sigmoid(gate) * up; }
inline void swiglu_backward(Vec gate, Vec up, Vec grad, Vec& gate_grad, Vec& up_grad) {
    const Vec s = sigmoid(gate), silu = gate * s;
    up_grad = grad * silu;
    gate_grad = grad * up * (silu + s * (1.0f - silu));  // silu' = silu + sigmoid · (1 − silu)
}

}  // namespace

extern "C" {

// gate_up (T, 2I) = [gate | up] -> out (T, I).
void swiglu(int threads, int64_t T, int64_t I, const float* gate_up, float* out) {
#pragma omp parallel for num_threads(team(threads, T * I)) schedule(static)
    for (int64_t t = 0; t < T; ++t)
        for (int64_t i = 0; i < I; i += W) {
            const int count = static_cast<int>(I - i < W ? I - i : W);
            const float* gate = gate_up + t * 2 * I + i;
            store(out + t * I + i, swiglu(load(gate, count), load(gate + I, count)), count);
        }
}

void swiglu_backward(int threads, int64_t T, int64_t I, const float* gate_up, const float* dout, float* dgate_up) {
#pragma omp parallel for num_threads(team(threads, T * I)) schedule(static)
    for (int64_t t = 0; t < T; ++t)
        for (int64_t i = 0; i < I; i += W) {
            const int count = static_cast<int>(I - i < W ? I - i : W);
            const float* gate = gate_up + t * 2 * I + i;
            Vec dgate, dup;
            swiglu_backward(load(gate, count), load(gate + I, count), load(dout + t * I + i, count), dgate, dup);
            store(dgate_up + t * 2 * I + i, dgate, count);
            store(dgate_up + t * 2 * I + I + i, dup, count);
        }
}

}  // extern "C"

// --------------------------------------------------------------------------------------------------------- experts
//
// The tokens of an expert are handled in chunks, and inside a chunk tokens stand side by side (transposed), so that the
// expert's matrices can be broadcast as they lie in memory, without a copy.

namespace {

constexpr int64_t CHUNK = 96;  // tokens of one expert at a time; a multiple of W

struct Chunk {
    int64_t expert, first, count, saved;  // rows [first, first + count) of the sorted choices; columns before it in `saved`
    bool opens;                           // first chunk of its expert
};

std::vector<std::vector<Chunk>> chunks_of(int64_t E, const int64_t* starts) {
    std::vector<std::vector<Chunk>> chunks(E);
    int64_t saved = 0;
    for (int64_t e = 0; e < E; ++e)
        for (int64_t first = starts[e]; first < starts[e + 1]; first += CHUNK) {
            const int64_t count = starts[e + 1] - first < CHUNK ? starts[e + 1] - first : CHUNK;
            chunks[e].push_back({e, first, count, saved, first == starts[e]});
            saved += spread(count);
        }
    return chunks;
}

// out (T, D): the sum of each token's k rows (T·k, D), which stand at `slots` (T, k).
void sum_over_choices(int64_t T, int64_t k, int64_t D, const float* rows, const int64_t* slots, float* out) {
#pragma omp for schedule(static)
    for (int64_t t = 0; t < T; ++t)
        for (int64_t d = 0; d < D; d += W) {
            const int count = static_cast<int>(D - d < W ? D - d : W);
            Vec total = load(rows + slots[t * k] * D + d, count);
            for (int64_t j = 1; j < k; ++j) total += load(rows + slots[t * k + j] * D + d, count);
            store(out + t * D + d, total, count);
        }
}

}  // namespace

extern "C" {

// Sort N = T·k choices (T, k) by expert: order (N,) is the choice at each sorted row, slots (N,) the sorted row of each
// choice, starts (E + 2,) where each expert's rows begin, and last the number of columns that `saved` takes.
void experts_plan(int /* threads */, int64_t N, int64_t E, const int64_t* chosen, int64_t* order, int64_t* slots, int64_t* starts) {
    std::memset(starts, 0, (E + 1) * sizeof(int64_t));
    for (int64_t n = 0; n < N; ++n) ++starts[chosen[n] + 1];
    for (int64_t e = 0; e < E; ++e) starts[e + 1] += starts[e];
    std::vector<int64_t> next(starts, starts + E);
    for (int64_t n = 0; n < N; ++n) order[slots[n] = next[chosen[n]]++] = n;
    starts[E + 1] = 0;
    for (const auto& chunks : chunks_of(E, starts))
        for (const Chunk& chunk : chunks) starts[E + 1] = chunk.saved + spread(chunk.count);
}

// out (T, D) = sum over each token's k experts of weight · down(silu(gate(x)) · up(x)); gate_up (E, 2I, D), down
// (E, D, I), weights (T, k). `saved` takes gate and up for the backward pass, 2I rows of
// starts[E + 1] floats; `rows` (N, D) is working space.
void experts(int threads, int64_t T, int64_t k, int64_t D, int64_t I, int64_t E, const float* x, const float* gate_up,
             const float* down, const float* weights, const int64_t* order, const int64_t* slots, const int64_t* starts,
             float* saved, float* rows, float* out) {
    const auto chunks = chunks_of(E, starts);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic, 2)
        for (int64_t e = 0; e < E; ++e)
            for (const Chunk& chunk : chunks[e]) {
                const int64_t n = chunk.count, N = round_up(n, W / 2), ld = spread(n);
                float* xt = scratch((D + I + D) * ld);  // (D, n)
                float *ht = xt + D * ld, *outt = ht + I * ld;
                float* gut = saved + 2 * I * chunk.saved;  // (2I, n)
                const int64_t* choice = order + chunk.first;
                transpose(n, D, [&](int64_t r) { return x + choice[r] / k * D; }, xt, ld, true);
                gemm<true>(2 * I, N, D, gate_up + e * 2 * I * D, D, 1, xt, ld, gut, ld, false);
                float weight[CHUNK] = {};
                for (int64_t r = 0; r < n; ++r) weight[r] = weights[choice[r]];
                for (int64_t i = 0; i < I; ++i)
                    for (int64_t r = 0; r < N; r += W)
                        store(ht + i * ld + r, swiglu(load(gut + i * ld + r), load(gut + (I + i) * ld + r)) * load(weight + r));
                gemm<true>(D, N, I, down + e * D * I, I, 1, ht, ld, outt, ld, false);
                transpose(D, n, [&](int64_t r) { return outt + r * ld; }, rows + chunk.first * D, D, false);
            }
        sum_over_choices(T, k, D, rows, slots, out);
    }
}

// From dout (T, D) to dx (T, D), dgate_up, ddown and dweights, shaped as what they are gradients of; 0 for an expert
// without tokens.
void experts_backward(int threads, int64_t T, int64_t k, int64_t D, int64_t I, int64_t E, const float* x,
                      const float* gate_up, const float* down, const float* weights, const int64_t* order,
                      const int64_t* slots, const int64_t* starts, const float* saved, float* rows, const float* dout,
                      float* dx, float* dgate_up, float* ddown, float* dweights) {
    const auto chunks = chunks_of(E, starts);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(dynamic, 2)
        for (int64_t e = 0; e < E; ++e) {
            if (chunks[e].empty()) {
                std::memset(dgate_up + e * 2 * I * D, 0, 2 * I * D * sizeof(float));
                std::memset(ddown + e * D * I, 0, D * I * sizeof(float));
            }
            for (const Chunk& chunk : chunks[e]) {
                const int64_t n = chunk.count, N = round_up(n, W / 2), ld = spread(n);
                float* dot = scratch((2 * D + 4 * I) * ld + n * (D + I));  // dout of these tokens, (D, n)
                float *dxt = dot + D * ld, *dht = dxt + D * ld, *ht = dht + I * ld, *dgut = ht + I * ld;
                float *xs = dgut + 2 * I * ld, *h = xs + n * D;  // (n, D), (n, I)
                const float* gut = saved + 2 * I * chunk.saved;
                const int64_t* choice = order + chunk.first;
                transpose(n, D, [&](int64_t r) { return dout + choice[r] / k * D; }, dot, ld, true);
                for (int64_t r = 0; r < n; ++r) std::memcpy(xs + r * D, x + choice[r] / k * D, D * sizeof(float));
                gemm<true>(I, N, D, down + e * D * I, 1, I, dot, ld, dht, ld, false);
                float weight[CHUNK] = {}, dweight[CHUNK] = {};
                for (int64_t r = 0; r < n; ++r) weight[r] = weights[choice[r]];
                for (int64_t i = 0; i < I; ++i)
                    for (int64_t r = 0; r < N; r += W) {
                        const Vec gate = load(gut + i * ld + r), up = load(gut + (I + i) * ld + r);
                        const Vec w = load(weight + r), dh = load(dht + i * ld + r), act = swiglu(gate, up);
                        Vec dgate, dup;
                        swiglu_backward(gate, up, dh * w, dgate, dup);
                        store(dweight + r, load(dweight + r) + dh * act);
                        store(ht + i * ld + r, act * w);
                        store(dgut + i * ld + r, dgate);
                        store(dgut + (I + i) * ld + r, dup);
                    }
                for (int64_t r = 0; r < n; ++r) dweights[choice[r]] = dweight[r];
                transpose(I, n, [&](int64_t r) { return ht + r * ld; }, h, I, false);
                gemm(D, I, n, dot, ld, 1, h, I, ddown + e * D * I, I, !chunk.opens);
                gemm(2 * I, D, n, dgut, ld, 1, xs, D, dgate_up + e * 2 * I * D, D, !chunk.opens);
                gemm<true>(D, N, 2 * I, gate_up + e * 2 * I * D, 1, D, dgut, ld, dxt, ld, false);
                transpose(D, n, [&](int64_t r) { return dxt + r * ld; }, rows + chunk.first * D, D, false);
            }
        }
        sum_over_choices(T, k, D, rows, slots, dx);
    }
}

}  // extern "C"

// ------------------------------------------------------------------------------------------------------- attention
//
// Causal attention of one sequence and one key head at a time, over its whole score matrix; for sequences that are
// short enough for it to stay in the cache. Scores stand transposed, keys by queries: a vector then holds queries side by
// side, and the softmax needs no sum across a vector.

namespace {

// Of S sequences end to end, which begin at begins (S + 1,): H query heads, G key and value heads. A key has d numbers
// of its own and R that all heads share (the rotary part of latent attention; 0 elsewhere), a value e. Keys and values of
// a token stand `token` floats apart, those of a head `head`.
struct Sequences {
    int64_t S, H, G, d, R, e, key_token, key_head, value_token, value_head;
    float scale;
    const int64_t* begins;
};

// 1 where query `first + lane` sees key `key`, else 0.
inline Vec sees(int64_t first, int64_t key) {
    Vec mask;
    for (int i = 0; i < W; ++i) mask[i] = first + i >= key ? 1.0f : 0.0f;
    return mask;
}

// st (L, ld), or += where `add`: the scores of keys by queries, key · queryᵀ, from the first vector that sees a key on;
// qt (width, ld) is queryᵀ, keys stand `step` apart.
void scores(int64_t L, int64_t ld, int64_t width, const float* keys, int64_t step, const float* qt, float* st, bool add) {
    for (int64_t j = 0; j < L; j += W)
        gemm(L - j < W ? L - j : W, round_up(L) - j, width, keys + j * step, step, 1, qt + j, ld, st + j * ld + j, ld, add);
}

// Make st the probabilities, e^(scale · score − lse). Where `lse` is not `known` it is written, (ld,).
void softmax(int64_t L, int64_t ld, float scale, float* st, float* lse, bool known) {
    for (int64_t c = 0; c < L; c += W) {
        const int64_t keys = L < c + W ? L : c + W;  // those that any of these queries sees
        Vec shift = load(lse + c);
        if (!known) {
            Vec most = load(st + c);
            for (int64_t j = 1; j < keys; ++j) {
                const Vec score = load(st + j * ld + c);
                const Vec seen = j <= c ? score : sees(c, j) > 0.5f ? score : most;
                most = seen > most ? seen : most;
            }
            shift = most * scale;
        }
        Vec total{};
        for (int64_t j = 0; j < keys; ++j) {
            Vec part = exp(load(st + j * ld + c) * scale - shift);
            if (j > c) part *= sees(c, j);
            total += part;
            store(st + j * ld + c, part);
        }
        if (known) continue;
        for (int i = 0; i < W; ++i) lse[c + i] = shift[i] + std::log(total[i]);
        for (int64_t j = 0; j < keys; ++j) store(st + j * ld + c, load(st + j * ld + c) / total);
    }
}

// Queries i, and keys j, see each other for j ≤ i only: no product runs over more.
// to (L, width) = stᵀ · rows, the sum of key rows for each query; and st · rows, the sum of query rows for each key.
void sum_keys(int64_t L, int64_t ld, int64_t width, const float* st, const float* rows, int64_t step, float* to, int64_t ldt) {
    for (int64_t i = 0; i < L; i += ROWS) {
        const int64_t count = L - i < ROWS ? L - i : ROWS;
        gemm(count, width, i + count, st + i, 1, ld, rows, step, to + i * ldt, ldt, false);
    }
}
void sum_queries(int64_t L, int64_t ld, int64_t width, const float* st, const float* rows, int64_t step, float* to, int64_t ldt,
                 bool add) {
    for (int64_t j = 0; j < L; j += ROWS) {
        const int64_t count = L - j < ROWS ? L - j : ROWS;
        gemm(count, width, L - j, st + j * ld + j, ld, 1, rows + j * step, step, to + j * ldt, ldt, add);
    }
}

}  // namespace

extern "C" {

// query (T, H, d + R), key, shared (T, R) and value -> out (T, H, e) and lse (H, T), the logarithm of each softmax's
// denominator.
void attention(int threads, const Sequences* of, const float* query, const float* key, const float* shared,
               const float* value, float* out, float* lse) {
    const int64_t S = of->S, H = of->H, G = of->G, d = of->d, R = of->R, e = of->e;
    const int64_t key_token = of->key_token, key_head = of->key_head;
    const int64_t value_token = of->value_token, value_head = of->value_head;
    const int64_t *begins = of->begins, T = begins[S], width = d + R;
    const float scale = of->scale;
#pragma omp parallel for num_threads(threads) collapse(2) schedule(dynamic, 4)
    for (int64_t s = 0; s < S; ++s)
        for (int64_t h = 0; h < H; ++h) {
            const int64_t begin = begins[s], L = begins[s + 1] - begin, ld = spread(L), g = h / (H / G);
            float *qt = scratch((width + L + 1) * ld), *st = qt + width * ld, *sums = st + L * ld;
            transpose(L, width, [&](int64_t r) { return query + ((begin + r) * H + h) * width; }, qt, ld, true);
            scores(L, ld, d, key + begin * key_token + g * key_head, key_token, qt, st, false);
            if (R > 0) scores(L, ld, R, shared + begin * R, R, qt + d * ld, st, true);
            softmax(L, ld, scale, st, sums, false);
            std::memcpy(lse + h * T + begin, sums, L * sizeof(float));
            sum_keys(L, ld, e, st, value + begin * value_token + g * value_head, value_token, out + (begin * H + h) * e,
                     H * e);
        }
}

// From dout (T, H, e) to dquery, dkey and dvalue, which stand as what they are gradients of, and the parts of each head
// in that of what all share, dshared (T, H, R); `lse` is that of the forward pass.
void attention_backward(int threads, const Sequences* of, const float* query, const float* key, const float* shared,
                        const float* value, const float* lse, const float* dout, float* dquery, float* dkey, float* dshared,
                        float* dvalue) {
    const int64_t S = of->S, H = of->H, G = of->G, d = of->d, R = of->R, e = of->e;
    const int64_t key_token = of->key_token, key_head = of->key_head;
    const int64_t value_token = of->value_token, value_head = of->value_head;
    const int64_t *begins = of->begins, T = begins[S], width = d + R;
    const float scale = of->scale;
#pragma omp parallel for num_threads(threads) collapse(2) schedule(dynamic, 4)
    for (int64_t s = 0; s < S; ++s)
        for (int64_t g = 0; g < G; ++g) {
            const int64_t begin = begins[s], L = begins[s + 1] - begin, ld = spread(L), first = g * (H / G);
            float *qt = scratch((width + e + 2 * L + 1) * ld), *gt = qt + width * ld, *st = gt + e * ld;
            float *dst = st + L * ld, *sums = dst + L * ld;
            const int64_t key_at = begin * key_token + g * key_head, value_at = begin * value_token + g * value_head;
            for (int64_t h = first; h < first + H / G; ++h) {
                const float *q = query + (begin * H + h) * width, *grad = dout + (begin * H + h) * e;
                float* dq = dquery + (begin * H + h) * width;
                transpose(L, width, [&](int64_t r) { return q + r * H * width; }, qt, ld, true);
                transpose(L, e, [&](int64_t r) { return grad + r * H * e; }, gt, ld, true);
                std::memset(sums, 0, ld * sizeof(float));
                std::memcpy(sums, lse + h * T + begin, L * sizeof(float));
                scores(L, ld, d, key + key_at, key_token, qt, st, false);
                if (R > 0) scores(L, ld, R, shared + begin * R, R, qt + d * ld, st, true);
                softmax(L, ld, scale, st, sums, true);
                scores(L, ld, e, value + value_at, value_token, gt, dst, false);  // the gradient of the probabilities
                for (int64_t c = 0; c < L; c += W) {  // and that of the scores, scale · p · (dp − Σ p·dp)
                    const int64_t keys = L < c + W ? L : c + W;
                    Vec mean{};
                    for (int64_t j = 0; j < keys; ++j) mean += load(st + j * ld + c) * load(dst + j * ld + c);
                    for (int64_t j = 0; j < keys; ++j)
                        store(dst + j * ld + c, load(st + j * ld + c) * (load(dst + j * ld + c) - mean) * scale);
                }
                sum_keys(L, ld, d, dst, key + key_at, key_token, dq, H * width);
                sum_queries(L, ld, d, dst, q, H * width, dkey + key_at, key_token, h > first);
                sum_queries(L, ld, e, st, grad, H * e, dvalue + value_at, value_token, h > first);
                if (R > 0) {
                    sum_keys(L, ld, R, dst, shared + begin * R, R, dq + d, H * width);
                    sum_queries(L, ld, R, dst, q + d, H * width, dshared + (begin * H + h) * R, H * R, false);
                }
            }
        }
}

}  // extern "C"

extern "C" {

// One query per row and head over the first lengths (B,) places of the row's cache: query (B, H, d), keys of width d and
// values of width e -> out (B, H, e). The cache of row b and key head g begins at b·row + g·head floats; places are
// `place` floats apart. Every row looks at one place at least.
void attention_over_cache(int threads, int64_t B, int64_t H, int64_t G, int64_t d, int64_t e, float scale, int64_t row,
                          int64_t head, int64_t place, const int64_t* lengths, const float* query, const float* keys,
                          const float* values, float* out) {
#pragma omp parallel for num_threads(threads) collapse(2) schedule(dynamic, 8)
    for (int64_t b = 0; b < B; ++b)
        for (int64_t g = 0; g < G; ++g) {
            const int64_t L = lengths[b], ld = round_up(L), shared = H / G;
            const float *k = keys + b * row + g * head, *v = values + b * row + g * head;
            float* p = scratch(shared * ld);
            for (int64_t h = 0; h < shared; ++h) {
                const float* q = query + (b * H + g * shared + h) * d;
                float* row_of_head = p + h * ld;
                Vec most = Vec{} - 3e38f;
                for (int64_t j = 0; j < L; j += W) {
                    const int places = static_cast<int>(L - j < W ? L - j : W);
                    Vec products[W] = {};  // of one place each; turned, their sum is the scores of W places
                    for (int i = 0; i < places; ++i)
                        for (int64_t c = 0; c < d; c += W) {
                            const int count = static_cast<int>(d - c < W ? d - c : W);
                            products[i] += load(q + c, count) * load(k + (j + i) * place + c, count);
                        }
                    swap_blocks<W / 2>(products, std::make_integer_sequence<int, W>());
                    Vec scores{};
                    for (int i = 0; i < W; ++i) scores += products[i];
                    store(row_of_head + j, scores * scale);
                    for (int i = places; i < W; ++i) row_of_head[j + i] = -3e38f;
                    const Vec seen = load(row_of_head + j);
                    most = seen > most ? seen : most;
                }
                const float top = largest(most);
                Vec total{};
                for (int64_t j = 0; j < ld; j += W) {
                    store(row_of_head + j, exp(load(row_of_head + j) - top));
                    total += load(row_of_head + j, static_cast<int>(L - j < W ? L - j : W));
                }
                const float norm = 1.0f / sum(total);
                for (int64_t j = 0; j < ld; j += W) store(row_of_head + j, load(row_of_head + j) * norm);
            }
            gemm(shared, e, L, p, ld, 1, v, place, out + (b * H + g * shared) * e, e, false);
        }
}

}  // extern "C"

// ------------------------------------------------------------------------------------------------ norms, rotations, choice of experts

extern "C" {

// y (T, D) = x · scale · weight with scale (T,) = 1 / sqrt(mean(x²) + eps); arXiv 1910.07467.
void rms_norm(int threads, int64_t T, int64_t D, float eps, const float* x, const float* weight, float* y, float* scale) {
#pragma omp parallel for num_threads(team(threads, T * D)) schedule(static)
    for (int64_t t = 0; t < T; ++t) {
        Vec squares{};
        for (int64_t c = 0; c < D; c += W) {
            const Vec v = load(x + t * D + c, static_cast<int>(D - c < W ? D - c : W));
            squares += v * v;
        }
        scale[t] = 1.0f / std::sqrt(sum(squares) / D + eps);
        for (int64_t c = 0; c < D; c += W) {
            const int count = static_cast<int>(D - c < W ? D - c : W);
            store(y + t * D + c, load(x + t * D + c, count) * scale[t] * load(weight + c, count), count);
        }
    }
}

// From dy (T, D) to dx (T, D) and partial sums of dweight, (ceil(T / 256), D), to be added up in order.
void rms_norm_backward(int threads, int64_t T, int64_t D, const float* x, const float* weight, const float* scale,
                       const float* dy, float* dx, float* dweight) {
#pragma omp parallel for num_threads(team(threads, T * D)) schedule(static)
    for (int64_t block = 0; block < (T + LONG - 1) / LONG; ++block) {
        float* partial = dweight + block * D;
        std::memset(partial, 0, D * sizeof(float));
        for (int64_t t = block * LONG; t < T && t < (block + 1) * LONG; ++t) {
            const float *row = x + t * D, *grad = dy + t * D;
            Vec along{};
            for (int64_t c = 0; c < D; c += W) {
                const int count = static_cast<int>(D - c < W ? D - c : W);
                const Vec product = load(row + c, count) * load(grad + c, count);
                along += product * load(weight + c, count);
                store(partial + c, load(partial + c, count) + product * scale[t], count);
            }
            // The gradient less its part along x.
            const float part = sum(along) * scale[t] * scale[t] * scale[t] / D;
            for (int64_t c = 0; c < D; c += W) {
                const int count = static_cast<int>(D - c < W ? D - c : W);
                const Vec straight = load(grad + c, count) * load(weight + c, count) * scale[t];
                store(dx + t * D + c, straight - load(row + c, count) * part, count);
            }
        }
    }
}

// y (T, H, d) = x with the last 2P numbers of each head turned pair by pair by turns (T, P), complex; forwards, or back
// where `back`. The two of a pair are neighbours if interleaved, else P apart.
void rotate(int threads, int64_t T, int64_t H, int64_t d, int64_t P, int64_t interleaved, int64_t back, const float* x,
            const float* turns, float* y) {
    const int64_t step = interleaved ? 2 : 1, apart = interleaved ? 1 : P;
    const float sign = back ? -1.0f : 1.0f;
#pragma omp parallel for num_threads(team(threads, T * H * d)) schedule(static)
    for (int64_t t = 0; t < T; ++t)
        for (int64_t h = 0; h < H; ++h) {
            const float* from = x + (t * H + h) * d;
            float* to = y + (t * H + h) * d;
            std::memcpy(to, from, (d - 2 * P) * sizeof(float));
            from += d - 2 * P, to += d - 2 * P;
            for (int64_t p = 0; p < P; ++p) {
                const float cos = turns[2 * (t * P + p)], sin = sign * turns[2 * (t * P + p) + 1];
                const float a = from[step * p], b = from[step * p + apart];
                to[step * p] = a * cos - b * sin;
                to[step * p + apart] = a * sin + b * cos;
            }
        }
}

// chosen (T, k): the experts with the largest scores (T, E) plus bias (E,) where there is one, best first, the first one
// of equals; among the `top_groups` of `groups` whose two best are worth most. E is at most 1024.
void choose_experts(int threads, int64_t T, int64_t E, int64_t k, int64_t groups, int64_t top_groups, const float* scores,
                    const float* bias, int64_t* chosen) {
    constexpr float NEVER = -3e38f;
#pragma omp parallel for num_threads(team(threads, T * E)) schedule(static)
    for (int64_t t = 0; t < T; ++t) {
        float row[1024], worth[1024];
        for (int64_t e = 0; e < E; ++e) row[e] = scores[t * E + e] + (bias != nullptr ? bias[e] : 0.0f);
        const int64_t size = E / groups;
        if (top_groups < groups) {
            for (int64_t g = 0; g < groups; ++g) {
                float first = NEVER, second = NEVER;
                for (int64_t e = g * size; e < (g + 1) * size; ++e)
                    if (row[e] > first) second = first, first = row[e];
                    else if (row[e] > second) second = row[e];
                worth[g] = first + second;
            }
            bool out[1024] = {};
            for (int64_t left = groups; left > top_groups; --left) {  // the worst group leaves, the last one of equals
                int64_t worst = -1;
                for (int64_t g = 0; g < groups; ++g)
                    if (!out[g] && (worst < 0 || !(worth[g] > worth[worst]))) worst = g;
                out[worst] = true;
                for (int64_t e = worst * size; e < (worst + 1) * size; ++e) row[e] = NEVER;
            }
        }
        for (int64_t e = E; e < round_up(E); ++e) row[e] = NEVER;
        for (int64_t j = 0; j < k; ++j) {
            Vec most = load(row);
            for (int64_t e = W; e < E; e += W) most = load(row + e) > most ? load(row + e) : most;
            const float top = largest(most);
            int64_t best = 0;
            while (best < E - 1 && row[best] != top) ++best;
            chosen[t * k + j] = best;
            row[best] = NEVER;
        }
    }
}

}  // extern "C"
