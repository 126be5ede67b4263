// The backward sweep: dL/dz, dL/dh and dL/dc of every step, last step first.
#pragma once

#include <cstdint>
#include <cstring>

#include "batch.h"
#include "lockstep.h"
#include "options.h"

namespace unspool {
namespace {

// Arrays that the sweep leaves to the products after it, where a layer has more than the plain cell; each may be one of
// those that the caller gets.
struct Left {
  float* d_input_z;      // (T, B, D, G, H) dL/d(W x)
  float* d_recurrent_z;  // (T, B, D, G, H) dL/d(U h)
  float* d_hidden_part;  // (T, B, D, G, H) dL/dz as U h and what is added to it see it: the GRU's candidate apart
  float* d_made;         // (T, B, D, P) dL/dh_t before zoneout; where there is a projection
  float* shown;          // (T, B, D, H) what the projection multiplied
  float* gathered;       // (B, D, Gathered::floats)
};

struct BackwardScratch {
  // The same for all parts of an item:
  float* dh;              // (rows, P) what flows back into h, from the later steps
  float* dc;              // (rows, H) the same into c
  // A part's own:
  const float** operand;  // (rows) dL/dz as the recurrent weights see it
  float** through;        // (rows) where the product goes
  float* z_slots;         // (rows, G*H in slots) bfloat16: dL/dz rounded
  // Of a layer with more than the plain cell:
  float* d_shown;            // (rows, H) dL/d what the cell shows
  const float** d_made_rows; // (rows) dL/dh before zoneout
  float** d_shown_rows;      // (rows)
  float* made;               // (H) c before zoneout
  float* d_norm;             // (H) dL/dc through its tanh
  int64_t steps, tokens;     // how much is multiplied again at once, where there is a norm
  float* of_x;               // (tokens, G*H) W x
  float* of_h;               // (tokens, G*H) U h
  float* masked;             // (tokens, P) h times the recurrent mask
  const float** token_rows;  // (tokens)
};

template <Cell C, bool Extended>
struct BackwardSweep : Sweep {
  using L = Layout<C>;
  const Arriving& in;
  const Backward& out;
  const BackPanels& back;
  const Left& left;
  Lockstep* locksteps;  // one an item, where it has parts
  char* scratch;
  int64_t shared_bytes, own_bytes;  // of an item; of each of its parts

  int64_t scratch_bytes() const { return shared_bytes + cut.parts * own_bytes; }

  int64_t lay_out_shared(char* from, BackwardScratch* it) const {
    Carver carve{from};
    carve(it->dh, most_rows() * batch.z.output);
    carve(it->dc, C == Cell::lstm ? most_rows() * batch.z.hidden : 0);
    return carve.used;
  }

  int64_t lay_out(char* from, BackwardScratch* it) const {
    const int64_t rows = most_rows(), H = batch.z.hidden;
    [[maybe_unused]] const int64_t O = batch.z.output;
    Carver carve{from};
    carve(it->operand, rows);
    carve(it->through, rows);
    carve(it->z_slots, kBfloat16 ? rows * batch.z.gates * slots(H) : 0);
    if constexpr (Extended) {
      const auto& w = packed.beyond[0];
      carve(it->d_shown, rows * H);
      carve(it->d_made_rows, rows);
      carve(it->d_shown_rows, rows);
      carve(it->made, H);
      carve(it->d_norm, H);
      it->steps = steps_at_once(rows, batch.run.time);
      it->tokens = it->steps * rows;
      carve(it->of_x, w.gain_input != nullptr ? it->tokens * batch.z.gates * H : 0);
      carve(it->of_h, w.gain_recurrent != nullptr ? it->tokens * batch.z.gates * H : 0);
      carve(it->masked, w.gain_recurrent != nullptr && batch.run.recurrent_mask != nullptr ? it->tokens * O : 0);
      carve(it->token_rows, it->tokens);
    }
    return carve.used;
  }

  static void body(void* context, int64_t item) {
    static_cast<const BackwardSweep*>(context)->run_item(item);
  }

