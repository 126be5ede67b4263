// A small call of a plain layer, straight from torch's tensors: for agents and decoders, who call once a step
// and wait longer for the way to the engine than for the engine, and for sequences of few rows.
//
// Looks at tensors through DLPack's table of C functions (`__dlpack_c_exchange_api__`): no header of torch, no
// array object in between.  What is not a plain small call (another dtype or device, views with gaps, sizes
// that do not fit) is answered with false, before anything is written: the general way runs it or says what is
// wrong.  Weights are packed anew at every call, as there: whoever wrote on them, and how, the call sees it.  What a
// gradient is asked of keeps its packed weights until then.
//
//   T time steps   B batch   I input size   H hidden size   D directions   G gates   L layers of the module
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine.h"
#include "memory.h"
#include "wavefront.h"

namespace unspool {
namespace {

namespace nb = nanobind;

// DLPack 1.3, dlpack.h: DLPackExchangeAPI.  Only `look` is called; it neither owns nor copies.
struct Exchange {
  uint32_t major, minor;
  void* older;
  void* allocate;
  void* to_owner;
  void* from_owner;
  int (*look)(void* object, nb::dlpack::dltensor* out);
  void* stream;
};

// Memory for one call.
struct Scratch {
  explicit Scratch(int64_t count) : floats(take_floats(count)) {
    if (floats == nullptr) throw std::bad_alloc();
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { give_back(floats); }
  float* take(int64_t count) {
    float* mine = floats + used;
    used += count;
    return mine;
  }
  float* floats;
  int64_t used = 0;
};

// The weights as one call has packed them, for its gradient.
struct PackedWeights {
  PackedWeights(const Engine* engine, const Sizes& sizes, const Weights* weights, int threads)
      : engine(engine), sizes(sizes), packed(engine->pack(sizes, weights, threads)) {
    if (packed == nullptr) throw std::bad_alloc();
  }
  PackedWeights(const PackedWeights&) = delete;
  PackedWeights& operator=(const PackedWeights&) = delete;
  ~PackedWeights() { engine->release(packed); }
  const Engine* engine;
  Sizes sizes;
  Packed* packed;
};

template <class Interruptible>
class SmallCalls {
 public:
  // `layers` and `directions` say how a state is laid out; `bias`, whether a direction has two or four weights.
  SmallCalls(nb::object exchange, nb::object tensor, nb::object parameter, const std::string& isa, int cell,
             int64_t input, int64_t hidden, int64_t layers, int64_t directions, bool bias)
      : owners_{tensor, parameter, exchange}, layers_(layers), bias_(bias) {
    api_ = static_cast<const Exchange*>(PyCapsule_GetPointer(exchange.ptr(), "dlpack_exchange_api"));
    if (api_ == nullptr) nb::raise_python_error();
    engine_ = choose_engine(isa.c_str(), "float32");
    static constexpr int64_t gates[] = {1, 1, 4, 3};
    if (engine_ == nullptr || cell < 0 || cell > 3 || input < 1 || hidden < 1 || input > kMost || hidden > kMost ||
        layers < 1 || directions < 1 || directions > 2 || api_->major != 1 || api_->look == nullptr)
      throw std::invalid_argument("no small calls of such a layer");
    sizes_ = {static_cast<Cell>(cell), directions, gates[cell], input, hidden, hidden};
  }

