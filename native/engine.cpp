// The engine: one layer, one or two directions, forward and backward.  Compiled once for each
// instruction set, with UNSPOOL_ISA as its name; nothing here is visible but that one table.
//
// Everything is one tile: R rows by N vectors of outputs, each output summed over the inner dimension
// in one order, from first to last, in one accumulator.  So an output's bits do not depend on the
// tile's shape, on its neighbours, or on the number of threads.  Work is split over outputs, never
// over a sum; weight gradients are summed over time in chunks of kChunk steps, joined in order.
//
//   T time steps   B batch   I input size   H hidden size   D directions   G gates
//   W floats in a vector     R rows of a tile   N vectors of a tile
//   s step in reading order (0 is read first)   t time step   row: a sequence of the batch
#include "engine.h"

#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "memory.h"
#include "vector.h"

#define INLINE inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))

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

constexpr int kColumns = 4;      // N of a plain product
constexpr int64_t kChunk = 128;  // tokens that a weight gradient sums before it joins the total
constexpr int64_t kBand = 252;   // rows of a weight gradient that one item computes at the most

constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// ---- the tile ---------------------------------------------------------------------------------

// Rows of the left operand, each contiguous over the inner dimension.
struct ByRow {
  const float* const* row;
  INLINE float at(int r, int64_t k) const { return row[r][k]; }
};

// Rows that lie side by side: R neighbours for each k.
struct ByToken {
  const float* first;
  int64_t stride;
  INLINE float at(int r, int64_t k) const { return first[k * stride + r]; }
};

// sum(r, n) = begin(r, n) + left(r, k) * panel(k, n), for k = 0 … depth-1 in that order; then
// end(r, n, sum).
//
// Never inlined: among the code around it the compiler would keep the sums in memory.
template <int R, int N, class Left, class Begin, class End>
__attribute__((noinline)) void tile(int64_t depth, Left left, const float* panel, Begin begin, End end) {
  Vec sum[R][N];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) sum[r][n] = begin(r, n);
  for (int64_t k = 0; k < depth; ++k) {
    Vec a[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) a[r] = splat(left.at(r, k));
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      Vec b = load(panel + (k * N + n) * W);
      hold(b);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sum[r][n] = fma(a[r], b, sum[r][n]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) end(r, n, sum[r][n]);
}

// The same for one row and two panels at once, begin and end counting the panels in r's place: a single
// row's N sums would wait for one another.
template <int N, class Begin, class End>
__attribute__((noinline)) void tile_pair(int64_t depth, const float* row, const float* panel,
                                         const float* next, Begin begin, End end) {
  Vec sum[2][N];
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) sum[0][n] = begin(0, n), sum[1][n] = begin(1, n);
  for (int64_t k = 0; k < depth; ++k) {
    const Vec a = splat(row[k]);
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      sum[0][n] = fma(a, load(panel + (k * N + n) * W), sum[0][n]);
      sum[1][n] = fma(a, load(next + (k * N + n) * W), sum[1][n]);
    }
  }
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) end(0, n, sum[0][n]), end(1, n, sum[1][n]);
}

static_assert(kRows == 3 || kRows == 6);

template <int R>
struct Height {
  static constexpr int value = R;
};

// Calls visit(Height<R>, first) for tiles of R = kRows rows, and smaller ones for what is left.  One row
// too many makes two tiles of about half: the sums of a single row would wait for one another.
template <class Visit>
INLINE void over_rows(int64_t rows, Visit visit) {
  for (int64_t first = 0; first < rows;) {
    const int64_t left = rows - first;
    const int64_t take = left == kRows + 1 ? (kRows + 2) / 2 : smaller(left, kRows);
    switch (take) {
      case 1: visit(Height<1>{}, first); break;
      case 2: visit(Height<2>{}, first); break;
      case 3: visit(Height<3>{}, first); break;
      case 4: if constexpr (kRows > 3) visit(Height<4>{}, first); break;
      case 5: if constexpr (kRows > 4) visit(Height<5>{}, first); break;
      default: if constexpr (kRows > 5) visit(Height<6>{}, first); break;
    }
    first += take;
  }
}

