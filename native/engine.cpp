// The engine: one layer, one or two directions, forward and backward.  Compiled once for each
// instruction set, with UNSPOOL_ISA as its name; nothing here is visible but that one table.
//
// What it is made of: vector.h (W floats), tile.h (the one product), panels.h (packed weights), batch.h
// (ragged sequences), options.h (what a layer may have beyond the plain cell), lockstep.h (threads that meet after every
// step), masks.h (drawn by counters), forward.h, step.h, backward.h, products.h (gradients after the sweep), roofline.h (what the machine can do at the most).
//
// Everything is one tile, each output summed in one order, in one accumulator.  So an output's bits do not
// depend on the tile's shape, on its neighbours, or on the number of threads.  Work is split over outputs, never
// over a sum; weight gradients are summed over time in chunks of kChunk steps, joined in order.
//
//   T time steps   B batch   I input size   H hidden size   D directions   G gates
//   W floats in a vector     R rows of a tile   N vectors of a tile
//   s step in reading order (0 is read first)   t time step   row: a sequence of the batch
#include "engine.h"

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <new>

#include "backward.h"
#include "forward.h"
#include "masks.h"
#include "memory.h"
#include "products.h"
#include "roofline.h"
#include "step.h"

namespace unspool {

namespace {

// Products of a step that are worth a meeting of threads, which costs some 0.3 us.
constexpr int64_t kMeetingWorth = 45'000;

// Products of a step of a stream that are worth another thread: of a lent team, which is awake between the steps.  To
// wake an own one costs as much as the step.
constexpr int64_t kSharedStep = 400'000;

// A team ends together.  Where one of its threads was put aside by the system, a step takes milliseconds: several times
// what it takes alone.  After such a step so many go alone, on whatever stream.
constexpr int64_t kStepsAlone = 2000;
std::atomic<int64_t> steps_alone{0};

// Threads that the work is worth: waking one costs microseconds.
int worthwhile(const Sizes& z, const Run& run, int threads) {
  const int64_t products = run.time * run.batch * z.directions * z.gates * z.hidden * (z.input + z.output);
  return products < 200'000 ? 1 : threads;
}

// How a sweep is cut, if its recurrent product has `panels` panels.  Usually each direction's rows into some groups a
// thread, so that one who is late (torch's own threads keep a core for milliseconds after their work) leaves the rest
// to the others; but none so small that its tiles are.  Where that leaves one group, threads take parts of the units.
Cut cut_of(const Sizes& z, const Run& run, int threads, int64_t panels) {
  if (threads == 1) return {1, 1};
  const int64_t a_round = (threads + z.directions - 1) / z.directions;
  const int64_t parts = smaller(threads / z.directions, smaller(panels, Lockstep::kMostShares));
  const bool enough = run.batch * z.gates * z.hidden * z.output >= kMeetingWorth;
  if (parts > 1 && enough && run.batch <= kRows) return {1, parts};
  const int64_t rounds = smaller(4, run.batch / (2 * kRows) / a_round);
  return {larger(1, smaller(larger(1, rounds) * a_round, (run.batch + kRows - 1) / kRows)), 1};
}

// For each item of a sweep what its parts meet at, in memory that the caller gives.
Lockstep* make_locksteps(const Sweep& sweep, float* memory, int64_t more_steps) {
  auto* all = reinterpret_cast<Lockstep*>(memory);
  const Batch& batch = sweep.batch;
  const int64_t tokens = steps_at_once(sweep.most_rows(), batch.run.time) * sweep.most_rows();
  for (int64_t item = 0; item < batch.z.directions * sweep.cut.groups; ++item)
    new (all + item) Lockstep(sweep.longest(sweep.share(item)) + more_steps, sweep.cut.parts, sweep.patience(tokens),
                              *batch.run.stop);
  return all;
}

constexpr int64_t lockstep_floats(int64_t items) { return items * static_cast<int64_t>(sizeof(Lockstep) / sizeof(float)); }

template <Cell C, bool Extended>
bool forward_sweep(const Packed& packed, const Run& run, const Forward& out, int threads,
                   const Batch& batch) {
  const int64_t panels = Extended ? 1 : Layout<C>::panels(packed.sizes.hidden);
  ForwardSweep<C, Extended> sweep{
      {packed, batch, cut_of(packed.sizes, run, threads, panels)}, out, nullptr, nullptr, 0, 0};
  ForwardScratch measure;
  sweep.shared_bytes = sweep.lay_out_shared(nullptr, &measure);
  sweep.own_bytes = sweep.lay_out(nullptr, &measure);
  const int64_t items = packed.sizes.directions * sweep.cut.groups, met = lockstep_floats(items);
  const int64_t scratch = items * sweep.scratch_bytes() / static_cast<int64_t>(sizeof(float));
  const bool has_table = run.places != nullptr;
  float* memory = take_floats(met + scratch + (has_table ? sweep.table_floats() : 0));
  if (memory == nullptr) return false;
  if (has_table) {
    sweep.of_table = memory + met + scratch;
    parallel(sweep.table_items(), threads, ForwardSweep<C, Extended>::table_body, &sweep, *run.stop);
  }
  sweep.locksteps = make_locksteps(sweep, memory, 0);
  sweep.scratch = reinterpret_cast<char*>(memory + met);
  parallel(items * sweep.cut.parts, threads, ForwardSweep<C, Extended>::body, &sweep, *run.stop);
  give_back(memory);
  return !run.stop->raised;
}

// Whether a run needs more than the plain cell's sweeps; in float32 alone, as checks.py sees to.
bool is_extended(const Packed& packed, const Run& run) {
  return packed.extended || run.zoneout_hidden != nullptr || run.zoneout_cell != nullptr ||
         run.patch_gates != nullptr || run.patch_hidden != nullptr || run.patch_cell != nullptr;
}

template <Cell C>
bool forward_cell(const Packed& packed, const Run& run, const Forward& out, int threads,
                  const Batch& batch) {
  if constexpr (kPrecision == Precision::float32)
    if (is_extended(packed, run)) return forward_sweep<C, true>(packed, run, out, threads, batch);
  return forward_sweep<C, false>(packed, run, out, threads, batch);
}

template <Cell C, bool Extended>
bool backward_sweep(const Packed& packed, const Run& run, const Arriving& in, const Backward& out,
                    int threads, const Batch& batch) {
  const Sizes& z = packed.sizes;
  const BackPanels* back = back_panels<C>(packed, threads);
  if (back == nullptr) return false;
  const int64_t all = run.time * run.batch, places = all * z.directions;
  Left left{out.flow_preactivation, out.flow_preactivation, out.flow_preactivation, nullptr, nullptr, nullptr};
  float* own[6] = {};
  bool taken = true;
  auto take = [&, next = 0](float*& array, int64_t floats) mutable {
    array = own[next++] = take_floats(floats);
    taken = taken && array != nullptr;
  };
  if (C == Cell::gru) {
    take(left.d_hidden_part, places * z.gates * z.hidden);
    left.d_recurrent_z = left.d_hidden_part;
  }
  if constexpr (Extended) {
    const Beyond& w = packed.beyond[0];
    if (w.gain_input != nullptr) take(left.d_input_z, places * z.gates * z.hidden);
    if (w.gain_recurrent != nullptr) take(left.d_recurrent_z, places * z.gates * z.hidden);
    if (w.projection != nullptr) {
      take(left.d_made, places * z.output);
      take(left.shown, places * z.hidden);
    }
    take(left.gathered, run.batch * z.directions * Gathered(packed).floats);
  }
  const int64_t panels = Extended ? 1 : (z.output + kColumns * W - 1) / (kColumns * W);
  BackwardSweep<C, Extended> sweep{
      {packed, batch, cut_of(z, run, threads, panels)}, in, out, *back, left, nullptr, nullptr, 0, 0};
  BackwardScratch measure;
  sweep.shared_bytes = sweep.lay_out_shared(nullptr, &measure);
  sweep.own_bytes = sweep.lay_out(nullptr, &measure);
  std::atomic<bool> out_of_memory{false};
  Products products{packed, batch, in, out, *back, left, threads, nullptr, nullptr, 0, nullptr, &out_of_memory};
  const int64_t sweep_items = z.directions * sweep.cut.groups, met = lockstep_floats(sweep_items);
  float* memory = take_floats(met + sweep_items * sweep.scratch_bytes() / static_cast<int64_t>(sizeof(float)));
  auto* token_time =
      static_cast<int64_t*>(std::malloc(static_cast<size_t>(2 * all + 1) * sizeof(int64_t)));
  float* right = nullptr;
  if (taken && memory != nullptr && token_time != nullptr) {
    sweep.locksteps = make_locksteps(sweep, memory, 1);
    sweep.scratch = reinterpret_cast<char*>(memory + met);
    parallel(sweep_items * sweep.cut.parts, threads, BackwardSweep<C, Extended>::body, &sweep, *run.stop);
    int64_t* token_row = token_time + all;
    for (int64_t t = 0; t < run.time; ++t)
      for (int64_t b = 0; b < run.batch; ++b)
        if (t < batch.length(b)) {
          token_time[products.tokens] = t;
          token_row[products.tokens++] = b;
        }
    products.token_time = token_time;
    products.token_row = token_row;
    products.panels = right = take_floats(products.right_floats());
  }
  if (right != nullptr) {
    parallel(products.right_items(), threads, Products::right_body, &products, *run.stop);
    parallel(products.weight_items(), threads, Products::weight_body, &products, *run.stop);
    if (run.places == nullptr) parallel(products.x_items(), threads, Products::x_body, &products, *run.stop);
    if constexpr (Extended) products.join_gathered();
  }
  for (float* array : own) give_back(array);
  give_back(memory);
  give_back(right);
  std::free(token_time);
  return right != nullptr && !out_of_memory && !run.stop->raised;
}

template <Cell C>
bool backward_cell(const Packed& packed, const Run& run, const Arriving& in, const Backward& out, int threads,
                   const Batch& batch) {
  if constexpr (kPrecision == Precision::float32)
    if (is_extended(packed, run)) return backward_sweep<C, true>(packed, run, in, out, threads, batch);
  return backward_sweep<C, false>(packed, run, in, out, threads, batch);
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
bool step_cell(const Packed& packed, const Step& given, int threads) {
  const Sizes& z = packed.sizes;
  const int64_t products = given.rows * z.gates * z.hidden * (z.input + z.hidden);
  if (products < 200'000) threads = 1;
  const int64_t tiles = (given.rows + kRows - 1) / kRows;
  bool shared = tiles == 1 && products >= kSharedStep && threads > 1 && is_lent();
  if (shared && steps_alone.load(std::memory_order_relaxed) > 0) {
    steps_alone.fetch_sub(1, std::memory_order_relaxed);
    shared = false;
  }
  const int64_t parts = shared ? smaller(threads, Layout<C>::panels(z.hidden)) : 1;
  const int64_t narrow = parts * given.rows * Stepping<C>::floats_a_row(z);
  float* memory = narrow > 0 ? take_floats(narrow) : nullptr;
  if (narrow > 0 && memory == nullptr) return false;
  Stepping<C> stepping{packed, given, (tiles + threads - 1) / threads * kRows, parts, memory};
  const auto begun = shared ? std::chrono::steady_clock::now() : std::chrono::steady_clock::time_point{};
  parallel((given.rows + stepping.rows_an_item - 1) / stepping.rows_an_item * parts, threads,
           Stepping<C>::body, &stepping, *given.stop);
  if (shared && std::chrono::steady_clock::now() - begun > std::chrono::nanoseconds(products / 5))
    steps_alone.store(kStepsAlone, std::memory_order_relaxed);
  give_back(memory);
  return true;
}

bool step(const Packed& packed, const Step& given, int threads) {
  if (given.rows == 0) return true;
  switch (packed.sizes.cell) {
    case Cell::lstm: return step_cell<Cell::lstm>(packed, given, threads);
    case Cell::gru: return step_cell<Cell::gru>(packed, given, threads);
    case Cell::rnn_relu: return step_cell<Cell::rnn_relu>(packed, given, threads);
    case Cell::rnn_tanh: break;
  }
  return step_cell<Cell::rnn_tanh>(packed, given, threads);
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

#define ENGINE JOIN(JOIN(JOIN(engine_, UNSPOOL_ISA), _), UNSPOOL_PRECISION)

// int8 has no gradients.
extern const Engine ENGINE;
const Engine ENGINE = {QUOTE(UNSPOOL_ISA), QUOTE(UNSPOOL_PRECISION), pack, release, forward,
                       kInt8 ? nullptr : backward, step,
                       kPrecision == Precision::float32 ? draw : nullptr, products_a_second, bytes_a_second};

}  // namespace unspool
