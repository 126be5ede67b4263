// The forward sweep: hoisted input projection, recurrent product, activations in the registers that hold the sums.
#pragma once

#include <cstdint>
#include <cstring>

#include "batch.h"
#include "lockstep.h"
#include "options.h"

namespace unspool {
namespace {

// The gates, c and h of one row and panel, from its pre-activations.  The GRU's candidate comes in two
// parts, since the reset gate acts on the recurrent one.
template <Cell C>
INLINE void advance(const Kept<C>& row, int64_t p, int64_t H, const Vec (&sum)[Layout<C>::N],
                    [[maybe_unused]] Vec x_candidate) {
  using L = Layout<C>;
  const int64_t u = L::unit(p, 0), lanes = L::lanes(p, 0, H);
  if constexpr (C == Cell::lstm) {
    const Vec i = sigmoid(sum[0]), f = sigmoid(sum[1]), g = tanh(sum[2]), o = sigmoid(sum[3]);
    const Vec c = fma(f, load(row.c_prev + u, lanes), i * g);
    store(row.c + u, c, lanes);
    store(row.h + u, o * tanh(c), lanes);
    if (row.gates == nullptr) return;
    store(row.gates + L::row(p, 0, H), i, lanes);
    store(row.gates + L::row(p, 1, H), f, lanes);
    store(row.gates + L::row(p, 2, H), g, lanes);
    store(row.gates + L::row(p, 3, H), o, lanes);
  } else if constexpr (C == Cell::gru) {
    const Vec reset = sigmoid(sum[0]), update = sigmoid(sum[1]);
    const Vec n = tanh(fma(reset, sum[2], x_candidate));
    const Vec h_prev = load(row.h_prev + u, lanes);
    store(row.h + u, fma(update, h_prev - n, n), lanes);
    if (row.gates == nullptr) return;
    store(row.gates + L::row(p, 0, H), reset, lanes);
    store(row.gates + L::row(p, 1, H), update, lanes);
    store(row.gates + L::row(p, 2, H), n, lanes);
    store(row.recurrent_candidate + u, sum[2], lanes);
  } else {
#pragma GCC unroll 8
    for (int n = 0; n < L::N; ++n) {
      const int64_t some = L::lanes(p, n, H);
      if (some == 0) continue;
      const Vec h = C == Cell::rnn_tanh ? tanh(sum[n]) : (sum[n] < 0.0f ? Vec{} : sum[n]);
      store(row.h + L::unit(p, n), h, some);
      if (row.gates != nullptr) store(row.gates + L::unit(p, n), h, some);
    }
  }
}

// Where the integer sums of panel p begin; with P == 2, of panels p and p + 1 in the rows' place.
template <int N, int P>
INLINE auto int8_start(const float* starts, int64_t p) {
  const float* from = starts + p * N * W;
  return [=](int k, int n) INLINE_LAMBDA { return load(from + ((P == 2 ? k : 0) * N + n) * W); };
}

// Pre-activations from integer sums: start + sum * what a weight is worth * what h is.
template <int N, int P, int K, class Start>
INLINE void dequantise(Vec (&sum)[K][N], const float* scales, int64_t p, const float* h_scale, Start start) {
  const float* from = scales + p * N * W;
#pragma GCC unroll 8
  for (int k = 0; k < K; ++k) {
    const Vec of_h = splat(h_scale[P == 2 ? 0 : k]);
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      const Vec scale = load(from + ((P == 2 ? k : 0) * N + n) * W) * of_h;
      sum[k][n] = fma(__builtin_convertvector(bits_of(sum[k][n]), Vec), scale, start(k, n));
    }
  }
}

// Scratch of one forward item.
struct ForwardScratch {
  int64_t steps;                // steps whose input projection is made at once
  int64_t tokens;               // that z has room for: steps * rows
  // The same for all parts of an item:
  float* z;                     // [panel][token][n][lane] what the input gives to the pre-activations
  float* c;                     // (rows, H) running cell state, when no trace holds it
  // A part's own:
  float* masked;                // (rows, P) h times the recurrent mask
  float* x_slots;               // (steps * rows, I in slots) bfloat16
  float* h_slots;               // (rows, P in slots) bfloat16, int8
  float* h_scale;               // (rows) int8
  const float** x_rows;         // (steps * rows)
  const float** h_prev;         // (rows)
  const float** operand;        // (rows) h as the recurrent weights see it
  const float** c_prev;         // (rows)
  float** c_out;                // (rows)
  int64_t* at;                  // (rows) where this step lies in (T, B, D)
  float* u;                     // [panel][row][n][lane] what h gives to the pre-activations, where that has a norm
  float* shown;                 // (rows, H) what the cell shows, where h is more than that
  const float** shown_rows;     // (rows)
  float* made;                  // (rows, H) c before zoneout, where c has a norm
};

// Extended: whether the layer or its run has anything beyond the plain cell.
template <Cell C, bool Extended>
struct ForwardSweep : Sweep {
  using L = Layout<C>;
  const Forward& out;
  Lockstep* locksteps;  // one an item, where it has parts
  char* scratch;
  int64_t shared_bytes, own_bytes;  // of an item; of each of its parts
  float* of_table = nullptr;        // (D) [panel][row][n][lane] W x + b of each row of x, where x is a table