// The same for each panel p; a single row visits the panels in pairs: visit(height, width, first, p).
template <class Visit>
INLINE void over_panels(int64_t rows, int64_t panels, Visit visit) {
  int64_t p = 0;
  if (rows == 1)
    for (; p + 2 <= panels; p += 2) visit(Height<1>{}, Height<2>{}, 0, p);
  for (; p < panels; ++p)
    over_rows(rows, [&](auto height, int64_t first) INLINE_LAMBDA { visit(height, Height<1>{}, first, p); });
}

// ---- panels -----------------------------------------------------------------------------------

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

// ---- the batch --------------------------------------------------------------------------------

// The sequences of a batch, longest first, so that the live ones are always the first few; and
// where everything of a (row, step) lies.
struct Batch {
  const Sizes& z;
  const Run& run;
  int64_t* order;  // (B,) rows, longest first

  int64_t length(int64_t row) const { return run.lengths != nullptr ? run.lengths[row] : run.time; }

  // The time step that a direction reads at step s.
  int64_t time(int64_t d, int64_t row, int64_t s) const { return d == 0 ? s : length(row) - 1 - s; }

  // Whether the state entering step s was cut off by a reset.
  bool cut(int64_t d, int64_t row, int64_t s) const {
    if (run.resets == nullptr) return false;
    const int64_t t = d == 0 ? s : length(row) - s;  // the cut lies before t
    return t < length(row) && run.resets[t * run.batch + row] != 0;
  }

  // Whether the state that leaves the sequence is cut off: in reverse, by a reset at 0.
  bool cut_after_last(int64_t d, int64_t row) const {
    return run.resets != nullptr && d == 1 && length(row) > 0 && run.resets[row] != 0;
  }

  int64_t unit(int64_t t, int64_t row, int64_t d) const {  // in (T, B, D, H)
    return ((t * run.batch + row) * z.directions + d) * z.hidden;
  }
  int64_t gate(int64_t t, int64_t row, int64_t d) const {  // in (T, B, D, G, H)
    return ((t * run.batch + row) * z.directions + d) * z.gates * z.hidden;
  }
  int64_t stated(int64_t d, int64_t row) const {  // in (D, B, H)
    return (d * run.batch + row) * z.hidden;
  }

  // What a step reads in h's place, or in c's: `own` holds the traces.
  const float* entering(int64_t d, int64_t row, int64_t s, const float* own, const float* initial,
                        const float* fresh, const float* zeros) const {
    if (cut(d, row, s)) return fresh != nullptr ? fresh + stated(d, row) : zeros;
    if (s > 0) return own + unit(time(d, row, s - 1), row, d);
    return initial != nullptr ? initial + stated(d, row) : zeros;
  }
};

// Longest first; equal lengths keep their order.  Counting sort: lengths are at most T.
bool sort_rows(const Run& run, int64_t* order) {
  if (run.lengths == nullptr) {
    for (int64_t b = 0; b < run.batch; ++b) order[b] = b;
    return true;
  }
  auto* start = static_cast<int64_t*>(
      std::calloc(static_cast<size_t>(run.time) + 2, sizeof(int64_t)));
  if (start == nullptr) return false;
  for (int64_t b = 0; b < run.batch; ++b) ++start[run.time - run.lengths[b] + 1];
  for (int64_t i = 1; i <= run.time; ++i) start[i] += start[i - 1];
  for (int64_t b = 0; b < run.batch; ++b) order[start[run.time - run.lengths[b]]++] = b;
  std::free(start);
  return true;
}

// Asks now and then whether the run is given up: often enough that nobody waits, seldom enough that
// asking costs nothing.
struct Patience {
  Stop& stop;
  int64_t products = 0;  // since it was last asked

  bool over(int64_t more) {
    products += more;
    if (products > 20'000'000) {
      products = 0;
      stop.ask(stop);
    }
    return stop.raised.load(std::memory_order_relaxed);
  }
};

// One item of a sweep: one direction of every `groups`-th sequence.
struct Share {
  int64_t d, group, groups, rows;
};

struct Sweep {
  const Packed& packed;
  const Batch& batch;
  int64_t groups;

