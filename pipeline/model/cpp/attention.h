// Attention: of many short sequences end to end, with its backward, and of one new token of each row over a cache.

#pragma once

#include "matrix.h"

// ------------------------------------------------------------------------------------------------------- attention
//
// Causal attention of one segment and one key head at a time, over its whole score matrix; for segments that are
// short enough for it to stay in the cache. Scores stand transposed, keys by queries: a vector then holds queries side by
// side, and the softmax needs no sum across a vector.
//
// A segment is a sequence, or a part of some: of a family of several segments the first is a trunk, and each of the others
// goes on from where the trunk ends. The queries of a branch see all P keys of the trunk and, of their own L, those up to
// themselves.

namespace {

// Of segments end to end, which begin at `begins`, in F families, which begin at the segments `families` (F + 1,): H query
// heads, G key and value heads. A key has d numbers of its own and R that all heads share (the rotary part of latent
// attention; 0 elsewhere), a value e. Keys and values of a token stand `token` floats apart, those of a head `head`.
struct Sequences {
    int64_t F, H, G, d, R, e, key_token, key_head, value_token, value_head;
    float scale;
    const int64_t *begins, *families;
};

// Where a segment of a family that begins with segment `first` lies: L tokens from `begin` on, behind P from `trunk` on.
struct Segment {
    int64_t trunk, P, begin, L, ld;
    Segment(const int64_t* begins, int64_t first, int64_t s)
        : trunk(begins[first]), P(s > first ? begins[first + 1] - trunk : 0), begin(begins[s]), L(begins[s + 1] - begin),
          ld(spread(L)) {}
};

// 1 where query `first + lane` sees key `key`, else 0.
inline Vec sees(int64_t first, int64_t key) {
    Vec mask;
    for (int i = 0; i < W; ++i) mask[i] = first + i >= key ? 1.0f : 0.0f;
    return mask;
}

// st (P + L, ld), or += where `add`: the scores of keys by queries, key · queryᵀ, among the own keys from the first vector
// that sees a key on; qt (width, ld) is queryᵀ. Token t's key stands at keys[t · step].
void scores(const Segment& own, int64_t width, const float* keys, int64_t step, const float* qt, float* st, bool add) {
    const int64_t P = own.P, L = own.L, ld = own.ld;
    if (P > 0) gemm(P, round_up(L), width, keys + own.trunk * step, step, 1, qt, ld, st, ld, add);
    for (int64_t j = 0; j < L; j += W)
        gemm(L - j < W ? L - j : W, round_up(L) - j, width, keys + (own.begin + j) * step, step, 1, qt + j, ld,
             st + (P + j) * ld + j, ld, add);
}

// Make st the probabilities, e^(scale · score − lse). Where `lse` is not `known` it is written, (ld,).
void softmax(const Segment& own, float scale, float* st, float* lse, bool known) {
    const int64_t P = own.P, L = own.L, ld = own.ld;
    for (int64_t c = 0; c < L; c += W) {
        const int64_t keys = P + (L < c + W ? L : c + W);  // those that any of these queries sees
        Vec shift = load(lse + c);
        if (!known) {
            Vec most = load(st + c);
            for (int64_t j = 1; j < keys; ++j) {
                const Vec score = load(st + j * ld + c);
                const Vec seen = j - P <= c ? score : sees(c, j - P) > 0.5f ? score : most;
                most = seen > most ? seen : most;
            }
            shift = most * scale;
        }
        Vec total{};
        for (int64_t j = 0; j < keys; ++j) {
            Vec part = exp(load(st + j * ld + c) * scale - shift);
            if (j - P > c) part *= sees(c, j - P);
            total += part;
            store(st + j * ld + c, part);
        }
        if (known) continue;
        for (int i = 0; i < W; ++i) lse[c + i] = shift[i] + std::log(total[i]);
        for (int64_t j = 0; j < keys; ++j) store(st + j * ld + c, load(st + j * ld + c) / total);
    }
}

// Queries i, and own keys j, see each other for j ≤ i only: no product runs over more.
// to = stᵀ · rows, the sum of key rows for each query; and st · rows, the sum of query rows for each key, which is added to
// what the trunk has. Token t's row stands at rows[t · step], its sum at to[t · ldt].
void sum_keys(const Segment& own, int64_t width, const float* st, const float* rows, int64_t step, float* to, int64_t ldt) {
    const int64_t P = own.P, L = own.L, ld = own.ld;
    to += own.begin * ldt;
    if (P > 0) gemm(L, width, P, st, 1, ld, rows + own.trunk * step, step, to, ldt, false);
    for (int64_t i = 0; i < L; i += ROWS) {
        const int64_t count = L - i < ROWS ? L - i : ROWS;
        gemm(count, width, i + count, st + P * ld + i, 1, ld, rows + own.begin * step, step, to + i * ldt, ldt, P > 0);
    }
}
void sum_queries(const Segment& own, int64_t width, const float* st, const float* rows, int64_t step, float* to, int64_t ldt,
                 bool add) {
    const int64_t P = own.P, L = own.L, ld = own.ld;
    rows += own.begin * step;
    if (P > 0) gemm(P, width, L, st, ld, 1, rows, step, to + own.trunk * ldt, ldt, true);
    for (int64_t j = 0; j < L; j += ROWS) {
        const int64_t count = L - j < ROWS ? L - j : ROWS;
        gemm(count, width, L - j, st + (P + j) * ld + j, ld, 1, rows + j * step, step, to + (own.begin + j) * ldt, ldt, add);
    }
}

}  // namespace

