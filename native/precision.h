// What a weight is stored as.  The engine is compiled once an instruction set and precision.
//
// A slot is 32 bits, the size of a float, and holds kPack neighbours along the dimension that is summed over:
// one float; two bfloat16, the earlier one low; four int8.  So panels, tiles and rows have one shape in all
// precisions, counted in slots, and only the product of two slots differs.
//
//   float32   fused multiply-add.
//   bfloat16  both operands rounded to nearest, ties to even; the later product is added first, then the earlier
//             one, in float32.  In vectors of AVX512_BF16, which flushes numbers below 2^-126 to zero and rounds to
//             nearest whatever the mode; elsewhere widened, with the same order of sums.
//   int8      recurrent weights alone: s8 with a scale for each row of the weights, times u8 = 128 + rint(127 h);
//             the sum is an exact 32-bit integer.  Everything else is float32.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "vector.h"

#ifndef UNSPOOL_PRECISION
#define UNSPOOL_PRECISION float32
#endif

namespace unspool {
namespace {

enum class Precision { float32, bfloat16, int8 };
constexpr Precision kPrecision = Precision::UNSPOOL_PRECISION;
constexpr bool kBfloat16 = kPrecision == Precision::bfloat16;
constexpr bool kInt8 = kPrecision == Precision::int8;

// How many numbers a slot holds: of the recurrent product, and of every other.
constexpr int64_t kPackRecurrent = kBfloat16 ? 2 : kInt8 ? 4 : 1;
constexpr int64_t kPack = kBfloat16 ? 2 : 1;

constexpr int64_t slots(int64_t n) { return (n + kPack - 1) / kPack; }
constexpr int64_t recurrent_slots(int64_t n) { return (n + kPackRecurrent - 1) / kPackRecurrent; }

inline IntVec bits_of(Vec v) {
  IntVec bits;
  std::memcpy(&bits, &v, sizeof bits);
  return bits;
}
inline Vec of_bits(IntVec bits) {
  Vec v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}

// sum + a * b over the numbers of bfloat16 slots; the later product first.
inline Vec add_pair_product(Vec sum, Vec a, Vec b) {
#if defined(__AVX512BF16__)
  __m512bh left, right;
  std::memcpy(&left, &a, sizeof left);
  std::memcpy(&right, &b, sizeof right);
  return _mm512_dpbf16_ps(sum, left, right);
#else
  const IntVec high = IntVec{} + static_cast<int32_t>(0xffff0000);
  const IntVec left = bits_of(a), right = bits_of(b);
  sum = fma(of_bits(left & high), of_bits(right & high), sum);
  return fma(of_bits(left << 16), of_bits(right << 16), sum);
#endif
}

// The same over int8 slots, a unsigned, b signed; sum and result are the bits of integers.
inline Vec add_quad_product(Vec sum, Vec a, Vec b) {
#if defined(__AVX512VNNI__)
  return of_bits((IntVec)_mm512_dpbusd_epi32((__m512i)bits_of(sum), (__m512i)bits_of(a), (__m512i)bits_of(b)));
#else
  IntVec total = bits_of(sum);
  const IntVec left = bits_of(a), right = bits_of(b);
  total += (left & 255) * ((right << 24) >> 24);
  total += ((left >> 8) & 255) * ((right << 16) >> 24);
  total += ((left >> 16) & 255) * ((right << 8) >> 24);
  total += ((left >> 24) & 255) * (right >> 24);
  return of_bits(total);
#endif
}

// float32 rounded to bfloat16: to nearest, ties to even; a NaN stays one.  In the high half of each lane, the low
// half zero.
inline IntVec rounded_high(Vec v) {
  const IntVec bits = bits_of(v);
  const IntVec up = bits + 0x7fff + ((bits >> 16) & 1);
  const IntVec nan = bits | 0x400000;
  const IntVec result = v == v ? up : nan;
  return result & static_cast<int32_t>(0xffff0000);
}

// Slots whose low halves are `early`, whose high halves are `late`, both rounded.
inline Vec pair_up(Vec early, Vec late) {
  const IntVec low = rounded_high(early);
  typedef uint32_t Unsigned __attribute__((vector_size(W * 4)));
  return of_bits((IntVec)((Unsigned)low >> 16) | rounded_high(late));
}

inline uint16_t rounded(float a) {
  uint32_t bits;
  std::memcpy(&bits, &a, sizeof bits);
  if (a != a) return static_cast<uint16_t>((bits | 0x400000) >> 16);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// `count` neighbours rounded into slots, the last one filled up with 0.
inline void round_row(float* to, const float* from, int64_t count) {
  auto* out = reinterpret_cast<char*>(to);
  int64_t j = 0;
#if defined(__AVX512BW__)
  for (; j + 32 <= count; j += 32) {
    const IntVec a = rounded_high(load(from + j)) , b = rounded_high(load(from + j + 16));
    const __m256i low = _mm512_cvtepi32_epi16(_mm512_srli_epi32((__m512i)a, 16));
    const __m256i high = _mm512_cvtepi32_epi16(_mm512_srli_epi32((__m512i)b, 16));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 2 * j), low);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 2 * j + 32), high);
  }
#endif
  for (; j < count; ++j) {
    const uint16_t one = rounded(from[j]);
    std::memcpy(out + 2 * j, &one, sizeof one);
  }
  if (count % 2 != 0) std::memset(out + 2 * count, 0, 2);
}

// The same for each of `gates` rows of H.
inline void round_gates(float* to, const float* from, int64_t gates, int64_t H) {
  for (int64_t g = 0; g < gates; ++g) round_row(to + g * slots(H), from + g * H, H);
}

// 128 + rint(127 h) of `count` numbers, h cut to ±1, the last slot filled up with 128 (zero); what the sum of their
// products with weights is to be multiplied by: 1/127, NaN where one is.
inline float quantise_row(float* to, const float* from, int64_t count) {
  auto* out = reinterpret_cast<uint8_t*>(to);
  bool nan = false;
  for (int64_t j = 0; j < count; j += W) {
    const int64_t some = j + W <= count ? W : count - j;
    const Vec h = load(from + j, some);
    const Vec cut = smaller_of(splat(1.0f), larger_of(splat(-1.0f), h));
    const Vec magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    const IntVec q = bits_of(cut * 127.0f + magic) - bits_of(magic) + 128;
    for (int64_t k = 0; k < some; ++k) {
      out[j + k] = static_cast<uint8_t>(q[k]);
      nan |= from[j + k] != from[j + k];
    }
  }
  for (int64_t j = count; j % 4 != 0; ++j) out[j] = 128;
  return nan ? NAN : 1.0f / 127.0f;
}

// How a tile multiplies: of the recurrent product, and of every other.
struct RecurrentProduct {
  static inline __attribute__((always_inline)) Vec add(Vec a, Vec b, Vec sum) {
    if constexpr (kInt8) return add_quad_product(sum, a, b);
    if constexpr (kBfloat16) return add_pair_product(sum, a, b);
    return fma(a, b, sum);
  }
};
struct Product {
  static inline __attribute__((always_inline)) Vec add(Vec a, Vec b, Vec sum) {
    if constexpr (kBfloat16) return add_pair_product(sum, a, b);
    return fma(a, b, sum);
  }
};

}  // namespace
}  // namespace unspool
