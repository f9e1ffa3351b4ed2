// Mixture of experts: each token's choice, and the products of all experts of a layer with the tokens that chose them.

#pragma once

#include "dense.h"
#include "matrix.h"

namespace {

// The k experts of one token with scores (E,), as `choose_experts` says.
void choose(int64_t E, int64_t k, int64_t groups, int64_t top_groups, const float* scores, const float* bias, int64_t* chosen) {
    constexpr float NEVER = -3e38f;
    float row[1024], worth[1024];
    for (int64_t e = 0; e < E; ++e) row[e] = scores[e] + (bias != nullptr ? bias[e] : 0.0f);
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
        chosen[j] = best;
        row[best] = NEVER;
    }
}

}  // namespace

extern "C" {

// chosen (T, k): the experts with the largest scores (T, E) plus bias (E,) where there is one, best first, the first one
// of equals; among the `top_groups` of `groups` whose two best are worth most. E is at most 1024.
void choose_experts(int threads, int64_t T, int64_t E, int64_t k, int64_t groups, int64_t top_groups, const float* scores,
                    const float* bias, int64_t* chosen) {
#pragma omp parallel for num_threads(team(threads, T * E)) schedule(static)
    for (int64_t t = 0; t < T; ++t) choose(E, k, groups, top_groups, scores + t * E, bias, chosen + t * k);
}

}  // extern "C"

// --------------------------------------------------------------------------------------------------------- experts
//
// The tokens of an expert are handled in chunks, and inside a chunk tokens stand side by side (transposed), so that the
// expert's matrices can be broadcast as they lie in memory, without a copy.

namespace {

constexpr int64_t CHUNK = 96;  // tokens of one expert at a time; a multiple of W

// The columns of `saved` that n tokens of an expert take, and where each expert's begin, (E + 1,).
int64_t columns(int64_t n) { return n / CHUNK * spread(CHUNK) + (n % CHUNK > 0 ? spread(n % CHUNK) : 0); }
std::vector<int64_t> columns_before(int64_t E, const int64_t* starts) {
    std::vector<int64_t> before(E + 1, 0);
    for (int64_t e = 0; e < E; ++e) before[e + 1] = before[e] + columns(starts[e + 1] - starts[e]);
    return before;
}

// out (T, D): the sum of each token's k rows (T·k, D), which stand at `slots` (T, k), and of `base` (T, D) if it is not null.
void sum_over_choices(int64_t T, int64_t k, int64_t D, const float* rows, const int64_t* slots, const float* base, float* out) {
#pragma omp for schedule(static)
    for (int64_t t = 0; t < T; ++t)
        for (int64_t d = 0; d < D; d += W) {
            const int count = static_cast<int>(D - d < W ? D - d : W);
            Vec total = load(rows + slots[t * k] * D + d, count);
            for (int64_t j = 1; j < k; ++j) total += load(rows + slots[t * k + j] * D + d, count);
            if (base != nullptr) total += load(base + t * D + d, count);
            store(out + t * D + d, total, count);
        }
}

void plan(int64_t N, int64_t E, const int64_t* chosen, int64_t* order, int64_t* slots, int64_t* starts) {
    std::memset(starts, 0, (E + 1) * sizeof(int64_t));
    for (int64_t n = 0; n < N; ++n) ++starts[chosen[n] + 1];
    for (int64_t e = 0; e < E; ++e) starts[e + 1] += starts[e];
    std::vector<int64_t> next(starts, starts + E);
    for (int64_t n = 0; n < N; ++n) order[slots[n] = next[chosen[n]]++] = n;
    starts[E + 1] = columns_before(E, starts)[E];
}

// One matrix (rows, columns) of every expert of a layer, as dispatch.py describes it: one behind the other at `fused`, or
// each where `places` says; with `scales`, one for every row, its numbers are bytes, 128 above an int8. `pairs` has them
// all as terms of products as well, or is null.
struct Matrices {
    const float* fused;
    const void* const* places;
    const float* const* scales;
    const float* pairs;
    // The numbers of expert e; bytes are unpacked into `space`.
    const float* of(int64_t e, int64_t rows, int64_t columns, float* space) const {
        if (places == nullptr) return fused + e * rows * columns;
        if (scales == nullptr) return static_cast<const float*>(places[e]);
        const uint8_t* from = static_cast<const uint8_t*>(places[e]);
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t c = 0; c < columns; ++c)
                space[r * columns + c] = static_cast<float>(from[r * columns + c] - 128) * scales[e][r];
        return space;
    }
    // The same as the left operand of a product, in the cache.
    template <typename Term, int KIND>
    Operand along(int64_t e, int64_t rows, int64_t columns) const {
        const int64_t terms = Term::count(columns);
        if (std::is_same_v<Term, Pairs> && pairs != nullptr) {
            fetch(pairs + e * rows * terms, rows * terms);
            return {pairs + e * rows * terms, terms};
        }
        float* space = scales != nullptr ? scratch<UNPACKED + KIND>(rows * columns) : nullptr;
        const float* numbers = of(e, rows, columns, space);
        fetch(numbers, rows * columns);
        return Term::template along<KIND>(rows, columns, numbers, columns);
    }
};