  Share share(int64_t item) const {
    const int64_t group = item % groups;
    return {item / groups, group, groups, (batch.run.batch - group + groups - 1) / groups};
  }
  int64_t row(const Share& share, int64_t r) const {
    return batch.order[share.group + r * share.groups];
  }
  int64_t products_a_token() const {
    return batch.z.gates * batch.z.hidden * (batch.z.input + batch.z.hidden);
  }
  int64_t most_rows() const { return (batch.run.batch + groups - 1) / groups; }
};

// Cuts scratch into aligned arrays; from null it only measures.
struct Carver {
  char* from;
  int64_t used = 0;

  template <class Item>
  void operator()(Item*& pointer, int64_t count) {
    pointer = from == nullptr ? nullptr : reinterpret_cast<Item*>(from + used);
    used += round_up(count * static_cast<int64_t>(sizeof(Item)), 64);
  }
};

void zero_past_end(const Batch& batch, int64_t d, int64_t row, float* array, int64_t floats) {
  if (array == nullptr) return;
  for (int64_t t = batch.length(row); t < batch.run.time; ++t) {
    const int64_t at = ((t * batch.run.batch + row) * batch.z.directions + d) * floats;
    std::memset(array + at, 0, static_cast<size_t>(floats) * sizeof(float));
  }
}

// ---- forward ----------------------------------------------------------------------------------

// Where one row of one step reads its state and leaves its results, (H,) each.
template <Cell C>
struct Kept {
  const float* h_prev;         // GRU
  const float* c_prev;         // LSTM
  float* c;                    // LSTM; may be c_prev
  float* h;
  float* gates;                // (G*H); null: not kept
  float* recurrent_candidate;  // GRU; null: not kept
};

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

// Scratch of one forward item.
struct ForwardScratch {
  int64_t steps;                // steps whose input projection is made at once
  int64_t tokens;               // that z has room for: steps * rows
  float* z;                     // [panel][token][n][lane] what the input gives to the pre-activations
  float* c;                     // (rows, H) running cell state, when no trace holds it
  float* masked;                // (rows, H) h times the recurrent mask
  const float** x_rows;         // (steps * rows)
  const float** h_prev;         // (rows)
  const float** operand;        // (rows) h as the recurrent weights see it
  const float** c_prev;         // (rows)
  float** c_out;                // (rows)
  int64_t* at;                  // (rows) where this step's (T, B, D, H) elements lie
};

int64_t projected_steps(int64_t rows, int64_t time) {
  return larger(1, smaller(time, smaller(64, 128 / larger(1, rows))));
}

template <Cell C>
struct ForwardSweep : Sweep {
  using L = Layout<C>;
  const Forward& out;
  char* scratch;
  int64_t scratch_bytes;

  // Lays the scratch of an item out from `from`; with null it only measures.
  int64_t lay_out(char* from, ForwardScratch* it) const {
    const Sizes& z = batch.z;
    const int64_t rows = most_rows(), steps = projected_steps(rows, batch.run.time);
    Carver carve{from};
    it->steps = steps;
    it->tokens = steps * rows;
    carve(it->z, L::panels(z.hidden) * it->tokens * L::N * W);
    carve(it->c, out.cell == nullptr && C == Cell::lstm ? rows * z.hidden : 0);
    carve(it->masked, batch.run.recurrent_mask != nullptr ? rows * z.hidden : 0);
    carve(it->x_rows, steps * rows);
    carve(it->h_prev, rows);
    carve(it->operand, rows);
    carve(it->c_prev, rows);
    carve(it->c_out, rows);
    carve(it->at, rows);
    return carve.used;
  }

  static void body(void* context, int64_t item) {
    static_cast<const ForwardSweep*>(context)->run_item(item);
  }

  void run_item(int64_t item) const {
    ForwardScratch work;
    lay_out(scratch + item * scratch_bytes, &work);
    const Share mine = share(item);
    const int64_t longest = mine.rows > 0 ? batch.length(row(mine, 0)) : 0;
    Patience patience{*batch.run.stop};
    for (int64_t from = 0; from < longest; from += work.steps) {
      const int64_t to = smaller(from + work.steps, longest);
      project(mine, work, from, to);
      int64_t done = 0;
      for (int64_t s = from; s < to; ++s) {
        const int64_t rows = step(mine, work, s, done);
        if (patience.over(rows * products_a_token())) return;
        done += rows;
      }
    }
    for (int64_t r = 0; r < mine.rows; ++r) finish(mine, work, r);
  }

