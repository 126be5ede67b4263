// The products after the backward sweep: gradients of the weights and of x.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>

#include "backward.h"

namespace unspool {
namespace {

constexpr int64_t kChunk = 128;  // tokens that a weight gradient sums before they join the total
constexpr int64_t kPiece = 64;   // tokens that one item copies into panels
constexpr int64_t kBand = 132;   // rows of a weight gradient that one item computes at the most

// What a weight's gradient multiplies its factor by: x, h as it entered the step, or what the projection multiplied.
enum class Right { input, recurrent, projected };

// The products after the sweep: gradients of the weights and of x, over all live tokens.
struct Products {
  const Packed& packed;
  const Batch& batch;
  const Arriving& in;
  const Backward& out;
  const BackPanels& back;
  const Left& left;
  int threads;
  const int64_t* token_time;   // (tokens) by time, then by row
  const int64_t* token_row;    // (tokens)
  int64_t tokens;
  float* panels;               // right_floats(): the right operands of the weights' gradients
  std::atomic<bool>* out_of_memory;

  static constexpr int64_t kTokensAnItem = 48;
  static constexpr int64_t kWide = kColumns * W;
  // From one token's left operand to the next's: room for a last tile's rows past the band, and an odd number of cache
  // lines, so that a column of them does not fall into one set.
  static constexpr int64_t kStride = (kBand + 2 * kRows + 15) / 16 / 2 * 32 + 16;

  int64_t gate_rows() const { return batch.z.gates * batch.z.hidden; }
  bool is_projected() const { return left.d_made != nullptr; }

  // Bands are whole tiles, as many to one as to another, and as many for each thread.
  static int64_t tiles(int64_t rows) { return (rows + kRows - 1) / kRows; }
  int64_t bands(int64_t rows) const {
    return smaller(tiles(rows), round_up((rows + kBand - kRows - 1) / (kBand - kRows), threads));
  }
  int64_t items_a_direction() const { return bands(gate_rows()) + (is_projected() ? bands(batch.z.output) : 0); }
  int64_t weight_items() const { return batch.z.directions * items_a_direction(); }
  int64_t x_items() const { return (batch.run.time * batch.run.batch + kTokensAnItem - 1) / kTokensAnItem; }

  // The right operands: x once, of the others one a direction; each chunk after chunk, [panel][k][n][lane].
  int64_t columns(Right right) const {
    return right == Right::input ? batch.z.input : right == Right::recurrent ? batch.z.output : batch.z.hidden;
  }
  int64_t right_floats(Right right, int64_t depth) const { return column_floats(slots(depth), columns(right)); }
  int64_t right_floats() const {
    const int64_t a_direction = right_floats(Right::recurrent, tokens) +
                                (is_projected() ? right_floats(Right::projected, tokens) : 0);
    return right_floats(Right::input, tokens) + batch.z.directions * a_direction;
  }
  float* right_panels(Right right, int64_t d, int64_t chunk) const {
    float* at = panels + right_floats(right, chunk);
    if (right == Right::input) return at;
    at += right_floats(Right::input, tokens) + d * right_floats(right, tokens);
    return right == Right::recurrent ? at : at + batch.z.directions * right_floats(Right::recurrent, tokens);
  }
  int64_t pieces() const { return (tokens + kPiece - 1) / kPiece; }
  int64_t right_items() const { return (1 + batch.z.directions * (is_projected() ? 2 : 1)) * pieces(); }

  static void right_body(void* context, int64_t item) { static_cast<const Products*>(context)->right_item(item); }
  static void weight_body(void* context, int64_t item) {
    static_cast<const Products*>(context)->weights_item(item);
  }
  static void x_body(void* context, int64_t item) {
    static_cast<const Products*>(context)->x_item(item);
  }