  // x is T·B·I numbers, or where there are `places`, T·B whole numbers, a table that each step reads a row of; out is
  // T·B·D·H; states hold all layers, of which this is number `level`; `lengths` is None or B whole numbers from 0 to T;
  // `trace` takes gates (T, B, D, G, H) and, of an LSTM, cell states, of a GRU recurrent candidates (T, B, D, H).
  // Returns false, true, or where a trace is kept the packed weights.
  nb::object forward(int64_t T, int64_t B, int64_t level, nb::handle x, nb::handle hidden, nb::handle cell,
               nb::handle lengths, nb::handle places, nb::handle weights, nb::handle out, nb::handle final_hidden,
               nb::handle final_cell, nb::handle trace, int threads) const {
    if (T < 1 || B < 1 || T > kMost || B > kMost / T) return nb::bool_(false);
    const bool lstm = sizes_.cell == Cell::lstm;
    const int64_t D = sizes_.directions, elements = T * B * D * sizes_.hidden;
    Run run{};
    std::array<Look, 8> w;
    std::vector<int64_t> own_lengths, own_places;
    if (threads < 1 || level < 0 || level >= layers_ || !given(T, B, level, x, hidden, cell, places, own_places, run) ||
        !ragged(lengths, own_lengths, run) || !read(weights, sizes_, w))
      return nb::bool_(false);
    Forward to{};
    float* kept = nullptr;
    if (!written(out, elements, to.hidden) || !state(final_hidden, B, level, to.final_hidden) ||
        (lstm ? !state(final_cell, B, level, to.final_cell) : !final_cell.is_none()) ||
        (!trace.is_none() && !written(trace, elements * (sizes_.gates + (extra() ? 1 : 0)), kept)))
      return nb::bool_(false);
    if (kept != nullptr) {
      to.gates = kept;
      (lstm ? to.cell : to.recurrent_candidate) = extra() ? kept + elements * sizes_.gates : nullptr;
    }
    std::unique_ptr<PackedWeights> packed;
    at_work(T * B, run, [&] {
      packed = pack(w, sizes_, threads);
      return engine_->forward(*packed->packed, run, to, threads);
    });
    return trace.is_none() ? nb::object(nb::bool_(true)) : nb::cast(packed.release(), nb::rv_policy::take_ownership);
  }

  // All layers of a module of one direction, of which this is the lowest: threads work at several layers, each at
  // another chunk of time (wavefront.h).  `weights` has a tuple a layer, the rest is as forward takes it.  Returns false
  // also where that gains nothing: forward then runs layer after layer.
  bool stack(int64_t T, int64_t B, nb::handle x, nb::handle hidden, nb::handle cell, nb::handle weights, nb::handle out,
             nb::handle final_hidden, nb::handle final_cell, int threads) const {
    const int64_t L = layers_, H = sizes_.hidden;
    if (threads < 2 || L < 2 || L > Wavefront::kMostLayers || sizes_.directions != 1 || T < 3 * kChunk || T > kMost ||
        B < 1 || B > kFewRows || H > kOneThreads)
      return false;
    const int64_t a_step = B * sizes_.gates * H * H, products = 2 * a_step * T;  // of a layer as wide as it is high
    if (a_step >= kOneThreads || products < kWavefrontWorth || !is_lent()) return false;
    if (alone_.load(std::memory_order_relaxed) > 0) {
      alone_.fetch_sub(1, std::memory_order_relaxed);
      return false;
    }
    const bool lstm = sizes_.cell == Cell::lstm;
    std::vector<Layer> all(static_cast<size_t>(L));
    std::vector<int64_t> no_places;
    if (!PyTuple_Check(weights.ptr()) || PyTuple_Size(weights.ptr()) != L ||
        !given(T, B, 0, x, hidden, cell, nb::none(), no_places, all[0].run))
      return false;
    for (int64_t k = 0; k < L; ++k) {
      Layer& it = all[static_cast<size_t>(k)];
      it.sizes = sizes_;
      if (k > 0) it.sizes.input = H;
      if ((k > 0 && !started(B, k, hidden, cell, it.run)) ||
          !read(PyTuple_GetItem(weights.ptr(), static_cast<Py_ssize_t>(k)), it.sizes, it.weights) ||
          !state(final_hidden, B, k, it.to.final_hidden) ||
          (lstm ? !state(final_cell, B, k, it.to.final_cell) : !final_cell.is_none()))
        return false;
    }
    if (!written(out, T * B * H, all.back().to.hidden)) return false;
    Scratch between((L - 1) * T * B * H);
    for (size_t k = 1; k < all.size(); ++k) all[k].run.x = all[k - 1].to.hidden = between.take(T * B * H);
    Run whole{};
    const auto begun = std::chrono::steady_clock::now();
    at_work(L * T * B, whole, [&] {
      const int64_t together = std::min<int64_t>(threads, L), parts = 1 + (T + kChunk - 1) / kChunk;
      Front front{*this, all, T, B, *whole.stop, {L, parts, together, *whole.stop}};
      parallel(together, static_cast<int>(together), Front::body, &front, *whole.stop);
      return !front.order.failed();
    });
    if (std::chrono::steady_clock::now() - begun > std::chrono::nanoseconds(L * products / 5))
      alone_.store(kAlone, std::memory_order_relaxed);
    return true;
  }