  void run_item(int64_t number) const {
    const int64_t item = number / cut.parts, part = number % cut.parts;
    BackwardScratch work;
    char* at = scratch + item * scratch_bytes();
    lay_out_shared(at, &work);
    lay_out(at + shared_bytes + part * own_bytes, &work);
    const Share mine = share(item);
    const int64_t steps = longest(mine), H = batch.z.hidden, O = batch.z.output;
    Patience patience{*batch.run.stop};
    if (part == 0)
      for (int64_t r = 0; r < mine.rows; ++r) begin(mine, work, r);
    const Stop& stop = *batch.run.stop;
    if (cut.parts == 1) {
      int64_t again = 0;  // tokens of this and of earlier steps that were multiplied again
      for (int64_t s = steps - 1; s >= 0 && !stop.raised.load(std::memory_order_relaxed); --s) {
        const int64_t rows = live(mine, s);
        if constexpr (Extended) {
          if (again == 0) again = multiply_again(mine, work, s);
          again -= rows;
          arrive_at(mine, work, s, rows);
        }
        undo_step(mine, work, s, rows, again, {0, H});
        pass_back(mine, work, s, rows, {0, H});
        patience.over(rows * products_a_token());
      }
    } else if constexpr (!Extended) {
      // A part's units pass back through the weights what all units of the step before in this order have: one
      // meeting a step, between the two.
      constexpr int64_t wide = kColumns * W;
      const auto retreat = [&](int64_t k, int64_t which) {
        const Span panels = part_of((O + wide - 1) / wide, which);
        const Span units{panels.first * wide, smaller(panels.end * wide, O)};
        const int64_t s = steps - 1 - k;
        if (k > 0) pass_back(mine, work, s + 1, live(mine, s + 1), units);
        if (s < 0) return;
        const int64_t rows = live(mine, s);
        undo_step(mine, work, s, rows, 0, units);
        patience.over(rows * products_a_token() / cut.parts);
      };
      if (part == 0)
        locksteps[item].lead(retreat);
      else
        return locksteps[item].help(part, retreat);
    }
    if (stop.raised.load(std::memory_order_relaxed)) return;
    for (int64_t r = 0; r < mine.rows; ++r) finish(mine, work, r);
  }

  void begin(const Share& mine, const BackwardScratch& work, int64_t r) const {
    const int64_t b = row(mine, r), d = mine.d, H = batch.z.hidden, O = batch.z.output;
    const bool cut = batch.cut_after_last(d, b);
    const auto arrive = [&](float* running, float* d_reset, const float* arriving, int64_t width) {
      const int64_t at = batch.stated(d, b) * width;
      const size_t bytes = static_cast<size_t>(width) * sizeof(float);
      const float* from = arriving != nullptr ? arriving + at : packed.zeros;
      std::memcpy(d_reset + at, cut ? from : packed.zeros, bytes);
      std::memcpy(running, cut ? packed.zeros : from, bytes);
    };
    arrive(work.dh + r * O, out.d_reset_hidden, in.d_final_hidden, O);
    if constexpr (C == Cell::lstm) arrive(work.dc + r * H, out.d_reset_cell, in.d_final_cell, H);
    if constexpr (Extended) {
      const int64_t floats = Gathered(packed).floats;
      if (floats > 0)
        std::memset(left.gathered + (b * batch.z.directions + d) * floats, 0,
                    static_cast<size_t>(floats) * sizeof(float));
    }
  }

  // dL/dz of some units of all live rows.  `again`: where the step's tokens lie among those that were multiplied again.
  void undo_step(const Share& mine, const BackwardScratch& work, int64_t s, int64_t rows,
                 [[maybe_unused]] int64_t again, [[maybe_unused]] Span units) const {
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t b = row(mine, r), t = batch.time(mine.d, b, s);
      if constexpr (Extended)
        undo_beyond(mine, work, r, b, t, s, again + r);
      else
        undo(mine, work, r, b, t, s, units);
    }
  }

