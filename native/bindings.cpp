// The Python face of the engine.  With small_calls.h, which it includes, the only file that has heard of Python.
//
// Takes NumPy arrays that kernels/checks.py has checked and kernels/native.py has made contiguous, hands
// their pointers on, and lets go of the interpreter's lock while the engine runs.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "engine.h"
#include "memory.h"
#include "pool.h"
#include "small_calls.h"

namespace nb = nanobind;
using namespace unspool;

namespace {

using In = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using Out = nb::ndarray<float, nb::c_contig, nb::device::cpu>;
using InLengths = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using InRows = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using InNumbers = nb::ndarray<const uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using InStep = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using OutStep = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Options = std::vector<std::optional<In>>;
using InResets = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

const float* pointer(const std::optional<In>& array) { return array ? array->data() : nullptr; }
float* pointer(const std::optional<Out>& array) { return array ? array->data() : nullptr; }

// What a layer's weights may have beyond the plain cell, in the order in which they come.
enum Part { kPeephole, kProjection, kNormInput, kNormRecurrent, kNormCell, kParts };
// And a run: the shares that are kept, the numbers that are set.
enum Given { kZoneoutHidden, kZoneoutCell, kPatchGates, kPatchHidden, kPatchCell, kGivens };

// Last line of defence against a caller that skipped checks.py.
template <class Array>
void expect(const Array& array, int64_t floats, const char* name) {
  if (static_cast<int64_t>(array.size()) != floats)
    throw std::invalid_argument(std::string(name) + " has " + std::to_string(array.size()) +
                                " elements, the layer needs " + std::to_string(floats));
}
template <class Array>
void expect(const std::optional<Array>& array, int64_t floats, const char* name) {
  if (array) expect(*array, floats, name);
}
template <class Array>
void require(const std::optional<Array>& array, bool needed, int64_t floats, const char* name) {
  if (needed != array.has_value())
    throw std::invalid_argument(std::string(name) + (needed ? " is missing" : " does not belong here"));
  expect(array, floats, name);
}

// Ends a long run on Ctrl-C: Python's signal handlers run only in the thread that called, and only when
// it asks for them.
struct Interruptible : Stop {
  Interruptible() : caller(std::this_thread::get_id()), asked(std::chrono::steady_clock::now()) {
    ask = [](Stop& stop) {
      auto& self = static_cast<Interruptible&>(stop);
      if (std::this_thread::get_id() != self.caller) return;
      const auto now = std::chrono::steady_clock::now();
      if (now - self.asked < std::chrono::milliseconds(50)) return;
      self.asked = now;
      nb::gil_scoped_acquire locked;
      if (PyErr_CheckSignals() != 0) self.raised = true;
    };
  }

  // What a failed run means; to be called with the interpreter's lock.
  [[noreturn]] void fail() const {
    if (raised) nb::raise_python_error();
    throw std::bad_alloc();
  }

