// A decoding step: one more token of each row of a cache through the whole decoder, in one call.
//
// The decoder's text is decoder.py and layers.py; this is the same for few tokens, where starting an operation costs more
// than what it computes. Tokens stand side by side, a column each, in matrices (numbers, ld): matrices of weights are
// then broadcast as they lie in memory, and norms, rotations and activations work on a vector of tokens at a time. A
// thread owns some of the columns from the embedding to the logits; all meet for the experts alone. A token's sums do not
// depend on what stands beside it, so its bits are the same in any company. In bfloat16 (`Pairs`) are the products that are
// so in training: the router's, attention's over the cache and the logits are not.
// Shapes: B rows, T = B tokens, d query width of which R turn, e value width, C width of a latent, P = R / 2 pairs.

#pragma once

#include <omp.h>

#include "attention.h"
#include "dense.h"
#include "experts.h"
#include "matrix.h"

namespace {

// The structures of decoding.py, which fills them in. What a model does not have is null, or of size 0.
struct Product {
    const float *weight, *bias;  // (out, in), (out,)
    int64_t out, in;
};
struct Norm {
    const float* weight;
    int64_t size;
    float eps;
};
struct Layer {
    Norm before_attention, before_feed_forward;
    // Of latent attention `key` makes [latent | rotary], `value` expands the latent to each head's [key | value], and the
    // norms are those of the compressed query (if it is) and of the latent; elsewhere of each head's query and key.
    Product query_down, query, key, value, output;
    Norm query_norm, key_norm;
    Product gate_up, down;  // of all tokens: the dense feed-forward, or the shared expert
    Product router;
    const float* balance;
    Matrices experts_gate_up, experts_down;
    float *keys, *values;  // this layer of the cache
};
struct Decoder {
    const Layer* layers;
    int64_t count, V, D, H, G, d, R, e, C, interleaved;
    float scale;
    int64_t E, k, I, groups, top_groups, softmax, normalised;
    float routed_scale;
    const float* embedding;  // (V, D)
    Norm norm;
    Product unembedding;
    const float* turns;              // (positions, P) complex
    int64_t row, head, place, most;  // floats from one to the next in the cache; the most rows of any matrix below
};

// Columns of one thread: the tokens [first, first + tokens) in `width` columns, whole vectors.
struct Columns {
    int64_t first, tokens, width, ld;
    const float* of(const float* matrix) const { return matrix + first; }
    float* of(float* matrix) const { return matrix + first; }
};

template <typename F>
inline void each(const Columns& own, int64_t rows, F f) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < own.width; c += W) f(r, r * own.ld + own.first + c);
}

template <typename Term>
void product(const Columns& own, const Product& p, const float* in, float* out, bool add) {
    if (p.bias != nullptr) each(own, p.out, [&](int64_t r, int64_t at) {
        store(out + at, (add ? load(out + at) : Vec{}) + p.bias[r]);
    });
    const Operand a = Term::template along<FIRST>(p.out, p.in, p.weight, p.in);
    const Operand b = Term::template across<SECOND>(p.in, own.width, own.of(in), own.ld);
    gemm<Term>(p.out, own.width, Term::count(p.in), a.terms, a.step, 1, b.terms, b.step, own.of(out), own.ld,
                      add || p.bias != nullptr);
}

void norm(const Columns& own, const Norm& n, const float* in, float* out) {
    for (int64_t c = own.first; c < own.first + own.width; c += W) {
        Vec squares{};
        for (int64_t r = 0; r < n.size; ++r) squares += load(in + r * own.ld + c) * load(in + r * own.ld + c);
        float roots[W];
        store(roots, squares / static_cast<float>(n.size) + n.eps);
        for (int i = 0; i < W; ++i) roots[i] = std::sqrt(roots[i]);
        const Vec scale = 1.0f / load(roots);
        for (int64_t r = 0; r < n.size; ++r) store(out + r * own.ld + c, load(in + r * own.ld + c) * scale * n.weight[r]);
    }
}