extern "C" {

// query (T, H, d + R), key, shared (T, R) and value -> out (T, H, e) and lse (H, T), the logarithm of each softmax's
// denominator.
void attention(int threads, const Sequences* of, const float* query, const float* key, const float* shared,
               const float* value, float* out, float* lse) {
    const int64_t F = of->F, H = of->H, G = of->G, d = of->d, R = of->R, e = of->e;
    const int64_t key_token = of->key_token, key_head = of->key_head;
    const int64_t value_token = of->value_token, value_head = of->value_head;
    const int64_t *begins = of->begins, *families = of->families, T = begins[families[F]], width = d + R;
    const float scale = of->scale;
#pragma omp parallel for num_threads(threads) collapse(2) schedule(dynamic, 4)
    for (int64_t f = 0; f < F; ++f)
        for (int64_t h = 0; h < H; ++h)
            for (int64_t s = families[f]; s < families[f + 1]; ++s) {
                const Segment own(begins, families[f], s);
                const int64_t begin = own.begin, L = own.L, ld = own.ld, g = h / (H / G);
                float *qt = scratch((width + own.P + L + 1) * ld), *st = qt + width * ld, *sums = st + (own.P + L) * ld;
                transpose(L, width, [&](int64_t r) { return query + ((begin + r) * H + h) * width; }, qt, ld, true);
                scores(own, d, key + g * key_head, key_token, qt, st, false);
                if (R > 0) scores(own, R, shared, R, qt + d * ld, st, true);
                softmax(own, scale, st, sums, false);
                std::memcpy(lse + h * T + begin, sums, L * sizeof(float));
                sum_keys(own, e, st, value + g * value_head, value_token, out + h * e, H * e);
            }
}

// From dout (T, H, e) to dquery, dkey and dvalue, which stand as what they are gradients of, and the parts of each head
// in that of what all share, dshared (T, H, R); `lse` is that of the forward pass. A family is the work of one thread, as
// its branches add to the gradients of its trunk.
void attention_backward(int threads, const Sequences* of, const float* query, const float* key, const float* shared,
                        const float* value, const float* lse, const float* dout, float* dquery, float* dkey, float* dshared,
                        float* dvalue) {
    const int64_t F = of->F, H = of->H, G = of->G, d = of->d, R = of->R, e = of->e;
    const int64_t key_token = of->key_token, key_head = of->key_head;
    const int64_t value_token = of->value_token, value_head = of->value_head;
    const int64_t *begins = of->begins, *families = of->families, T = begins[families[F]], width = d + R;
    const float scale = of->scale;
#pragma omp parallel for num_threads(threads) collapse(2) schedule(dynamic, 4)
    for (int64_t f = 0; f < F; ++f)
        for (int64_t g = 0; g < G; ++g)
            for (int64_t s = families[f]; s < families[f + 1]; ++s) {
                const Segment own(begins, families[f], s);
                const int64_t begin = own.begin, P = own.P, L = own.L, ld = own.ld, first = g * (H / G);
                float *qt = scratch((width + e + 2 * (P + L) + 1) * ld), *gt = qt + width * ld, *st = gt + e * ld;
                float *dst = st + (P + L) * ld, *sums = dst + (P + L) * ld;
                const int64_t key_at = g * key_head, value_at = g * value_head;
                for (int64_t h = first; h < first + H / G; ++h) {
                    const float *q = query + h * width, *grad = dout + h * e;
                    transpose(L, width, [&](int64_t r) { return q + (begin + r) * H * width; }, qt, ld, true);
                    transpose(L, e, [&](int64_t r) { return grad + (begin + r) * H * e; }, gt, ld, true);
                    std::memset(sums, 0, ld * sizeof(float));
                    std::memcpy(sums, lse + h * T + begin, L * sizeof(float));
                    scores(own, d, key + key_at, key_token, qt, st, false);
                    if (R > 0) scores(own, R, shared, R, qt + d * ld, st, true);
                    softmax(own, scale, st, sums, true);
                    scores(own, e, value + value_at, value_token, gt, dst, false);  // the gradient of the probabilities
                    for (int64_t c = 0; c < L; c += W) {  // and that of the scores, scale · p · (dp − Σ p·dp)
                        const int64_t keys = P + (L < c + W ? L : c + W);
                        Vec mean{};
                        for (int64_t j = 0; j < keys; ++j) mean += load(st + j * ld + c) * load(dst + j * ld + c);
                        for (int64_t j = 0; j < keys; ++j)
                            store(dst + j * ld + c, load(st + j * ld + c) * (load(dst + j * ld + c) - mean) * scale);
                    }
                    sum_keys(own, d, dst, key + key_at, key_token, dquery + h * width, H * width);
                    sum_queries(own, d, dst, q, H * width, dkey + key_at, key_token, h > first);
                    sum_queries(own, e, st, grad, H * e, dvalue + value_at, value_token, h > first);
                    if (R > 0) {
                        sum_keys(own, R, dst, shared, R, dquery + h * width + d, H * width);
                        sum_queries(own, R, dst, q + d, H * width, dshared + h * R, H * R, false);
                    }
                }
            }
}

}  // extern "C"