  int64_t live(const Share& mine, int64_t s) const {
    int64_t rows = 0;
    while (rows < mine.rows && batch.length(row(mine, rows)) > s) ++rows;
    return rows;
  }

  // Where the scratch holds panel p of a token's z.
  float* z_at(const ForwardScratch& work, int64_t p, int64_t token) const {
    return work.z + (p * work.tokens + token) * L::N * W;
  }

  // z = W x + b for all live tokens of steps from…to-1.
  void project(const Share& mine, const ForwardScratch& work, int64_t from, int64_t to) const {
    const Sizes& sizes = batch.z;
    const int64_t I = sizes.input, H = sizes.hidden;
    int64_t tokens = 0;
    for (int64_t s = from; s < to; ++s) {
      const int64_t rows = live(mine, s);
      for (int64_t r = 0; r < rows; ++r, ++tokens) {
        const int64_t b = row(mine, r), t = batch.time(mine.d, b, s);
        work.x_rows[tokens] = batch.run.x + (t * batch.run.batch + b) * I;
      }
    }
    for (int64_t p = 0; p < L::panels(H); ++p) {
      const float* panel = packed.input[mine.d] + p * I * L::N * W;
      const float* bias = packed.bias[mine.d] + p * L::N * W;
      over_rows(tokens, [&](auto height, int64_t first) INLINE_LAMBDA {
        constexpr int R = decltype(height)::value;
        float* z = z_at(work, p, first);
        tile<R, L::N>(
            I, ByRow{work.x_rows + first}, panel,
            [=](int, int n) INLINE_LAMBDA { return load(bias + n * W); },
            [=](int r, int n, Vec sum) INLINE_LAMBDA { store(z + (r * L::N + n) * W, sum); });
      });
    }
  }