// rows (N, D), the outputs of sorted choices times their weights; called by all threads of a team.
template <typename Term>
void run_experts(int64_t k, int64_t D, int64_t I, int64_t E, const float* x, const Matrices& gate_up, const Matrices& down,
                 const float* weights, const int64_t* order, const int64_t* starts, float* saved, float* rows) {
    const std::vector<int64_t> before = columns_before(E, starts);
#pragma omp for schedule(dynamic, 2)
    for (int64_t e = 0; e < E; ++e) {
        if (starts[e] == starts[e + 1]) continue;
        const Operand up = gate_up.along<Term, FIRST>(e, 2 * I, D), back = down.along<Term, SECOND>(e, D, I);
        for (int64_t at = starts[e], saved_at = before[e]; at < starts[e + 1]; at += CHUNK, saved_at += spread(CHUNK)) {
            const int64_t n = std::min(CHUNK, starts[e + 1] - at), N = round_up(n, W / 2), ld = spread(n);
            float* xt = scratch((D + I + D + 2 * I) * ld);  // (D, n)
            float *ht = xt + D * ld, *outt = ht + I * ld;
            float* gut = saved == nullptr ? outt + D * ld : saved + 2 * I * saved_at;  // (2I, n)
            const int64_t* choice = order + at;
            transpose<Term>(n, D, [&](int64_t r) { return x + choice[r] / k * D; }, xt, ld, true);
            gemm<Term>(2 * I, N, Term::count(D), up.terms, up.step, 1, xt, ld, gut, ld, false);
            float weight[CHUNK] = {};
            for (int64_t r = 0; r < n; ++r) weight[r] = weights[choice[r]];
            for (int64_t i = 0; i < I; ++i)
                for (int64_t r = 0; r < N; r += W)
                    store(ht + i * ld + r, swiglu(load(gut + i * ld + r), load(gut + (I + i) * ld + r)) * load(weight + r));
            const Operand h = Term::template across<THIRD>(I, N, ht, ld);
            gemm<Term>(D, N, Term::count(I), back.terms, back.step, 1, h.terms, h.step, outt, ld, false);
            transpose(D, n, [&](int64_t r) { return outt + r * ld; }, rows + at * D, D, false);
        }
    }
}