  std::thread::id caller;
  std::chrono::steady_clock::time_point asked;
};

// Weights in the engine's layout.
class Layer {
 public:
  Layer(const std::string& isa, const std::string& precision, int cell, int64_t input, int64_t hidden,
        const std::vector<In>& weights, int threads, int64_t output, const Options& options, float cell_clip,
        float preactivation_clip) {
    if (threads < 1) throw std::invalid_argument("a thread is needed");
    engine_ = choose_engine(isa.c_str(), precision.c_str());
    if (engine_ == nullptr)
      throw std::invalid_argument("no engine for " + isa + " and " + precision + " runs here");
    static constexpr int64_t gates[] = {1, 1, 4, 3};
    constexpr int64_t most = int64_t{1} << 30;  // so that no product of sizes overflows
    if (cell < 0 || cell > 3 || input < 1 || hidden < 1 || input > most || hidden > most ||
        output < 1 || output > hidden)
      throw std::invalid_argument("cell or sizes out of range");
    const int64_t G = gates[cell];
    const size_t parts = cell == static_cast<int>(Cell::gru) ? 4 : 3;
    const size_t directions = weights.size() / parts;
    if (weights.size() % parts != 0 || directions < 1 || directions > 2)
      throw std::invalid_argument("weights for one or two directions are needed");
    sizes_ = {static_cast<Cell>(cell), static_cast<int64_t>(directions), G, input, hidden, output, cell_clip,
              preactivation_clip};
    const bool beyond = !options.empty() || cell_clip < HUGE_VALF || preactivation_clip < HUGE_VALF;
    if (beyond && precision != "float32") throw std::invalid_argument("options are for float32 alone");
    if (!(cell_clip > 0) || !(preactivation_clip > 0) || (cell_clip < HUGE_VALF && sizes_.cell != Cell::lstm) ||
        (!options.empty() && options.size() != directions * kParts))
      throw std::invalid_argument("bounds or options do not fit");
    Weights w[2] = {};
    for (size_t d = 0; d < directions; ++d) {
      const In* part = &weights[d * parts];
      expect(part[0], G * hidden * input, "input weights");
      expect(part[1], G * hidden * output, "recurrent weights");
      expect(part[2], G * hidden, "bias");
      if (parts == 4) expect(part[3], hidden, "candidate bias");
      w[d] = {part[0].data(), part[1].data(), part[2].data(), parts == 4 ? part[3].data() : nullptr};
      if (options.empty()) continue;
      const std::optional<In>* more = &options[d * kParts];
      const int64_t floats[] = {3 * hidden, output * hidden, 2 * G * hidden, 2 * G * hidden, 2 * hidden};
      for (int k = 0; k < kParts; ++k) {
        const bool of_lstm = k == kPeephole || k == kProjection || k == kNormCell;
        if (more[k] && of_lstm && sizes_.cell != Cell::lstm) throw std::invalid_argument("an option of the LSTM's");
        if (more[k].has_value() != options[static_cast<size_t>(k)].has_value())
          throw std::invalid_argument("an option of one direction alone");
        expect(more[k], floats[k], "an option");
        has_[k] = more[k].has_value();
      }
      w[d].peephole = pointer(more[kPeephole]);
      w[d].projection = pointer(more[kProjection]);
      w[d].norm_input = pointer(more[kNormInput]);
      w[d].norm_recurrent = pointer(more[kNormRecurrent]);
      w[d].norm_cell = pointer(more[kNormCell]);
    }
    if (output != hidden && !has_[kProjection]) throw std::invalid_argument("a projection is missing");
    nb::gil_scoped_release unlocked;
    packed_ = engine_->pack(sizes_, w, threads);
    if (packed_ == nullptr) throw std::bad_alloc();
  }
  Layer(const Layer&) = delete;
  Layer& operator=(const Layer&) = delete;
  ~Layer() { engine_->release(packed_); }

  const Sizes& sizes() const { return sizes_; }
  bool is_plain() const {
    for (const bool has : has_)
      if (has) return false;
    return !(sizes_.cell_clip < HUGE_VALF) && !(sizes_.preactivation_clip < HUGE_VALF);
  }
  bool takes_options() const { return std::strcmp(engine_->precision, "float32") == 0; }
  bool step(const Step& step, int threads) const { return engine_->step(*packed_, step, threads); }
  // A sequence of one step, whose final state may be written over the one before it.
  bool run_step(const Run& run, const Forward& out, int threads) const {
    return engine_->forward(*packed_, run, out, threads);
  }

  // One or two directions of a batch: what every call takes.
  struct Taken {
    Run run;
    int64_t places, rows;  // in (T, B, D), in (D, B)
  };