  // Through the recurrent weights into some units of dL/dh of the step before, or to a reset's state.
  void pass_back(const Share& mine, const BackwardScratch& work, int64_t s, int64_t rows, Span units) const {
    const int64_t H = batch.z.hidden, O = batch.z.output, G = batch.z.gates, d = mine.d;
    const Run& run = batch.run;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t b = row(mine, r);
      work.operand[r] = left.d_recurrent_z + batch.gate(batch.time(d, b, s), b, d);
      if constexpr (kBfloat16) {
        float* rounded = work.z_slots + r * G * slots(H);
        round_gates(rounded, work.operand[r], G, H);
        work.operand[r] = rounded;
      }
      work.through[r] = work.dh + r * O;
    }
    constexpr int64_t wide = kColumns * W;
    for (int64_t p = units.first / wide; p * wide < smaller(units.end, O); ++p) {
      const float* panel = back.recurrent[d] + p * G * slots(H) * wide;
      over_rows(rows, [&](auto height, int64_t first) INLINE_LAMBDA {
        constexpr int R = decltype(height)::value;
        float* const* to = work.through + first;
        const float* mask[R] = {};
        if (run.recurrent_mask != nullptr)
          for (int r = 0; r < R; ++r) mask[r] = run.recurrent_mask + batch.stated(d, row(mine, first + r)) * O;
        const auto* masks = &mask;
        within_panel(O - p * wide, [&](auto width) INLINE_LAMBDA {
          tile<R, decltype(width)::value, Product, kColumns>(
              G * slots(H), ByRow{work.operand + first}, panel, [](int, int) INLINE_LAMBDA { return Vec{}; },
              [=](int r, int n, Vec sum) INLINE_LAMBDA {
                const int64_t column = p * wide + n * W, lanes = smaller(W, O - column);
                if ((*masks)[r] != nullptr) sum *= load((*masks)[r] + column, lanes);
                store(to[r] + column, load(to[r] + column, lanes) + sum, lanes);
              });
        });
      });
    }
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t b = row(mine, r);
      if (!batch.cut(d, b, s)) continue;
      const auto divert = [&](float* running, float* d_reset, int64_t width) {
        for (int64_t j = units.first; j < smaller(units.end, width); ++j) {
          d_reset[batch.stated(d, b) * width + j] += running[j];
          running[j] = 0.0f;
        }
      };
      divert(work.dh + r * O, out.d_reset_hidden, O);
      if constexpr (C == Cell::lstm) divert(work.dc + r * H, out.d_reset_cell, H);
    }
  }

  // dL/dz_t of one row from dL/dh_t; leaves in dh and dc what passes back other than through the
  // weights.
  void undo(const Share& mine, const BackwardScratch& work, int64_t r, int64_t b, int64_t t,
            int64_t s, Span units) const {
    const int64_t H = batch.z.hidden, d = mine.d;
    const int64_t unit = batch.unit(t, b, d), gate = batch.gate(t, b, d);
    const float* gates = in.gates + gate;
    const float* arriving = in.d_hidden != nullptr ? in.d_hidden + unit : packed.zeros;
    float* dh_row = work.dh + r * H;
    float* flow_h = out.flow_hidden + unit;
    float* dz = out.flow_preactivation + gate;
    const float* h_prev = batch.entering_hidden(d, b, s, in.hidden, packed.zeros);
    const float* c_prev = nullptr;
    if constexpr (C == Cell::lstm) c_prev = batch.entering_cell(d, b, s, in.cell, packed.zeros);
    for (int64_t j = units.first; j < units.end; j += W) {
      const int64_t lanes = smaller(W, H - j);
      const Vec dh = load(dh_row + j, lanes) + load(arriving + j, lanes);
      store(flow_h + j, dh, lanes);
      if constexpr (C == Cell::lstm) {
        const Vec i = load(gates + j, lanes), f = load(gates + H + j, lanes);
        const Vec g = load(gates + 2 * H + j, lanes), o = load(gates + 3 * H + j, lanes);
        const Vec squashed = tanh(load(in.cell + unit + j, lanes));
        float* dc_row = work.dc + r * H + j;
        const Vec dc = load(dc_row, lanes) + dh * o * (1.0f - squashed * squashed);
        store(out.flow_cell + unit + j, dc, lanes);
        store(dz + j, dc * g * i * (1.0f - i), lanes);
        store(dz + H + j, dc * load(c_prev + j, lanes) * f * (1.0f - f), lanes);
        store(dz + 2 * H + j, dc * i * (1.0f - g * g), lanes);
        store(dz + 3 * H + j, dh * squashed * o * (1.0f - o), lanes);
        store(dc_row, dc * f, lanes);
        store(dh_row + j, Vec{}, lanes);
      } else if constexpr (C == Cell::gru) {
        const Vec reset = load(gates + j, lanes), update = load(gates + H + j, lanes);
        const Vec n = load(gates + 2 * H + j, lanes);
        const Vec dz_n = dh * (1.0f - update) * (1.0f - n * n);
        const Vec dz_r =
            dz_n * load(in.recurrent_candidate + unit + j, lanes) * reset * (1.0f - reset);
        const Vec dz_u = dh * (load(h_prev + j, lanes) - n) * update * (1.0f - update);
        float* dz_recurrent = left.d_recurrent_z + gate;
        store(dz + j, dz_r, lanes);
        store(dz + H + j, dz_u, lanes);
        store(dz + 2 * H + j, dz_n, lanes);
        store(dz_recurrent + j, dz_r, lanes);
        store(dz_recurrent + H + j, dz_u, lanes);
        store(dz_recurrent + 2 * H + j, dz_n * reset, lanes);
        store(dh_row + j, dh * update, lanes);
      } else {
        const Vec h = load(gates + j, lanes);
        const Vec d_z = C == Cell::rnn_tanh ? dh * (1.0f - h * h) : (h > 0.0f ? dh : Vec{});
        store(dz + j, d_z, lanes);
        store(dh_row + j, Vec{}, lanes);
      }
    }
  }

  // -- with more than the plain cell

  // W x and U h once more, where they have a norm, for step s and as many before it as there is room for; returns
  // their tokens.  Step by step from the first, row by row: the last of them are step s's.
  int64_t multiply_again(const Share& mine, const BackwardScratch& work, int64_t s) const {
    const auto& w = packed.beyond[mine.d];
    if (w.gain_input == nullptr && w.gain_recurrent == nullptr) return INT64_MAX / 2;
    const int64_t I = batch.z.input, O = batch.z.output, rows = batch.z.gates * batch.z.hidden, d = mine.d;
    const Run& run = batch.run;
    const int64_t from = larger(0, s + 1 - work.steps);
    int64_t tokens = 0;
    const auto each = [&](auto operand) {
      tokens = 0;
      for (int64_t at = from; at <= s; ++at)
        for (int64_t r = 0; r < mine.rows && batch.length(row(mine, r)) > at; ++r, ++tokens)
          work.token_rows[tokens] = operand(row(mine, r), at);
    };
    const auto multiply = [&](float* to, const float* panels, int64_t depth) {
      for (int64_t p = 0; p < L::panels(batch.z.hidden); ++p)
        over_rows(tokens, [&](auto height, int64_t first) INLINE_LAMBDA {
          constexpr int R = decltype(height)::value;
          float* at = to + first * rows;
          const int64_t H = batch.z.hidden;
          tile<R, L::N>(
              depth, ByRow{work.token_rows + first}, panels + p * depth * L::N * W,
              [](int, int) INLINE_LAMBDA { return Vec{}; },
              [=](int r, int n, Vec sum) INLINE_LAMBDA {
                const int64_t lanes = L::lanes(p, n, H);
                if (lanes > 0) store(at + r * rows + L::row(p, n, H), sum, lanes);
              });
        });
    };
    each([&](int64_t b, int64_t at) { return run.x + (batch.time(d, b, at) * run.batch + b) * I; });
    if (w.gain_input != nullptr) multiply(work.of_x, packed.input[d], I);
    if (w.gain_recurrent == nullptr) return tokens;
    each([&](int64_t b, int64_t at) {
      const float* h = batch.entering_hidden(d, b, at, in.hidden, packed.zeros);
      if (run.recurrent_mask == nullptr) return h;
      float* masked = work.masked + tokens * O;
      const float* mask = run.recurrent_mask + batch.stated(d, b) * O;
      for (int64_t j = 0; j < O; ++j) masked[j] = h[j] * mask[j];
      return static_cast<const float*>(masked);
    });
    multiply(work.of_h, packed.recurrent[d], O);
    return tokens;
  }

  // dL/dh_t of all rows, what of it passes by the cell, and what arrives at what the cell shows.
  void arrive_at(const Share& mine, const BackwardScratch& work, int64_t s, int64_t rows) const {
    const int64_t H = batch.z.hidden, O = batch.z.output, d = mine.d;
    const bool projected = packed.beyond[d].projection != nullptr;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t b = row(mine, r), at = batch.place(batch.time(d, b, s), b, d) * O;
      const float* arriving = in.d_hidden != nullptr ? in.d_hidden + at : packed.zeros;
      const float* share = batch.run.zoneout_hidden != nullptr ? batch.run.zoneout_hidden + at : nullptr;
      float *dh_row = work.dh + r * O, *d_made = projected ? left.d_made + at : work.d_shown + r * H;
      work.d_made_rows[r] = d_made;
      work.d_shown_rows[r] = work.d_shown + r * H;
      for (int64_t j = 0; j < O; j += W) {
        const int64_t lanes = smaller(W, O - j);
        const Vec dh = load(dh_row + j, lanes) + load(arriving + j, lanes);
        store(out.flow_hidden + at + j, dh, lanes);
        const Vec kept = share != nullptr ? load(share + j, lanes) : Vec{};
        store(d_made + j, share != nullptr ? (1.0f - kept) * dh : dh, lanes);
        store(dh_row + j, share != nullptr ? kept * dh : Vec{}, lanes);
      }
    }
    if (!projected) return;
    constexpr int64_t wide = kColumns * W;
    for (int64_t p = 0; p * wide < H; ++p)
      over_rows(rows, [&](auto height, int64_t first) INLINE_LAMBDA {
        constexpr int R = decltype(height)::value;
        float* const* to = work.d_shown_rows + first;
        tile<R, kColumns>(
            O, ByRow{work.d_made_rows + first}, back.projection[d] + p * O * wide,
            [](int, int) INLINE_LAMBDA { return Vec{}; },
            [=](int r, int n, Vec sum) INLINE_LAMBDA {
              const int64_t column = p * wide + n * W, lanes = smaller(W, H - column);
              if (lanes > 0) store(to[r] + column, sum, lanes);
            });
      });
  }

  // `undo` with all that a layer may have; `token` is the row among those multiplied again.
  void undo_beyond(const Share& mine, const BackwardScratch& work, int64_t r, int64_t b, int64_t t, int64_t s,
                   int64_t token) const {
    const int64_t H = batch.z.hidden, O = batch.z.output, d = mine.d, rows = batch.z.gates * H;
    const int64_t unit = batch.unit(t, b, d), gate = batch.gate(t, b, d);
    const auto& w = packed.beyond[d];
    const Gathered gathered(packed);
    float* sums = left.gathered + (b * batch.z.directions + d) * gathered.floats;
    const float* gates = in.gates + gate;
    float *dz = out.flow_preactivation + gate, *dz_of_h = left.d_hidden_part + gate;
    const float* d_shown = work.d_shown + r * H;
    // Where a gate's pre-activation lay inside the clip: no gradient passes a bound.
    const float bound = batch.z.preactivation_clip;
    const bool clipped = bound < HUGE_VALF;
    const Vec low = sigmoid(splat(-bound)), high = sigmoid(splat(bound)), edge = tanh(splat(bound));
    const auto inside = [=](Vec a, Vec gate) INLINE_LAMBDA { return clipped ? ((gate > low) & (gate < high) ? a : Vec{}) : a; };
    const auto inside_tanh = [=](Vec a, Vec gate) INLINE_LAMBDA { return clipped ? (magnitude_of(gate) < edge ? a : Vec{}) : a; };
    if constexpr (C == Cell::lstm) {
      undo_lstm(mine, work, r, b, t, s, inside, inside_tanh, sums, gathered);
    } else {
      const float* h_prev = batch.entering_hidden(d, b, s, in.hidden, packed.zeros);
      float* dh_row = work.dh + r * O;
      for (int64_t j = 0; j < H; j += W) {
        const int64_t lanes = smaller(W, H - j);
        const Vec dh = load(d_shown + j, lanes);
        if constexpr (C == Cell::gru) {
          const Vec reset = load(gates + j, lanes), update = load(gates + H + j, lanes);
          const Vec n = load(gates + 2 * H + j, lanes);
          const Vec dz_n = inside_tanh(dh * (1.0f - update) * (1.0f - n * n), n);
          const Vec dz_r =
              inside(dz_n * load(in.recurrent_candidate + unit + j, lanes) * reset * (1.0f - reset), reset);
          const Vec dz_u = inside(dh * (load(h_prev + j, lanes) - n) * update * (1.0f - update), update);
          store(dz + j, dz_r, lanes);
          store(dz + H + j, dz_u, lanes);
          store(dz + 2 * H + j, dz_n, lanes);
          store(dz_of_h + j, dz_r, lanes);
          store(dz_of_h + H + j, dz_u, lanes);
          store(dz_of_h + 2 * H + j, dz_n * reset, lanes);
          store(dh_row + j, load(dh_row + j, lanes) + dh * update, lanes);
        } else {
          const Vec h = load(gates + j, lanes);
          const Vec relu = (h > 0.0f) & (h < bound) ? dh : Vec{};
          store(dz + j, C == Cell::rnn_tanh ? inside_tanh(dh * (1.0f - h * h), h) : relu, lanes);
        }
      }
    }
    const auto undo = [&](float* to, const float* from, const float* product, const float* gain, int64_t at) {
      product += token * rows;
      const Moments moments = moments_of_row(product, rows);
      gather_gain(sums + at, from, product, moments, rows);
      std::memcpy(to, from, static_cast<size_t>(rows) * sizeof(float));
      undo_norm(to, product, gain, moments, rows);
    };
    if (w.gain_input != nullptr) undo(left.d_input_z + gate, dz, work.of_x, w.rows_input, gathered.gain_input);
    if (w.gain_recurrent != nullptr)
      undo(left.d_recurrent_z + gate, dz_of_h, work.of_h, w.rows_recurrent, gathered.gain_recurrent);
  }

  template <class Inside, class InsideTanh>
  INLINE void undo_lstm(const Share& mine, const BackwardScratch& work, int64_t r, int64_t b, int64_t t, int64_t s,
                        Inside inside, InsideTanh inside_tanh, float* sums, const Gathered& gathered) const {
    const int64_t H = batch.z.hidden, d = mine.d, padded = round_up(H, W);
    const int64_t unit = batch.unit(t, b, d), gate = batch.gate(t, b, d);
    const auto& w = packed.beyond[d];
    const float* gates = in.gates + gate;
    const float* share = batch.run.zoneout_cell != nullptr ? batch.run.zoneout_cell + unit : nullptr;
    const float* c_prev = batch.entering_cell(d, b, s, in.cell, packed.zeros);
    float* dz = out.flow_preactivation + gate;
    float* d_shown = work.d_shown + r * H;
    for (int64_t j = 0; j < H; j += W) {
      const int64_t lanes = smaller(W, H - j);
      Vec made = load(in.cell + unit + j, lanes);
      if (share != nullptr) {
        const Vec i = load(gates + j, lanes), f = load(gates + H + j, lanes), g = load(gates + 2 * H + j, lanes);
        made = bounded(fma(f, load(c_prev + j, lanes), i * g), batch.z.cell_clip);
      }
      store(work.made + j, made, lanes);
    }
    Moments moments{0, 1};
    if (w.norm_cell != nullptr) moments = moments_of_row(work.made, H);
    for (int64_t j = 0; j < H; j += W) {
      const int64_t lanes = smaller(W, H - j);
      const Vec o = load(gates + 3 * H + j, lanes), d_out = load(d_shown + j, lanes);
      Vec seen = load(work.made + j, lanes);
      if (w.norm_cell != nullptr)
        seen = fma(load(w.norm_cell + j), moments.standard(seen), load(w.norm_cell + padded + j));
      const Vec squashed = tanh(seen);
      if (left.shown != nullptr) store(left.shown + unit + j, o * squashed, lanes);
      store(dz + 3 * H + j, inside(d_out * squashed * o * (1.0f - o), o), lanes);
      store(work.d_norm + j, d_out * o * (1.0f - squashed * squashed), lanes);
    }
    if (w.norm_cell != nullptr) {
      float* d_gain = sums + gathered.norm_cell;
      gather_gain(d_gain, work.d_norm, work.made, moments, H);
      for (int64_t j = 0; j < H; ++j) d_gain[H + j] += work.d_norm[j];
      undo_norm(work.d_norm, work.made, w.norm_cell, moments, H);
    }
    for (int64_t j = 0; j < H; j += W) {
      const int64_t lanes = smaller(W, H - j);
      const Vec i = load(gates + j, lanes), f = load(gates + H + j, lanes), g = load(gates + 2 * H + j, lanes);
      const Vec before = load(c_prev + j, lanes), made = load(work.made + j, lanes);
      const Vec dz_o = load(dz + 3 * H + j, lanes);
      float* dc_row = work.dc + r * H + j;
      Vec dc_later = load(dc_row, lanes), dc_kept{};
      if (share != nullptr) {
        const Vec kept = load(share + j, lanes);
        dc_kept = kept * dc_later;
        dc_later = (1.0f - kept) * dc_later;
      }
      Vec dc = dc_later + load(work.d_norm + j, lanes);
      if (w.peephole != nullptr) dc = fma(load(w.peephole + 2 * padded + j), dz_o, dc);
      store(out.flow_cell + unit + j, dc, lanes);
      if (batch.z.cell_clip < HUGE_VALF) dc = magnitude_of(made) < batch.z.cell_clip ? dc : Vec{};
      const Vec dz_i = inside(dc * g * i * (1.0f - i), i), dz_f = inside(dc * before * f * (1.0f - f), f);
      store(dz + j, dz_i, lanes);
      store(dz + H + j, dz_f, lanes);
      store(dz + 2 * H + j, inside_tanh(dc * i * (1.0f - g * g), g), lanes);
      dc_kept += dc * f;
      if (w.peephole != nullptr) {
        dc_kept = fma(load(w.peephole + j), dz_i, dc_kept);
        dc_kept = fma(load(w.peephole + padded + j), dz_f, dc_kept);
        float* d_peephole = sums + gathered.peephole + j;
        store(d_peephole, fma(dz_i, before, load(d_peephole, lanes)), lanes);
        store(d_peephole + H, fma(dz_f, before, load(d_peephole + H, lanes)), lanes);
        store(d_peephole + 2 * H, fma(dz_o, made, load(d_peephole + 2 * H, lanes)), lanes);
      }
      store(dc_row, dc_kept, lanes);
    }
  }

  void finish(const Share& mine, const BackwardScratch& work, int64_t r) const {
    const int64_t b = row(mine, r), d = mine.d, H = batch.z.hidden, O = batch.z.output, at = batch.stated(d, b);
    std::memcpy(out.d_initial_hidden + at * O, work.dh + r * O, static_cast<size_t>(O) * sizeof(float));
    if constexpr (C == Cell::lstm)
      std::memcpy(out.d_initial_cell + at * H, work.dc + r * H, static_cast<size_t>(H) * sizeof(float));
    zero_past_end(batch, d, b, out.flow_hidden, O);
    zero_past_end(batch, d, b, out.flow_cell, H);
    zero_past_end(batch, d, b, out.flow_preactivation, batch.z.gates * H);
  }
};

}  // namespace
}  // namespace unspool