  // Copies a piece of a right operand into its panels; in bfloat16 two tokens to a slot, rounded.
  void right_item(int64_t item) const {
    const int64_t operand = item / pieces(), first = item % pieces() * kPiece, D = batch.z.directions;
    if (operand == 0 && batch.run.places != nullptr) return;
    const Right right = operand == 0 ? Right::input : operand <= D ? Right::recurrent : Right::projected;
    const int64_t d = operand == 0 ? 0 : (operand - 1) % D, count = columns(right);
    const int64_t chunk = first / kChunk * kChunk, depth = slots(smaller(kChunk, tokens - chunk));
    float* panel = right_panels(right, d, chunk);
    for (int64_t token = first; token < smaller(first + kPiece, tokens); token += kPack) {
      const float *row[kPack] = {}, *mask[kPack] = {};
      for (int64_t i = 0; i < kPack && token + i < tokens; ++i) right_row(right, d, token + i, row[i], mask[i]);
      for (int64_t j = 0; j < round_up(count, kWide); j += W) {
        const int64_t lanes = count - j;
        Vec value[kPack] = {};
        for (int64_t i = 0; i < kPack && row[i] != nullptr; ++i) {
          value[i] = load(row[i] + j, lanes);
          if (mask[i] != nullptr) value[i] *= load(mask[i] + j, lanes);
        }
        float* to = panel + (j / kWide * depth + (token - chunk) / kPack) * kWide + j % kWide;
        store(to, kBfloat16 ? pair_up(value[0], value[kPack - 1]) : value[0]);
      }
    }
  }

  // A token's row of a right operand, with the mask that it was multiplied by.
  void right_row(Right right, int64_t d, int64_t token, const float*& row, const float*& mask) const {
    const Run& run = batch.run;
    const int64_t t = token_time[token], b = token_row[token];
    if (right == Right::input) {
      row = run.x + (t * run.batch + b) * batch.z.input;
    } else if (right == Right::projected) {
      row = left.shown + batch.unit(t, b, d);
    } else {
      const int64_t s = d == 0 ? t : batch.length(b) - 1 - t;
      row = batch.entering_hidden(d, b, s, in.hidden, packed.zeros);
      if (run.recurrent_mask != nullptr) mask = run.recurrent_mask + batch.stated(d, b) * batch.z.output;
    }
  }

  // A band of rows of dL/dW = sum over tokens of dL/dz x^T, of dL/dU with h^T, and of dL/db; or of the projection's
  // gradient.
  void weights_item(int64_t item) const {
    const int64_t d = item / items_a_direction(), number = item % items_a_direction();
    const bool of_gates = number < bands(gate_rows());
    const int64_t all_rows = of_gates ? gate_rows() : batch.z.output, count = bands(all_rows);
    const int64_t band = of_gates ? number : number - bands(gate_rows());
    const Span rows{tiles(all_rows) * band / count * kRows,
                    smaller(all_rows, tiles(all_rows) * (band + 1) / count * kRows)};
    float* left_packed = take_floats(kChunk * kStride);
    if (left_packed == nullptr) return out_of_memory->store(true);
    Patience patience{*batch.run.stop};
    for (int64_t from = 0; from == 0 || from < tokens; from += kChunk) {
      const int64_t depth = smaller(kChunk, tokens - from);
      if (patience.over(depth * (rows.end - rows.first) * (batch.z.input + batch.z.output))) break;
      int64_t at[kChunk];  // where each token's row of a left operand begins
      for (int64_t k = 0; k < depth; ++k)
        at[k] = batch.place(token_time[from + k], token_row[from + k], d) * all_rows + rows.first;
      const auto pack = [&](const float* factor) {
        pack_left(left_packed, factor, at, depth, rows.end - rows.first);
      };
      const auto multiply = [&](Right right, float* product) {
        add_product(product + rows.first * columns(right), left_packed, right_panels(right, d, from), slots(depth),
                    rows.end - rows.first, columns(right), from == 0);
      };
      if (!of_gates) {
        pack(left.d_made);
        multiply(Right::projected, out.d_projection[d]);
        continue;
      }
      pack(left.d_input_z);
      // The biases are added after a norm, the factors lie before it.
      sum_rows(out.d_bias[d] + rows.first, out.flow_preactivation, at, depth, rows.end - rows.first, from == 0);
      if (batch.run.places == nullptr) multiply(Right::input, out.d_input[d]);
      if (left.d_recurrent_z != left.d_input_z) pack(left.d_recurrent_z);
      multiply(Right::recurrent, out.d_recurrent[d]);
      const int64_t candidate = larger(rows.first, 2 * batch.z.hidden);
      if (batch.z.cell != Cell::gru || candidate >= rows.end) continue;
      sum_rows(out.d_candidate_bias[d] + candidate - 2 * batch.z.hidden,
               left.d_hidden_part + candidate - rows.first, at, depth, rows.end - candidate, from == 0);
    }
    give_back(left_packed);
  }