// As `experts_backward`, without the sum over each token's choices; called by all threads of a team.
template <typename Term>
void run_experts_backward(int64_t k, int64_t D, int64_t I, int64_t E, const float* x, const float* gate_up,
                          const float* down, const float* weights, const int64_t* order, const int64_t* starts,
                          const float* saved, float* rows, const float* dout, float* dgate_up, float* ddown,
                          float* dweights) {
    const std::vector<int64_t> before = columns_before(E, starts);
#pragma omp for schedule(dynamic, 2)
    for (int64_t e = 0; e < E; ++e) {
        if (starts[e] == starts[e + 1]) {
            if (dgate_up != nullptr) std::memset(dgate_up + e * 2 * I * D, 0, 2 * I * D * sizeof(float));
            if (ddown != nullptr) std::memset(ddown + e * D * I, 0, D * I * sizeof(float));
            continue;
        }
        fetch(gate_up + e * 2 * I * D, 2 * I * D);
        fetch(down + e * D * I, D * I);
        const Operand up = Term::template across<FIRST>(2 * I, D, gate_up + e * 2 * I * D, D);
        const Operand back = Term::template across<SECOND>(D, I, down + e * D * I, I);
        for (int64_t at = starts[e], saved_at = before[e]; at < starts[e + 1]; at += CHUNK, saved_at += spread(CHUNK)) {
            const int64_t n = std::min(CHUNK, starts[e + 1] - at), N = round_up(n, W / 2), ld = spread(n);
            const int64_t terms = Term::count(n);
            float* dot = scratch((D + 4 * I) * ld + n * I);  // dout of these tokens, (D, n)
            float *dht = dot + D * ld, *ht = dht + I * ld, *dgut = ht + I * ld, *h = dgut + 2 * I * ld;  // h (n, I)
            const float* gut = saved + 2 * I * saved_at;
            const int64_t* choice = order + at;
            const auto out_of = [&](int64_t r) { return dout + choice[r] / k * D; };
            transpose<Term>(n, D, out_of, dot, ld, true);
            gemm<Term>(I, N, Term::count(D), back.terms, 1, back.step, dot, ld, dht, ld, false);
            float weight[CHUNK] = {}, dweight[CHUNK] = {};
            for (int64_t r = 0; r < n; ++r) weight[r] = weights[choice[r]];
            for (int64_t i = 0; i < I; ++i)
                for (int64_t r = 0; r < N; r += W) {
                    const Vec gate = load(gut + i * ld + r), up_part = load(gut + (I + i) * ld + r);
                    const Vec w = load(weight + r), dh = load(dht + i * ld + r), act = swiglu(gate, up_part);
                    Vec dgate, dup;
                    swiglu_backward(gate, up_part, dh * w, dgate, dup);
                    store(dweight + r, load(dweight + r) + dh * act);
                    store(ht + i * ld + r, act * w);
                    store(dgut + i * ld + r, dgate);
                    store(dgut + (I + i) * ld + r, dup);
                }
            for (int64_t r = 0; r < n; ++r) dweights[choice[r]] = dweight[r];
            if (ddown != nullptr) {
                transpose<Term>(I, n, [&](int64_t r) { return ht + r * ld; }, h, I, false);
                const Operand a = Term::template across<THIRD>(n, D, out_of);
                gemm<Term>(D, I, terms, a.terms, 1, a.step, h, I, ddown + e * D * I, I, at > starts[e]);
            }
            if (dgate_up != nullptr) {
                const Operand a = Term::template along<THIRD>(2 * I, n, dgut, ld);
                const Operand b = Term::template across<FOURTH>(n, D, [&](int64_t r) { return x + choice[r] / k * D; });
                gemm<Term>(2 * I, D, terms, a.terms, a.step, 1, b.terms, b.step, dgate_up + e * 2 * I * D, D, at > starts[e]);
            }
            const Operand a = Term::template across<THIRD>(2 * I, N, dgut, ld);
            gemm<Term>(n, D, Term::count(2 * I), a.terms, 1, a.step, up.terms, up.step, rows + at * D, D, false);
        }
    }
}

}  // namespace

extern "C" {

// Sort N = T·k choices (T, k) by expert: order (N,) is the choice at each sorted row, slots (N,) the sorted row of each
// choice, starts (E + 2,) where each expert's rows begin, and last the number of columns that `saved` takes.
void experts_plan(int /* threads */, int64_t N, int64_t E, const int64_t* chosen, int64_t* order, int64_t* slots, int64_t* starts) {
    plan(N, E, chosen, order, slots, starts);
}

// out (T, D) = base (T, D), or 0 where that is null, + the sum over each token's k experts of weight · down(silu(gate(x)) · up(x)); gate_up (2I, D) and
// down (D, I) of each expert, weights (T, k). `saved` takes gate and up for the backward pass, 2I rows of
// starts[E + 1] floats, or is null; `rows` (N, D) is working space. Products are of float32, or where `pairs` of bfloat16.
void experts(int threads, int64_t pairs, int64_t T, int64_t k, int64_t D, int64_t I, int64_t E, const float* x,
             const Matrices* gate_up, const Matrices* down, const float* weights, const int64_t* order, const int64_t* slots,
             const int64_t* starts, const float* base, float* saved, float* rows, float* out) {
#pragma omp parallel num_threads(threads)
    {
        const auto run = pairs ? run_experts<Pairs> : run_experts<Single>;
        run(k, D, I, E, x, *gate_up, *down, weights, order, starts, saved, rows);
        sum_over_choices(T, k, D, rows, slots, base, out);
    }
}

// From dout (T, D) to dx (T, D), dgate_up, ddown and dweights, shaped as what they are gradients of; 0 for an expert
// without tokens. dgate_up and ddown may be null where the experts do not learn.
void experts_backward(int threads, int64_t pairs, int64_t T, int64_t k, int64_t D, int64_t I, int64_t E, const float* x,
                      const float* gate_up, const float* down, const float* weights, const int64_t* order,
                      const int64_t* slots, const int64_t* starts, const float* saved, float* rows, const float* dout,
                      float* dx, float* dgate_up, float* ddown, float* dweights) {
#pragma omp parallel num_threads(threads)
    {
        const auto run = pairs ? run_experts_backward<Pairs> : run_experts_backward<Single>;
        run(k, D, I, E, x, gate_up, down, weights, order, starts, saved, rows, dout, dgate_up, ddown, dweights);
        sum_over_choices(T, k, D, rows, slots, nullptr, dx);
    }
}

}  // extern "C"