  // One step of all live rows; returns how many there are.  `done` tokens of this chunk came before.
  int64_t step(const Share& mine, const ForwardScratch& work, int64_t s, int64_t done) const {
    const int64_t H = batch.z.hidden, d = mine.d;
    const Run& run = batch.run;
    const int64_t rows = live(mine, s);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t b = row(mine, r);
      work.at[r] = batch.unit(batch.time(d, b, s), b, d);
      work.h_prev[r] =
          batch.entering(d, b, s, out.hidden, run.hidden, run.reset_hidden, packed.zeros);
      work.operand[r] = work.h_prev[r];
      if (run.recurrent_mask != nullptr) {
        float* masked = work.masked + r * H;
        const float* mask = run.recurrent_mask + batch.stated(d, b);
        for (int64_t j = 0; j < H; ++j) masked[j] = work.h_prev[r][j] * mask[j];
        work.operand[r] = masked;
      }
      if constexpr (C == Cell::lstm) {
        if (out.cell != nullptr) {
          work.c_prev[r] = batch.entering(d, b, s, out.cell, run.cell, run.reset_cell, packed.zeros);
          work.c_out[r] = out.cell + work.at[r];
        } else {
          work.c_out[r] = work.c + r * H;
          work.c_prev[r] = s > 0 && !batch.cut(d, b, s)
                               ? work.c_out[r]
                               : batch.entering(d, b, s, nullptr, run.cell, run.reset_cell,
                                                packed.zeros);
        }
      }
    }
    over_panels(rows, L::panels(H), [&](auto height, auto width, int64_t first, int64_t p) INLINE_LAMBDA {
      constexpr int R = decltype(height)::value, P = decltype(width)::value;
      const float* panel = packed.recurrent[d] + p * H * L::N * W;
      const float* z = z_at(work, p, done + first);
      const int64_t to_next = P == 2 ? work.tokens * L::N * W : L::N * W;  // the next panel's, or row's
      const float* candidate_bias = packed.candidate_bias[d] + L::unit(p, 0);
      Vec sum[R * P][L::N];
      auto* sums = &sum;
      const auto begin = [=](int k, int n) INLINE_LAMBDA {
        // The GRU's candidate keeps its recurrent product apart: the reset gate acts on it.
        if (C == Cell::gru && n == 2) return load(candidate_bias + (P == 2 ? k * W : 0));
        return load(z + k * to_next + n * W);
      };
      const auto end = [=](int k, int n, Vec total) INLINE_LAMBDA { (*sums)[k][n] = total; };
      if constexpr (P == 2)
        tile_pair<L::N>(H, work.operand[first], panel, panel + H * L::N * W, begin, end);
      else
        tile<R, L::N>(H, ByRow{work.operand + first}, panel, begin, end);
#pragma GCC unroll 8
      for (int k = 0; k < R * P; ++k)
        activate(work, done, first + (P == 2 ? 0 : k), p + (P == 2 ? k : 0), sum[k]);
    });
    return rows;
  }

  INLINE void activate(const ForwardScratch& work, int64_t done, int64_t r, int64_t p,
                       const Vec (&sum)[L::N]) const {
    const int64_t H = batch.z.hidden;
    Kept<C> row{work.h_prev[r], nullptr, nullptr, out.hidden + work.at[r], nullptr, nullptr};
    if (out.gates != nullptr) row.gates = out.gates + work.at[r] * batch.z.gates;
    if constexpr (C == Cell::lstm) row.c_prev = work.c_prev[r], row.c = work.c_out[r];
    Vec x_candidate{};
    if constexpr (C == Cell::gru) {
      x_candidate = load(z_at(work, p, done + r) + 2 * W);
      if (out.gates != nullptr) row.recurrent_candidate = out.recurrent_candidate + work.at[r];
    }
    advance(row, p, H, sum, x_candidate);
  }

  // The final state of a row, and zeros past its end.
  void finish(const Share& mine, const ForwardScratch& work, int64_t r) const {
    const Run& run = batch.run;
    const int64_t b = row(mine, r), d = mine.d, H = batch.z.hidden, length = batch.length(b);
    const bool cut = batch.cut_after_last(d, b);
    const int64_t last = length > 0 ? batch.unit(batch.time(d, b, length - 1), b, d) : 0;
    const auto leave = [&](float* final, const float* initial, const float* fresh,
                           const float* running) {
      const float* from = cut            ? (fresh != nullptr ? fresh + batch.stated(d, b) : packed.zeros)
                          : length > 0   ? running
                          : initial != nullptr ? initial + batch.stated(d, b)
                                               : packed.zeros;
      std::memcpy(final + batch.stated(d, b), from, static_cast<size_t>(H) * sizeof(float));
    };
    leave(out.final_hidden, run.hidden, run.reset_hidden, out.hidden + last);
    if constexpr (C == Cell::lstm)
      leave(out.final_cell, run.cell, run.reset_cell,
            out.cell != nullptr ? out.cell + last : work.c + r * H);
    zero_past_end(batch, d, b, out.hidden, H);
    zero_past_end(batch, d, b, out.cell, H);
    zero_past_end(batch, d, b, out.recurrent_candidate, H);
    zero_past_end(batch, d, b, out.gates, batch.z.gates * H);
  }
};

// ---- one step ---------------------------------------------------------------------------------

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

// ---- backward ---------------------------------------------------------------------------------

struct BackwardScratch {
  float* dh;              // (rows, H) what flows back into h, from the later steps
  float* dc;              // (rows, H) the same into c
  const float** operand;  // (rows) dL/dz as the recurrent weights see it
  float** through;        // (rows) where the product goes
};

