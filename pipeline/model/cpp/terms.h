// What products of matrices multiply: `Single`, the numbers as they are, or `Pairs`, two terms of a sum in one place, each
// rounded to bfloat16. Sums are float32 in both.
//
// A product over K numbers is one over `count(K)` terms. The left operand's terms stand where a processor finds them one by
// one, the right one's in rows of neighbours; `along` and `across` make terms of a matrix whose sums run along its rows or
// down its columns, each into a buffer of its KIND. Single ones need none: they stay where they are.
// On processors without products of bfloat16, Pairs are computed by those of float32, about as fast as Single.

#pragma once

#include "vectors.h"

namespace {

// Kinds of `scratch`: what a kernel works in (0), what a decoding step does, the terms of operands, and from UNPACKED + FIRST
// on the numbers that they are made of.
enum { STEP = 1, FIRST, SECOND, THIRD, FOURTH, UNPACKED };

// A matrix of terms, its rows `step` apart.
struct Operand {
    const float* terms;
    int64_t step;
};

struct Single {
    static int64_t count(int64_t numbers) { return numbers; }
    template <typename V>
    static V add(V sum, float a, V b) {
        return sum + a * b;
    }
    // A vector of terms of a row of `columns` numbers, from term c on; 0 behind the last.
    static Vec along(const float* row, int64_t c, int64_t columns) {
        return load(row + c, static_cast<int>(columns - c < W ? columns - c : W));
    }
    template <int KIND>
    static Operand along(int64_t, int64_t, const float* matrix, int64_t step) {
        return {matrix, step};
    }
    template <int KIND>
    static Operand across(int64_t, int64_t, const float* matrix, int64_t step) {
        return {matrix, step};
    }
    // `across` of rows that begin at from(r).
    template <int KIND, typename Row>
    static Operand across(int64_t rows, int64_t columns, Row from) {
        float* to = scratch<KIND>(rows * columns);
        for (int64_t r = 0; r < rows; ++r) std::memcpy(to + r * columns, from(r), columns * sizeof(float));
        return {to, columns};
    }
};

struct Pairs {
    static int64_t count(int64_t numbers) { return (numbers + 1) / 2; }

#ifdef __AVX512BF16__
    static Vec add(Vec sum, float a, Vec b) {
        return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_ps(a), (__m512bh)b);
    }
    static HalfVec add(HalfVec sum, float a, HalfVec b) {
        return (HalfVec)_mm256_dpbf16_ps((__m256)sum, (__m256bh)_mm256_set1_ps(a), (__m256bh)b);
    }
    static Vec of_neighbours(Vec low, Vec high) { return (Vec)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low); }
    static Vec of(Vec first, Vec second) {
        const __m512i lanes = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,  //
                                               23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
        return (Vec)_mm512_permutexvar_epi16(lanes, (__m512i)of_neighbours(first, second));
    }
#else
    template <typename V>
    static V add(V sum, float a, V b) {
        using Bits = decltype(sum < sum);
        int32_t pair;
        std::memcpy(&pair, &a, sizeof(pair));
        const Bits left = Bits{} + pair, right = (Bits)b, upper = Bits{} + static_cast<int32_t>(0xffff0000);
        return sum + (V)(left << 16) * (V)(right << 16) + (V)(left & upper) * (V)(right & upper);
    }
    // To the nearest bfloat16, the even one of two, in the upper halves; what is no number remains none.
    static IVec rounded(Vec v) {
        const IVec bits = (IVec)v;
        return v == v ? bits + 0x7fff + (bits >> 16 & 1) : bits | 0x400000;
    }
    static Vec of(Vec first, Vec second) {
        return (Vec)((rounded(first) >> 16 & 0xffff) | (rounded(second) & static_cast<int32_t>(0xffff0000)));
    }
    template <int... J>
    static Vec of_neighbours(Vec low, Vec high, std::integer_sequence<int, J...>) {
        return of(__builtin_shufflevector(low, high, (2 * J)...), __builtin_shufflevector(low, high, (2 * J + 1)...));
    }
    static Vec of_neighbours(Vec low, Vec high) { return of_neighbours(low, high, std::make_integer_sequence<int, W>()); }
#endif

    static Vec along(const float* row, int64_t c, int64_t columns) {
        const int64_t left = columns - 2 * c;
        row += 2 * c;
        if (left >= 2 * W) return of_neighbours(load(row), load(row + W));
        return of_neighbours(load(row, static_cast<int>(left < W ? left : W)),
                             left > W ? load(row + W, static_cast<int>(left - W)) : Vec{});
    }
    template <int KIND>
    static Operand along(int64_t rows, int64_t columns, const float* matrix, int64_t step) {
        const int64_t terms = count(columns), apart = spread(terms);
        float* to = scratch<KIND>(rows * apart);
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t c = 0; c < terms; c += W) store(to + r * apart + c, along(matrix + r * step, c, columns));
        return {to, apart};
    }
    template <int KIND>
    static Operand across(int64_t rows, int64_t columns, const float* matrix, int64_t step) {
        return across<KIND>(rows, columns, [&](int64_t r) { return matrix + r * step; });
    }
    template <int KIND, typename Row>
    static Operand across(int64_t rows, int64_t columns, Row from) {
        const int64_t apart = spread(columns);
        float* to = scratch<KIND>(count(rows) * apart);
        for (int64_t r = 0; r < rows; r += 2) {
            const float *first = from(r), *second = r + 1 < rows ? from(r + 1) : nullptr;
            for (int64_t c = 0; c < columns; c += W) {
                const int width = static_cast<int>(columns - c < W ? columns - c : W);
                store(to + r / 2 * apart + c, of(load(first + c, width), second != nullptr ? load(second + c, width) : Vec{}));
            }
        }
        return {to, apart};
    }
};

}  // namespace