  Taken given(const In& x, const std::optional<In>& hidden, const std::optional<In>& cell,
              const std::optional<InLengths>& lengths, const std::optional<InResets>& resets,
              const std::optional<In>& reset_hidden, const std::optional<In>& reset_cell,
              const std::optional<In>& recurrent_mask, const std::optional<Options>& options) const {
    if (x.ndim() != 3 || static_cast<int64_t>(x.shape(2)) != sizes_.input)
      throw std::invalid_argument("x must be (T, B, I)");
    const auto T = static_cast<int64_t>(x.shape(0)), B = static_cast<int64_t>(x.shape(1));
    const int64_t rows = sizes_.directions * B, hiddens = rows * sizes_.output, cells = rows * sizes_.hidden;
    expect(hidden, hiddens, "hidden");
    expect(cell, cells, "cell");
    expect(lengths, B, "lengths");
    expect(resets, T * B, "resets");
    expect(reset_hidden, hiddens, "reset hidden");
    expect(reset_cell, cells, "reset cell");
    expect(recurrent_mask, hiddens, "recurrent mask");
    if (lengths)
      for (int64_t b = 0; b < B; ++b)
        if (lengths->data()[b] < 0 || lengths->data()[b] > T)
          throw std::invalid_argument("lengths must lie between 0 and T");
    Taken taken{{T, B, x.data(), pointer(hidden), pointer(cell), lengths ? lengths->data() : nullptr,
                 resets ? resets->data() : nullptr, pointer(reset_hidden), pointer(reset_cell),
                 pointer(recurrent_mask), nullptr},
                T * rows,
                rows};
    if (!options) return taken;
    const int64_t H = sizes_.hidden, floats[] = {sizes_.output, H, sizes_.gates * H, sizes_.output, H};
    if (options->size() != kGivens || std::strcmp(engine_->precision, "float32") != 0)
      throw std::invalid_argument("options do not fit");
    const float* given[kGivens];
    for (int k = 0; k < kGivens; ++k) {
      const std::optional<In>& option = (*options)[static_cast<size_t>(k)];
      if (option && (k == kZoneoutCell || k == kPatchCell) && sizes_.cell != Cell::lstm)
        throw std::invalid_argument("an option of the LSTM's");
      expect(option, taken.places * floats[k], "an option of the run");
      given[k] = pointer(option);
    }
    taken.run.zoneout_hidden = given[kZoneoutHidden];
    taken.run.zoneout_cell = given[kZoneoutCell];
    taken.run.patch_gates = given[kPatchGates];
    taken.run.patch_hidden = given[kPatchHidden];
    taken.run.patch_cell = given[kPatchCell];
    return taken;
  }

  void forward(const In& x, const std::optional<In>& hidden, const std::optional<In>& cell,
               const std::optional<InLengths>& lengths, const std::optional<InResets>& resets,
               const std::optional<In>& reset_hidden, const std::optional<In>& reset_cell,
               const std::optional<In>& recurrent_mask, const std::optional<Options>& options, const Out& out_hidden,
               const std::optional<Out>& gates, const std::optional<Out>& out_cell,
               const std::optional<Out>& recurrent_candidate, const Out& final_hidden,
               const std::optional<Out>& final_cell, int threads) const {
    const Taken it = given(x, hidden, cell, lengths, resets, reset_hidden, reset_cell, recurrent_mask, options);
    const int64_t hiddens = it.places * sizes_.output, units = it.places * sizes_.hidden;
    const bool lstm = sizes_.cell == Cell::lstm, keep = gates.has_value();
    expect(out_hidden, hiddens, "out hidden");
    expect(gates, units * sizes_.gates, "out gates");
    require(out_cell, lstm && keep, units, "out cell");
    require(recurrent_candidate, sizes_.cell == Cell::gru && keep, units, "out candidate");
    expect(final_hidden, it.rows * sizes_.output, "final hidden");
    require(final_cell, lstm, it.rows * sizes_.hidden, "final cell");
    const Forward out{out_hidden.data(),   pointer(gates),      pointer(out_cell),
                      pointer(recurrent_candidate), final_hidden.data(), pointer(final_cell)};
    run(it.run, threads, [&](const Run& run) { return engine_->forward(*packed_, run, out, threads); });
  }