  // product (rows, columns) += left^T right, or = where it is the first.
  static void add_product(float* product, const float* left_packed, const float* right_panel, int64_t depth,
                          int64_t rows, int64_t columns, bool is_first) {
    for (int64_t p = 0; p * kWide < columns; ++p)
      within_panel(columns - p * kWide, [&](auto width) INLINE_LAMBDA {
        for (int64_t j = 0; j < rows; j += kRows) {
          const int64_t real = smaller(kRows, rows - j);
          float* to = product + j * columns + p * kWide;
          tile<kRows, decltype(width)::value, Product, kColumns>(
              depth, ByToken{left_packed + j, kStride}, right_panel + p * depth * kWide,
              [](int, int) INLINE_LAMBDA { return Vec{}; },
              [=](int r, int n, Vec sum) INLINE_LAMBDA {
                if (r >= real) return;
                const int64_t lanes = smaller(W, columns - p * kWide - n * W);
                float* at = to + r * columns + n * W;
                store(at, is_first ? sum : load(at, lanes) + sum, lanes);
              });
        }
      });
  }

  // sum (rows) += each token's row, or = where it is the first; the rows of a chunk are summed before they join.
  static void sum_rows(float* sum, const float* factor, const int64_t* at, int64_t depth, int64_t rows,
                       bool is_first) {
    for (int64_t j = 0; j < rows; j += kWide) {
      Vec chunk[kColumns] = {};
      for (int64_t k = 0; k < depth; ++k)
        for (int n = 0; n < kColumns; ++n) chunk[n] += load(factor + at[k] + j + n * W, rows - j - n * W);
      for (int n = 0; n < kColumns; ++n) {
        float* to = sum + j + n * W;
        const int64_t lanes = rows - j - n * W;
        if (lanes > 0) store(to, is_first ? chunk[n] : load(to, lanes) + chunk[n], lanes);
      }
    }
  }

  // The band's part of each token's row, in bfloat16 of two tokens in a slot, rounded; 0 in the rows of a last tile
  // that lie past the band.
  static void pack_left(float* to, const float* factor, const int64_t* at, int64_t depth, int64_t rows) {
    constexpr int64_t ahead = 16;  // tokens: each lies on a page of its own
    for (int64_t k = 0; k < depth; k += kPack, to += kStride)
      for (int64_t j = 0; j < rows + kRows; j += W) {
        const int64_t lanes = rows - j;
        Vec value[kPack] = {};
        for (int64_t i = 0; i < kPack && k + i < depth; ++i) {
          const float* from = factor + at[k + i] + j;
          value[i] = load(from, lanes);
          if (k + i + ahead < depth) __builtin_prefetch(factor + at[k + i + ahead] + j);
        }
        store(to + j, kBfloat16 ? pair_up(value[0], value[kPack - 1]) : value[0]);
      }
  }

