// The Python face of the engine, and the only file that has heard of Python.
//
// Takes NumPy arrays that kernels/checks.py has checked and kernels/native.py has made contiguous, hands
// their pointers on, and lets go of the interpreter's lock while the engine runs.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "engine.h"

namespace nb = nanobind;
using namespace unspool;

namespace {

using In = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using Out = nb::ndarray<float, nb::c_contig, nb::device::cpu>;
using InLengths = nb::ndarray<const int64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using InResets = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

const float* pointer(const std::optional<In>& array) { return array ? array->data() : nullptr; }
float* pointer(const std::optional<Out>& array) { return array ? array->data() : nullptr; }

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

// Weights in the engine's layout.
class Layer {
 public:
  Layer(const std::string& isa, int cell, int64_t input, int64_t hidden,
        const std::vector<In>& weights) {
    engine_ = choose_engine(isa.c_str());
    if (engine_ == nullptr) throw std::invalid_argument("no engine named " + isa + " runs here");
    static constexpr int64_t gates[] = {1, 1, 4, 3};
    if (cell < 0 || cell > 3 || input < 1 || hidden < 1)
      throw std::invalid_argument("cell or sizes out of range");
    const int64_t G = gates[cell];
    const size_t parts = cell == static_cast<int>(Cell::gru) ? 4 : 3;
    const size_t directions = weights.size() / parts;
    if (weights.size() % parts != 0 || directions < 1 || directions > 2)
      throw std::invalid_argument("weights for one or two directions are needed");
    sizes_ = {static_cast<Cell>(cell), static_cast<int64_t>(directions), G, input, hidden};
    Weights w[2] = {};
    for (size_t d = 0; d < directions; ++d) {
      const In* part = &weights[d * parts];
      expect(part[0], G * hidden * input, "input weights");
      expect(part[1], G * hidden * hidden, "recurrent weights");
      expect(part[2], G * hidden, "bias");
      if (parts == 4) expect(part[3], hidden, "candidate bias");
      w[d] = {part[0].data(), part[1].data(), part[2].data(), parts == 4 ? part[3].data() : nullptr};
    }
    nb::gil_scoped_release unlocked;
    packed_ = engine_->pack(sizes_, w);
    if (packed_ == nullptr) throw std::bad_alloc();
  }
  Layer(const Layer&) = delete;
  Layer& operator=(const Layer&) = delete;
  ~Layer() { engine_->release(packed_); }

  // One or two directions of a batch: what every call takes.
  struct Given {
    Run run;
    int64_t elements, stated;  // in (T, B, D, H), in (D, B, H)
  };

  Given given(const In& x, const std::optional<In>& hidden, const std::optional<In>& cell,
              const std::optional<InLengths>& lengths, const std::optional<InResets>& resets,
              const std::optional<In>& reset_hidden, const std::optional<In>& reset_cell,
              const std::optional<In>& recurrent_mask) const {
    if (x.ndim() != 3 || static_cast<int64_t>(x.shape(2)) != sizes_.input)
      throw std::invalid_argument("x must be (T, B, I)");
    const auto T = static_cast<int64_t>(x.shape(0)), B = static_cast<int64_t>(x.shape(1));
    const int64_t stated = sizes_.directions * B * sizes_.hidden;
    expect(hidden, stated, "hidden");
    expect(cell, stated, "cell");
    expect(lengths, B, "lengths");
    expect(resets, T * B, "resets");
    expect(reset_hidden, stated, "reset hidden");
    expect(reset_cell, stated, "reset cell");
    expect(recurrent_mask, stated, "recurrent mask");
    if (lengths)
      for (int64_t b = 0; b < B; ++b)
        if (lengths->data()[b] < 0 || lengths->data()[b] > T)
          throw std::invalid_argument("lengths must lie between 0 and T");
    return {{T, B, x.data(), pointer(hidden), pointer(cell), lengths ? lengths->data() : nullptr,
             resets ? resets->data() : nullptr, pointer(reset_hidden), pointer(reset_cell),
             pointer(recurrent_mask)},
            T * stated,
            stated};
  }

  void forward(const In& x, const std::optional<In>& hidden, const std::optional<In>& cell,
               const std::optional<InLengths>& lengths, const std::optional<InResets>& resets,
               const std::optional<In>& reset_hidden, const std::optional<In>& reset_cell,
               const std::optional<In>& recurrent_mask, const Out& out_hidden,
               const std::optional<Out>& gates, const std::optional<Out>& out_cell,
               const std::optional<Out>& recurrent_candidate, const Out& final_hidden,
               const std::optional<Out>& final_cell, int threads) const {
    const Given it =
        given(x, hidden, cell, lengths, resets, reset_hidden, reset_cell, recurrent_mask);
    const bool lstm = sizes_.cell == Cell::lstm, keep = gates.has_value();
    expect(out_hidden, it.elements, "out hidden");
    expect(gates, it.elements * sizes_.gates, "out gates");
    require(out_cell, lstm && keep, it.elements, "out cell");
    require(recurrent_candidate, sizes_.cell == Cell::gru && keep, it.elements, "out candidate");
    expect(final_hidden, it.stated, "final hidden");
    require(final_cell, lstm, it.stated, "final cell");
    const Forward out{out_hidden.data(),   pointer(gates),      pointer(out_cell),
                      pointer(recurrent_candidate), final_hidden.data(), pointer(final_cell)};
    nb::gil_scoped_release unlocked;
    if (!engine_->forward(*packed_, it.run, out, threads)) throw std::bad_alloc();
  }