// The last R of each head's `width` rows.
void rotate(const Columns& own, const Decoder& of, int64_t heads, int64_t width, const float* cos, const float* sin, float* x) {
    const int64_t P = of.R / 2, step = of.interleaved ? 2 : 1, apart = of.interleaved ? 1 : P;
    for (int64_t h = 0; h < heads; ++h) {
        float* rotary = x + (h * width + width - of.R) * own.ld;
        each(own, P, [&](int64_t p, int64_t at) {
            float* first = rotary + (step * p - p) * own.ld + at;
            float* second = first + apart * own.ld;
            const Vec a = load(first), b = load(second);
            store(first, a * load(cos + at) - b * load(sin + at));
            store(second, a * load(sin + at) + b * load(cos + at));
        });
    }
}

// A thread's columns of a matrix (rows, ld) as (tokens, rows), and back.
void to_rows(const Columns& own, int64_t rows, const float* matrix, float* out) {
    transpose(rows, own.tokens, [&](int64_t r) { return own.of(matrix) + r * own.ld; }, out, rows, false);
}
void to_columns(const Columns& own, int64_t rows, const float* in, float* matrix) {
    transpose(own.tokens, rows, [&](int64_t t) { return in + t * rows; }, own.of(matrix), own.ld, true);
}

// A thread's new keys or values (tokens, heads · width) into the cache, and what its queries (tokens, H · d) attend to,
// (tokens, H · e).
void remember(const Columns& own, const Decoder& of, int64_t heads, int64_t width, const int64_t* lengths, const float* rows,
              float* cache) {
    for (int64_t t = 0; t < own.tokens; ++t)
        for (int64_t g = 0; g < heads; ++g)
            std::memcpy(cache + (own.first + t) * of.row + g * of.head + lengths[own.first + t] * of.place,
                        rows + (t * heads + g) * width, width * sizeof(float));
}
void recall(const Columns& own, const Decoder& of, int64_t groups, int64_t d, int64_t e, const int64_t* lengths,
            const float* query, const float* keys, const float* values, float* out) {
    const int64_t shared = of.H / groups;
    for (int64_t t = 0; t < own.tokens; ++t)
        for (int64_t g = 0; g < groups; ++g) {
            const int64_t b = own.first + t, first = t * of.H + g * shared, at = b * of.row + g * of.head;
            attend(lengths[b] + 1, shared, d, e, of.scale, of.place, query + first * d, keys + at, values + at, out + first * e);
        }
}

// What one step works in. x is the residual stream, normed its norm, a to c whatever comes.
struct Space {
    float *x, *normed, *a, *b, *c, *cos, *sin;       // columns of all threads
    float *rows_a, *rows_b;                          // (tokens, whatever comes), a thread's own
    float *expert_input, *weights, *expert_rows;     // (B, D), (B, k), (B · k, D)
    int64_t *order, *slots, *starts;                 // as `plan` leaves them
};

template <typename Term>
void latent_attention(const Columns& own, const Decoder& of, const Layer& layer, const int64_t* lengths, const Space& s) {
    const int64_t plain = of.d - of.R, C = of.C, cached = C + of.R, ld = own.ld;
    float *query = s.a, *latent = s.b;
    if (layer.query_down.out > 0) {
        product<Term>(own, layer.query_down, s.normed, s.b, false);
        norm(own, layer.query_norm, s.b, s.b);
        product<Term>(own, layer.query, s.b, query, false);
    } else {
        product<Term>(own, layer.query, s.normed, query, false);
    }
    rotate(own, of, of.H, of.d, s.cos, s.sin, query);
    product<Term>(own, layer.key, s.normed, latent, false);
    norm(own, layer.key_norm, latent, latent);
    rotate(own, of, 1, cached, s.cos, s.sin, latent);
    to_rows(own, cached, latent, s.rows_a);
    remember(own, of, 1, cached, lengths, s.rows_a, layer.keys);
    for (int64_t h = 0; h < of.H; ++h) {  // queries into the space of the latents
        const float* up_key = layer.value.weight + h * (plain + of.e) * C;  // (plain, C)
        float* to = s.c + h * cached * ld;
        gemm(C, own.width, plain, up_key, 1, C, own.of(query + h * of.d * ld), ld, own.of(to), ld, false);
        each(own, of.R, [&](int64_t, int64_t at) { store(to + C * ld + at, load(query + (h * of.d + plain) * ld + at)); });
    }
    to_rows(own, of.H * cached, s.c, s.rows_a);
    recall(own, of, 1, cached, C, lengths, s.rows_a, layer.keys, layer.keys, s.rows_b);
    to_columns(own, of.H * C, s.rows_b, s.c);
    for (int64_t h = 0; h < of.H; ++h) {  // mixed latents into values
        const float* up_value = layer.value.weight + (h * (plain + of.e) + plain) * C;  // (e, C)
        gemm(of.e, own.width, C, up_value, C, 1, own.of(s.c + h * C * ld), ld, own.of(s.a + h * of.e * ld), ld, false);
    }
    product<Term>(own, layer.output, s.a, s.x, true);
}

