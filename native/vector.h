// A vector of W floats, and the few operations that the engine needs of it.
//
// Included by engine.cpp alone, which is compiled once an instruction set.  Everything is in an
// unnamed namespace: a function compiled for AVX-512 must never stand in for its namesake.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace unspool {
namespace {

#if defined(__AVX512F__)
constexpr int64_t W = 16;
constexpr int kRows = 6;  // rows of a tile: 24 accumulators of 32 registers
#elif defined(__AVX2__)
constexpr int64_t W = 8;
constexpr int kRows = 3;  // 12 accumulators of 16 registers
#elif defined(__aarch64__)
constexpr int64_t W = 4;
constexpr int kRows = 6;  // 24 accumulators of 32 registers
#else
constexpr int64_t W = 4;
constexpr int kRows = 3;
#endif

typedef float Vec __attribute__((vector_size(W * 4)));
typedef int32_t IntVec __attribute__((vector_size(W * 4)));
typedef float LooseVec __attribute__((vector_size(W * 4), aligned(4), may_alias));

inline Vec load(const float* p) { return *reinterpret_cast<const LooseVec*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<LooseVec*>(p) = v; }
inline Vec splat(float a) {
#if defined(__AVX512F__)
  return _mm512_set1_ps(a);
#elif defined(__AVX2__)
  return _mm256_set1_ps(a);
#elif defined(__aarch64__)
  return vdupq_n_f32(a);
#else
  return Vec{a, a, a, a};
#endif
}

// Keeps v in a register: without it the compiler would load a tile's right operand anew for each row,
// and the loads, not the arithmetic, would set the pace.
inline void hold([[maybe_unused]] Vec& v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#elif defined(__x86_64__)
  asm("" : "+x"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
}

// The larger, the smaller; b where one is NaN.
inline Vec larger_of(Vec a, Vec b) {
#if defined(__AVX512F__)
  return _mm512_max_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}
inline Vec smaller_of(Vec a, Vec b) {
#if defined(__AVX512F__)
  return _mm512_min_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_min_ps(a, b);
#else
  return a < b ? a : b;
#endif
}

inline Vec bits_and(Vec a, int32_t mask) {
  IntVec bits;
  std::memcpy(&bits, &a, sizeof bits);
  bits &= mask;
  std::memcpy(&a, &bits, sizeof bits);
  return a;
}

// |x|, and x's sign given to a positive magnitude.
inline Vec magnitude_of(Vec x) { return bits_and(x, 0x7fffffff); }
inline Vec with_sign(Vec magnitude, Vec x) {
  const Vec sign = bits_and(x, static_cast<int32_t>(0x80000000));
  IntVec a, b;
  std::memcpy(&a, &magnitude, sizeof a);
  std::memcpy(&b, &sign, sizeof b);
  a |= b;
  std::memcpy(&magnitude, &a, sizeof a);
  return magnitude;
}

// The first `lanes` floats, none where that is below 1; the other lanes are 0.
inline Vec load(const float* p, int64_t lanes) {
  if (lanes >= W) return load(p);
#if defined(__AVX512F__)
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << (lanes < 0 ? 0 : lanes)) - 1), p);
#else
  float part[W] = {};
  if (lanes > 0) std::memcpy(part, p, static_cast<size_t>(lanes) * sizeof(float));
  return load(part);
#endif
}

inline void store(float* p, Vec v, int64_t lanes) {
  if (lanes >= W) return store(p, v);
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << (lanes < 0 ? 0 : lanes)) - 1), v);
#else
  float part[W];
  store(part, v);
  if (lanes > 0) std::memcpy(p, part, static_cast<size_t>(lanes) * sizeof(float));
#endif
}

// Two vectors' halves of every 2*Step lanes, side by side: one stage of a transposition.
template <int Step, bool Upper>
inline Vec interleave(Vec a, Vec b) {
  IntVec from;
  for (int i = 0; i < W; ++i)
    from[i] = (Upper ? Step : 0) + i / (2 * Step) * 2 * Step + i % Step + (i / Step % 2 != 0 ? static_cast<int>(W) : 0);
  return __builtin_shuffle(a, b, from);
}

// W vectors of W lanes, rows for columns.
template <int Step = 1>
inline __attribute__((always_inline)) void transpose(Vec (&rows)[W]) {
  if constexpr (Step < W) {
#pragma GCC unroll 16
    for (int r = 0; r < W; ++r) {
      if (r / Step % 2 != 0) continue;
      const Vec a = rows[r], b = rows[r + Step];
      rows[r] = interleave<Step, false>(a, b);
      rows[r + Step] = interleave<Step, true>(a, b);
    }
    transpose<2 * Step>(rows);
  }
}

// a * b + c, rounded once where the machine can.  Named, never left to the compiler: the same
// element must be summed the same way in every tile shape.
inline Vec fma(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
  return vfmaq_f32(c, a, b);
#else
  return a * b + c;
#endif
}

// e^x for |x| < 88: 2^n * (1 + r + r^2 q(r)), q a minimax polynomial of degree 4 on ±ln(2)/2
// (relative error 3.3e-9 before rounding).  Outside, the end's value; a NaN stays a NaN.
inline Vec exp(Vec x) {
  x = smaller_of(splat(88.0f), larger_of(splat(-87.0f), x));
  const Vec magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const Vec n = fma(x, splat(1.44269504f), magic) - magic;
  Vec r = fma(n, splat(-0.693359375f), x);
  r = fma(n, splat(2.12194440e-4f), r);
  Vec q = splat(1.3813144699752482e-03f);
  q = fma(q, r, splat(8.369418827166101e-03f));
  q = fma(q, r, splat(4.166845678427876e-02f));
  q = fma(q, r, splat(1.666651479149459e-01f));
  q = fma(q, r, splat(4.9999993050733915e-01f));
  const Vec y = fma(q, r * r, r) + 1.0f;
  const IntVec exponent = (__builtin_convertvector(n, IntVec) + 127) << 23;
  Vec scale;
  std::memcpy(&scale, &exponent, sizeof scale);
  return y * scale;
}

inline Vec sigmoid(Vec x) { return 1.0f / (1.0f + exp(-x)); }

// x + x^3 q(x^2) near 0, where 1 - 2 / (1 + e^{2x}) would lose its digits; that elsewhere.
inline Vec tanh(Vec x) {
  const Vec magnitude = magnitude_of(x);
  const Vec s = x * x;
  Vec q = splat(2.1475401048356023e-03f);
  q = fma(q, s, splat(-8.182677667963332e-03f));
  q = fma(q, s, splat(2.170296878176687e-02f));
  q = fma(q, s, splat(-5.394720460814864e-02f));
  q = fma(q, s, splat(1.3333209766848253e-01f));
  q = fma(q, s, splat(-3.3333330906765046e-01f));
  const Vec small = fma(q * s, x, x);
  const Vec large = with_sign(1.0f - 2.0f / (1.0f + exp(2.0f * magnitude)), x);
  return magnitude < 0.625f ? small : large;
}

}  // namespace
}  // namespace unspool