  static constexpr int64_t kTableRows = 48;  // that one item multiplies
  int64_t table_items() const { return batch.z.directions * ((batch.run.table_rows + kTableRows - 1) / kTableRows); }
  int64_t table_floats() const {
    return batch.z.directions * L::panels(batch.z.hidden) * batch.run.table_rows * L::N * W;
  }
  float* of_table_at(int64_t d, int64_t p, int64_t row) const {
    return of_table + ((d * L::panels(batch.z.hidden) + p) * batch.run.table_rows + row) * L::N * W;
  }
  static void table_body(void* context, int64_t item) { static_cast<const ForwardSweep*>(context)->table_item(item); }
  void table_item(int64_t item) const {
    const int64_t d = item % batch.z.directions, from = item / batch.z.directions * kTableRows;
    const int64_t rows = smaller(kTableRows, batch.run.table_rows - from);
    const float* x_rows[kTableRows];
    for (int64_t r = 0; r < rows; ++r) x_rows[r] = batch.run.x + (from + r) * batch.z.input;
    for (int64_t p = 0; p < L::panels(batch.z.hidden); ++p)
      multiply_x(d, p, x_rows, rows, of_table_at(d, p, from));
  }

  // z = W x + b of some rows and one panel.
  void multiply_x(int64_t d, int64_t p, const float* const* x_rows, int64_t rows, float* to) const {
    const int64_t I = batch.z.input;
    const float* panel = packed.input[d] + p * slots(I) * L::N * W;
    const float* bias = packed.bias[d] + p * L::N * W;
    if constexpr (Extended) bias = packed.beyond[d].gain_input != nullptr ? nullptr : bias;
    over_rows(rows, [&](auto height, int64_t first) INLINE_LAMBDA {
      constexpr int R = decltype(height)::value;
      float* z = to + first * L::N * W;
      tile<R, L::N>(
          slots(I), ByRow{x_rows + first}, panel,
          [=](int, int n) INLINE_LAMBDA { return Extended && bias == nullptr ? Vec{} : load(bias + n * W); },
          [=](int r, int n, Vec sum) INLINE_LAMBDA { store(z + (r * L::N + n) * W, sum); });
    });
  }

  int64_t scratch_bytes() const { return shared_bytes + cut.parts * own_bytes; }

  // Lays what the parts of an item share out from `from`; with null it only measures.
  int64_t lay_out_shared(char* from, ForwardScratch* it) const {
    const int64_t rows = most_rows();
    Carver carve{from};
    it->steps = steps_at_once(rows, batch.run.time);
    it->tokens = it->steps * rows;
    carve(it->z, L::panels(batch.z.hidden) * it->tokens * L::N * W);
    carve(it->c, out.cell == nullptr && C == Cell::lstm ? rows * batch.z.hidden : 0);
    return carve.used;
  }