  // With places `flow` takes dL/dz (T, B, D, G, H), and there is no d_x, nor are there gradients of input weights: both
  // follow from it.  Else it is None.
  // Gradients in the shapes of what was given, `d_weights` a list like `weights`: where biases only add, the
  // second of them is None and the first is that of both.  `packed`, `output` and `trace` are those of forward.
  bool backward(int64_t T, int64_t B, nb::handle x, nb::handle hidden, nb::handle cell, nb::handle lengths,
                nb::handle places, const PackedWeights& packed,
                nb::handle output, nb::handle trace, nb::handle d_output, nb::handle d_final_hidden,
                nb::handle d_final_cell, nb::handle d_x, nb::handle d_weights, nb::handle d_hidden,
                nb::handle d_cell, nb::handle flow, int threads) const {
    if (T < 1 || B < 1 || T > kMost || B > kMost / T) return false;
    const bool lstm = sizes_.cell == Cell::lstm, gru = sizes_.cell == Cell::gru;
    const int64_t D = sizes_.directions, G = sizes_.gates, H = sizes_.hidden;
    const int64_t elements = T * B * D * H, stated = D * B * H;
    Run run{};
    std::vector<int64_t> own_lengths, own_places;
    const Sizes& z = packed.sizes;
    const bool has_table = !places.is_none();
    if (threads < 1 || layers_ != 1 || packed.engine != engine_ || z.cell != sizes_.cell || z.directions != D ||
        z.input != sizes_.input || z.hidden != H || !given(T, B, 0, x, hidden, cell, places, own_places, run) ||
        !ragged(lengths, own_lengths, run))
      return false;
    Arriving in{};
    Backward to{};
    float *kept = nullptr, *kept_output = nullptr, *arriving = nullptr, *arriving_hidden = nullptr,
          *arriving_cell = nullptr;
    if (!written(output, elements, kept_output) || !written(trace, elements * (G + (extra() ? 1 : 0)), kept) ||
        (!d_output.is_none() && !written(d_output, elements, arriving)) ||
        (!d_final_hidden.is_none() && !written(d_final_hidden, stated, arriving_hidden)) ||
        (!d_final_cell.is_none() && !written(d_final_cell, stated, arriving_cell)) ||
        (has_table ? !d_x.is_none() || !written(flow, elements * G, to.flow_preactivation)
                   : !flow.is_none() || !written(d_x, T * B * sizes_.input, to.d_x)) ||
        (!d_hidden.is_none() && !written(d_hidden, stated, to.d_initial_hidden)) ||
        (!d_cell.is_none() && !written(d_cell, stated, to.d_initial_cell)))
      return false;
    const int64_t a_direction = bias_ ? 4 : 2, rows = G * H;
    float* of_recurrent_bias[2] = {};
    if (!PyTuple_Check(d_weights.ptr()) || PyTuple_Size(d_weights.ptr()) != a_direction * D) return false;
    for (int64_t d = 0; d < D; ++d) {
      const auto part = [&](int64_t i) {
        return nb::handle(PyTuple_GetItem(d_weights.ptr(), static_cast<Py_ssize_t>(d * a_direction + i)));
      };
      if ((has_table ? !part(0).is_none() : !written(part(0), rows * sizes_.input, to.d_input[d])) ||
          !written(part(1), rows * H, to.d_recurrent[d]))
        return false;
      if (bias_ && !written(part(2), rows, to.d_bias[d])) return false;
      if (bias_ && (gru ? !written(part(3), rows, of_recurrent_bias[d]) : !part(3).is_none())) return false;
    }
    in.hidden = kept_output;
    in.gates = kept;
    (lstm ? in.cell : in.recurrent_candidate) = extra() ? kept + elements * G : nullptr;
    in.d_hidden = arriving;
    in.d_final_hidden = arriving_hidden;
    in.d_final_cell = arriving_cell;

    Scratch scratch(D * (G + 1) * H + 4 * stated + elements * (G + 2));
    if (to.d_initial_hidden == nullptr) to.d_initial_hidden = scratch.take(stated);
    to.d_reset_hidden = scratch.take(stated);
    if (lstm) {
      if (to.d_initial_cell == nullptr) to.d_initial_cell = scratch.take(stated);
      to.d_reset_cell = scratch.take(stated);
      to.flow_cell = scratch.take(elements);
    }
    to.flow_hidden = scratch.take(elements);
    if (!has_table) to.flow_preactivation = scratch.take(elements * G);
    for (int64_t d = 0; d < D; ++d) {
      if (to.d_bias[d] == nullptr) to.d_bias[d] = scratch.take(rows);
      if (gru) to.d_candidate_bias[d] = bias_ ? of_recurrent_bias[d] + 2 * H : scratch.take(H);
    }
    at_work(2 * T * B, run, [&] { return engine_->backward(*packed.packed, run, in, to, threads); });
    for (int64_t d = 0; d < D; ++d)  // what only adds has the gradient of what it is added to
      if (of_recurrent_bias[d] != nullptr)
        std::memcpy(of_recurrent_bias[d], to.d_bias[d], static_cast<size_t>(2 * H) * sizeof(float));
    return true;
  }

