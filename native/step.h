// One step of some streams: both products and the activations, without memory.
#pragma once

#include <cstdint>

#include "forward.h"

namespace unspool {
namespace {

// The input projection is not written down between the two products; its bits are those of a sweep.
template <Cell C>
struct Stepping {
  using L = Layout<C>;
  const Packed& packed;
  const Step& given;
  int64_t rows_an_item;
  int64_t parts;  // of the units, an item each, where there is one tile of rows
  float* narrow;  // (parts, rows, floats_a_row) x and h in slots, and the scale of h; null in float32

  static int64_t floats_a_row(const Sizes& z) {
    return kPrecision == Precision::float32
               ? 0
               : (kBfloat16 ? slots(z.input) : 0) + recurrent_slots(z.hidden) + (kInt8 ? 1 : 0);
  }

  static void body(void* context, int64_t item) {
    const auto& it = *static_cast<const Stepping*>(context);
    const int64_t first = item / it.parts * it.rows_an_item, part = item % it.parts;
    const int64_t panels = L::panels(it.packed.sizes.hidden);
    it.run(first, smaller(it.rows_an_item, it.given.rows - first),
           {panels * part / it.parts, panels * (part + 1) / it.parts},
           it.narrow + part * it.given.rows * floats_a_row(it.packed.sizes));
  }

  void run(int64_t from, int64_t rows, Span panels, [[maybe_unused]] float* own) const {
    const int64_t I = packed.sizes.input, H = packed.sizes.hidden;
    const float* const* x_rows = given.x;
    const float* const* h_rows = given.hidden;
    constexpr int64_t most = 64;
    const float *x_own[most], *h_own[most];
    float h_scale[most];
    if constexpr (kPrecision != Precision::float32) {
      for (; rows > most; from += most, rows -= most) run(from, most, panels, own);
      for (int64_t r = 0; r < rows; ++r) {
        float* at = own + (from + r) * floats_a_row(packed.sizes);
        if constexpr (kBfloat16) {
          round_row(at, given.x[from + r], I);
          round_row(at + slots(I), given.hidden[from + r], H);
          x_own[r] = at;
          h_own[r] = at + slots(I);
        } else {
          h_scale[r] = quantise_row(at, given.hidden[from + r], H);
          h_own[r] = at;
        }
      }
      h_rows = h_own - from;
      if constexpr (kBfloat16) x_rows = x_own - from;
    }
    const int64_t depth = recurrent_slots(H);
    over_panels(rows, panels, false, [&](auto height, auto width, int64_t first, int64_t p) INLINE_LAMBDA {
      constexpr int R = decltype(height)::value, P = decltype(width)::value;
      const float* of_x = packed.input[0] + p * slots(I) * L::N * W;
      const float* of_h = packed.recurrent[0] + p * depth * L::N * W;
      first += from;
      Vec sum[R * P][L::N], x_candidate[R * P] = {};
      auto* sums = &sum;
      const float* bias = packed.bias[0] + p * L::N * W;
      const auto begin = [=](int k, int n) INLINE_LAMBDA {
        return load(bias + ((P == 2 ? k : 0) * L::N + n) * W);
      };
      const auto go_on = [=](int k, int n) INLINE_LAMBDA { return (*sums)[k][n]; };
      const auto end = [=](int k, int n, Vec total) INLINE_LAMBDA { (*sums)[k][n] = total; };
      if constexpr (P == 2)
        tile_pair<L::N>(slots(I), x_rows[first], of_x, of_x + slots(I) * L::N * W, begin, end);
      else
        tile<R, L::N>(slots(I), ByRow{x_rows + first}, of_x, begin, end);
      if constexpr (C == Cell::gru)
#pragma GCC unroll 8
        for (int k = 0; k < R * P; ++k) {
          x_candidate[k] = sum[k][2];
          sum[k][2] = load(packed.candidate_bias[0] + L::unit(p + (P == 2 ? k : 0), 0));
        }
      const auto multiply = [&](auto begin_at) INLINE_LAMBDA {
        if constexpr (P == 2)
          tile_pair<L::N, RecurrentProduct>(depth, h_rows[first], of_h, of_h + depth * L::N * W, begin_at, end);
        else
          tile<R, L::N, RecurrentProduct>(depth, ByRow{h_rows + first}, of_h, begin_at, end);
      };
      if constexpr (kInt8) {
        Vec before[R * P][L::N];
        std::memcpy(&before, &sum, sizeof sum);
        const auto* begun = &before;
        multiply(int8_start<L::N, P>(packed.recurrent_start[0], p));
        dequantise<L::N, P>(sum, packed.recurrent_scale[0], p, h_scale + (first - from),
                            [=](int k, int n) INLINE_LAMBDA { return (*begun)[k][n]; });
      } else {
        multiply(go_on);
      }
#pragma GCC unroll 8
      for (int k = 0; k < R * P; ++k) {
        const int64_t r = first + (P == 2 ? 0 : k);
        Kept<C> row{given.hidden[r], nullptr, nullptr, given.out[r], nullptr, nullptr};
        if constexpr (C == Cell::lstm) row.c_prev = row.c = given.cell[r];
        advance(row, p + (P == 2 ? k : 0), H, sum[k], x_candidate[k]);
      }
    });
  }
};

}  // namespace
}  // namespace unspool
