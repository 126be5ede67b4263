// The backward sweep: dL/dz, dL/dh and dL/dc of every step, last step first.
#pragma once

#include <cstdint>
#include <cstring>

#include "batch.h"

namespace unspool {
namespace {

struct BackwardScratch {
  float* dh;              // (rows, H) what flows back into h, from the later steps
  float* dc;              // (rows, H) the same into c
  const float** operand;  // (rows) dL/dz as the recurrent weights see it
  float** through;        // (rows) where the product goes
  float* z_slots;         // (rows, G*H in slots) bfloat16: dL/dz rounded
};

template <Cell C>
struct BackwardSweep : Sweep {
  const Arriving& in;
  const Backward& out;
  const BackPanels& back;
  float* d_recurrent_z;  // (T, B, D, G, H) dL/dz as the recurrent weights see it; GRU's own array
  char* scratch;
  int64_t scratch_bytes;

  int64_t lay_out(char* from, BackwardScratch* it) const {
    const int64_t rows = most_rows(), H = batch.z.hidden;
    Carver carve{from};
    carve(it->dh, rows * H);
    carve(it->dc, C == Cell::lstm ? rows * H : 0);
    carve(it->operand, rows);
    carve(it->through, rows);
    carve(it->z_slots, kBfloat16 ? rows * batch.z.gates * slots(H) : 0);
    return carve.used;
  }

  static void body(void* context, int64_t item) {
    static_cast<const BackwardSweep*>(context)->run_item(item);
  }

  void run_item(int64_t item) const {
    BackwardScratch work;
    lay_out(scratch + item * scratch_bytes, &work);
    const Share mine = share(item);
    for (int64_t r = 0; r < mine.rows; ++r) begin(mine, work, r);
    Patience patience{*batch.run.stop};
    int64_t rows = 0;
    const int64_t longest = mine.rows > 0 ? batch.length(row(mine, 0)) : 0;
    for (int64_t s = longest - 1; s >= 0; --s) {
      while (rows < mine.rows && batch.length(row(mine, rows)) > s) ++rows;
      step(mine, work, s, rows);
      if (patience.over(rows * products_a_token())) return;
    }
    for (int64_t r = 0; r < mine.rows; ++r) finish(mine, work, r);
  }

  void begin(const Share& mine, const BackwardScratch& work, int64_t r) const {
    const int64_t b = row(mine, r), d = mine.d, H = batch.z.hidden, at = batch.stated(d, b);
    const size_t bytes = static_cast<size_t>(H) * sizeof(float);
    const bool cut = batch.cut_after_last(d, b);
    const auto arrive = [&](float* running, float* d_reset, const float* arriving) {
      const float* from = arriving != nullptr ? arriving + at : packed.zeros;
      std::memcpy(d_reset + at, cut ? from : packed.zeros, bytes);
      std::memcpy(running, cut ? packed.zeros : from, bytes);
    };
    arrive(work.dh + r * H, out.d_reset_hidden, in.d_final_hidden);
    if constexpr (C == Cell::lstm)
      arrive(work.dc + r * H, out.d_reset_cell, in.d_final_cell);
  }

  void step(const Share& mine, const BackwardScratch& work, int64_t s, int64_t rows) const {
    const int64_t H = batch.z.hidden, G = batch.z.gates, d = mine.d;
    const Run& run = batch.run;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t b = row(mine, r), t = batch.time(d, b, s);
      undo(mine, work, r, b, t, s);
      work.operand[r] = d_recurrent_z + batch.gate(t, b, d);
      if constexpr (kBfloat16) {
        float* rounded = work.z_slots + r * G * slots(H);
        round_gates(rounded, work.operand[r], G, H);
        work.operand[r] = rounded;
      }
      work.through[r] = work.dh + r * H;
    }
    constexpr int64_t wide = kColumns * W;
    for (int64_t p = 0; p * wide < H; ++p) {
      const float* panel = back.recurrent[d] + p * G * slots(H) * wide;
      over_rows(rows, [&](auto height, int64_t first) INLINE_LAMBDA {
        constexpr int R = decltype(height)::value;
        float* const* to = work.through + first;
        const float* mask[R] = {};
        if (run.recurrent_mask != nullptr)
          for (int r = 0; r < R; ++r) mask[r] = run.recurrent_mask + batch.stated(d, row(mine, first + r));
        const auto* masks = &mask;
        tile<R, kColumns>(
            G * slots(H), ByRow{work.operand + first}, panel, [](int, int) INLINE_LAMBDA { return Vec{}; },
            [=](int r, int n, Vec sum) INLINE_LAMBDA {
              const int64_t column = p * wide + n * W, lanes = smaller(W, H - column);
              if (lanes <= 0) return;
              if ((*masks)[r] != nullptr) sum *= load((*masks)[r] + column, lanes);
              store(to[r] + column, load(to[r] + column, lanes) + sum, lanes);
            });
      });
    }
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t b = row(mine, r);
      if (!batch.cut(d, b, s)) continue;
      const auto divert = [&](float* running, float* d_reset) {
        for (int64_t j = 0; j < H; ++j) {
          d_reset[batch.stated(d, b) + j] += running[j];
          running[j] = 0.0f;
        }
      };
      divert(work.dh + r * H, out.d_reset_hidden);
      if constexpr (C == Cell::lstm) divert(work.dc + r * H, out.d_reset_cell);
    }
  }

  // dL/dz_t of one row from dL/dh_t; leaves in dh and dc what passes back other than through the
  // weights.
  void undo(const Share& mine, const BackwardScratch& work, int64_t r, int64_t b, int64_t t,
            int64_t s) const {
    const int64_t H = batch.z.hidden, d = mine.d;
    const int64_t unit = batch.unit(t, b, d), gate = batch.gate(t, b, d);
    const float* gates = in.gates + gate;
    const float* arriving = in.d_hidden != nullptr ? in.d_hidden + unit : packed.zeros;
    float* dh_row = work.dh + r * H;
    float* flow_h = out.flow_hidden + unit;
    float* dz = out.flow_preactivation + gate;
    const float* h_prev = batch.entering(d, b, s, in.hidden, batch.run.hidden,
                                         batch.run.reset_hidden, packed.zeros);
    const float* c_prev = nullptr;
    if constexpr (C == Cell::lstm)
      c_prev = batch.entering(d, b, s, in.cell, batch.run.cell, batch.run.reset_cell, packed.zeros);
    for (int64_t j = 0; j < H; j += W) {
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
        float* dz_recurrent = d_recurrent_z + gate;
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

  void finish(const Share& mine, const BackwardScratch& work, int64_t r) const {
    const int64_t b = row(mine, r), d = mine.d, H = batch.z.hidden;
    const size_t bytes = static_cast<size_t>(H) * sizeof(float);
    std::memcpy(out.d_initial_hidden + batch.stated(d, b), work.dh + r * H, bytes);
    if constexpr (C == Cell::lstm)
      std::memcpy(out.d_initial_cell + batch.stated(d, b), work.dc + r * H, bytes);
    zero_past_end(batch, d, b, out.flow_hidden, H);
    zero_past_end(batch, d, b, out.flow_cell, H);
    zero_past_end(batch, d, b, out.flow_preactivation, batch.z.gates * H);
  }
};

}  // namespace
}  // namespace unspool