 private:
  struct Look {
    char* numbers = nullptr;
    float* data = nullptr;  // the same, of a float32 tensor
    int64_t count = 0, dims = 0, first = 0, last = 0;
  };
  static constexpr int64_t kMost = int64_t{1} << 24;  // of a size, and of rows times steps: no product overflows

  static constexpr int64_t kChunk = 12;          // steps that a layer is ahead of the next
  static constexpr int64_t kFewRows = 6;         // a tile's: more are split by rows
  static constexpr int64_t kOneThreads = 45'000;  // products of a step from which threads share it: as in engine.cpp
  static constexpr int64_t kWavefrontWorth = 500'000;  // products of a layer that are worth another, awake thread

  // A team ends together.  Where one of its threads was put aside by the system, a call takes several times what it
  // takes alone; after such a call so many go alone.
  static constexpr int64_t kAlone = 200;
  static inline std::atomic<int64_t> alone_{0};

  // A layer of a stack at work.
  struct Layer {
    Sizes sizes{};
    std::array<Look, 8> weights{};
    Run run{};
    Forward to{};
    std::unique_ptr<PackedWeights> packed;
  };

  // Its part 0 packs the weights, the others are chunks of steps.
  struct Front {
    const SmallCalls& of;
    std::vector<Layer>& layers;
    int64_t T, B;
    Stop& stop;
    Wavefront order;

    static void body(void* context, int64_t) {
      auto& front = *static_cast<Front*>(context);
      front.order.run([&](int64_t layer, int64_t part) {
        return front.work(front.layers[static_cast<size_t>(layer)], part);
      });
    }