  void backward(const In& x, const std::optional<In>& hidden, const std::optional<In>& cell,
                const std::optional<InLengths>& lengths, const std::optional<InResets>& resets,
                const std::optional<In>& reset_hidden, const std::optional<In>& reset_cell,
                const std::optional<In>& recurrent_mask, const std::optional<Options>& options, const In& trace_hidden,
                const In& trace_gates, const std::optional<In>& trace_cell,
                const std::optional<In>& trace_candidate, const std::optional<In>& d_hidden,
                const std::optional<In>& d_final_hidden, const std::optional<In>& d_final_cell,
                const Out& d_x, const std::vector<Out>& d_weights,
                const std::vector<Out>& d_states, const std::vector<Out>& flow,
                int threads) const {
    const Taken it = given(x, hidden, cell, lengths, resets, reset_hidden, reset_cell, recurrent_mask, options);
    const int64_t hiddens = it.places * sizes_.output, units = it.places * sizes_.hidden;
    if (engine_->backward == nullptr) throw std::invalid_argument("this precision has no gradients");
    const bool lstm = sizes_.cell == Cell::lstm, gru = sizes_.cell == Cell::gru;
    if (it.run.patch_gates != nullptr || it.run.patch_hidden != nullptr || it.run.patch_cell != nullptr)
      throw std::invalid_argument("a patched run has no backward pass");
    expect(trace_hidden, hiddens, "trace hidden");
    expect(trace_gates, units * sizes_.gates, "trace gates");
    require(trace_cell, lstm, units, "trace cell");
    require(trace_candidate, gru, units, "trace candidate");
    expect(d_hidden, hiddens, "d hidden");
    expect(d_final_hidden, it.rows * sizes_.output, "d final hidden");
    expect(d_final_cell, it.rows * sizes_.hidden, "d final cell");
    const Arriving in{trace_hidden.data(),      trace_gates.data(), pointer(trace_cell),
                      pointer(trace_candidate), pointer(d_hidden),  pointer(d_final_hidden),
                      pointer(d_final_cell)};

    const size_t base = gru ? 4 : 3;
    size_t parts = base;
    for (const bool has : has_) parts += has;
    if (d_weights.size() != parts * static_cast<size_t>(sizes_.directions) ||
        d_states.size() != (lstm ? 4u : 2u) || flow.size() != (lstm ? 3u : 2u))
      throw std::invalid_argument("a gradient's array is missing");
    Backward out{};
    expect(d_x, it.run.time * it.run.batch * sizes_.input, "d x");
    out.d_x = d_x.data();
    const int64_t rows = sizes_.gates * sizes_.hidden;
    for (size_t d = 0; d < static_cast<size_t>(sizes_.directions); ++d) {
      const Out* part = &d_weights[d * parts];
      expect(part[0], rows * sizes_.input, "d input weights");
      expect(part[1], rows * sizes_.output, "d recurrent weights");
      expect(part[2], rows, "d bias");
      if (gru) expect(part[3], sizes_.hidden, "d candidate bias");
      out.d_input[d] = part[0].data();
      out.d_recurrent[d] = part[1].data();
      out.d_bias[d] = part[2].data();
      out.d_candidate_bias[d] = gru ? part[3].data() : nullptr;
      const int64_t H = sizes_.hidden, floats[] = {3 * H, sizes_.output * H, 2 * rows, 2 * rows, 2 * H};
      float** const to[] = {out.d_peephole, out.d_projection, out.d_norm_input, out.d_norm_recurrent, out.d_norm_cell};
      part += base;
      for (int k = 0; k < kParts; ++k) {
        if (!has_[k]) continue;
        expect(*part, floats[k], "d option");
        to[k][d] = part->data();
        ++part;
      }
    }
    for (size_t k = 0; k < d_states.size(); ++k)
      expect(d_states[k], it.rows * (k < 2 ? sizes_.output : sizes_.hidden), "d state");
    out.d_initial_hidden = d_states[0].data();
    out.d_reset_hidden = d_states[1].data();
    out.d_initial_cell = lstm ? d_states[2].data() : nullptr;
    out.d_reset_cell = lstm ? d_states[3].data() : nullptr;
    expect(flow[0], hiddens, "flow hidden");
    expect(flow[1], units * sizes_.gates, "flow pre-activation");
    if (lstm) expect(flow[2], units, "flow cell");
    out.flow_hidden = flow[0].data();
    out.flow_preactivation = flow[1].data();
    out.flow_cell = lstm ? flow[2].data() : nullptr;
    run(it.run, threads, [&](const Run& run) { return engine_->backward(*packed_, run, in, out, threads); });
  }

 private:
  template <class Call>
  static void run(Run run, int threads, Call call) {
    if (threads < 1) throw std::invalid_argument("a thread is needed");
    Interruptible stop;
    run.stop = &stop;
    bool done;
    {
      nb::gil_scoped_release unlocked;
      done = call(run);
    }
    if (!done) stop.fail();
  }

