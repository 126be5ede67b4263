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

  static void body(void* context, int64_t item) {
    const auto& it = *static_cast<const Stepping*>(context);
    const int64_t first = item * it.rows_an_item;
    it.run(first, smaller(it.rows_an_item, it.given.rows - first));
  }

  void run(int64_t from, int64_t rows) const {
    const int64_t I = packed.sizes.input, H = packed.sizes.hidden;
    over_panels(rows, L::panels(H), [&](auto height, auto width, int64_t first, int64_t p) INLINE_LAMBDA {
      constexpr int R = decltype(height)::value, P = decltype(width)::value;
      const float* of_x = packed.input[0] + p * I * L::N * W;
      const float* of_h = packed.recurrent[0] + p * H * L::N * W;
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
        tile_pair<L::N>(I, given.x[first], of_x, of_x + I * L::N * W, begin, end);
      else
        tile<R, L::N>(I, ByRow{given.x + first}, of_x, begin, end);
      if constexpr (C == Cell::gru)
#pragma GCC unroll 8
        for (int k = 0; k < R * P; ++k) {
          x_candidate[k] = sum[k][2];
          sum[k][2] = load(packed.candidate_bias[0] + L::unit(p + (P == 2 ? k : 0), 0));
        }
      if constexpr (P == 2)
        tile_pair<L::N>(H, given.hidden[first], of_h, of_h + H * L::N * W, go_on, end);
      else
        tile<R, L::N>(H, ByRow{given.hidden + first}, of_h, go_on, end);
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
