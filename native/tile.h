// The one tile that everything is computed with: R rows by N vectors of outputs, each output summed over the
// inner dimension in one order, from first to last, in one accumulator.
#pragma once

#include <cstdint>

#include "precision.h"

#define INLINE inline __attribute__((always_inline))
#define INLINE_LAMBDA __attribute__((always_inline))

namespace unspool {
namespace {

constexpr int kColumns = 4;      // N of a plain product

constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

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

// sum(r, n) = begin(r, n) + left(r, k) * panel(k, n), for slots k = 0 … depth-1 in that order; then
// end(r, n, sum).
//
// A panel may be Stride vectors wide, of which the first N are multiplied.
//
// Never inlined: among the code around it the compiler would keep the sums in memory.
template <int R, int N, class Multiply = Product, int Stride = N, class Left, class Begin, class End>
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
      Vec b = load(panel + (k * Stride + n) * W);
      hold(b);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sum[r][n] = Multiply::add(a[r], b, sum[r][n]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) end(r, n, sum[r][n]);
}

// The same for one row and two panels at once, begin and end counting the panels in r's place: a single
// row's N sums would wait for one another.
template <int N, class Multiply = Product, class Begin, class End>
__attribute__((noinline)) void tile_pair(int64_t depth, const float* row, const float* panel,
                                         const float* next, Begin begin, End end) {
  Vec sum[2][N];
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) sum[0][n] = begin(0, n), sum[1][n] = begin(1, n);
  for (int64_t k = 0; k < depth; ++k) {
    const Vec a = splat(row[k]);
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      sum[0][n] = Multiply::add(a, load(panel + (k * N + n) * W), sum[0][n]);
      sum[1][n] = Multiply::add(a, load(next + (k * N + n) * W), sum[1][n]);
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

// Calls visit(Height<R>, first) for tiles of R = kRows rows, and smaller ones for what is left.  A few rows too
// many make two tiles of about half: the sums of a row or two would wait for one another, or for the panel.
template <class Visit>
INLINE void over_rows(int64_t rows, Visit visit) {
  for (int64_t first = 0; first < rows;) {
    const int64_t left = rows - first;
    const int64_t take = left > kRows && left < kRows + (kRows + 1) / 2 ? (left + 1) / 2 : smaller(left, kRows);
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

template <int N>
struct Width {
  static constexpr int value = N;
};

// Calls visit(Width<N>) with the vectors of a plain product's panel that have any of the `columns` from its first one
// on: the last panel's others would be multiplied for nothing.
template <class Visit>
INLINE void within_panel(int64_t columns, Visit visit) {
  switch (smaller((columns + W - 1) / W, kColumns)) {
    case 1: visit(Width<1>{}); break;
    case 2: visit(Width<2>{}); break;
    case 3: visit(Width<3>{}); break;
    default: visit(Width<kColumns>{});
  }
}

// Neighbours: panels, rows, units.
struct Span {
  int64_t first, end;
};

// The same for each panel p; a single row visits the panels in pairs: visit(height, width, first, p).  `turned`: the
// last panel first.  Who goes to and fro finds the panels at the turn in the cache yet.
template <class Visit>
INLINE void over_panels(int64_t rows, Span panels, bool turned, Visit visit) {
  const int64_t pairs = rows == 1 ? (panels.end - panels.first) / 2 : 0;
  const int64_t alone = panels.first + 2 * pairs;
  for (int64_t k = 0; k < pairs; ++k)
    visit(Height<1>{}, Height<2>{}, 0, panels.first + 2 * (turned ? pairs - 1 - k : k));
  for (int64_t k = 0; k < panels.end - alone; ++k) {
    const int64_t p = turned ? panels.end - 1 - k : alone + k;
    over_rows(rows, [&](auto height, int64_t first) INLINE_LAMBDA { visit(height, Height<1>{}, first, p); });
  }
}

}  // namespace
}  // namespace unspool