  // And what is a part's own.
  int64_t lay_out(char* from, ForwardScratch* it) const {
    const Sizes& z = batch.z;
    const int64_t rows = most_rows(), steps = steps_at_once(rows, batch.run.time);
    Carver carve{from};
    carve(it->masked, batch.run.recurrent_mask != nullptr ? rows * z.output : 0);
    carve(it->x_slots, kBfloat16 ? steps * rows * slots(z.input) : 0);
    carve(it->h_slots, kPackRecurrent > 1 ? rows * recurrent_slots(z.output) : 0);
    carve(it->h_scale, kInt8 ? rows : 0);
    carve(it->x_rows, steps * rows);
    carve(it->h_prev, rows);
    carve(it->operand, rows);
    carve(it->c_prev, rows);
    carve(it->c_out, rows);
    carve(it->at, rows);
    if constexpr (Extended) {
      const auto& w = packed.beyond[0];
      const bool later = w.projection != nullptr || w.norm_cell != nullptr;
      carve(it->u, w.gain_recurrent != nullptr ? L::panels(z.hidden) * rows * L::N * W : 0);
      carve(it->shown, later ? rows * z.hidden : 0);
      carve(it->shown_rows, later ? rows : 0);
      carve(it->made, w.norm_cell != nullptr ? rows * z.hidden : 0);
      if (!later) it->shown = nullptr;
    }
    return carve.used;
  }

  static void body(void* context, int64_t item) {
    static_cast<const ForwardSweep*>(context)->run_item(item);
  }

  void run_item(int64_t number) const {
    const int64_t item = number / cut.parts, part = number % cut.parts;
    ForwardScratch work;
    char* at = scratch + item * scratch_bytes();
    lay_out_shared(at, &work);
    lay_out(at + shared_bytes + part * own_bytes, &work);
    const Share mine = share(item);
    const int64_t steps = longest(mine), panels = L::panels(batch.z.hidden);
    Patience patience{*batch.run.stop};
    int64_t now = -2, done = 0;  // the step, and the tokens of its chunk before it
    const auto advance = [&](int64_t s, int64_t which) {
      const Span span = part_of(panels, which);
      const int64_t from = s / work.steps * work.steps;
      if (s == from) {
        project(mine, work, s, smaller(s + work.steps, steps), span);
        done = 0;
      } else if (s == now + 1) {
        done += live(mine, now);
      } else if (s != now) {
        done = 0;
        for (int64_t before = from; before < s; ++before) done += live(mine, before);
      }
      now = s;
      const int64_t rows = live(mine, s);
      step(mine, work, s, rows, done, span);
      patience.over(rows * products_a_token() / cut.parts);
    };
    if (cut.parts == 1) {
      for (int64_t s = 0; s < steps && !batch.run.stop->raised.load(std::memory_order_relaxed); ++s) advance(s, 0);
    } else if (part == 0) {
      locksteps[item].lead(advance);
    } else {
      return locksteps[item].help(part, advance);
    }
    if (batch.run.stop->raised.load(std::memory_order_relaxed)) return;
    for (int64_t r = 0; r < mine.rows; ++r) finish(mine, work, r);
  }

  // Where the scratch holds panel p of a token's z.
  float* z_at(const ForwardScratch& work, int64_t p, int64_t token) const {
    return work.z + (p * work.tokens + token) * L::N * W;
  }

  // z = W x + b for all live tokens of steps from…to-1.
  void project(const Share& mine, const ForwardScratch& work, int64_t from, int64_t to, Span panels) const {
    const Sizes& sizes = batch.z;
    const int64_t I = sizes.input, H = sizes.hidden;
    int64_t tokens = 0;
    if (batch.run.places != nullptr) return look_up(mine, work, from, to, panels);
    for (int64_t s = from; s < to; ++s) {
      const int64_t rows = live(mine, s);
      for (int64_t r = 0; r < rows; ++r, ++tokens) {
        const int64_t b = row(mine, r), t = batch.time(mine.d, b, s);
        work.x_rows[tokens] = batch.run.x + (t * batch.run.batch + b) * I;
        if constexpr (kBfloat16) {
          float* rounded = work.x_slots + tokens * slots(I);
          round_row(rounded, work.x_rows[tokens], I);
          work.x_rows[tokens] = rounded;
        }
      }
    }
    for (int64_t p = panels.first; p < panels.end; ++p) multiply_x(mine.d, p, work.x_rows, tokens, z_at(work, p, 0));
    if constexpr (Extended) {
      const float* gain = packed.beyond[mine.d].gain_input;
      for (int64_t token = 0; gain != nullptr && token < tokens; ++token)
        normalise_panels<C>(z_at(work, 0, token), work.tokens * L::N * W, H, gain, packed.bias[mine.d]);
    }
  }

