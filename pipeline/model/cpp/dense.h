// Dense layers: products with matrices of weights, the gated activation, norms, rotations.

#pragma once

#include "matrix.h"

namespace {

template <typename Term>
void multiply(int threads, int64_t T, int64_t D, int64_t O, const float* x, const float* w, const float* bias,
              const float* residual, float* y) {
    const int64_t K = Term::count(D);
    float* turned = scratch(K * O);  // wᵀ, in the memory of the calling thread
#pragma omp parallel num_threads(team(threads, T * D * O, 1 << 21))
    {
#pragma omp for schedule(static)
        for (int64_t o = 0; o < O; o += W)
            transpose<Term>(O - o < W ? O - o : W, D, [&](int64_t r) { return w + (o + r) * D; }, turned + o, O, false);
#pragma omp for schedule(static)
        for (int64_t t = 0; t < T; t += BLOCK) {
            const int64_t rows = T - t < BLOCK ? T - t : BLOCK;
            if (residual != nullptr) std::memcpy(y + t * O, residual + t * O, rows * O * sizeof(float));
            for (int64_t r = 0; r < rows && bias != nullptr; ++r)
                for (int64_t o = 0; o < O; ++o) y[(t + r) * O + o] = bias[o] + (residual != nullptr ? y[(t + r) * O + o] : 0.0f);
            const Operand a = Term::template along<FIRST>(rows, D, x + t * D, D);
            gemm<Term>(rows, O, K, a.terms, a.step, 1, turned, O, y + t * O, O, bias != nullptr || residual != nullptr);
        }
    }
}

template <typename Term>
void multiply_backward(int threads, int64_t T, int64_t D, int64_t O, const float* x, const float* w, const float* dy,
                       float* dx, float* dw) {
    const Operand b = dx == nullptr ? Operand{} : Term::template across<FIRST>(O, D, w, D);
#pragma omp parallel num_threads(team(threads, T * D * O, 1 << 21))
    {
        if (dx != nullptr) {
#pragma omp for schedule(static) nowait
            for (int64_t t = 0; t < T; t += BLOCK) {
                const int64_t rows = T - t < BLOCK ? T - t : BLOCK;
                const Operand a = Term::template along<SECOND>(rows, O, dy + t * O, O);
                gemm<Term>(rows, D, Term::count(O), a.terms, a.step, 1, b.terms, b.step, dx + t * D, D, false);
            }
        }
        if (dw != nullptr) {
            constexpr int64_t SHARE = 2 * ROWS;  // rows of dw; a static schedule gives each to the same thread every time
            for (int64_t t = 0; t < T; t += LONG) {
                const int64_t rows = std::min(LONG, T - t);
                const Operand right = Term::template across<THIRD>(rows, D, x + t * D, D);
#pragma omp for schedule(static) nowait
                for (int64_t o = 0; o < O; o += SHARE) {
                    const int64_t share = std::min(SHARE, O - o);
                    const Operand left = Term::template across<SECOND>(rows, share, dy + t * O + o, O);
                    gemm<Term>(share, D, Term::count(rows), left.terms, 1, left.step, right.terms, right.step,
                                      dw + o * D, D, t > 0);
                }
            }
        }
    }
}

}  // namespace

extern "C" {

// y (T, O) = x (T, D) · wᵀ for w (O, D), plus bias (O,) and plus `residual` (T, O) where there is one. The product is one
// of float32, or where `pairs` of bfloat16.
void linear(int threads, int64_t pairs, int64_t T, int64_t D, int64_t O, const float* x, const float* w, const float* bias,
            const float* residual, float* y) {
    (pairs ? multiply<Pairs> : multiply<Single>)(threads, T, D, O, x, w, bias, residual, y);
}

// From dy (T, O) to dx (T, D) and dw (O, D); either may be null.
void linear_backward(int threads, int64_t pairs, int64_t T, int64_t D, int64_t O, const float* x, const float* w,
                     const float* dy, float* dx, float* dw) {
    (pairs ? multiply_backward<Pairs> : multiply_backward<Single>)(threads, T, D, O, x, w, dy, dx, dw);
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

// ------------------------------------------------------------------------------------------------ norms, rotations

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

}  // extern "C"
