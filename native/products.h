// The products after the backward sweep: gradients of the weights and of x.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>

#include "backward.h"

namespace unspool {
namespace {

constexpr int64_t kChunk = 128;  // tokens that a weight gradient sums before it joins the total
constexpr int64_t kBand = 252;   // rows of a weight gradient that one item computes at the most

// The products after the sweep: gradients of the weights and of x, over all live tokens.
struct Products {
  const Packed& packed;
  const Batch& batch;
  const Arriving& in;
  const Backward& out;
  const BackPanels& back;
  const Left& left;
  const int64_t* token_time;   // (tokens) by time, then by row
  const int64_t* token_row;    // (tokens)
  int64_t tokens;
  int64_t bands;               // items of one weight gradient
  int64_t band;                // rows of an item
  char* scratch;
  int64_t scratch_bytes;
  std::atomic<bool>* out_of_memory;

  static constexpr int64_t kTokensAnItem = 48;

  // Of dL/dW and of dL/dU `bands` each, and of the projection's gradient as many as it needs.
  int64_t items_a_direction() const {
    return 2 * bands + (left.d_made != nullptr ? (batch.z.output + band - 1) / band : 0);
  }
  int64_t weight_items() const { return batch.z.directions * items_a_direction(); }
  int64_t x_items() const { return (batch.run.time * batch.run.batch + kTokensAnItem - 1) / kTokensAnItem; }

  int64_t columns_floats() const {
    return column_floats(kChunk, larger(batch.z.input, batch.z.hidden));
  }
  // From one token's left operand to the next's: room for a last tile's rows past the band, and an odd
  // number of cache lines, so that a column of them does not fall into one set.
  int64_t left_stride() const { return round_up(band + kRows, 16) / 16 / 2 * 32 + 16; }
  int64_t bytes_an_item() const {
    return (columns_floats() + kChunk * left_stride() + 2 * round_up(band, 16)) *
           static_cast<int64_t>(sizeof(float));
  }

  static void weight_body(void* context, int64_t item) {
    static_cast<const Products*>(context)->weights_item(item);
  }
  static void x_body(void* context, int64_t item) {
    static_cast<const Products*>(context)->x_item(item);
  }

  // A band of rows of dL/dW (kind 0) = sum over tokens of dL/dz x^T, of dL/dU (1) with h^T, or of the projection's (2);
  // and of dL/db.
  void weights_item(int64_t item) const {
    const Sizes& z = batch.z;
    const int64_t d = item / items_a_direction(), in_direction = item % items_a_direction();
    const int64_t kind = smaller(2, in_direction / bands), first = (in_direction - kind * bands) * band;
    const int64_t all_rows = kind == 2 ? z.output : z.gates * z.hidden;
    const int64_t rows = smaller(band, all_rows - first), stride = left_stride();
    const int64_t columns = kind == 0 ? z.input : kind == 1 ? z.output : z.hidden;
    float* product = (kind == 0 ? out.d_input[d] : kind == 1 ? out.d_recurrent[d] : out.d_projection[d]) +
                     first * columns;
    const float* factor = kind == 0 ? left.d_input_z : kind == 1 ? left.d_recurrent_z : left.d_made;
    // The biases are added after a norm, the factors lie before it.
    const float* added = kind == 0 ? out.flow_preactivation : left.d_hidden_part;

    auto* right_panels = reinterpret_cast<float*>(scratch + item * scratch_bytes);
    float* left_packed = right_panels + columns_floats();
    float* bias = left_packed + kChunk * stride;        // (band) all tokens
    float* bias_chunk = bias + round_up(band, 16);      // (band) this chunk's
    const float* row_at[kChunk];

    std::memset(product, 0, static_cast<size_t>(rows * columns) * sizeof(float));
    std::memset(bias, 0, static_cast<size_t>(rows) * sizeof(float));
    Patience patience{*batch.run.stop};
    for (int64_t from = 0; from < tokens; from += kChunk) {
      const int64_t depth = smaller(kChunk, tokens - from);
      if (patience.over(depth * rows * columns)) return;
      for (int64_t k = 0; k < depth; ++k)
        row_at[k] = factor + batch.place(token_time[from + k], token_row[from + k], d) * all_rows + first;
      if constexpr (kBfloat16)
        pair_left(left_packed, stride, row_at, depth, rows);
      else
        pack_left(left_packed, stride, row_at, depth, rows);
      if (kind == 0 || (kind == 1 && z.cell == Cell::gru)) {
        std::memset(bias_chunk, 0, static_cast<size_t>(rows) * sizeof(float));
        for (int64_t k = 0; k < depth; ++k) {
          const float* row = added + (row_at[k] - factor);
          for (int64_t j = 0; j < rows; ++j) bias_chunk[j] += row[j];
        }
        for (int64_t j = 0; j < rows; ++j) bias[j] += bias_chunk[j];
      }
      if constexpr (kBfloat16)
        pair_right(right_panels, d, kind, from, depth, columns);
      else
        pack_right(right_panels, d, kind, from, depth, columns);
      constexpr int64_t wide = kColumns * W;
      for (int64_t p = 0; p * wide < columns; ++p)
        for (int64_t j = 0; j < rows; j += kRows) {
          const int64_t real = smaller(kRows, rows - j);
          float* to = product + j * columns + p * wide;
          tile<kRows, kColumns>(
              slots(depth), ByToken{left_packed + j, stride}, right_panels + p * kChunk * wide,
              [](int, int) INLINE_LAMBDA { return Vec{}; },
              [=](int r, int n, Vec sum) INLINE_LAMBDA {
                const int64_t lanes = smaller(W, columns - p * wide - n * W);
                if (r >= real || lanes <= 0) return;
                float* at = to + r * columns + n * W;
                store(at, load(at, lanes) + sum, lanes);
              });
        }
    }
    if (kind == 0)
      std::memcpy(out.d_bias[d] + first, bias, static_cast<size_t>(rows) * sizeof(float));
    else if (kind == 1 && z.cell == Cell::gru)
      for (int64_t j = larger(0, 2 * z.hidden - first); j < rows; ++j)
        out.d_candidate_bias[d][first + j - 2 * z.hidden] = bias[j];
  }