  // The same where x is a table whose rows have been multiplied.
  void look_up(const Share& mine, const ForwardScratch& work, int64_t from, int64_t to, Span panels) const {
    int64_t token = 0;
    for (int64_t s = from; s < to; ++s) {
      const int64_t rows = live(mine, s);
      for (int64_t r = 0; r < rows; ++r, ++token) {
        const int64_t b = row(mine, r), t = batch.time(mine.d, b, s);
        const int64_t place = batch.run.places[t * batch.run.batch + b];
        for (int64_t p = panels.first; p < panels.end; ++p) {
          const float* of_row = of_table_at(mine.d, p, place);
          float* z = z_at(work, p, token);
#pragma GCC unroll 8
          for (int n = 0; n < L::N; ++n) store(z + n * W, load(of_row + n * W));
        }
      }
    }
  }

  // One step of all live rows.  `done` tokens of this chunk came before.
  void step(const Share& mine, const ForwardScratch& work, int64_t s, int64_t rows, int64_t done, Span panels) const {
    const int64_t H = batch.z.hidden, O = batch.z.output, d = mine.d;
    const Run& run = batch.run;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t b = row(mine, r);
      work.at[r] = batch.place(batch.time(d, b, s), b, d);
      work.h_prev[r] = batch.entering_hidden(d, b, s, out.hidden, packed.zeros);
      work.operand[r] = work.h_prev[r];
      if (run.recurrent_mask != nullptr) {
        float* masked = work.masked + r * O;
        const float* mask = run.recurrent_mask + batch.stated(d, b) * O;
        for (int64_t j = 0; j < O; ++j) masked[j] = work.h_prev[r][j] * mask[j];
        work.operand[r] = masked;
      }
      if constexpr (kPackRecurrent > 1) {
        float* narrow = work.h_slots + r * recurrent_slots(O);
        if constexpr (kBfloat16) round_row(narrow, work.operand[r], O);
        if constexpr (kInt8) work.h_scale[r] = quantise_row(narrow, work.operand[r], O);
        work.operand[r] = narrow;
      }
      if constexpr (C == Cell::lstm) {
        if (out.cell != nullptr) {
          work.c_prev[r] = batch.entering_cell(d, b, s, out.cell, packed.zeros);
          work.c_out[r] = out.cell + work.at[r] * H;
        } else {
          work.c_out[r] = work.c + r * H;
          work.c_prev[r] = s > 0 && !batch.cut(d, b, s)
                               ? work.c_out[r]
                               : batch.entering_cell(d, b, s, nullptr, packed.zeros);
        }
      }
    }
    over_panels(rows, panels, s % 2 != 0, [&](auto height, auto width, int64_t first, int64_t p) INLINE_LAMBDA {
      constexpr int R = decltype(height)::value, P = decltype(width)::value;
      const int64_t depth = recurrent_slots(O);
      const float* panel = packed.recurrent[d] + p * depth * L::N * W;
      const float* z = z_at(work, p, done + first);
      const int64_t to_next = P == 2 ? work.tokens * L::N * W : L::N * W;  // the next panel's, or row's
      const float* candidate_bias = packed.candidate_bias[d] + L::unit(p, 0);
      Vec sum[R * P][L::N];
      auto* sums = &sum;
      const auto start = [=](int k, int n) INLINE_LAMBDA {
        // The GRU's candidate keeps its recurrent product apart: the reset gate acts on it.
        if (C == Cell::gru && n == 2) return load(candidate_bias + (P == 2 ? k * W : 0));
        return load(z + k * to_next + n * W);
      };
      const auto end = [=](int k, int n, Vec total) INLINE_LAMBDA { (*sums)[k][n] = total; };
      const auto multiply = [&](auto begin) INLINE_LAMBDA {
        if constexpr (P == 2)
          tile_pair<L::N, RecurrentProduct>(depth, work.operand[first], panel, panel + depth * L::N * W, begin,
                                            end);
        else
          tile<R, L::N, RecurrentProduct>(depth, ByRow{work.operand + first}, panel, begin, end);
      };
      if constexpr (Extended) {
        if (packed.beyond[d].gain_recurrent != nullptr) {  // nothing can be activated before all of a row is there
          float* u = work.u + (p * rows + first) * L::N * W;
          const int64_t next = P == 2 ? rows * L::N * W : L::N * W;
          const auto keep = [=](int k, int n, Vec total) INLINE_LAMBDA { store(u + k * next + n * W, total); };
          const auto nothing = [](int, int) INLINE_LAMBDA { return Vec{}; };
          if constexpr (P == 2)
            tile_pair<L::N>(depth, work.operand[first], panel, panel + depth * L::N * W, nothing, keep);
          else
            tile<R, L::N>(depth, ByRow{work.operand + first}, panel, nothing, keep);
          return;
        }
      }
      if constexpr (kInt8) {
        multiply(int8_start<L::N, P>(packed.recurrent_start[d], p));
        dequantise<L::N, P>(sum, packed.recurrent_scale[d], p, work.h_scale + first, start);
      } else {
        multiply(start);
      }
#pragma GCC unroll 8
      for (int k = 0; k < R * P; ++k)
        activate(mine, work, done, first + (P == 2 ? 0 : k), p + (P == 2 ? k : 0), sum[k]);
    });
    if constexpr (Extended) {
      if (packed.beyond[d].gain_recurrent != nullptr) activate_normalised(mine, work, done, rows);
      if (work.shown != nullptr) show_later(mine, work, rows);
    }
  }

