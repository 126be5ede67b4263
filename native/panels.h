// A layer's weights in the layout that the tiles read: how a cell's pre-activations are cut into panels, and packing.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "engine.h"
#include "memory.h"
#include "tile.h"

namespace unspool {

struct Packed {
  Sizes sizes;
  float* memory;             // owns all that follows
  float* input[2];           // per direction: gate panels over I
  float* recurrent[2];       // gate panels over H
  float* bias[2];            // gate panels, one step deep
  float* candidate_bias[2];  // (H rounded up to W), zeros after H
  float* recurrent_back[2];  // column panels of the recurrent weights: (G*H) deep, H wide
  float* input_back;         // column panels of all input weights: (D*G*H) deep, I wide
  float* zeros;              // (H,)
};

namespace {

// How a cell's pre-activations are cut into panels of N vectors.  A gated cell keeps all gates of
// the same W units side by side, so that a tile's epilogue has them in registers; the RNN, with
// one gate, takes four groups of units.
template <Cell C>
struct Layout {
  static constexpr int gates = C == Cell::lstm ? 4 : C == Cell::gru ? 3 : 1;
  static constexpr int N = gates == 1 ? kColumns : gates;
  static constexpr int64_t units = gates == 1 ? kColumns * W : W;  // units a panel covers

  static int64_t panels(int64_t H) { return (H + units - 1) / units; }
  static int64_t unit(int64_t p, int n) { return p * units + (gates == 1 ? n * W : 0); }
  static int64_t row(int64_t p, int n, int64_t H) { return (gates == 1 ? 0 : n * H) + unit(p, n); }
  static int64_t lanes(int64_t p, int n, int64_t H) {
    return larger(0, smaller(W, H - unit(p, n)));
  }
};

// matrix (G*H, depth) -> [panel][k][n][lane]; 0 in lanes past H.
template <Cell C>
void pack_gates(float* to, const float* matrix, int64_t depth, int64_t H) {
  using L = Layout<C>;
  for (int64_t p = 0; p < L::panels(H); ++p)
    for (int64_t k = 0; k < depth; ++k)
      for (int n = 0; n < L::N; ++n)
        for (int64_t lane = 0; lane < W; ++lane)
          *to++ = lane < L::lanes(p, n, H) ? matrix[(L::row(p, n, H) + lane) * depth + k] : 0.0f;
}

// Rows of a right operand -> [panel][k][n][lane]; 0 in lanes past `columns`.
template <class RowAt>
INLINE void pack_columns(float* to, int64_t depth, int64_t capacity, int64_t columns, RowAt row_at) {
  constexpr int64_t wide = kColumns * W;
  const int64_t panels = (columns + wide - 1) / wide;
  for (int64_t k = 0; k < depth; ++k) {
    const float* row = row_at(k);
    for (int64_t p = 0; p < panels; ++p) {
      float* at = to + (p * capacity + k) * wide;
      const int64_t real = smaller(wide, columns - p * wide);
      std::memcpy(at, row + p * wide, static_cast<size_t>(real) * sizeof(float));
      if (real < wide) std::memset(at + real, 0, static_cast<size_t>(wide - real) * sizeof(float));
    }
  }
}

int64_t column_floats(int64_t depth, int64_t columns) {
  return depth * round_up(columns, kColumns * W);
}

template <Cell C>
Packed* pack_cell(const Sizes& z, const Weights* weights) {
  using L = Layout<C>;
  const int64_t H = z.hidden, I = z.input, G = z.gates, D = z.directions;
  const int64_t wide = L::panels(H) * L::N * W;
  const int64_t padded = round_up(H, W);
  const int64_t a_direction = wide * (I + H + 1) + padded + column_floats(G * H, H);
  auto* packed = static_cast<Packed*>(std::calloc(1, sizeof(Packed)));
  float* at = take_floats(D * (a_direction + 64) + column_floats(D * G * H, I) + padded + 64);
  if (packed == nullptr || at == nullptr) {
    std::free(packed);
    give_back(at);
    return nullptr;
  }
  packed->sizes = z;
  packed->memory = at;
  const auto take = [&at](int64_t count) {
    float* mine = at;
    at += round_up(count, 16);
    return mine;
  };
  for (int64_t d = 0; d < D; ++d) {
    const Weights& w = weights[d];
    pack_gates<C>(packed->input[d] = take(wide * I), w.input, I, H);
    pack_gates<C>(packed->recurrent[d] = take(wide * H), w.recurrent, H, H);
    pack_gates<C>(packed->bias[d] = take(wide), w.bias, 1, H);
    packed->candidate_bias[d] = take(padded);
    std::memset(packed->candidate_bias[d], 0, static_cast<size_t>(padded) * sizeof(float));
    if (w.candidate_bias != nullptr)
      std::memcpy(packed->candidate_bias[d], w.candidate_bias, static_cast<size_t>(H) * sizeof(float));
    packed->recurrent_back[d] = take(column_floats(G * H, H));
    pack_columns(packed->recurrent_back[d], G * H, G * H, H,
                 [&](int64_t k) { return w.recurrent + k * H; });
  }
  packed->input_back = take(column_floats(D * G * H, I));
  pack_columns(packed->input_back, D * G * H, D * G * H, I,
               [&](int64_t k) { return weights[k / (G * H)].input + k % (G * H) * I; });
  packed->zeros = take(padded);
  std::memset(packed->zeros, 0, static_cast<size_t>(padded) * sizeof(float));
  return packed;
}

Packed* pack(const Sizes& sizes, const Weights* weights) {
  switch (sizes.cell) {
    case Cell::lstm: return pack_cell<Cell::lstm>(sizes, weights);
    case Cell::gru: return pack_cell<Cell::gru>(sizes, weights);
    case Cell::rnn_relu: return pack_cell<Cell::rnn_relu>(sizes, weights);
    case Cell::rnn_tanh: break;
  }
  return pack_cell<Cell::rnn_tanh>(sizes, weights);
}

void release(Packed* packed) {
  if (packed == nullptr) return;
  give_back(packed->memory);
  std::free(packed);
}

}  // namespace
}  // namespace unspool
