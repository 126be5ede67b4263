// A batch of ragged sequences: their order, their cuts, and how a sweep over them is shared out.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "panels.h"

namespace unspool {
namespace {

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

  int64_t place(int64_t t, int64_t row, int64_t d) const {  // in (T, B, D)
    return (t * run.batch + row) * z.directions + d;
  }
  int64_t unit(int64_t t, int64_t row, int64_t d) const {  // in (T, B, D, H)
    return place(t, row, d) * z.hidden;
  }
  int64_t gate(int64_t t, int64_t row, int64_t d) const {  // in (T, B, D, G, H)
    return place(t, row, d) * z.gates * z.hidden;
  }
  int64_t stated(int64_t d, int64_t row) const {  // in (D, B)
    return d * run.batch + row;
  }

  // What a step reads in h's place, of width P, or in c's, of width H: `own` holds the traces.
  const float* entering(int64_t d, int64_t row, int64_t s, const float* own, const float* initial,
                        const float* fresh, const float* zeros, int64_t width) const {
    if (cut(d, row, s)) return fresh != nullptr ? fresh + stated(d, row) * width : zeros;
    if (s > 0) return own + place(time(d, row, s - 1), row, d) * width;
    return initial != nullptr ? initial + stated(d, row) * width : zeros;
  }
  const float* entering_hidden(int64_t d, int64_t row, int64_t s, const float* own, const float* zeros) const {
    return entering(d, row, s, own, run.hidden, run.reset_hidden, zeros, z.output);
  }
  const float* entering_cell(int64_t d, int64_t row, int64_t s, const float* own, const float* zeros) const {
    return entering(d, row, s, own, run.cell, run.reset_cell, zeros, z.hidden);
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

// How many steps of a sweep are multiplied at once.
inline int64_t steps_at_once(int64_t rows, int64_t time) {
  return larger(1, smaller(time, smaller(64, 128 / larger(1, rows))));
}

// One item of a sweep: one direction of every `groups`-th sequence.
struct Share {
  int64_t d, group, groups, rows;
};

// How a sweep is cut: each direction's rows into groups, each group's units into parts that go step by step together.
struct Cut {
  int64_t groups, parts;
};

struct Sweep {
  const Packed& packed;
  const Batch& batch;
  Cut cut;

  Share share(int64_t item) const {
    const int64_t groups = cut.groups, group = item % groups;
    return {item / groups, group, groups, (batch.run.batch - group + groups - 1) / groups};
  }
  int64_t row(const Share& share, int64_t r) const {
    return batch.order[share.group + r * share.groups];
  }
  int64_t products_a_token() const {
    return batch.z.gates * batch.z.hidden * (batch.z.input + batch.z.output);
  }
  int64_t most_rows() const { return (batch.run.batch + cut.groups - 1) / cut.groups; }
  int64_t longest(const Share& share) const { return share.rows > 0 ? batch.length(row(share, 0)) : 0; }
  int64_t live(const Share& share, int64_t s) const {
    if (batch.run.lengths == nullptr) return share.rows;
    int64_t rows = 0;
    while (rows < share.rows && batch.length(row(share, rows)) > s) ++rows;
    return rows;
  }
  // Of `panels`, those of a part.
  Span part_of(int64_t panels, int64_t part) const {
    return {panels * part / cut.parts, panels * (part + 1) / cut.parts};
  }
  // How often a thread looks at a late part before it takes it for put aside: some 50 us, and longer than a part takes.
  int64_t patience(int64_t tokens) const { return 4000 + tokens * products_a_token() / cut.parts / 500; }
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
    const int64_t at = batch.place(t, row, d) * floats;
    std::memset(array + at, 0, static_cast<size_t>(floats) * sizeof(float));
  }
}

}  // namespace
}  // namespace unspool