  // The activations of all rows, after the normalisation of what h gives.
  void activate_normalised(const Share& mine, const ForwardScratch& work, int64_t done, int64_t rows) const {
    const int64_t H = batch.z.hidden, stride = rows * L::N * W;
    const auto& w = packed.beyond[mine.d];
    for (int64_t r = 0; r < rows; ++r) {
      float* u = work.u + r * L::N * W;
      normalise_panels<C>(u, stride, H, w.gain_recurrent, w.bias_recurrent);
      for (int64_t p = 0; p < L::panels(H); ++p) {
        const float *z = z_at(work, p, done + r), *of_h = u + p * stride;
        Vec sum[L::N];
#pragma GCC unroll 8
        for (int n = 0; n < L::N; ++n) {
          const Vec start =
              C == Cell::gru && n == 2 ? load(packed.candidate_bias[mine.d] + L::unit(p, 0)) : load(z + n * W);
          sum[n] = start + load(of_h + n * W);
        }
        activate(mine, work, done, r, p, sum);
      }
    }
  }

  KeptBeyond beyond_of(const Share& mine, const ForwardScratch& work, int64_t r) const {
    const Run& run = batch.run;
    const int64_t H = batch.z.hidden, O = batch.z.output, at = work.at[r];
    const auto from = [](const float* array, int64_t place) { return array != nullptr ? array + place : nullptr; };
    return {from(run.zoneout_hidden, at * O),
            from(run.zoneout_cell, at * H),
            from(run.patch_gates, at * batch.z.gates * H),
            from(run.patch_hidden, at * O),
            from(run.patch_cell, at * H),
            work.shown != nullptr ? work.shown + r * H : nullptr,
            packed.beyond[mine.d].norm_cell != nullptr ? work.made + r * H : nullptr};
  }

