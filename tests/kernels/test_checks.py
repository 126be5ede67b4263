"""The door: whatever does not fit is refused with what is wrong, what was received, and what to do.

That every kernel set has this door is in tests/contract/test_arguments.py.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unspool.errors import InputError
from unspool.kernels import checks, reference
from unspool.kernels.contract import Cell, State, Trace, Weights

T, B, I, H, D = 5, 2, 3, 4, 2
LSTM = checks.Sizes(Cell.LSTM, D, I, H, "float32")
GRU = LSTM._replace(cell=Cell.GRU)


def floats(*shape: int, dtype: str = "float32") -> Any:
    """An array of any shape that takes no memory; its numbers are never looked at."""
    return np.broadcast_to(np.zeros((), dtype), shape)


def state(*shape: int, dtype: str = "float32") -> State:
    return State(floats(*shape, dtype=dtype), floats(*shape, dtype=dtype))


def weights(cell: Cell = Cell.LSTM, **changes: Any) -> Weights:
    G = len(cell.gates)
    fitting = Weights(
        floats(G * H, I), floats(G * H, H), floats(G * H), floats(H) if cell is Cell.GRU else None
    )
    return fitting._replace(**changes)


def run(sizes: checks.Sizes = LSTM, **changes: Any) -> tuple[int, int]:
    arguments: dict[str, Any] = {
        "x": floats(T, B, I),
        "state": state(D, B, H),
        "lengths": np.array([T, 0]),
        "resets": np.ones((T, B), bool),
        "reset_state": state(D, B, H),
        "recurrent_mask": floats(D, B, H),
    }
    return checks.check_run(sizes, **arguments | changes)


def back(sizes: checks.Sizes = LSTM, **changes: Any) -> None:
    arguments: dict[str, Any] = {
        "trace": Trace(
            floats(T, B, D, sizes.gates, H),
            floats(T, B, D, H),
            floats(T, B, D, H) if sizes.cell is Cell.LSTM else None,
            floats(T, B, D, H) if sizes.cell is Cell.GRU else None,
        ),
        "d_hidden": floats(T, B, D, H),
        "d_state": state(D, B, H),
    }
    checks.check_backward(sizes, T, B, **arguments | changes)


def trace(**changes: Any) -> Trace:
    fitting = Trace(floats(T, B, D, 4, H), floats(T, B, D, H), floats(T, B, D, H))
    return fitting._replace(**changes)


def prepare(*given: Any, cell: Any = Cell.LSTM, dtypes: tuple[str, ...] = ("float32",)) -> checks.Sizes:
    return checks.check_weights(cell, given, dtypes)


def refusal(call: Callable[[], object]) -> tuple[str, str, str]:
    """What the refusal says: what is wrong, what was received, what to do."""
    with pytest.raises(InputError) as refused:
        call()
    lines = str(refused.value).split("\n")
    assert len(lines) == 3, refused.value
    wrong, received, fix = lines
    assert wrong.endswith(".")
    assert received.startswith("  Received: ")
    assert received.endswith(".")
    assert fix.startswith("  Fix: ")
    assert fix.endswith(".")
    return wrong, received, fix


def test_what_fits_is_let_through() -> None:
    assert prepare(weights(), weights()) == LSTM
    assert prepare(weights()) == LSTM._replace(directions=1)
    assert prepare(weights(Cell.GRU), weights(Cell.GRU), cell=Cell.GRU) == GRU
    assert run() == (T, B)
    none: dict[str, Any] = dict.fromkeys(("state", "lengths", "resets", "reset_state", "recurrent_mask"))
    assert run(**none) == (T, B)
    assert run(GRU, state=State(floats(D, B, H)), reset_state=None) == (T, B)
    assert run(x=floats(0, B, I), lengths=np.zeros(B, int), resets=np.ones((0, B), bool)) == (0, B)
    back()
    back(GRU, d_state=State(floats(D, B, H)))
    back(d_hidden=None, d_state=None)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "int64", "uint64"])
@pytest.mark.parametrize("library", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
def test_lengths_may_be_integers_of_any_size_and_library(dtype: str, library: Any) -> None:
    lengths = library(np.array([0, 5, 3], dtype))
    checks.check_lengths(lengths, 5, 3)
    values = checks.integers(lengths)
    assert values.dtype == np.int64
    assert values.tolist() == [0, 5, 3]


# What is refused: the call, and what each of the three lines must say.
REFUSED: dict[str, tuple[Callable[[], object], str, str, str]] = {
    "a cell by its name": (
        lambda: prepare(weights(), cell="lstm"),
        "cell must be a Cell",
        "'lstm'",
        "Cell.RNN_TANH, Cell.RNN_RELU, Cell.LSTM, Cell.GRU",
    ),
    "no weights": (lambda: prepare(), "one or two directions", "weights for 0", "[forward, reverse]"),
    "three directions": (
        lambda: prepare(weights(), weights(), weights()),
        "one or two directions",
        "weights for 3",
        "[forward] or",
    ),
    "weights in lists": (
        lambda: prepare(weights(input=[[0.0]])),
        "weights[0].input must be an array",
        "list",
        "NumPy array",
    ),
    "no bias": (lambda: prepare(weights(bias=None)), "weights[0].bias", "NoneType", "NumPy array"),
    "input weights of one axis": (
        lambda: prepare(weights(input=floats(16))),
        "weights[0].input",
        "(16,)",
        "(G·H, I) with G = 4",
    ),
    "rows that four gates do not share": (
        lambda: prepare(weights(input=floats(15, I))),
        "weights[0].input",
        "(15, 3)",
        "G = 4 gates for lstm",
    ),
    "no hidden units": (
        lambda: prepare(weights(input=floats(0, I))),
        "weights[0].input",
        "(0, 3)",
        "at least 1",
    ),
    "no inputs": (
        lambda: prepare(weights(input=floats(16, 0))),
        "weights[0].input",
        "(16, 0)",
        "at least 1",
    ),
    "weights in float16": (
        lambda: prepare(weights(input=floats(16, I, dtype="float16"))),
        "does not run float16",
        "weights[0].input in float16",
        "convert weights and inputs to float32",
    ),
    "weights in a dtype of another set": (
        lambda: prepare(weights(input=floats(16, I, dtype="int64")), dtypes=("float32", "float64")),
        "does not run int64",
        "int64",
        "float32 or float64",
    ),
    "weights of the other byte order": (
        lambda: prepare(weights(input=floats(16, I, dtype=">f4"))),
        "does not run >f4",
        ">f4",
        "float32",
    ),
    "recurrent weights transposed": (
        lambda: prepare(weights(recurrent=floats(H, 16))),
        "weights[0].recurrent has the wrong shape",
        "(4, 16)",
        "(G·H, H) = (16, 4)",
    ),
    "a second direction of another dtype": (
        lambda: prepare(weights(), weights(bias=floats(16, dtype="float64"))),
        "weights[1].bias has the wrong dtype",
        "float64",
        "float32",
    ),
    "a second direction of another size": (
        lambda: prepare(weights(), weights(input=floats(16, I + 1))),
        "weights[1].input has the wrong shape",
        "(16, 4)",
        "(16, 3)",
    ),
    "a GRU without its candidate's bias": (
        lambda: prepare(weights(Cell.GRU, candidate_bias=None), cell=Cell.GRU),
        "weights[0].candidate_bias is missing",
        "None",
        "(4,)",
    ),
    "a GRU's bias of all gates": (
        lambda: prepare(weights(Cell.GRU, candidate_bias=floats(12)), cell=Cell.GRU),
        "weights[0].candidate_bias has the wrong shape",
        "(12,)",
        "(H) = (4,)",
    ),
    "an LSTM with a GRU's bias": (
        lambda: prepare(weights(candidate_bias=floats(H))),
        "weights[0].candidate_bias does not belong to lstm",
        "an array",
        "only a GRU",
    ),
    "an LSTM's weights for a GRU": (
        lambda: prepare(weights(), cell=Cell.GRU),
        "weights[0].input has the wrong shape",
        "(16, 3)",
        "G = 3 gates for gru",
    ),
    "x as a list": (lambda: run(x=[[[0.0]]]), "x must be an array", "list", "NumPy array"),
    "x of two axes": (lambda: run(x=floats(T, I)), "x must have three axes", "(5, 3)", "(T, B, 3)"),
    "x of another input size": (
        lambda: run(x=floats(T, B, I + 1)),
        "x has the wrong shape",
        "(5, 2, 4)",
        "(time, batch, input) = (5, 2, 3)",
    ),
    "x in float64": (lambda: run(x=floats(T, B, I, dtype="float64")), "x has the wrong dtype", "64", "32"),
    "x in words": (lambda: run(x=np.full((T, B, I), "a")), "x has the wrong dtype", "<U1", "float32"),
    "a state for another layer": (
        lambda: run(state=state(D + 1, B, H)),
        "state.hidden has the wrong shape",
        "(3, 2, 4)",
        "(directions, batch, hidden) = (2, 2, 4)",
    ),
    "a cell state of another layer": (
        lambda: run(state=State(floats(D, B, H), floats(D + 1, B, H))),
        "state.cell has the wrong shape",
        "(3, 2, 4)",
        "(2, 2, 4)",
    ),
    "an LSTM's state without its cell": (
        lambda: run(state=State(floats(D, B, H))),
        "state.cell is missing",
        "None",
        "State(hidden, cell)",
    ),
    "a GRU's state with a cell": (
        lambda: run(GRU),
        "state.cell does not belong to gru",
        "an array",
        "State(hidden) alone",
    ),
    "a reset state in float64": (
        lambda: run(reset_state=state(D, B, H, dtype="float64")),
        "reset_state.hidden has the wrong dtype",
        "float64",
        "float32",
    ),
    "a reset state without resets": (
        lambda: run(resets=None),
        "reset_state is given without resets",
        "resets=None",
        "resets (T, B)",
    ),
    "lengths as a list": (lambda: run(lengths=[5, 0]), "lengths must be an array", "list", "NumPy array"),
    "lengths of another batch": (
        lambda: run(lengths=np.array([1, 2, 3])),
        "one integer a sequence",
        "(3,) of int64",
        "(2,) integers from 0 to 5",
    ),
    "lengths in fractions": (
        lambda: run(lengths=np.array([1.0, 2.0])),
        "one integer a sequence",
        "(2,) of float64",
        "(2,) integers",
    ),
    "lengths as truth values": (
        lambda: run(lengths=np.array([True, False])),
        "one integer a sequence",
        "(2,) of bool",
        "(2,) integers",
    ),
    "a length beyond T": (
        lambda: run(lengths=np.array([5, 6])),
        "between 0 and the number of time steps",
        "lengths[1] = 6 with x of 5 steps (1 of 2 are out of range)",
        "at most 5",
    ),
    "a negative length": (
        lambda: run(lengths=np.array([-1, -2], np.int8)),
        "between 0 and the number of time steps",
        "lengths[0] = -1 with x of 5 steps (2 of 2 are out of range)",
        "at most 5",
    ),
    "resets in numbers": (
        lambda: run(resets=np.ones((T, B), np.uint8)),
        "resets has the wrong dtype",
        "uint8",
        "bool",
    ),
    "resets batch first": (
        lambda: run(resets=np.ones((B, T), bool)),
        "resets has the wrong shape",
        "(2, 5)",
        "(time, batch) = (5, 2)",
    ),
    "a mask for one sample": (
        lambda: run(recurrent_mask=floats(D, H)),
        "recurrent_mask has the wrong shape",
        "(2, 4)",
        "(directions, batch, hidden) = (2, 2, 4)",
    ),
    "a mask of truth values": (
        lambda: run(recurrent_mask=floats(D, B, H, dtype="bool")),
        "recurrent_mask has the wrong dtype",
        "bool",
        "float32",
    ),
    "gates of too few": (
        lambda: back(trace=trace(gates=floats(T, B, D, 3, H))),
        "trace.gates has the wrong shape",
        "(5, 2, 2, 3, 4)",
        "(time, batch, directions, gates, hidden) = (5, 2, 2, 4, 4)",
    ),
    "a trace that infer left out": (
        lambda: back(trace=trace(gates=None)),
        "trace.gates must be an array",
        "NoneType",
        "NumPy array",
    ),
    "an LSTM's trace without its cell": (
        lambda: back(trace=trace(cell=None)),
        "trace.cell is missing",
        "None",
        "forward returned for lstm",
    ),
    "a GRU's trace without its candidate": (
        lambda: back(GRU, trace=Trace(floats(T, B, D, 3, H), floats(T, B, D, H))),
        "trace.recurrent_candidate is missing",
        "None",
        "forward returned for gru",
    ),
    "gradients of outputs side by side": (
        lambda: back(d_hidden=floats(T, B, D * H)),
        "d_hidden has the wrong shape",
        "(5, 2, 8)",
        "(time, batch, directions, hidden) = (5, 2, 2, 4)",
    ),
    "a gradient of the final state in float64": (
        lambda: back(d_state=state(D, B, H, dtype="float64")),
        "d_state.hidden has the wrong dtype",
        "float64",
        "float32",
    ),
}


@pytest.mark.parametrize(("call", "wrong", "received", "fix"), REFUSED.values(), ids=REFUSED.keys())
def test_a_refusal_says_what_is_wrong_what_was_received_and_what_to_do(
    call: Callable[[], object], wrong: str, received: str, fix: str
) -> None:
    said = refusal(call)
    assert wrong in said[0]
    assert received in said[1]
    assert fix in said[2]


# Where every array of a run and of a backward pass lies: name, axes.
SHAPES: dict[str, tuple[int, ...]] = {
    "x": (T, B, I),
    "state.hidden": (D, B, H),
    "state.cell": (D, B, H),
    "lengths": (B,),
    "resets": (T, B),
    "reset_state.hidden": (D, B, H),
    "reset_state.cell": (D, B, H),
    "recurrent_mask": (D, B, H),
    "trace.gates": (T, B, D, 4, H),
    "trace.hidden": (T, B, D, H),
    "trace.cell": (T, B, D, H),
    "d_hidden": (T, B, D, H),
    "d_state.hidden": (D, B, H),
    "d_state.cell": (D, B, H),
}
DTYPES = {"lengths": "int64", "resets": "bool"}


def given_with(name: str, array: Any) -> Callable[[], object]:
    """The call to the door where one array stands in the place of the fitting one."""
    whole, _, part = name.partition(".")
    call: Callable[..., object] = back if whole.startswith(("trace", "d_")) else run
    if not part:
        return lambda: call(**{whole: array})
    fitting = trace() if whole == "trace" else state(D, B, H)
    return lambda: call(**{whole: fitting._replace(**{part: array})})


@given(name=st.sampled_from(list(SHAPES)), shape=st.lists(st.integers(0, 6), max_size=6).map(tuple))
def test_no_array_of_any_other_shape_gets_through(name: str, shape: tuple[int, ...]) -> None:
    array = np.zeros(shape, DTYPES.get(name, "float32"))
    call = given_with(name, array)
    # x says what T and B are: another T or B makes every other array wrong, x itself of another I.
    if shape == SHAPES[name]:
        call()
    else:
        refusal(call)


@given(
    name=st.sampled_from(list(SHAPES)),
    dtype=st.sampled_from(
        ["float16", "float32", "float64", "complex64", "int32", "uint8", "bool", "O", "U3"]
    ),
)
def test_no_array_of_any_other_dtype_gets_through(name: str, dtype: str) -> None:
    call = given_with(name, np.zeros(SHAPES[name], dtype))
    fits = dtype == DTYPES.get(name, "float32") or (name == "lengths" and dtype in ("int32", "uint8"))
    if fits:
        call()
    else:
        assert name in refusal(call)[0]


@given(
    name=st.sampled_from(list(SHAPES)),
    thing=st.one_of(
        st.integers(),
        st.floats(),
        st.text(),
        st.lists(st.floats(), max_size=3),
        st.dictionaries(st.text(), st.none()),
    ),
)
def test_nothing_that_is_no_array_gets_through(name: str, thing: object) -> None:
    assert f"{name} must be an array" in refusal(given_with(name, thing))[0]


@given(lengths=st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=20), time=st.integers(0, 2**40))
def test_lengths_get_through_when_all_lie_between_0_and_T(lengths: list[int], time: int) -> None:
    def call() -> None:
        checks.check_lengths(np.array(lengths, np.int64), time, len(lengths))

    wrong = [n for n in lengths if not 0 <= n <= time]
    if wrong:
        said = refusal(call)
        assert f"lengths[{lengths.index(wrong[0])}] = {wrong[0]} with" in said[1]
        assert f"({len(wrong)} of {len(lengths)} are out of range)" in said[1]
    else:
        call()


def test_a_refusal_is_a_value_error() -> None:
    """Who does not know unspool's exceptions catches what torch and NumPy would raise."""
    with pytest.raises(ValueError, match="x must have three axes"):
        run(x=floats(T, I))