  const Engine* engine_;
  Sizes sizes_;
  bool has_[kParts] = {};  // what the weights have beyond the plain cell
  Packed* packed_ = nullptr;
};

// The running state of some streams through layers of one direction.  Takes its memory when made; but layers that have
// more than the plain cell run as sequences of one step, on the engine's kept memory.
class Stream {
 public:
  Stream(const std::vector<nb::object>& layers, int64_t rows, const Out& hidden, const Out& cell,
         const std::optional<In>& share_hidden, const std::optional<In>& share_cell)
      : owners_(layers), rows_(rows), hidden_array_(hidden), cell_array_(cell), share_hidden_(share_hidden),
        share_cell_(share_cell) {
    for (const nb::object& layer : layers) layers_.push_back(nb::cast<const Layer*>(layer));
    if (layers_.empty() || rows < 1) throw std::invalid_argument("a layer and a row are needed");
    units_ = layers_[0]->sizes().hidden;
    width_ = layers_[0]->sizes().output;
    input_ = layers_[0]->sizes().input;
    extended_ = share_hidden || share_cell;
    for (size_t k = 0; k < layers_.size(); ++k) {
      const Sizes& z = layers_[k]->sizes();
      if (z.directions != 1 || z.hidden != units_ || z.output != width_ || (k > 0 && z.input != width_) ||
          (z.cell == Cell::lstm) != (layers_[0]->sizes().cell == Cell::lstm))
        throw std::invalid_argument("the layers do not follow on one another");
      if (extended_ && !layers_[k]->takes_options()) throw std::invalid_argument("zoneout is for float32 alone");
      extended_ = extended_ || !layers_[k]->is_plain();
    }
    const bool lstm = layers_[0]->sizes().cell == Cell::lstm;
    const int64_t floats = static_cast<int64_t>(layers_.size()) * rows;
    expect(hidden, floats * width_, "hidden");
    expect(cell, lstm ? floats * units_ : 0, "cell");
    expect(share_hidden, rows * width_, "the share of the hidden state");
    expect(share_cell, lstm ? rows * units_ : 0, "the share of the cell state");
    next_.resize(static_cast<size_t>((extended_ ? 2 : 1) * rows * width_));
    if (extended_) {
      chosen_hidden_.resize(static_cast<size_t>(rows * width_));
      chosen_cell_.resize(static_cast<size_t>(lstm ? rows * units_ : 0));
    }
    x_.resize(static_cast<size_t>(rows));
    h_.resize(x_.size());
    c_.resize(x_.size());
    out_.resize(x_.size());
    seen_.resize(x_.size());
  }