  // h from o and c, where c has a norm, and through the projection.
  void show_later(const Share& mine, const ForwardScratch& work, int64_t rows) const {
    const int64_t H = batch.z.hidden, O = batch.z.output;
    const auto& w = packed.beyond[mine.d];
    for (int64_t r = 0; r < rows; ++r) {
      float* shown = work.shown + r * H;
      work.shown_rows[r] = shown;
      if (w.norm_cell == nullptr) continue;
      const KeptBeyond beyond = beyond_of(mine, work, r);
      const Moments moments = moments_of_row(beyond.made, H);
      for (int64_t j = 0; j < H; j += W) {
        const Vec norm = fma(load(w.norm_cell + j), moments.standard(load(beyond.made + j, H - j)),
                             load(w.norm_cell + round_up(H, W) + j));
        const Vec made = load(shown + j, H - j) * tanh(norm);
        if (w.projection != nullptr)
          store(shown + j, made, H - j);
        else
          show(beyond, work.h_prev[r], out.hidden + work.at[r] * O, j, smaller(W, H - j), made);
      }
    }
    if (w.projection == nullptr) return;
    constexpr int64_t wide = kColumns * W;
    over_panels(rows, {0, (O + wide - 1) / wide}, false, [&](auto height, auto width, int64_t first, int64_t p) INLINE_LAMBDA {
      constexpr int R = decltype(height)::value, P = decltype(width)::value;
      const float* panel = w.projection + p * H * wide;
      const auto nothing = [](int, int) INLINE_LAMBDA { return Vec{}; };
      const auto keep = [&](int k, int n, Vec sum) INLINE_LAMBDA {
        const int64_t r = first + (P == 2 ? 0 : k), column = (p + (P == 2 ? k : 0)) * wide + n * W;
        if (column < O)
          show(beyond_of(mine, work, r), work.h_prev[r], out.hidden + work.at[r] * O, column, smaller(W, O - column),
               sum);
      };
      if constexpr (P == 2)
        tile_pair<kColumns>(H, work.shown_rows[first], panel, panel + H * wide, nothing, keep);
      else
        tile<R, kColumns>(H, ByRow{work.shown_rows + first}, panel, nothing, keep);
    });
  }

  INLINE void activate([[maybe_unused]] const Share& mine, const ForwardScratch& work, int64_t done, int64_t r,
                       int64_t p, const Vec (&sum)[L::N]) const {
    const int64_t H = batch.z.hidden;
    Kept<C> row{work.h_prev[r], nullptr, nullptr, out.hidden + work.at[r] * batch.z.output, nullptr, nullptr};
    if (out.gates != nullptr) row.gates = out.gates + work.at[r] * batch.z.gates * H;
    if constexpr (C == Cell::lstm) row.c_prev = work.c_prev[r], row.c = work.c_out[r];
    Vec x_candidate{};
    if constexpr (C == Cell::gru) {
      x_candidate = load(z_at(work, p, done + r) + 2 * W);
      if (out.gates != nullptr) row.recurrent_candidate = out.recurrent_candidate + work.at[r] * H;
    }
    if constexpr (Extended)
      advance_beyond(row, beyond_of(mine, work, r), batch.z, packed.beyond[mine.d], p, sum, x_candidate);
    else
      advance(row, p, H, sum, x_candidate);
  }

  // The final state of a row, and zeros past its end.
  void finish(const Share& mine, const ForwardScratch& work, int64_t r) const {
    const Run& run = batch.run;
    const int64_t b = row(mine, r), d = mine.d, H = batch.z.hidden, O = batch.z.output, length = batch.length(b);
    const bool cut = batch.cut_after_last(d, b);
    const int64_t last = length > 0 ? batch.place(batch.time(d, b, length - 1), b, d) : 0;
    const auto leave = [&](float* final, const float* initial, const float* fresh, const float* running,
                           int64_t width) {
      const int64_t at = batch.stated(d, b) * width;
      const float* from = cut            ? (fresh != nullptr ? fresh + at : packed.zeros)
                          : length > 0   ? running
                          : initial != nullptr ? initial + at
                                               : packed.zeros;
      std::memcpy(final + at, from, static_cast<size_t>(width) * sizeof(float));
    };
    leave(out.final_hidden, run.hidden, run.reset_hidden, out.hidden + last * O, O);
    if constexpr (C == Cell::lstm)
      leave(out.final_cell, run.cell, run.reset_cell,
            out.cell != nullptr ? out.cell + last * H : work.c + r * H, H);
    zero_past_end(batch, d, b, out.hidden, O);
    zero_past_end(batch, d, b, out.cell, H);
    zero_past_end(batch, d, b, out.recurrent_candidate, H);
    zero_past_end(batch, d, b, out.gates, batch.z.gates * H);
  }
};

}  // namespace
}  // namespace unspool