PAIR = (floats(D, B, H), floats(D, B, H))
# The call, what was received, and what to pass.
NAMED: dict[str, tuple[Callable[[], object], str, str]] = {
    "a state as a plain pair": (lambda: run(state=PAIR), "tuple", "State(hidden, cell)"),
    "a state as an array": (
        lambda: run(GRU, state=PAIR[0], reset_state=None),
        "ndarray",
        "State(hidden, cell)",
    ),
    "a reset state as a plain pair": (lambda: run(reset_state=PAIR), "tuple", "State(hidden, cell)"),
    "a trace as a plain tuple": (lambda: back(trace=tuple(trace())), "tuple", "Trace(gates, hidden,"),
    "a trace in a state's place": (lambda: run(state=trace()), "Trace", "State(hidden, cell)"),
    "no trace": (lambda: back(trace=None), "NoneType", "Trace(gates, hidden,"),
    "a final gradient as a plain pair": (lambda: back(d_state=PAIR), "tuple", "State(hidden, cell)"),
    "weights as a plain tuple": (lambda: prepare(tuple(weights())), "tuple", "Weights(input, recurrent,"),
    "weights of one direction, not in a list": (
        lambda: checks.check_weights(Cell.LSTM, weights(), ("float32",)),
        f"weights for {len(Weights._fields)}",
        "[forward] or",
    ),
    "None for weights": (
        lambda: checks.check_weights(Cell.LSTM, None, ("float32",)),  # type: ignore[arg-type]
        "NoneType",
        "[forward] or",
    ),
}


