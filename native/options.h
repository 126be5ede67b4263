// What a layer may have beyond the plain cell, a row at a time: bounds, shares kept from the step before, numbers
// that are set, peepholes, layer normalisation.  The sweeps decide when; here stands what.
#pragma once

#include <cmath>
#include <cstdint>

#include "panels.h"

namespace unspool {
namespace {

// Where one row of one step reads its state and leaves its results, (H,) each; h is (P,).
template <Cell C>
struct Kept {
  const float* h_prev;         // GRU, and with zoneout
  const float* c_prev;         // LSTM
  float* c;                    // LSTM; may be c_prev
  float* h;
  float* gates;                // (G*H); null: not kept
  float* recurrent_candidate;  // GRU; null: not kept
};

constexpr float kEpsilon = 1e-5f;  // added to the variance in a layer normalisation

// a between ±bound; a NaN stays one.
INLINE Vec bounded(Vec a, float bound) { return smaller_of(splat(bound), larger_of(splat(-bound), a)); }

// share * before + (1 - share) * made, where a share is given.
INLINE Vec zoned(const float* share, int64_t at, int64_t lanes, Vec before, Vec made) {
  if (share == nullptr) return made;
  const Vec kept = load(share + at, lanes);
  return fma(kept, before, (1.0f - kept) * made);
}

// What is set in a computed value's place, where it is a number.
INLINE Vec patched(const float* set, int64_t at, int64_t lanes, Vec computed) {
  if (set == nullptr) return computed;
  const Vec given = load(set + at, lanes);
  return given == given ? given : computed;
}

INLINE Vec first_lanes(Vec v, int64_t lanes) {
  if (lanes >= W) return v;
  float part[W] = {};
  store(part, v, lanes);
  return load(part);
}

inline float sum_of(Vec v) {
  float part[W], total = 0;
  store(part, v);
  for (int64_t j = 0; j < W; ++j) total += part[j];
  return total;
}

// (a - mean) * scale has mean 0 and variance 1.
struct Moments {
  float mean, scale;
  INLINE Vec standard(Vec a) const { return (a - mean) * scale; }
};

// The moments of `count` numbers that lie as `visit` says: visit(use) calls use(vector, lanes) for each vector.
template <class Visit>
INLINE Moments moments_of(int64_t count, Visit visit) {
  Vec sum{};
  visit([&](Vec a, int64_t lanes) INLINE_LAMBDA { sum += first_lanes(a, lanes); });
  const float mean = sum_of(sum) / static_cast<float>(count);
  Vec squares{};
  visit([&](Vec a, int64_t lanes) INLINE_LAMBDA {
    const Vec centred = first_lanes(a - mean, lanes);
    squares = fma(centred, centred, squares);
  });
  return {mean, 1.0f / std::sqrt(sum_of(squares) / static_cast<float>(count) + kEpsilon)};
}

inline Moments moments_of_row(const float* row, int64_t count) {
  return moments_of(count, [=](auto use) INLINE_LAMBDA {
    for (int64_t j = 0; j < count; j += W) use(load(row + j, count - j), count - j);
  });
}

// dL/da in place of dL/dN, for N = gain * standard(a): row by row.
inline void undo_norm(float* d, const float* a, const float* gain, const Moments& moments, int64_t count) {
  Vec sum{}, along{};
  for (int64_t j = 0; j < count; j += W) {
    const int64_t lanes = count - j;
    const Vec d_standard = load(d + j, lanes) * load(gain + j, lanes);
    sum += d_standard;  // 0 past the end, as d is
    along = fma(d_standard, moments.standard(load(a + j, lanes)), along);
  }
  const float mean = sum_of(sum) / static_cast<float>(count), slope = sum_of(along) / static_cast<float>(count);
  for (int64_t j = 0; j < count; j += W) {
    const int64_t lanes = count - j;
    const Vec d_standard = load(d + j, lanes) * load(gain + j, lanes);
    const Vec d_a = (d_standard - mean - moments.standard(load(a + j, lanes)) * slope) * moments.scale;
    store(d + j, d_a, lanes);
  }
}

// to += a * standard(b), row by row.
inline void gather_gain(float* to, const float* a, const float* b, const Moments& moments, int64_t count) {
  for (int64_t j = 0; j < count; j += W) {
    const int64_t lanes = count - j;
    store(to + j, fma(load(a + j, lanes), moments.standard(load(b + j, lanes)), load(to + j, lanes)), lanes);
  }
}

// Layer normalisation of a row of gate panels, `stride` floats from a panel to the next, in place.
template <Cell C>
void normalise_panels(float* row, int64_t stride, int64_t H, const float* gain, const float* bias) {
  using L = Layout<C>;
  const int64_t panels = L::panels(H);
  const Moments moments = moments_of(L::gates * H, [=](auto use) INLINE_LAMBDA {
    for (int64_t p = 0; p < panels; ++p)
#pragma GCC unroll 8
      for (int n = 0; n < L::N; ++n) use(load(row + p * stride + n * W), L::lanes(p, n, H));
  });
  for (int64_t p = 0; p < panels; ++p)
#pragma GCC unroll 8
    for (int n = 0; n < L::N; ++n) {
      float* at = row + p * stride + n * W;
      const int64_t of = (p * L::N + n) * W;
      store(at, fma(load(gain + of), moments.standard(load(at)), load(bias + of)));
    }
}

// Where one row of one step reads and writes beyond what a plain row does; null: there is no such thing.
struct KeptBeyond {
  const float* zoneout_hidden;  // (P)
  const float* zoneout_cell;    // (H)
  const float* patch_gates;     // (G*H)
  const float* patch_hidden;    // (P)
  const float* patch_cell;      // (H)
  float* shown;  // (H) o * tanh(c), of which a later sweep makes h; under a norm of c, o alone
  float* made;   // (H) c before zoneout, where c has a norm
};

// h from what the cell shows.
INLINE void show(const KeptBeyond& beyond, const float* h_prev, float* h, int64_t u, int64_t lanes, Vec made) {
  if (beyond.zoneout_hidden != nullptr) made = zoned(beyond.zoneout_hidden, u, lanes, load(h_prev + u, lanes), made);
  store(h + u, patched(beyond.patch_hidden, u, lanes, made), lanes);
}

// `advance` with all that a layer may have.
template <Cell C>
INLINE void advance_beyond(const Kept<C>& row, const KeptBeyond& beyond, const Sizes& z, const Beyond& w, int64_t p,
                           const Vec (&sum)[Layout<C>::N], [[maybe_unused]] Vec x_candidate) {
  using L = Layout<C>;
  const int64_t H = z.hidden, u = L::unit(p, 0), lanes = L::lanes(p, 0, H);
  const float bound = z.preactivation_clip;
  const auto gate = [&](int n, Vec computed) INLINE_LAMBDA {
    computed = patched(beyond.patch_gates, L::row(p, n, H), lanes, computed);
    if (row.gates != nullptr) store(row.gates + L::row(p, n, H), computed, lanes);
    return computed;
  };
  if constexpr (C == Cell::lstm) {
    const int64_t padded = round_up(H, W);
    const Vec c_prev = load(row.c_prev + u, lanes);
    Vec z_i = sum[0], z_f = sum[1], z_o = sum[3];
    if (w.peephole != nullptr) {
      z_i = fma(load(w.peephole + u), c_prev, z_i);
      z_f = fma(load(w.peephole + padded + u), c_prev, z_f);
    }
    const Vec i = gate(0, sigmoid(bounded(z_i, bound))), f = gate(1, sigmoid(bounded(z_f, bound)));
    const Vec g = gate(2, tanh(bounded(sum[2], bound)));
    const Vec made = patched(beyond.patch_cell, u, lanes, bounded(fma(f, c_prev, i * g), z.cell_clip));
    if (w.peephole != nullptr) z_o = fma(load(w.peephole + 2 * padded + u), made, z_o);
    const Vec o = gate(3, sigmoid(bounded(z_o, bound)));
    const Vec c = zoned(beyond.zoneout_cell, u, lanes, c_prev, made);
    store(row.c + u, patched(beyond.patch_cell, u, lanes, c), lanes);
    if (w.norm_cell != nullptr) {
      store(beyond.made + u, made, lanes);
      store(beyond.shown + u, o, lanes);
    } else if (beyond.shown != nullptr) {
      store(beyond.shown + u, o * tanh(made), lanes);
    } else {
      show(beyond, row.h_prev, row.h, u, lanes, o * tanh(made));
    }
  } else if constexpr (C == Cell::gru) {
    const Vec reset = gate(0, sigmoid(bounded(sum[0], bound))), update = gate(1, sigmoid(bounded(sum[1], bound)));
    const Vec n = gate(2, tanh(bounded(fma(reset, sum[2], x_candidate), bound)));
    show(beyond, row.h_prev, row.h, u, lanes, fma(update, load(row.h_prev + u, lanes) - n, n));
    if (row.gates != nullptr) store(row.recurrent_candidate + u, sum[2], lanes);
  } else {
#pragma GCC unroll 8
    for (int n = 0; n < L::N; ++n) {
      const int64_t some = L::lanes(p, n, H), at = L::unit(p, n);
      if (some == 0) continue;
      const Vec z_n = bounded(sum[n], bound);
      const Vec a = patched(beyond.patch_gates, at, some, C == Cell::rnn_tanh ? tanh(z_n) : (z_n < 0.0f ? Vec{} : z_n));
      if (row.gates != nullptr) store(row.gates + at, a, some);
      show(beyond, row.h_prev, row.h, at, some, a);
    }
  }
}

// What a layer's backward pass gathers over the steps of each row, in one array of floats: sums that no product of
// matrices makes.  Where a part is missing its size is 0.
struct Gathered {
  int64_t peephole, gain_input, gain_recurrent, norm_cell, floats;  // where each begins; floats in all

  explicit Gathered(const Packed& packed) {
    const Beyond& w = packed.beyond[0];
    const int64_t H = packed.sizes.hidden, rows = packed.sizes.gates * H;
    int64_t used = 0;
    const auto take = [&used](bool there, int64_t count) {
      const int64_t from = used;
      used += there ? count : 0;
      return from;
    };
    peephole = take(w.peephole != nullptr, 3 * H);
    gain_input = take(w.gain_input != nullptr, rows);
    gain_recurrent = take(w.gain_recurrent != nullptr, rows);
    norm_cell = take(w.norm_cell != nullptr, 2 * H);
    floats = used;
  }
};

}  // namespace
}  // namespace unspool
