// Masks of dropout and zoneout: Philox 4x32-10, counter by counter, as kernels/masks.py defines it to the bit.
//
// Source: Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3".
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "engine.h"
#include "tile.h"

namespace unspool {
namespace {

// A word of 32 bits in each; what stands in the upper half of a lane means nothing.
constexpr int64_t kLanes = W / 2;
typedef uint64_t Words __attribute__((vector_size(W * 4)));
typedef uint32_t HalfWords __attribute__((vector_size(W * 4)));

INLINE Words words(uint64_t a) { return Words{} + a; }

// The whole product, 64 bits, of each lower half.
INLINE Words multiply(Words a, uint32_t by) {
#if defined(__AVX512F__)
  return reinterpret_cast<Words>(_mm512_mul_epu32(reinterpret_cast<__m512i>(a), _mm512_set1_epi64(by)));
#elif defined(__AVX2__)
  return reinterpret_cast<Words>(_mm256_mul_epu32(reinterpret_cast<__m256i>(a), _mm256_set1_epi64x(by)));
#elif defined(__x86_64__)
  return reinterpret_cast<Words>(_mm_mul_epu32(reinterpret_cast<__m128i>(a), _mm_set1_epi64x(by)));
#elif defined(__aarch64__)
  return reinterpret_cast<Words>(vmull_n_u32(vmovn_u64(reinterpret_cast<uint64x2_t>(a)), by));
#else
  return (a & 0xFFFFFFFFu) * by;
#endif
}

// N times kLanes blocks of four words at once: each waits for itself alone.
template <int N>
struct Blocks {
  Words word[4][N];
};

template <int N>
INLINE void philox(Blocks<N>& blocks, uint32_t k0, uint32_t k1) {
  auto& c = blocks.word;
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      const Words first = multiply(c[0][n], 0xD2511F53u), second = multiply(c[2][n], 0xCD9E8D57u);
      c[0][n] = (second >> 32) ^ c[1][n] ^ words(k0);
      c[2][n] = (first >> 32) ^ c[3][n] ^ words(k1);
      c[1][n] = second;
      c[3][n] = first;
    }
}

// A share of the (T, B) places of a mask.
struct Drawing {
  const Draw& wanted;
  int64_t places_an_item;
  uint32_t key[2][2];  // of each direction

  static void body(void* context, int64_t item) {
    const auto& it = *static_cast<const Drawing*>(context);
    const int64_t places = it.wanted.times * it.wanted.rows;
    for (int64_t at = item * it.places_an_item; at < smaller((item + 1) * it.places_an_item, places); ++at)
      for (int64_t d = 0; d < it.wanted.directions; ++d) it.draw(at, d);
  }

  // All units of one place and direction.
  void draw(int64_t at, int64_t d) const {
    const int64_t units = wanted.units;
    float* out = wanted.out + (at * wanted.directions + d) * units;
    const uint32_t row = wanted.row[at % wanted.rows], time = wanted.time[at / wanted.rows];
    constexpr int many = W == 16 ? 4 : 2;
    int64_t unit = 0;
    for (; unit + many * 2 * W <= units; unit += many * 2 * W) draw<many>(out, unit, d, row, time);
    for (; unit < units; unit += 2 * W) draw<1>(out, unit, d, row, time);
  }

  // N * 2W units from `unit` on: a block of words makes four.
  template <int N>
  INLINE void draw(float* out, int64_t unit, int64_t d, uint32_t row, uint32_t time) const {
    // Lane 2j counts block j, lane 2j+1 the one half a vector later: `interleave` then brings them into order.
    Words order;
    for (int j = 0; j < kLanes; ++j) order[j] = static_cast<uint64_t>(j / 2 + (j % 2 != 0 ? kLanes / 2 : 0));
    Blocks<N> blocks;
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      blocks.word[0][n] = order + words(static_cast<uint64_t>(unit / 4 + n * kLanes));
      blocks.word[1][n] = words(row);
      blocks.word[2][n] = words(time);
      blocks.word[3][n] = Words{};
    }
    philox(blocks, key[d][0], key[d][1]);
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      const auto& c = blocks.word;
      const Vec a = chosen(c[0][n], c[1][n]), b = chosen(c[2][n], c[3][n]);
      const int64_t from = unit + n * 2 * W;
      store(out + from, interleave<2, false>(a, b), units_left(from));
      if (units_left(from + W) > 0) store(out + from + W, interleave<2, true>(a, b), units_left(from + W));
    }
  }

  INLINE int64_t units_left(int64_t from) const { return wanted.units - from; }

  // What the first and second words of some blocks choose, side by side.
  INLINE Vec chosen(Words first, Words second) const {
    const auto both = reinterpret_cast<HalfWords>((first & words(0xFFFFFFFFu)) | (second << 32));
    const bool none = wanted.below == 0;
    const HalfWords last = HalfWords{} + static_cast<uint32_t>(wanted.below - (none ? 0 : 1));
    const Vec yes = splat(none ? wanted.other : wanted.chosen), no = splat(wanted.other);
    return both <= last ? yes : no;
  }
};

bool draw(const Draw& wanted, int threads) {
  Drawing drawing{wanted, larger(1, 16'384 / (wanted.directions * wanted.units)), {}};
  for (int64_t d = 0; d < wanted.directions; ++d) {
    Blocks<1> of{{{words(wanted.step & 0xFFFFFFFFu)},
                  {words(wanted.step >> 32)},
                  {words(wanted.layer)},
                  {words(static_cast<uint64_t>(2 * wanted.use + d))}}};
    philox(of, static_cast<uint32_t>(wanted.seed), static_cast<uint32_t>(wanted.seed >> 32));
    for (int k = 0; k < 2; ++k) drawing.key[d][k] = static_cast<uint32_t>(of.word[k][0][0]);
  }
  const int64_t places = wanted.times * wanted.rows;
  parallel((places + drawing.places_an_item - 1) / drawing.places_an_item, threads, Drawing::body, &drawing,
           *wanted.stop);
  return !wanted.stop->raised;
}

}  // namespace
}  // namespace unspool