@pytest.mark.parametrize(("call", "received", "fix"), NAMED.values(), ids=NAMED.keys())
def test_a_tuple_without_names_is_refused(call: Callable[[], object], received: str, fix: str) -> None:
    """torch's users hand over (h, c); the message must tell them of State(hidden, cell)."""
    said = refusal(call)
    assert received in said[1]
    assert fix in said[2]


@pytest.mark.parametrize("name", [name for name in SHAPES if name not in DTYPES])
def test_arrays_of_two_libraries_are_refused(name: str) -> None:
    tensor = torch.zeros(SHAPES[name])
    wrong, received, fix = refusal(given_with(name, tensor))
    assert f"{name} is of another library than the layer's weights" in wrong
    assert "Tensor of torch, weights of numpy" in received
    assert "tensor.detach().numpy()" in fix


@pytest.mark.parametrize("part", ["recurrent", "bias", "candidate_bias"])
def test_weights_of_two_libraries_are_refused(part: str) -> None:
    fitting = weights(Cell.GRU)
    mixed = fitting._replace(**{part: torch.zeros(getattr(fitting, part).shape)})
    wrong, _, _ = refusal(lambda: prepare(fitting, mixed, cell=Cell.GRU))
    assert f"weights[1].{part} is of another library" in wrong


def test_an_array_for_a_layer_of_tensors_is_refused() -> None:
    tensors = Weights(*(part if part is None else torch.zeros(part.shape) for part in weights()))
    prepared = reference.prepare(Cell.LSTM, [tensors])
    wrong, received, fix = refusal(lambda: reference.infer(prepared, floats(T, B, I)))
    assert "x is of another library" in wrong
    assert "ndarray of numpy, weights of torch" in received
    assert "torch.from_numpy(array)" in fix


def test_lengths_and_resets_may_be_of_either_library() -> None:
    """They steer the run and enter no sum."""
    assert run(lengths=torch.tensor([T, 0]), resets=torch.ones((T, B), dtype=torch.bool)) == (T, B)