    bool work(Layer& it, int64_t part) const {
      if (part == 0) {
        try {
          it.packed = of.pack(it.weights, it.sizes, 1);
        } catch (const std::bad_alloc&) {
          return false;
        }
        return true;
      }
      const int64_t from = (part - 1) * kChunk;
      Run run = it.run;
      Forward to = it.to;
      run.time = std::min(kChunk, T - from);
      run.batch = B;
      run.x += from * B * it.sizes.input;
      run.stop = &stop;
      to.hidden += from * B * it.sizes.hidden;
      if (from > 0) run.hidden = to.final_hidden, run.cell = to.final_cell;
      return of.engine_->forward(*it.packed->packed, run, to, 1);
    }
  };

  bool extra() const { return sizes_.cell == Cell::lstm || sizes_.cell == Cell::gru; }

  static constexpr int kInteger = 0, kFloat = 2;  // DLPack's codes

  // An ordinary tensor on the CPU, of float32 unless something else is asked for, without gaps.
  bool look(nb::handle object, Look& out, int code = kFloat, int bits = 32) const {
    const auto* type = reinterpret_cast<PyObject*>(Py_TYPE(object.ptr()));
    if (type != owners_[0].ptr() && type != owners_[1].ptr()) return false;
    nb::dlpack::dltensor t;
    if (api_->look(object.ptr(), &t) != 0) {
      PyErr_Clear();
      return false;
    }
    if (t.data == nullptr) return false;  // a tensor of zeros that has no numbers
    if (t.device.device_type != 1 || t.dtype.code != code || t.dtype.bits != bits || t.dtype.lanes != 1) return false;
    int64_t count = 1;
    bool dense = true;
    for (int32_t i = t.ndim; i-- > 0;) {
      if (t.shape[i] != 1 && t.strides != nullptr && t.strides[i] != count) dense = false;
      count *= t.shape[i];
    }
    if (!dense) return false;
    out.numbers = static_cast<char*>(t.data) + t.byte_offset;
    out.data = reinterpret_cast<float*>(out.numbers);
    out.count = count;
    out.dims = t.ndim;
    out.first = t.ndim > 0 ? t.shape[0] : 1;
    out.last = t.ndim > 0 ? t.shape[t.ndim - 1] : 1;
    return true;
  }

  bool written(nb::handle object, int64_t count, float*& out) const {
    Look seen;
    if (!look(object, seen) || seen.count != count) return false;
    out = seen.data;
    return true;
  }

  // This layer's part of a state of all layers, (L·D, B, H).
  template <class Float>
  bool state(nb::handle object, int64_t B, int64_t level, Float*& out) const {
    Look seen;
    const int64_t all = layers_ * sizes_.directions, stated = sizes_.directions * B * sizes_.hidden;
    if (!look(object, seen) || seen.last != sizes_.hidden || seen.count != layers_ * stated ||
        (seen.dims != 3 && seen.dims != 2 && seen.dims != 1) || (seen.dims == 3 && seen.first != all))
      return false;
    out = seen.data + level * stated;
    return true;
  }

  bool given(int64_t T, int64_t B, int64_t level, nb::handle x, nb::handle hidden, nb::handle cell, nb::handle places,
             std::vector<int64_t>& own_places, Run& run) const {
    Look input;
    if (!look(x, input) || input.last != sizes_.input) return false;
    if (places.is_none()) {
      if (input.count != T * B * sizes_.input) return false;
    } else {
      if (level != 0 || input.dims != 2 || input.first < 1 || input.first > kMost ||
          !whole(places, T * B, input.first - 1, own_places))
        return false;
      run.places = own_places.data();
      run.table_rows = input.first;
    }
    run.time = T;
    run.batch = B;
    run.x = input.data;
    return started(B, level, hidden, cell, run);
  }

  // Copies whole numbers from 0 to `most`: what is checked here must be what the engine reads, whoever writes on the
  // caller's meanwhile.
  bool whole(nb::handle object, int64_t count, int64_t most, std::vector<int64_t>& own) const {
    Look seen;
    if (!look(object, seen, kInteger, 64) || seen.count != count) return false;
    own.resize(static_cast<size_t>(count));
    std::memcpy(own.data(), seen.numbers, own.size() * sizeof(int64_t));
    for (const int64_t number : own)
      if (number < 0 || number > most) return false;
    return true;
  }