template <typename Term>
void grouped_attention(const Columns& own, const Decoder& of, const Layer& layer, const int64_t* lengths, const Space& s) {
    float *query = s.a, *key = s.b, *value = s.c;
    product<Term>(own, layer.query, s.normed, query, false);
    product<Term>(own, layer.key, s.normed, key, false);
    product<Term>(own, layer.value, s.normed, value, false);
    const auto turned = [&](int64_t heads, const Norm& of_head, float* x) {
        for (int64_t h = 0; h < heads && of_head.size > 0; ++h) norm(own, of_head, x + h * of.d * own.ld, x + h * of.d * own.ld);
        rotate(own, of, heads, of.d, s.cos, s.sin, x);
    };
    turned(of.H, layer.query_norm, query);
    turned(of.G, layer.key_norm, key);
    to_rows(own, of.G * of.d, key, s.rows_a);
    remember(own, of, of.G, of.d, lengths, s.rows_a, layer.keys);
    to_rows(own, of.G * of.e, value, s.rows_a);
    remember(own, of, of.G, of.e, lengths, s.rows_a, layer.values);
    to_rows(own, of.H * of.d, query, s.rows_a);
    recall(own, of, of.G, of.d, of.e, lengths, s.rows_a, layer.keys, layer.values, s.rows_b);
    to_columns(own, of.H * of.e, s.rows_b, s.a);
    product<Term>(own, layer.output, s.a, s.x, true);
}

template <typename Term>
void feed_forward(const Columns& own, const Layer& layer, const Space& s) {
    const int64_t I = layer.down.in;
    product<Term>(own, layer.gate_up, s.normed, s.a, false);
    each(own, I, [&](int64_t, int64_t at) { store(s.a + at, swiglu(load(s.a + at), load(s.a + I * own.ld + at))); });
    product<Term>(own, layer.down, s.a, s.x, true);
}

// Scores (E, ld), each token's choice and its weights, and the tokens as rows for the experts.
void route(const Columns& own, const Decoder& of, const Layer& layer, const Space& s, int64_t* chosen) {
    const int64_t E = of.E, k = of.k;
    product<Single>(own, layer.router, s.normed, s.a, false);
    if (of.softmax) {
        for (int64_t c = own.first; c < own.first + own.width; c += W) {
            Vec most = load(s.a + c), total{};
            for (int64_t e = 1; e < E; ++e) most = load(s.a + e * own.ld + c) > most ? load(s.a + e * own.ld + c) : most;
            for (int64_t e = 0; e < E; ++e) {
                const Vec part = exp(load(s.a + e * own.ld + c) - most);
                total += part;
                store(s.a + e * own.ld + c, part);
            }
            for (int64_t e = 0; e < E; ++e) store(s.a + e * own.ld + c, load(s.a + e * own.ld + c) / total);
        }
    } else {
        each(own, E, [&](int64_t, int64_t at) { store(s.a + at, sigmoid(load(s.a + at))); });
    }
    to_rows(own, E, s.a, s.rows_a);
    for (int64_t b = own.first; b < own.first + own.tokens; ++b) {
        const float* scores = s.rows_a + (b - own.first) * E;
        choose(E, k, of.groups, of.top_groups, scores, layer.balance, chosen + b * k);
        float total = 0.0f;
        for (int64_t j = 0; j < k; ++j) total += scores[chosen[b * k + j]];
        for (int64_t j = 0; j < k; ++j)
            s.weights[b * k + j] = scores[chosen[b * k + j]] / (of.normalised ? total + 1e-20f : 1.0f) * of.routed_scale;
    }
    to_rows(own, of.D, s.normed, s.expert_input + own.first * of.D);
}