  // What the sweep gathered a row, summed over the rows, and the gradients of a norm's bias, which are a bias's.
  void join_gathered() const {
    const Sizes& z = batch.z;
    const Gathered at(packed);
    const int64_t H = z.hidden, rows = z.gates * H;
    const auto join = [&](float* to, int64_t d, int64_t from, int64_t count) {
      std::memset(to, 0, static_cast<size_t>(count) * sizeof(float));
      for (int64_t b = 0; b < batch.run.batch; ++b) {
        const float* one = left.gathered + (b * z.directions + d) * at.floats + from;
        for (int64_t j = 0; j < count; ++j) to[j] += one[j];
      }
    };
    for (int64_t d = 0; d < z.directions; ++d) {
      const auto& w = packed.beyond[d];
      if (w.peephole != nullptr) join(out.d_peephole[d], d, at.peephole, 3 * H);
      if (w.norm_cell != nullptr) join(out.d_norm_cell[d], d, at.norm_cell, 2 * H);
      const auto bias = static_cast<size_t>(rows) * sizeof(float);
      if (w.gain_input != nullptr) {
        join(out.d_norm_input[d], d, at.gain_input, rows);
        std::memcpy(out.d_norm_input[d] + rows, out.d_bias[d], bias);
      }
      if (w.gain_recurrent == nullptr) continue;
      join(out.d_norm_recurrent[d], d, at.gain_recurrent, rows);
      std::memcpy(out.d_norm_recurrent[d] + rows, out.d_bias[d], bias);
      if (z.cell == Cell::gru)
        std::memcpy(out.d_norm_recurrent[d] + rows + 2 * H, out.d_candidate_bias[d],
                    static_cast<size_t>(H) * sizeof(float));
    }
  }

  // dL/dx = dL/dz W over both directions at once; 0 for tokens past a sequence's end.
  void x_item(int64_t item) const {
    const Sizes& z = batch.z;
    const int64_t gates = z.directions * z.gates, depth = gates * slots(z.hidden), I = z.input;
    float* own = nullptr;
    if constexpr (kBfloat16) {
      own = take_floats(kTokensAnItem * depth);
      if (own == nullptr) return out_of_memory->store(true);
    }
    const int64_t first = item * kTokensAnItem;
    const int64_t last = smaller(first + kTokensAnItem, batch.run.time * batch.run.batch);
    const float* rows[kTokensAnItem];
    float* to[kTokensAnItem];
    int64_t live = 0;
    Patience patience{*batch.run.stop};
    if (patience.over((last - first) * depth * I)) return give_back(own);
    for (int64_t token = first; token < last; ++token) {
      const int64_t t = token / batch.run.batch, b = token % batch.run.batch;
      if (t >= batch.length(b)) {
        std::memset(out.d_x + token * I, 0, static_cast<size_t>(I) * sizeof(float));
        continue;
      }
      rows[live] = left.d_input_z + batch.gate(t, b, 0);
      if constexpr (kBfloat16) {
        round_gates(own + live * depth, rows[live], gates, z.hidden);
        rows[live] = own + live * depth;
      }
      to[live++] = out.d_x + token * I;
    }
    constexpr int64_t wide = kColumns * W;
    for (int64_t p = 0; p * wide < I; ++p) {
      const float* panel = back.input + p * depth * wide;
      over_rows(live, [&](auto height, int64_t r0) INLINE_LAMBDA {
        constexpr int R = decltype(height)::value;
        float* const* out_rows = to + r0;
        within_panel(I - p * wide, [&](auto width) INLINE_LAMBDA {
          tile<R, decltype(width)::value, Product, kColumns>(
              depth, ByRow{rows + r0}, panel, [](int, int) INLINE_LAMBDA { return Vec{}; },
              [=](int r, int n, Vec sum) INLINE_LAMBDA {
                const int64_t column = p * wide + n * W;
                store(out_rows[r] + column, sum, smaller(W, I - column));
              });
        });
      });
    }
    give_back(own);
  }
};

}  // namespace
}  // namespace unspool