  bool ragged(nb::handle lengths, std::vector<int64_t>& own, Run& run) const {
    if (lengths.is_none()) return true;
    Look seen;
    if (!look(lengths, seen, kInteger, 64) || seen.dims != 1 || !whole(lengths, run.batch, run.time, own)) return false;
    run.lengths = own.data();
    return true;
  }

  // The state before the first step.
  bool started(int64_t B, int64_t level, nb::handle hidden, nb::handle cell, Run& run) const {
    if (hidden.is_none()) return cell.is_none();
    return state(hidden, B, level, run.hidden) &&
           (sizes_.cell == Cell::lstm ? state(cell, B, level, run.cell) : cell.is_none());
  }

  bool read(nb::handle weights, const Sizes& sizes, std::array<Look, 8>& w) const {
    const int64_t a_direction = bias_ ? 4 : 2, rows = sizes_.gates * sizes_.hidden;
    if (!PyTuple_Check(weights.ptr()) || PyTuple_Size(weights.ptr()) != a_direction * sizes_.directions)
      return false;
    for (int64_t i = 0; i < a_direction * sizes_.directions; ++i) {
      const int64_t part = i % a_direction, wide = part == 0 ? sizes.input : sizes.hidden;
      Look& seen = w[static_cast<size_t>(i)];
      if (!look(PyTuple_GetItem(weights.ptr(), static_cast<Py_ssize_t>(i)), seen)) return false;
      if (part < 2 ? seen.dims != 2 || seen.first != rows || seen.last != wide : seen.dims != 1 || seen.last != rows)
        return false;
    }
    return true;
  }

  // Biases that only add are summed as torch sums them, to the bit.
  std::unique_ptr<PackedWeights> pack(const std::array<Look, 8>& w, const Sizes& sizes, int threads) const {
    Scratch scratch(sizes_.directions * sizes_.gates * sizes_.hidden);
    const size_t a_direction = bias_ ? 4 : 2;
    const int64_t H = sizes_.hidden, rows = sizes_.gates * H;
    const bool gru = sizes_.cell == Cell::gru;
    Weights of[2] = {};
    for (size_t d = 0; d < static_cast<size_t>(sizes_.directions); ++d) {
      const Look* part = &w[d * a_direction];
      float* bias = scratch.take(rows);
      const int64_t adding = gru ? 2 * H : rows;
      if (bias_) {
        for (int64_t i = 0; i < adding; ++i) bias[i] = part[2].data[i] + part[3].data[i];
        for (int64_t i = adding; i < rows; ++i) bias[i] = part[2].data[i] + 0.0f;
      } else {
        std::memset(bias, 0, static_cast<size_t>(rows) * sizeof(float));
      }
      const float* candidate = !gru ? nullptr : bias_ ? part[3].data + 2 * H : bias;
      of[d] = {part[0].data, part[1].data, bias, candidate};
    }
    return std::make_unique<PackedWeights>(engine_, sizes, of, threads);
  }

  // Short calls keep the interpreter's lock: to let go of it costs as much as they do.
  template <class Call>
  void at_work(int64_t rows, Run& run, Call call) const {
    Interruptible stop;
    run.stop = &stop;
    bool done;
    if (rows * sizes_.directions * sizes_.gates * sizes_.hidden * (sizes_.input + sizes_.hidden) < 50'000) {
      done = call();
    } else {
      nb::gil_scoped_release unlocked;
      done = call();
    }
    if (!done) stop.fail();
  }

  std::array<nb::object, 3> owners_;  // the types that count as ordinary tensors; the table's capsule
  const Exchange* api_ = nullptr;
  const Engine* engine_ = nullptr;
  Sizes sizes_{};
  int64_t layers_;
  bool bias_;
};

}  // namespace
}  // namespace unspool