// x += the sum of each token's expert rows.
void add_choices(const Columns& own, const Decoder& of, const Space& s) {
    const int64_t D = of.D, k = of.k;
    for (int64_t t = 0; t < own.tokens; ++t)
        for (int64_t c = 0; c < D; c += W) {
            const int count = static_cast<int>(D - c < W ? D - c : W);
            Vec total{};
            for (int64_t j = 0; j < k; ++j) total += load(s.expert_rows + s.slots[(own.first + t) * k + j] * D + c, count);
            store(s.rows_b + t * D + c, total, count);
        }
    to_columns(own, D, s.rows_b, s.a);
    each(own, D, [&](int64_t, int64_t at) { store(s.x + at, load(s.x + at) + load(s.a + at)); });
}

void begin(const Columns& own, const Decoder& of, const int64_t* tokens, const int64_t* lengths, const Space& s) {
    const int64_t P = of.R / 2;
    transpose(own.tokens, of.D, [&](int64_t t) { return of.embedding + tokens[own.first + t] * of.D; }, own.of(s.x), own.ld, true);
    for (int64_t c = own.first; c < own.first + own.width; ++c)
        for (int64_t p = 0; p < P; ++p) {
            const float* turn = of.turns + 2 * (c < own.first + own.tokens ? lengths[c] * P + p : 0);
            s.cos[p * own.ld + c] = turn[0], s.sin[p * own.ld + c] = turn[1];
        }
}

Space space_of(const Decoder& of, int64_t B, int64_t ld) {
    const int64_t choices = B * of.k, whole[] = {of.D, of.D, of.most, of.most, of.most, of.R / 2, of.R / 2};
    int64_t floats = 2 * B * of.most + B * of.D + choices * (of.D + 1), integers = 2 * choices + of.E + 2;
    for (const int64_t rows : whole) floats += rows * ld;
    float* next = scratch<STEP>(floats + 2 * integers);
    const auto take = [&](int64_t size) { return std::exchange(next, next + size); };
    Space s;
    float** columns[] = {&s.x, &s.normed, &s.a, &s.b, &s.c, &s.cos, &s.sin};
    for (int i = 0; i < 7; ++i) *columns[i] = take(whole[i] * ld);
    s.order = reinterpret_cast<int64_t*>(take(2 * choices));
    s.slots = reinterpret_cast<int64_t*>(take(2 * choices));
    s.starts = reinterpret_cast<int64_t*>(take(2 * (of.E + 2)));
    s.rows_a = take(B * of.most), s.rows_b = take(B * of.most);
    s.expert_input = take(B * of.D), s.weights = take(choices), s.expert_rows = take(choices * of.D);
    return s;
}