template <Cell C>
struct BackwardSweep : Sweep {
  const Arriving& in;
  const Backward& out;
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
      work.through[r] = work.dh + r * H;
    }
    constexpr int64_t wide = kColumns * W;
    for (int64_t p = 0; p * wide < H; ++p) {
      const float* panel = packed.recurrent_back[d] + p * G * H * wide;
      over_rows(rows, [&](auto height, int64_t first) INLINE_LAMBDA {
        constexpr int R = decltype(height)::value;
        float* const* to = work.through + first;
        const float* mask[R] = {};
        if (run.recurrent_mask != nullptr)
          for (int r = 0; r < R; ++r) mask[r] = run.recurrent_mask + batch.stated(d, row(mine, first + r));
        const auto* masks = &mask;
        tile<R, kColumns>(
            G * H, ByRow{work.operand + first}, panel, [](int, int) INLINE_LAMBDA { return Vec{}; },
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

// The products after the sweep: gradients of the weights and of x, over all live tokens.
struct Products {
  const Packed& packed;
  const Batch& batch;
  const Arriving& in;
  const Backward& out;
  const float* d_recurrent_z;  // (T, B, D, G, H)
  const int64_t* token_time;   // (tokens) by time, then by row
  const int64_t* token_row;    // (tokens)
  int64_t tokens;
  int64_t bands;               // items of one weight gradient
  int64_t band;                // rows of an item
  char* scratch;
  int64_t scratch_bytes;

  static constexpr int64_t kTokensAnItem = 48;

  int64_t weight_items() const { return batch.z.directions * 2 * bands; }
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

  // A band of rows of dL/dW (or dL/dU) = sum over tokens of dL/dz x^T (or h^T), and of dL/db.
  void weights_item(int64_t item) const {
    const Sizes& z = batch.z;
    const int64_t d = item / (2 * bands), kind = item / bands % 2, first = item % bands * band;
    const int64_t rows = smaller(band, z.gates * z.hidden - first), stride = left_stride();
    const int64_t columns = kind == 0 ? z.input : z.hidden;
    float* product = (kind == 0 ? out.d_input[d] : out.d_recurrent[d]) + first * columns;
    const float* left = kind == 0 ? out.flow_preactivation : d_recurrent_z;

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
        row_at[k] = left + batch.gate(token_time[from + k], token_row[from + k], d) + first;
      pack_left(left_packed, stride, row_at, depth, rows);
      if (kind == 0 || z.cell == Cell::gru) {
        std::memset(bias_chunk, 0, static_cast<size_t>(rows) * sizeof(float));
        for (int64_t k = 0; k < depth; ++k)
          for (int64_t j = 0; j < rows; ++j) bias_chunk[j] += left_packed[k * stride + j];
        for (int64_t j = 0; j < rows; ++j) bias[j] += bias_chunk[j];
      }
      pack_right(right_panels, d, kind, from, depth, columns);
      constexpr int64_t wide = kColumns * W;
      for (int64_t p = 0; p * wide < columns; ++p)
        for (int64_t j = 0; j < rows; j += kRows) {
          const int64_t real = smaller(kRows, rows - j);
          float* to = product + j * columns + p * wide;
          tile<kRows, kColumns>(
              depth, ByToken{left_packed + j, stride}, right_panels + p * kChunk * wide,
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
    else if (z.cell == Cell::gru)
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

  // What the weights multiplied: x, or h as it entered the step.
  void pack_right(float* to, int64_t d, int64_t kind, int64_t from, int64_t depth,
                  int64_t columns) const {
    const Run& run = batch.run;
    pack_columns(to, depth, kChunk, columns, [&](int64_t k) {
      const int64_t t = token_time[from + k], b = token_row[from + k];
      if (kind == 0) return run.x + (t * run.batch + b) * columns;
      const int64_t s = d == 0 ? t : batch.length(b) - 1 - t;
      return batch.entering(d, b, s, in.hidden, run.hidden, run.reset_hidden, packed.zeros);
    });
    if (kind == 0 || run.recurrent_mask == nullptr) return;
    constexpr int64_t wide = kColumns * W;
    for (int64_t k = 0; k < depth; ++k) {
      const float* mask = run.recurrent_mask + batch.stated(d, token_row[from + k]);
      for (int64_t j = 0; j < columns; ++j)
        to[(j / wide * kChunk + k) * wide + j % wide] *= mask[j];
    }
  }

  // dL/dx = dL/dz W over both directions at once; 0 for tokens past a sequence's end.
  void x_item(int64_t item) const {
    const Sizes& z = batch.z;
    const int64_t depth = z.directions * z.gates * z.hidden, I = z.input;
    const int64_t first = item * kTokensAnItem;
    const int64_t last = smaller(first + kTokensAnItem, batch.run.time * batch.run.batch);
    const float* rows[kTokensAnItem];
    float* to[kTokensAnItem];
    int64_t live = 0;
    Patience patience{*batch.run.stop};
    if (patience.over((last - first) * depth * I)) return;
    for (int64_t token = first; token < last; ++token) {
      const int64_t t = token / batch.run.batch, b = token % batch.run.batch;
      if (t >= batch.length(b)) {
        std::memset(out.d_x + token * I, 0, static_cast<size_t>(I) * sizeof(float));
        continue;
      }
      rows[live] = out.flow_preactivation + batch.gate(t, b, 0);
      to[live++] = out.d_x + token * I;
    }
    constexpr int64_t wide = kColumns * W;
    for (int64_t p = 0; p * wide < I; ++p) {
      const float* panel = packed.input_back + p * depth * wide;
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
  }
};

// ---- the two entries --------------------------------------------------------------------------

// Threads that the work is worth: waking one costs microseconds.
int worthwhile(const Sizes& z, const Run& run, int threads) {
  const int64_t products = run.time * run.batch * z.directions * z.gates * z.hidden * (z.input + z.hidden);
  return products < 200'000 ? 1 : threads;
}

// Into how many shares each direction's rows are cut: some for each thread, so that one who is late (torch's
// own threads keep a core for milliseconds after their work) leaves the rest to the others; but none so
// small that its tiles are.
int64_t row_groups(const Sizes& z, const Run& run, int threads) {
  if (threads == 1) return 1;
  const int64_t a_round = (threads + z.directions - 1) / z.directions;
  const int64_t rounds = smaller(4, run.batch / (2 * kRows) / a_round);
  return larger(1, smaller(larger(1, rounds) * a_round, (run.batch + kRows - 1) / kRows));
}

template <Cell C>
bool forward_cell(const Packed& packed, const Run& run, const Forward& out, int threads,
                  const Batch& batch) {
  ForwardSweep<C> sweep{{packed, batch, row_groups(packed.sizes, run, threads)}, out, nullptr, 0};
  ForwardScratch measure;
  sweep.scratch_bytes = sweep.lay_out(nullptr, &measure);
  const int64_t items = packed.sizes.directions * sweep.groups;
  float* memory = take_floats(items * sweep.scratch_bytes / static_cast<int64_t>(sizeof(float)));
  if (memory == nullptr) return false;
  sweep.scratch = reinterpret_cast<char*>(memory);
  parallel(items, threads, ForwardSweep<C>::body, &sweep, *run.stop);
  give_back(memory);
  return !run.stop->raised;
}

template <Cell C>
bool backward_cell(const Packed& packed, const Run& run, const Arriving& in, const Backward& out,
                   int threads, const Batch& batch) {
  const Sizes& z = packed.sizes;
  const int64_t all = run.time * run.batch;
  float* recurrent_z = out.flow_preactivation;
  float* own = nullptr;
  if (C == Cell::gru) recurrent_z = own = take_floats(all * z.directions * z.gates * z.hidden);
  BackwardSweep<C> sweep{
      {packed, batch, row_groups(z, run, threads)}, in, out, recurrent_z, nullptr, 0};
  BackwardScratch measure;
  sweep.scratch_bytes = sweep.lay_out(nullptr, &measure);
  const int64_t all_rows = z.gates * z.hidden;
  const int64_t bands = larger((all_rows + kBand - 1) / kBand,
                               smaller(threads, (all_rows + 63) / 64) / z.directions);
  const int64_t band = round_up((all_rows + bands - 1) / bands, 6);
  Products products{packed, batch, in, out, recurrent_z, nullptr, nullptr, 0,
                    (all_rows + band - 1) / band, band, nullptr, 0};
  products.scratch_bytes = products.bytes_an_item();

  const int64_t sweep_items = z.directions * sweep.groups;
  const int64_t bytes = larger(sweep_items * sweep.scratch_bytes,
                               products.weight_items() * products.scratch_bytes);
  float* memory = take_floats(bytes / static_cast<int64_t>(sizeof(float)));
  auto* token_time =
      static_cast<int64_t*>(std::malloc(static_cast<size_t>(2 * all + 1) * sizeof(int64_t)));
  const bool enough = recurrent_z != nullptr && memory != nullptr && token_time != nullptr;
  if (enough) {
    sweep.scratch = products.scratch = reinterpret_cast<char*>(memory);
    parallel(sweep_items, threads, BackwardSweep<C>::body, &sweep, *run.stop);
    int64_t* token_row = token_time + all;
    for (int64_t t = 0; t < run.time; ++t)
      for (int64_t b = 0; b < run.batch; ++b)
        if (t < batch.length(b)) {
          token_time[products.tokens] = t;
          token_row[products.tokens++] = b;
        }
    products.token_time = token_time;
    products.token_row = token_row;
    parallel(products.weight_items(), threads, Products::weight_body, &products, *run.stop);
    parallel(products.x_items(), threads, Products::x_body, &products, *run.stop);
  }
  give_back(own);
  give_back(memory);
  std::free(token_time);
  return enough && !run.stop->raised;
}

template <class Call>
bool with_batch(const Packed& packed, const Run& run, Call call) {
  auto* order = static_cast<int64_t*>(std::malloc(static_cast<size_t>(run.batch + 1) * sizeof(int64_t)));
  const Batch batch{packed.sizes, run, order};
  const bool done = order != nullptr && sort_rows(run, order) && call(batch);
  std::free(order);
  return done;
}

bool forward(const Packed& packed, const Run& run, const Forward& out, int threads) {
  threads = worthwhile(packed.sizes, run, threads);
  return with_batch(packed, run, [&](const Batch& batch) {
    switch (packed.sizes.cell) {
      case Cell::lstm: return forward_cell<Cell::lstm>(packed, run, out, threads, batch);
      case Cell::gru: return forward_cell<Cell::gru>(packed, run, out, threads, batch);
      case Cell::rnn_relu: return forward_cell<Cell::rnn_relu>(packed, run, out, threads, batch);
      case Cell::rnn_tanh: break;
    }
    return forward_cell<Cell::rnn_tanh>(packed, run, out, threads, batch);
  });
}

template <Cell C>
void step_cell(const Packed& packed, const Step& given, int threads) {
  const Sizes& z = packed.sizes;
  const int64_t products = given.rows * z.gates * z.hidden * (z.input + z.hidden);
  if (products < 200'000) threads = 1;
  const int64_t tiles = (given.rows + kRows - 1) / kRows;
  Stepping<C> stepping{packed, given, (tiles + threads - 1) / threads * kRows};
  parallel((given.rows + stepping.rows_an_item - 1) / stepping.rows_an_item, threads,
           Stepping<C>::body, &stepping, *given.stop);
}

void step(const Packed& packed, const Step& given, int threads) {
  if (given.rows == 0) return;
  switch (packed.sizes.cell) {
    case Cell::lstm: return step_cell<Cell::lstm>(packed, given, threads);
    case Cell::gru: return step_cell<Cell::gru>(packed, given, threads);
    case Cell::rnn_relu: return step_cell<Cell::rnn_relu>(packed, given, threads);
    case Cell::rnn_tanh: break;
  }
  step_cell<Cell::rnn_tanh>(packed, given, threads);
}

bool backward(const Packed& packed, const Run& run, const Arriving& in, const Backward& out,
              int threads) {
  threads = worthwhile(packed.sizes, run, threads);
  return with_batch(packed, run, [&](const Batch& batch) {
    switch (packed.sizes.cell) {
      case Cell::lstm: return backward_cell<Cell::lstm>(packed, run, in, out, threads, batch);
      case Cell::gru: return backward_cell<Cell::gru>(packed, run, in, out, threads, batch);
      case Cell::rnn_relu:
        return backward_cell<Cell::rnn_relu>(packed, run, in, out, threads, batch);
      case Cell::rnn_tanh: break;
    }
    return backward_cell<Cell::rnn_tanh>(packed, run, in, out, threads, batch);
  });
}

}  // namespace

#define QUOTE_(name) #name
#define QUOTE(name) QUOTE_(name)
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

extern const Engine JOIN(engine_, UNSPOOL_ISA);
const Engine JOIN(engine_, UNSPOOL_ISA) = {QUOTE(UNSPOOL_ISA), pack, release, forward, backward, step};

}  // namespace unspool