// ------------------------------------------------------------------------------------------------ attention over a cache

namespace {

constexpr float UNSEEN = -3e38f;

// p (HEADS, ld), the first `places` of PLACES columns: the scaled products of queries (HEADS, d) with keys `place` apart.
// All of a block are computed at once, as keys are loaded once for all heads, and W sums made of W vectors in one go.
template <int HEADS>
void score_block(int64_t places, int64_t d, float scale, int64_t place, const float* query, const float* k, float* p,
                 int64_t ld) {
    constexpr int PLACES = W / HEADS;
    Vec products[W] = {};  // of head h and place i at h · PLACES + i
    const auto add = [&](int64_t c, int count) {
        Vec q[HEADS];
        for (int h = 0; h < HEADS; ++h) q[h] = load(query + h * d + c, count);
        for (int i = 0; i < PLACES; ++i) {
            const Vec key = load(k + (i < places ? i : places - 1) * place + c, count);
            for (int h = 0; h < HEADS; ++h) products[h * PLACES + i] += q[h] * key;
        }
    };
    const int64_t whole = d / W * W;
    for (int64_t c = 0; c < whole; c += W) add(c, W);
    if (whole < d) add(whole, static_cast<int>(d - whole));
    float scores[W];
    store(scores, sums<W / 2>(products, std::make_integer_sequence<int, W>()) * scale);
    for (int h = 0; h < HEADS; ++h) {
        std::memcpy(p + h * ld, scores + h * PLACES, PLACES * sizeof(float));
        for (int64_t i = places; i < PLACES; ++i) p[h * ld + i] = UNSEEN;
    }
}

template <int HEADS>
void score_blocks(int64_t L, int64_t d, float scale, int64_t place, const float* query, const float* k, float* p, int64_t ld) {
    for (int64_t j = 0; j < ld; j += W / HEADS)
        if (j < L)
            score_block<HEADS>(std::min<int64_t>(W / HEADS, L - j), d, scale, place, query, k + j * place, p + j, ld);
        else
            for (int h = 0; h < HEADS; ++h) std::fill_n(p + h * ld + j, W / HEADS, UNSEEN);
}

// The queries (shared, d) of one row that share a key head, over the first L places, `place` floats apart, of its keys k
// and values v -> out (shared, e).
void attend(int64_t L, int64_t shared, int64_t d, int64_t e, float scale, int64_t place, const float* query, const float* k,
            const float* v, float* out) {
    const int64_t ld = round_up(L);
    float* p = scratch(shared * ld);
    fetch(k, L * place);
    if (v != k) fetch(v, L * place);
    int64_t first = 0;
    for (; first + 4 <= shared; first += 4) score_blocks<4>(L, d, scale, place, query + first * d, k, p + first * ld, ld);
    for (; first < shared; ++first) score_blocks<1>(L, d, scale, place, query + first * d, k, p + first * ld, ld);
    for (int64_t h = 0; h < shared; ++h) {
        float* row_of_head = p + h * ld;
        Vec most = load(row_of_head);
        for (int64_t j = W; j < ld; j += W) most = load(row_of_head + j) > most ? load(row_of_head + j) : most;
        const float top = largest(most);
        Vec total{};
        for (int64_t j = 0; j < ld; j += W) {
            store(row_of_head + j, exp(load(row_of_head + j) - top));
            total += load(row_of_head + j, static_cast<int>(L - j < W ? L - j : W));
        }
        const float norm = 1.0f / sum(total);
        for (int64_t j = 0; j < ld; j += W) store(row_of_head + j, load(row_of_head + j) * norm);
    }
    gemm(shared, e, L, p, ld, 1, v, place, out, e, false);
}

}  // namespace

extern "C" {

// One query per row and head over the first lengths (B,) places of the row's cache: query (B, H, d), keys of width d and
// values of width e -> out (B, H, e). The cache of row b and key head g begins at b·row + g·head floats; places are
// `place` floats apart. Every row looks at one place at least.
void attention_over_cache(int threads, int64_t B, int64_t H, int64_t G, int64_t d, int64_t e, float scale, int64_t row,
                          int64_t head, int64_t place, const int64_t* lengths, const float* query, const float* keys,
                          const float* values, float* out) {
    const int64_t shared = H / G;
#pragma omp parallel for num_threads(threads) collapse(2) schedule(dynamic, 8)
    for (int64_t b = 0; b < B; ++b)
        for (int64_t g = 0; g < G; ++g) {
            const int64_t first = b * H + g * shared, at = b * row + g * head;
            attend(lengths[b], shared, d, e, scale, place, query + first * d, keys + at, values + at, out + first * e);
        }
}

}  // extern "C"
