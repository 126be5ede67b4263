// A layer's weights in the layout that the tiles read: how a cell's pre-activations are cut into panels, and packing.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "engine.h"
#include "memory.h"
#include "tile.h"

namespace unspool {

// The weights again, as the backward pass multiplies by them: column panels.
struct BackPanels {
  float* recurrent[2];   // per direction: (G*H) deep, P wide
  float* input;          // of all directions: (D*G*H) deep, I wide
  float* projection[2];  // per direction: P deep, H wide; null without one
};

// What a layer has beyond the plain cell, of one direction; null: it has not.  Rows of gates come as gate panels, one
// step deep, and as the rows that they were.
struct Beyond {
  float* peephole;         // (3, H rounded up to W)
  float* projection;       // column panels: H deep, P wide
  float* gain_input;       // gate panels
  float* gain_recurrent;   // gate panels
  float* bias_recurrent;   // gate panels
  float* rows_input;       // (G*H) gains
  float* rows_recurrent;   // (G*H) gains
  float* norm_cell;        // (2, H rounded up to W)
};

struct Packed {
  Sizes sizes;
  float* memory;             // owns what follows, but for `back` and `beyond`
  float* input[2];           // per direction: gate panels over I, in slots
  float* recurrent[2];       // gate panels over P, in slots
  float* recurrent_scale[2]; // int8: gate panels, one step deep, what a weight of a row is worth
  float* recurrent_start[2]; // int8: the same, -128 times the sum of a row's weights: h is stored with 128 added
  float* bias[2];            // gate panels, one step deep
  float* candidate_bias[2];  // (H rounded up to W), zeros after H
  float* zeros;              // (H,)
  Beyond beyond[2];
  bool extended;             // whether the weights or the bounds have anything beyond the plain cell
  float* beyond_memory;
  mutable std::atomic<BackPanels*> back;  // null until a backward pass asks: inference never does
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

// The weights of one direction with their numbers joined into slots; in memory that the caller gives.
inline void narrow(Weights& w, const Sizes& z, float* memory, float* scale, float* start) {
  const int64_t rows = z.gates * z.hidden, I = z.input, H = z.output;
  float* recurrent = memory;
  float* input = memory + rows * recurrent_slots(H);
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = w.recurrent + r * H;
    float* to = recurrent + r * recurrent_slots(H);
    if constexpr (kBfloat16) {
      round_row(input + r * slots(I), w.input + r * I, I);
      round_row(to, row, H);
    } else {
      auto* bytes = reinterpret_cast<int8_t*>(to);
      double most = 0;
      for (int64_t k = 0; k < H; ++k) most = !(std::fabs(row[k]) <= most) ? std::fabs(row[k]) : most;
      const bool finite = most < HUGE_VAL;
      int32_t sum = 0;
      for (int64_t k = 0; k < 4 * recurrent_slots(H); ++k) {
        const bool real = k < H && finite && most > 0;
        bytes[k] = real ? static_cast<int8_t>(std::nearbyint(row[k] * 127.0 / most)) : int8_t{0};
        sum += bytes[k];
      }
      scale[r] = finite ? static_cast<float>(most / 127.0) : NAN;
      sum *= -128;
      std::memcpy(start + r, &sum, sizeof sum);
    }
  }
  w.recurrent = recurrent;
  if constexpr (kBfloat16) w.input = input;
}

inline int64_t narrow_floats(const Sizes& z) {
  return z.gates * z.hidden * (recurrent_slots(z.output) + (kBfloat16 ? slots(z.input) : 0));
}

// Panels that one item of packing takes.
constexpr int64_t kPanelsAnItem = 4;

// matrix (G*H, depth) -> [panel][k][n][lane], panels first…last-1; 0 in lanes past H.  W rows by W columns at
// a time, turned in registers.
template <Cell C>
void pack_gates(float* to, const float* matrix, int64_t depth, int64_t H, int64_t first, int64_t last) {
  using L = Layout<C>;
  for (int64_t p = first; p < last; ++p)
    for (int n = 0; n < L::N; ++n) {
      const int64_t lanes = L::lanes(p, n, H);
      const float* rows = matrix + L::row(p, n, H) * depth;
      float* column = to + (p * depth * L::N + n) * W;
      for (int64_t k = 0; k < depth; k += W) {
        const int64_t some = smaller(W, depth - k);
        Vec block[W];
        for (int64_t lane = 0; lane < W; ++lane)
          block[lane] = lane < lanes ? load(rows + lane * depth + k, some) : Vec{};
        transpose(block);
        for (int64_t j = 0; j < some; ++j) store(column + (k + j) * L::N * W, block[j]);
      }
    }
}

// The way back: gate panels over `columns` -> column panels [panel][row][n][lane] whose row 0 is gate row 0 and
// whose panels are `capacity` rows deep; 0 in lanes past `columns`.
template <Cell C>
void turn_gates(float* to, const float* panels, int64_t columns, int64_t H, int64_t capacity, int64_t first,
                int64_t last) {
  using L = Layout<C>;
  constexpr int64_t wide = kColumns * W;
  for (int64_t p = first; p < last; ++p)
    for (int n = 0; n < L::N; ++n) {
      const int64_t lanes = L::lanes(p, n, H), row = L::row(p, n, H);
      const float* column = panels + (p * columns * L::N + n) * W;
      for (int64_t k = 0; lanes > 0 && k < round_up(columns, wide); k += W) {
        Vec block[W];
        for (int64_t j = 0; j < W; ++j)
          block[j] = k + j < columns ? load(column + (k + j) * L::N * W) : Vec{};
        transpose(block);
        float* at = to + (k / wide * capacity + row) * wide + k % wide;
        for (int64_t lane = 0; lane < lanes; ++lane) store(at + lane * wide, block[lane]);
      }
    }
}

// turn_gates for bfloat16: of slots along the columns to slots along the rows, each gate's rows filled up to an even
// number.
template <Cell C>
void turn_pairs(float* to, const float* panels, int64_t columns, int64_t H, int64_t capacity, int64_t first,
                int64_t last) {
  using L = Layout<C>;
  constexpr int64_t wide = kColumns * W;
  const IntVec high = IntVec{} + static_cast<int32_t>(0xffff0000);
  for (int64_t p = first; p < last; ++p)
    for (int n = 0; n < L::N; ++n) {
      const int64_t lanes = L::lanes(p, n, H);
      const int64_t row = (L::gates == 1 ? 0 : n * slots(H)) + L::unit(p, n) / 2;
      const float* column = panels + (p * slots(columns) * L::N + n) * W;
      for (int64_t k = 0; lanes > 0 && k < round_up(columns, wide); k += W) {
        Vec block[W];
        for (int64_t j = 0; j < W; j += 2) {
          const IntVec both = k + j < columns ? bits_of(load(column + (k + j) / 2 * L::N * W)) : IntVec{};
          block[j] = of_bits(both << 16);
          block[j + 1] = of_bits(both & high);
        }
        transpose(block);
        float* at = to + (k / wide * capacity + row) * wide + k % wide;
        for (int64_t lane = 0; lane < lanes; lane += 2)
          store(at + lane / 2 * wide, pair_up(block[lane], block[lane + 1]));
      }
    }
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

// One item packs, or turns, some panels of one direction.
template <Cell C>
struct Packing {
  const Packed& packed;
  const Weights* weights;   // null: turn
  const BackPanels* back;   // null: pack

  static int64_t items_a_direction(const Sizes& z) {
    return (Layout<C>::panels(z.hidden) + kPanelsAnItem - 1) / kPanelsAnItem;
  }

  static void body(void* context, int64_t item) {
    const auto& it = *static_cast<const Packing*>(context);
    const Sizes& z = it.packed.sizes;
    const int64_t each = items_a_direction(z), d = item / each, first = item % each * kPanelsAnItem;
    const int64_t last = smaller(first + kPanelsAnItem, Layout<C>::panels(z.hidden));
    const int64_t H = z.hidden, I = z.input, P = z.output, rows = z.gates * slots(H);
    if (it.back == nullptr) {
      const Weights& w = it.weights[d];
      pack_gates<C>(it.packed.input[d], w.input, slots(I), H, first, last);
      pack_gates<C>(it.packed.recurrent[d], w.recurrent, recurrent_slots(P), H, first, last);
      pack_gates<C>(it.packed.bias[d], w.bias, 1, H, first, last);
    } else {
      constexpr auto turn = kBfloat16 ? turn_pairs<C> : turn_gates<C>;
      turn(it.back->recurrent[d], it.packed.recurrent[d], P, H, rows, first, last);
      turn(it.back->input + d * rows * kColumns * W, it.packed.input[d], I, H, z.directions * rows, first,
           last);
    }
  }

  void run(int threads) {
    const Sizes& z = packed.sizes;
    if (z.directions * z.gates * z.hidden * (z.input + z.output) < 65'536) threads = 1;
    Stop never{false, [](Stop&) {}};
    parallel(z.directions * items_a_direction(z), threads, body, this, never);
  }
};

void release(Packed* packed) {
  if (packed == nullptr) return;
  give_back(reinterpret_cast<float*>(packed->back.load()));
  give_back(packed->memory);
  give_back(packed->beyond_memory);
  std::free(packed);
}

constexpr Cell kOneGate = Cell::rnn_tanh;  // whose panels are the column panels of any matrix

// Packs what the weights have beyond the plain cell; false when memory runs out.
template <Cell C>
bool pack_beyond(Packed& packed, const Weights* weights) {
  using L = Layout<C>;
  const Sizes& z = packed.sizes;
  const int64_t H = z.hidden, P = z.output, rows = z.gates * H, padded = round_up(H, W);
  const int64_t wide = L::panels(H) * L::N * W;
  const Weights& any = weights[0];
  packed.extended = any.peephole != nullptr || any.projection != nullptr || any.norm_input != nullptr ||
                    any.norm_recurrent != nullptr || any.norm_cell != nullptr || z.cell_clip < HUGE_VALF ||
                    z.preactivation_clip < HUGE_VALF;
  if (!packed.extended) return true;
  const int64_t floats = 5 * padded + column_floats(H, P) + 4 * wide + 2 * rows + 8 * 16;
  float* at = packed.beyond_memory = take_floats(z.directions * floats);
  if (at == nullptr) return false;
  const auto take = [&at](int64_t count) {
    float* mine = at;
    at += round_up(count, 16);
    return mine;
  };
  const auto copy = [&](const float* matrix, int64_t count) {  // rows of H, each filled up with zeros
    float* to = take(count * padded);
    std::memset(to, 0, static_cast<size_t>(count * padded) * sizeof(float));
    for (int64_t r = 0; r < count; ++r)
      std::memcpy(to + r * padded, matrix + r * H, static_cast<size_t>(H) * sizeof(float));
    return to;
  };
  const auto panels = [&](const float* row) {
    float* to = take(wide);
    pack_gates<C>(to, row, 1, H, 0, L::panels(H));
    return to;
  };
  const auto kept = [&](const float* row) {
    float* to = take(rows);
    std::memcpy(to, row, static_cast<size_t>(rows) * sizeof(float));
    return to;
  };
  for (int64_t d = 0; d < z.directions; ++d) {
    const Weights& w = weights[d];
    Beyond& it = packed.beyond[d];
    if (w.peephole != nullptr) it.peephole = copy(w.peephole, 3);
    if (w.norm_cell != nullptr) it.norm_cell = copy(w.norm_cell, 2);
    if (w.projection != nullptr) {
      it.projection = take(column_floats(H, P));
      pack_gates<kOneGate>(it.projection, w.projection, H, P, 0, Layout<kOneGate>::panels(P));
    }
    if (w.norm_input != nullptr) {
      it.gain_input = panels(w.norm_input);
      it.rows_input = kept(w.norm_input);
      const float* bias = panels(w.norm_input + rows);
      for (int64_t j = 0; j < wide; ++j) packed.bias[d][j] += bias[j];  // both are only added
    }
    if (w.norm_recurrent != nullptr) {
      it.gain_recurrent = panels(w.norm_recurrent);
      it.rows_recurrent = kept(w.norm_recurrent);
      it.bias_recurrent = panels(w.norm_recurrent + rows);
    }
  }
  return true;
}

template <Cell C>
Packed* pack_cell(const Sizes& z, const Weights* weights, int threads) {
  using L = Layout<C>;
  const int64_t H = z.hidden, I = z.input, P = z.output, D = z.directions;
  const int64_t wide = L::panels(H) * L::N * W;
  const int64_t padded = round_up(H, W);
  const int64_t a_direction = wide * (slots(I) + recurrent_slots(P) + (kInt8 ? 3 : 1)) + padded;
  auto* packed = static_cast<Packed*>(std::calloc(1, sizeof(Packed)));
  float* at = take_floats(D * (a_direction + 96) + padded + 64);
  constexpr bool narrows = kPrecision != Precision::float32;
  const int64_t rows = z.gates * H, a_narrow = narrow_floats(z) + 2 * rows;
  float* slotted = narrows ? take_floats(D * a_narrow) : nullptr;
  if (packed == nullptr || at == nullptr || (narrows && slotted == nullptr)) {
    std::free(packed);
    give_back(at);
    give_back(slotted);
    return nullptr;
  }
  Weights own[2] = {weights[0], weights[D - 1]};
  packed->sizes = z;
  packed->memory = at;
  const auto take = [&at](int64_t count) {
    float* mine = at;
    at += round_up(count, 16);
    return mine;
  };
  for (int64_t d = 0; d < D; ++d) {
    packed->input[d] = take(wide * slots(I));
    packed->recurrent[d] = take(wide * recurrent_slots(P));
    packed->bias[d] = take(wide);
    packed->candidate_bias[d] = take(padded);
    std::memset(packed->candidate_bias[d], 0, static_cast<size_t>(padded) * sizeof(float));
    const float* candidate = weights[d].candidate_bias;
    if (candidate != nullptr)
      std::memcpy(packed->candidate_bias[d], candidate, static_cast<size_t>(H) * sizeof(float));
  }
  packed->zeros = take(padded);
  std::memset(packed->zeros, 0, static_cast<size_t>(padded) * sizeof(float));
  if constexpr (narrows) {
    for (int64_t d = 0; d < D; ++d) {
      float* memory = slotted + d * a_narrow;
      float* scale = memory + narrow_floats(z);
      narrow(own[d], z, memory, scale, scale + rows);
      if constexpr (kInt8) {
        packed->recurrent_scale[d] = take(wide);
        packed->recurrent_start[d] = take(wide);
        pack_gates<C>(packed->recurrent_scale[d], scale, 1, H, 0, L::panels(H));
        pack_gates<C>(packed->recurrent_start[d], scale + rows, 1, H, 0, L::panels(H));
      }
    }
  }
  Packing<C>{*packed, own, nullptr}.run(threads);
  give_back(slotted);
  if (!pack_beyond<C>(*packed, weights)) {
    release(packed);
    return nullptr;
  }
  return packed;
}

// The column panels, made when they are first asked for; null when memory runs out.  Two callers at once may
// both make them: one pair is kept.
template <Cell C>
const BackPanels* back_panels(const Packed& packed, int threads) {
  BackPanels* back = packed.back.load(std::memory_order_acquire);
  if (back != nullptr) return back;
  const Sizes& z = packed.sizes;
  const int64_t rows = z.gates * slots(z.hidden), head = 16;
  static_assert(sizeof(BackPanels) <= 16 * sizeof(float));
  const int64_t recurrent = round_up(column_floats(rows, z.output), 16);
  const int64_t input = round_up(column_floats(z.directions * rows, z.input), 16);
  const int64_t projection =
      packed.beyond[0].projection != nullptr ? round_up(column_floats(z.output, z.hidden), 16) : 0;
  float* at = take_floats(head + z.directions * (recurrent + projection) + input);
  if (at == nullptr) return nullptr;
  auto* made = reinterpret_cast<BackPanels*>(at);
  *made = {{at + head, z.directions == 2 ? at + head + recurrent : nullptr},
           at + head + z.directions * recurrent,
           {nullptr, nullptr}};
  for (int64_t d = 0; projection > 0 && d < z.directions; ++d) {
    made->projection[d] = made->input + input + d * projection;
    turn_gates<kOneGate>(made->projection[d], packed.beyond[d].projection, z.hidden, z.output, z.output, 0,
                         Layout<kOneGate>::panels(z.output));
  }
  Packing<C>{packed, nullptr, made}.run(threads);
  if (packed.back.compare_exchange_strong(back, made, std::memory_order_acq_rel)) return made;
  give_back(at);
  return back;
}

Packed* pack(const Sizes& sizes, const Weights* weights, int threads) {
  switch (sizes.cell) {
    case Cell::lstm: return pack_cell<Cell::lstm>(sizes, weights, threads);
    case Cell::gru: return pack_cell<Cell::gru>(sizes, weights, threads);
    case Cell::rnn_relu: return pack_cell<Cell::rnn_relu>(sizes, weights, threads);
    case Cell::rnn_tanh: break;
  }
  return pack_cell<Cell::rnn_tanh>(sizes, weights, threads);
}

}  // namespace
}  // namespace unspool