  // One step of the streams in `which`, or of all, in order; out gets the top layer's hidden state.
  void step(const InStep& x, const std::optional<InRows>& which, const OutStep& out, int threads) {
    const int64_t count = which ? static_cast<int64_t>(which->shape(0)) : rows_;
    if (static_cast<int64_t>(x.shape(0)) != count || static_cast<int64_t>(x.shape(1)) != input_ ||
        static_cast<int64_t>(out.shape(0)) != count || static_cast<int64_t>(out.shape(1)) != width_)
      throw std::invalid_argument("x or out does not fit");
    if (threads < 1) throw std::invalid_argument("a thread is needed");
    const int64_t* row = which ? which->data() : nullptr;
    if (row != nullptr) check(row, count);
    if (overlap(out, x) || overlap(out, hidden_array_) || overlap(out, cell_array_))
      throw std::invalid_argument("out overlaps what is read");
    const Turn turn(busy_);
    // Short steps keep the interpreter's lock: letting go of it costs as much as they do.
    if (count * units_ * (input_ + units_) * static_cast<int64_t>(layers_.size()) < 50'000)
      return run(x.data(), row, count, out.data(), threads);
    nb::gil_scoped_release unlocked;
    run(x.data(), row, count, out.data(), threads);
  }

 private:
  // One caller at a time; without it two threads would mix their states.
  struct Turn {
    explicit Turn(std::atomic_flag& flag) : busy(flag) {
      if (busy.test_and_set()) throw std::runtime_error("another thread is in step");
    }
    ~Turn() { busy.clear(); }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;
    std::atomic_flag& busy;
  };

  template <class A, class B>
  static bool overlap(const A& a, const B& b) {
    const auto from = reinterpret_cast<uintptr_t>(a.data()), other = reinterpret_cast<uintptr_t>(b.data());
    return from < other + b.size() * sizeof(float) && other < from + a.size() * sizeof(float);
  }

  void check(const int64_t* row, int64_t count) {
    bool sound = true;
    int64_t marked = 0;
    for (; marked < count && sound; ++marked) {
      sound = row[marked] >= 0 && row[marked] < rows_ && !seen_[static_cast<size_t>(row[marked])];
      if (!sound) break;
      seen_[static_cast<size_t>(row[marked])] = true;
    }
    for (int64_t r = 0; r < marked; ++r) seen_[static_cast<size_t>(row[r])] = false;
    if (!sound) throw std::invalid_argument("rows out of range or twice");
  }

  void run(const float* x, const int64_t* row, int64_t count, float* out, int threads) {
    if (extended_) return run_extended(x, row, count, out, threads);
    const auto bytes = static_cast<size_t>(units_) * sizeof(float);
    for (int64_t r = 0; r < count; ++r) x_[static_cast<size_t>(r)] = x + r * input_;
    for (size_t k = 0; k < layers_.size(); ++k) {
      const bool lstm = layers_[k]->sizes().cell == Cell::lstm, top = k + 1 == layers_.size();
      const int64_t layer = static_cast<int64_t>(k) * rows_;
      for (int64_t r = 0; r < count; ++r) {
        const auto at = static_cast<size_t>(r);
        const int64_t state = (layer + (row != nullptr ? row[r] : r)) * units_;
        h_[at] = hidden_array_.data() + state;
        if (lstm) c_[at] = cell_array_.data() + state;
        out_[at] = top ? out + r * units_ : next_.data() + r * units_;
      }
      if (!layers_[k]->step({count, x_.data(), h_.data(), lstm ? c_.data() : nullptr, out_.data(), &never_},
                       threads))
        throw std::bad_alloc();
      for (int64_t r = 0; r < count; ++r) {
        const auto at = static_cast<size_t>(r);
        std::memcpy(const_cast<float*>(h_[at]), out_[at], bytes);
        x_[at] = h_[at];  // the next layer reads this one's new state
      }
    }
  }

  // The same of layers with more than the plain cell; the states of chosen rows are brought together and back.
  void run_extended(const float* x, const int64_t* row, int64_t count, float* out, int threads) {
    const auto pointer_to = [](auto& array) { return array ? array->data() : nullptr; };
    const bool lstm = layers_[0]->sizes().cell == Cell::lstm;
    for (size_t k = 0; k < layers_.size(); ++k) {
      const int64_t layer = static_cast<int64_t>(k) * rows_;
      float* hidden = hidden_array_.data() + layer * width_;
      float* cell = lstm ? cell_array_.data() + layer * units_ : nullptr;
      const auto move = [&](float* state, float* chosen, int64_t width, bool back) {
        for (int64_t r = 0; r < count; ++r) {
          float *there = state + row[r] * width, *here = chosen + r * width;
          std::memcpy(back ? there : here, back ? here : there, static_cast<size_t>(width) * sizeof(float));
        }
      };
      const auto move_all = [&](bool back) {
        if (row == nullptr) return;
        move(hidden, chosen_hidden_.data(), width_, back);
        if (lstm) move(cell, chosen_cell_.data(), units_, back);
      };
      move_all(false);
      float* h = row != nullptr ? chosen_hidden_.data() : hidden;
      float* c = !lstm ? nullptr : row != nullptr ? chosen_cell_.data() : cell;
      float* to = k + 1 == layers_.size() ? out : next_.data() + static_cast<int64_t>(k % 2) * rows_ * width_;
      Run one{1, count, x, h, c, nullptr, nullptr, nullptr, nullptr, nullptr, &never_};
      one.zoneout_hidden = pointer_to(share_hidden_);
      one.zoneout_cell = pointer_to(share_cell_);
      if (!layers_[k]->run_step(one, {to, nullptr, nullptr, nullptr, h, c}, threads)) throw std::bad_alloc();
      move_all(true);
      x = to;
    }
  }

  std::vector<nb::object> owners_;  // keeps the layers alive
  std::vector<const Layer*> layers_;
  int64_t rows_, units_ = 0, width_ = 0, input_ = 0;  // R, H, P, I
  bool extended_ = false;                    // whether a layer has more than the plain cell
  Out hidden_array_, cell_array_;            // (L, R, P), (L, R, H)
  std::optional<In> share_hidden_, share_cell_;  // (R, P), (R, H) what zoneout keeps
  std::vector<float> next_;                  // (R, P) a layer's new hidden states, or two layers' in turn
  std::vector<float> chosen_hidden_, chosen_cell_;  // (R, P), (R, H) the states of chosen rows
  std::vector<const float*> x_, h_;
  std::vector<float*> c_, out_;
  std::vector<char> seen_;
  Stop never_{false, [](Stop&) {}};  // a step is short
  std::atomic_flag busy_;
};

}  // namespace

NB_MODULE(_core, m) {
  nb::set_leak_warnings(false);  // autograd graphs that live until exit are no leak
  m.def("engines", [] {
    std::vector<std::string> names;
    for (const char* const* name = engine_names(); *name != nullptr; ++name) names.emplace_back(*name);
    return names;
  });
  // (products a second from registers, bytes a second from blocks of this size, each thread its own).
  m.def("roofline", [](const std::string& isa, const std::string& precision, int64_t bytes, int threads) {
    const Engine* engine = choose_engine(isa.c_str(), precision.c_str());
    if (engine == nullptr || bytes < 1 || bytes > (int64_t{1} << 30) || threads < 1 || threads > 4096)
      throw std::invalid_argument("no such engine, size or number of threads");
    Interruptible stop;
    std::pair<double, double> most;
    {
      nb::gil_scoped_release unlocked;
      most = {engine->products_a_second(threads, stop), engine->bytes_a_second(bytes, threads, stop)};
    }
    if (stop.raised || most.first == 0.0 || most.second == 0.0) stop.fail();
    return most;
  });
  // Masks: out[t, b, d, u] is `chosen` where the word that counts it lies below `below`, else `other`.
  m.def("draw", [](const std::string& isa, uint64_t seed, uint64_t step, uint32_t layer, uint32_t use,
                   const InNumbers& times, const InNumbers& rows, uint64_t below, float chosen, float other,
                   const Out& out, int threads) {
    const Engine* engine = choose_engine(isa.c_str(), "float32");
    if (engine == nullptr || threads < 1 || use > 2 || below > uint64_t{1} << 32 || out.ndim() != 4 ||
        out.shape(0) != times.shape(0) || out.shape(1) != rows.shape(0) || out.shape(2) > 2)
      throw std::invalid_argument("no such mask");
    if (out.size() == 0) return;
    Interruptible stop;
    const Draw wanted{seed, step, layer, use, static_cast<int64_t>(out.shape(0)), static_cast<int64_t>(out.shape(1)),
                      static_cast<int64_t>(out.shape(2)), static_cast<int64_t>(out.shape(3)), times.data(),
                      rows.data(), below, chosen, other, out.data(), &stop};
    bool done;
    {
      nb::gil_scoped_release unlocked;
      done = engine->draw(wanted, threads);
    }
    if (!done) stop.fail();
  }, nb::arg("isa"), nb::arg("seed"), nb::arg("step"), nb::arg("layer"), nb::arg("use"), nb::arg("times").noconvert(),
     nb::arg("rows").noconvert(), nb::arg("below"), nb::arg("chosen"), nb::arg("other"), nb::arg("out").noconvert(),
     nb::arg("threads"));
  // The address of a function of the process that runs a team of threads (pool.h), or 0 for own threads.
  m.def("lend", [](uintptr_t team) { lend(reinterpret_cast<Team>(team)); });
  // An array for the engine to write; its memory is kept for the next one when it is gone.
  m.def("empty", [](const std::vector<size_t>& shape) {
    size_t count = 1;
    for (const size_t n : shape) count *= n;
    float* floats = take_floats(static_cast<int64_t>(count));
    if (floats == nullptr) throw std::bad_alloc();
    nb::capsule owner(floats, [](void* block) noexcept { give_back(static_cast<float*>(block)); });
    return nb::ndarray<nb::numpy, float>(floats, shape.size(), shape.data(), owner);
  });
  // noconvert: an output converted on its way in would be written and thrown away.
  nb::class_<Layer>(m, "Layer")
      .def(nb::init<const std::string&, const std::string&, int, int64_t, int64_t, const std::vector<In>&, int, int64_t,
                    const Options&, float, float>(),
           nb::arg("isa"), nb::arg("precision"), nb::arg("cell"), nb::arg("input"), nb::arg("hidden"),
           nb::arg("weights").noconvert(), nb::arg("threads"), nb::arg("output"), nb::arg("options").noconvert(),
           nb::arg("cell_clip"), nb::arg("preactivation_clip"))
      .def("forward", &Layer::forward, nb::arg("x").noconvert(),
           nb::arg("hidden").noconvert().none(), nb::arg("cell").noconvert().none(),
           nb::arg("lengths").noconvert().none(), nb::arg("resets").noconvert().none(),
           nb::arg("reset_hidden").noconvert().none(), nb::arg("reset_cell").noconvert().none(),
           nb::arg("recurrent_mask").noconvert().none(), nb::arg("options").noconvert().none(), nb::arg("out_hidden").noconvert(),
           nb::arg("gates").noconvert().none(), nb::arg("out_cell").noconvert().none(),
           nb::arg("recurrent_candidate").noconvert().none(), nb::arg("final_hidden").noconvert(),
           nb::arg("final_cell").noconvert().none(), nb::arg("threads"))
      .def("backward", &Layer::backward, nb::arg("x").noconvert(),
           nb::arg("hidden").noconvert().none(), nb::arg("cell").noconvert().none(),
           nb::arg("lengths").noconvert().none(), nb::arg("resets").noconvert().none(),
           nb::arg("reset_hidden").noconvert().none(), nb::arg("reset_cell").noconvert().none(),
           nb::arg("recurrent_mask").noconvert().none(), nb::arg("options").noconvert().none(), nb::arg("trace_hidden").noconvert(),
           nb::arg("trace_gates").noconvert(), nb::arg("trace_cell").noconvert().none(),
           nb::arg("trace_candidate").noconvert().none(), nb::arg("d_hidden").noconvert().none(),
           nb::arg("d_final_hidden").noconvert().none(), nb::arg("d_final_cell").noconvert().none(),
           nb::arg("d_x").noconvert(), nb::arg("d_weights").noconvert(),
           nb::arg("d_states").noconvert(), nb::arg("flow").noconvert(), nb::arg("threads"));
  nb::class_<PackedWeights>(m, "PackedWeights");
  using Small = SmallCalls<Interruptible>;
  nb::class_<Small>(m, "SmallCalls")
      .def(nb::init<nb::object, nb::object, nb::object, const std::string&, int, int64_t, int64_t, int64_t, int64_t,
                    bool>())
      .def("forward", &Small::forward, nb::arg().none(), nb::arg().none(), nb::arg().none(), nb::arg().none(),
           nb::arg().none(), nb::arg().none(), nb::arg().none(), nb::arg().none(), nb::arg().none(),
           nb::arg().none(), nb::arg().none(), nb::arg().none(), nb::arg().none(), nb::arg())
      .def("stack", &Small::stack, nb::arg(), nb::arg(), nb::arg().none(), nb::arg().none(), nb::arg().none(),
           nb::arg().none(), nb::arg().none(), nb::arg().none(), nb::arg().none(), nb::arg())
      .def("backward", &Small::backward, nb::arg(), nb::arg(), nb::arg().none(), nb::arg().none(),
           nb::arg().none(), nb::arg().none(), nb::arg().none(), nb::arg(), nb::arg().none(), nb::arg().none(),
           nb::arg().none(), nb::arg().none(), nb::arg().none(), nb::arg().none(), nb::arg().none(),
           nb::arg().none(), nb::arg().none(), nb::arg().none(), nb::arg());
  nb::class_<Stream>(m, "Stream")
      .def(nb::init<const std::vector<nb::object>&, int64_t, const Out&, const Out&, const std::optional<In>&,
                    const std::optional<In>&>(),
           nb::arg("layers"), nb::arg("rows"), nb::arg("hidden"), nb::arg("cell"), nb::arg("share_hidden").none(),
           nb::arg("share_cell").none())
      .def("step", &Stream::step, nb::arg("x").noconvert(), nb::arg("rows").noconvert().none(),
           nb::arg("out").noconvert(), nb::arg("threads"));
}