  void backward(const In& x, const std::optional<In>& hidden, const std::optional<In>& cell,
                const std::optional<InLengths>& lengths, const std::optional<InResets>& resets,
                const std::optional<In>& reset_hidden, const std::optional<In>& reset_cell,
                const std::optional<In>& recurrent_mask, const In& trace_hidden,
                const In& trace_gates, const std::optional<In>& trace_cell,
                const std::optional<In>& trace_candidate, const std::optional<In>& d_hidden,
                const std::optional<In>& d_final_hidden, const std::optional<In>& d_final_cell,
                const Out& d_x, const std::vector<Out>& d_weights,
                const std::vector<Out>& d_states, const std::vector<Out>& flow,
                int threads) const {
    const Given it =
        given(x, hidden, cell, lengths, resets, reset_hidden, reset_cell, recurrent_mask);
    const bool lstm = sizes_.cell == Cell::lstm, gru = sizes_.cell == Cell::gru;
    expect(trace_hidden, it.elements, "trace hidden");
    expect(trace_gates, it.elements * sizes_.gates, "trace gates");
    require(trace_cell, lstm, it.elements, "trace cell");
    require(trace_candidate, gru, it.elements, "trace candidate");
    expect(d_hidden, it.elements, "d hidden");
    expect(d_final_hidden, it.stated, "d final hidden");
    expect(d_final_cell, it.stated, "d final cell");
    const Arriving in{trace_hidden.data(),      trace_gates.data(), pointer(trace_cell),
                      pointer(trace_candidate), pointer(d_hidden),  pointer(d_final_hidden),
                      pointer(d_final_cell)};

    const size_t parts = gru ? 4 : 3;
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
      expect(part[1], rows * sizes_.hidden, "d recurrent weights");
      expect(part[2], rows, "d bias");
      if (gru) expect(part[3], sizes_.hidden, "d candidate bias");
      out.d_input[d] = part[0].data();
      out.d_recurrent[d] = part[1].data();
      out.d_bias[d] = part[2].data();
      out.d_candidate_bias[d] = gru ? part[3].data() : nullptr;
    }
    for (const Out& state : d_states) expect(state, it.stated, "d state");
    out.d_initial_hidden = d_states[0].data();
    out.d_reset_hidden = d_states[1].data();
    out.d_initial_cell = lstm ? d_states[2].data() : nullptr;
    out.d_reset_cell = lstm ? d_states[3].data() : nullptr;
    expect(flow[0], it.elements, "flow hidden");
    expect(flow[1], it.elements * sizes_.gates, "flow pre-activation");
    if (lstm) expect(flow[2], it.elements, "flow cell");
    out.flow_hidden = flow[0].data();
    out.flow_preactivation = flow[1].data();
    out.flow_cell = lstm ? flow[2].data() : nullptr;
    nb::gil_scoped_release unlocked;
    if (!engine_->backward(*packed_, it.run, in, out, threads)) throw std::bad_alloc();
  }

 private:
  const Engine* engine_;
  Sizes sizes_;
  Packed* packed_ = nullptr;
};

}  // namespace

NB_MODULE(_core, m) {
  nb::set_leak_warnings(false);  // autograd graphs that live until exit are no leak
  m.def("engines", [] {
    std::vector<std::string> names;
    for (const char* const* name = engine_names(); *name != nullptr; ++name) names.emplace_back(*name);
    return names;
  });
  nb::class_<Layer>(m, "Layer")
      .def(nb::init<const std::string&, int, int64_t, int64_t, const std::vector<In>&>(),
           nb::arg("isa"), nb::arg("cell"), nb::arg("input"), nb::arg("hidden"), nb::arg("weights"))
      .def("forward", &Layer::forward, nb::arg("x"), nb::arg("hidden").none(), nb::arg("cell").none(),
           nb::arg("lengths").none(), nb::arg("resets").none(), nb::arg("reset_hidden").none(),
           nb::arg("reset_cell").none(), nb::arg("recurrent_mask").none(), nb::arg("out_hidden"),
           nb::arg("gates").none(), nb::arg("out_cell").none(), nb::arg("recurrent_candidate").none(),
           nb::arg("final_hidden"), nb::arg("final_cell").none(), nb::arg("threads"))
      .def("backward", &Layer::backward, nb::arg("x"), nb::arg("hidden").none(),
           nb::arg("cell").none(), nb::arg("lengths").none(), nb::arg("resets").none(),
           nb::arg("reset_hidden").none(), nb::arg("reset_cell").none(),
           nb::arg("recurrent_mask").none(), nb::arg("trace_hidden"), nb::arg("trace_gates"),
           nb::arg("trace_cell").none(), nb::arg("trace_candidate").none(),
           nb::arg("d_hidden").none(), nb::arg("d_final_hidden").none(),
           nb::arg("d_final_cell").none(), nb::arg("d_x"), nb::arg("d_weights"), nb::arg("d_states"),
           nb::arg("flow"), nb::arg("threads"));
}