// As `decode`.
template <typename Term>
void decode_rows(int threads, const Decoder& of, int64_t B, const int64_t* tokens, const int64_t* lengths, int64_t* chosen,
                 float* logits) {
    const int64_t vectors = (B + W - 1) / W, ld = spread(B);
    const Space space = space_of(of, B, ld);
#pragma omp parallel num_threads(threads)
    {
        const int64_t team = omp_get_num_threads(), me = omp_get_thread_num();
        const int64_t first = vectors * me / team * W, width = vectors * (me + 1) / team * W - first;
        const Columns own = {first, std::min(width, B - first), width, ld};
        Space s = space;
        s.rows_a += first * of.most, s.rows_b += first * of.most;
        int64_t* choice = chosen;
        if (width > 0) begin(own, of, tokens, lengths, s);
        for (const Layer* layer = of.layers; layer < of.layers + of.count; ++layer) {
            const bool sparse = layer->router.out > 0;
            if (width > 0) {
                norm(own, layer->before_attention, s.x, s.normed);
                (of.C > 0 ? latent_attention<Term> : grouped_attention<Term>)(own, of, *layer, lengths, s);
                norm(own, layer->before_feed_forward, s.x, s.normed);
                if (sparse) route(own, of, *layer, s, choice);
                if (layer->gate_up.out > 0) feed_forward<Term>(own, *layer, s);
            }
            if (!sparse) continue;
#pragma omp barrier
#pragma omp single
            plan(B * of.k, of.E, choice, s.order, s.slots, s.starts);
            run_experts<Term>(of.k, of.D, of.I, of.E, s.expert_input, layer->experts_gate_up, layer->experts_down, s.weights, s.order,
                        s.starts, nullptr, s.expert_rows);
            if (width > 0) add_choices(own, of, s);
            choice += B * of.k;
        }
        if (width > 0) {
            norm(own, of.norm, s.x, s.normed);
            for (int64_t v = 0; v < of.V; v += of.most) {  // as many logits at a time as there is room for
                const int64_t count = std::min(of.most, of.V - v);
                product<Single>(own, {of.unembedding.weight + v * of.D, nullptr, count, of.D}, s.normed, s.a, false);
                transpose(count, own.tokens, [&](int64_t r) { return own.of(s.a) + r * ld; }, logits + first * of.V + v, of.V, false);
            }
        }
    }
}

}  // namespace

extern "C" {

// tokens (B,) drawn at temperatures (B,) from logits (B, V), the first whose cumulative probability exceeds `uniform`
// (B,), or the likeliest where the temperature is 0; and their log-probabilities, at temperature 1 in that case.
void draw(int threads, int64_t B, int64_t V, const float* logits, const double* uniform, const double* temperatures,
          int64_t* tokens, float* log_probabilities) {
#pragma omp parallel for num_threads(team(threads, B * V)) schedule(static)
    for (int64_t b = 0; b < B; ++b) {
        const float* row = logits + b * V;
        const float temperature = temperatures[b] > 0 ? static_cast<float>(temperatures[b]) : 1.0f;
        const int64_t likeliest = std::max_element(row, row + V) - row;
        const float most = row[likeliest] / temperature;
        float* parts = scratch(round_up(V));
        for (int64_t v = 0; v < V; v += W) {
            const Vec below = load(row + v, static_cast<int>(V - v < W ? V - v : W)) / temperature - most;
            store(parts + v, below < -87.0f ? Vec{} : exp(below));
        }
        double total = 0, sum = 0;  // in float the last bits would move tokens near a boundary
        for (int64_t v = 0; v < V; ++v) total += parts[v];
        int64_t token = likeliest;
        if (temperatures[b] > 0)
            for (token = 0; token < V - 1; ++token) {
                sum += parts[token];
                if (sum > uniform[b] * total || sum >= total) break;  // rounding can make the target the whole
            }
        tokens[b] = token;
        log_probabilities[b] = static_cast<float>(row[token] / temperature - most - std::log(total));
    }
}

// tokens (B,), of which row b is the next after lengths[b] that the cache holds -> logits (B, V) and, of the mixture
// layers in order, chosen (layers, B, k). The cache takes the token's key and value in.
// Products are of float32, or where `pairs` of bfloat16.
void decode(int threads, int64_t pairs, const Decoder* decoder, int64_t B, const int64_t* tokens, const int64_t* lengths,
            int64_t* chosen, float* logits) {
    (pairs ? decode_rows<Pairs> : decode_rows<Single>)(threads, *decoder, B, tokens, lengths, chosen, logits);
}

}  // extern "C"