  // The band's part of each token's row; 0 in the rows of a last tile that lie past the band.
  static void pack_left(float* to, int64_t stride, const float* const* row_at, int64_t depth,
                        int64_t rows) {
    for (int64_t k = 0; k < depth; ++k) {
      std::memcpy(to + k * stride, row_at[k], static_cast<size_t>(rows) * sizeof(float));
      for (int r = 0; r < kRows; ++r) to[k * stride + rows + r] = 0.0f;
    }
  }

  // The same in bfloat16: two tokens to a slot, rounded.
  static void pair_left(float* to, int64_t stride, const float* const* row_at, int64_t depth, int64_t rows) {
    for (int64_t k = 0; k < depth; k += 2, to += stride) {
      for (int64_t j = 0; j < rows; j += W) {
        const int64_t lanes = smaller(W, rows - j);
        const Vec late = k + 1 < depth ? load(row_at[k + 1] + j, lanes) : Vec{};
        store(to + j, pair_up(load(row_at[k] + j, lanes), late), lanes);
      }
      for (int r = 0; r < kRows; ++r) to[rows + r] = 0.0f;
    }
  }

  // pack_right in bfloat16.
  void pair_right(float* to, int64_t d, int64_t kind, int64_t from, int64_t depth, int64_t columns) const {
    constexpr int64_t wide = kColumns * W;
    for (int64_t k = 0; k < depth; k += 2) {
      const float *row[2] = {}, *mask[2] = {};
      for (int64_t i = 0; i < 2 && k + i < depth; ++i) right_row(d, kind, from + k + i, columns, row[i], mask[i]);
      for (int64_t j = 0; j < round_up(columns, wide); j += W) {
        const int64_t lanes = larger(0, smaller(W, columns - j));
        Vec both[2] = {};
        for (int64_t i = 0; i < 2; ++i) {
          if (row[i] == nullptr || lanes == 0) continue;
          both[i] = load(row[i] + j, lanes);
          if (mask[i] != nullptr) both[i] *= load(mask[i] + j, lanes);
        }
        store(to + (j / wide * kChunk + k / 2) * wide + j % wide, pair_up(both[0], both[1]));
      }
    }
  }

  // A token's x, or h as it entered the step, with the mask that it was multiplied by.
  void right_row(int64_t d, int64_t kind, int64_t token, int64_t columns, const float*& row,
                 const float*& mask) const {
    const Run& run = batch.run;
    const int64_t t = token_time[token], b = token_row[token];
    if (kind == 0) {
      row = run.x + (t * run.batch + b) * columns;
      return;
    }
    const int64_t s = d == 0 ? t : batch.length(b) - 1 - t;
    row = batch.entering_hidden(d, b, s, in.hidden, packed.zeros);
    if (run.recurrent_mask != nullptr) mask = run.recurrent_mask + batch.stated(d, b) * batch.z.output;
  }

  // What the weights multiplied: x, or h as it entered the step.
  void pack_right(float* to, int64_t d, int64_t kind, int64_t from, int64_t depth,
                  int64_t columns) const {
    const Run& run = batch.run;
    pack_columns(to, depth, kChunk, columns, [&](int64_t k) {
      const int64_t t = token_time[from + k], b = token_row[from + k];
      if (kind == 0) return run.x + (t * run.batch + b) * columns;
      if (kind == 2) return static_cast<const float*>(left.shown + batch.unit(t, b, d));
      const int64_t s = d == 0 ? t : batch.length(b) - 1 - t;
      return batch.entering_hidden(d, b, s, in.hidden, packed.zeros);
    });
    if (kind != 1 || run.recurrent_mask == nullptr) return;
    constexpr int64_t wide = kColumns * W;
    for (int64_t k = 0; k < depth; ++k) {
      const float* mask = run.recurrent_mask + batch.stated(d, token_row[from + k]) * batch.z.output;
      for (int64_t j = 0; j < columns; ++j)
        to[(j / wide * kChunk + k) * wide + j % wide] *= mask[j];
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
        tile<R, kColumns>(
            depth, ByRow{rows + r0}, panel, [](int, int) INLINE_LAMBDA { return Vec{}; },
            [=](int r, int n, Vec sum) INLINE_LAMBDA {
              const int64_t column = p * wide + n * W, lanes = smaller(W, I - column);
              if (lanes > 0) store(out_rows[r] + column, sum, lanes);
            });
      });
    }
    give_back(own);
  }
};

}  // namespace
}  // namespace unspool
