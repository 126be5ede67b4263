"""Refusals: torch is provoked, and ours must refuse alike."""

import re
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from beside import FORWARD, LAYERS, RAGGED, STEPS, B, H, I, T, assert_close, batch, pair, state
from unspool import nn
from unspool.errors import InputError

Call = Callable[[Any], Any]


def refusal(call: Callable[[], Any]) -> tuple[type[BaseException], str]:
    """The exception that a call raises: its type, and its text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            call()
        except Exception as error:
            return type(error), str(error)
    raise AssertionError("nothing was refused")


def assert_refuses_alike(call: Call) -> None:
    """Same exception, same first line; what follows is ours."""
    expected, text = refusal(lambda: call(torch.nn))
    got, our_text = refusal(lambda: call(nn))
    assert (got, our_text.split("\n")[0]) == (expected, text.split("\n")[0])


def assert_refuses_with(kind: type[BaseException], words: str, call: Call) -> None:
    """The exception that torch raises, in words of ours: torch's are Python's, or another layer's."""
    expected, _ = refusal(lambda: call(torch.nn))
    got, our_text = refusal(lambda: call(nn))
    assert expected is got is kind
    assert re.search(words, our_text), our_text


ALIKE_IN_CONSTRUCTION: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    *(((I, H), {"dropout": p}) for p in (-0.1, 1.1, float("nan"), True, "0.5")),
    *(((I, H), {"bias": wrong}) for wrong in (1, None, "yes")),
    *(((I, H), {"batch_first": wrong}) for wrong in (1, None, 0.0)),
    *(((I, H), {"num_layers": wrong}) for wrong in (0, -1)),
    *((sizes, {}) for sizes in ((0, H), (I, 0), (-1, H), (I, -1), (5.0, H), (I, 9.0), ("5", H), (None, H))),
    ((np.int64(5), H), {}),
    # Two things wrong: the one that torch finds first.
    ((0, 0), {"num_layers": 0}),
    ((-1, "9"), {}),
    ((I, -1), {"num_layers": -1}),
    (("5", H), {"bias": 1}),
    ((0, H), {"batch_first": 1}),
    ((0, H), {"dropout": 2}),
    ((I, H), {"bias": 1, "batch_first": 1}),
    ((I, H), {"device": "nowhere"}),
    ((I, H), {"dtype": torch.int64}),
]


@pytest.mark.parametrize(("sizes", "options"), ALIKE_IN_CONSTRUCTION, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_refuses_arguments_as_torch_does(
    name: str, sizes: tuple[Any, ...], options: dict[str, Any]
) -> None:
    assert_refuses_alike(lambda library: getattr(library, name)(*sizes, **options))


@pytest.mark.parametrize("wrong", ["sigmoid", "TANH", None, 1])
def test_an_rnn_refuses_a_nonlinearity_as_torch_does(wrong: Any) -> None:
    assert_refuses_alike(lambda library: library.RNN(I, H, nonlinearity=wrong))
    assert_refuses_alike(lambda library: library.RNN(I, H, 1, wrong))


@pytest.mark.parametrize(
    ("kind", "words", "options"),
    [
        (TypeError, "num_layers should be of type int, got: float", {"num_layers": 1.0}),
        (TypeError, "num_layers should be of type int, got: str", {"num_layers": "2"}),
        (TypeError, "num_layers should be of type int, got: NoneType", {"num_layers": None}),
        (ValueError, "dropout should be a number .*\n  Received: 'half'", {"dropout": "half"}),
        (TypeError, "unexpected keyword argument 'hidden'", {"hidden": 3}),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_refuses_arguments_with_torchs_exception_in_words_of_its_own(
    name: str, kind: type[BaseException], words: str, options: dict[str, Any]
) -> None:
    # torch's words here are Python's own: '<=' not supported, could not convert string to float.
    assert_refuses_with(kind, words, lambda library: getattr(library, name)(I, H, **options))


@pytest.mark.parametrize("wrong", [None, 0.5j], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_a_dropout_that_is_no_real_number_is_a_wrong_value(name: str, wrong: Any) -> None:
    # torch trips over float(None), a TypeError, before its own check, a ValueError, is reached.
    assert refusal(lambda: getattr(torch.nn, name)(I, H, dropout=wrong))[0] is TypeError
    with pytest.raises(ValueError, match=r"dropout should be a number .*\n  Received: "):
        getattr(nn, name)(I, H, dropout=wrong)


@pytest.mark.parametrize("name", ["RNN", "GRU"])
def test_a_projection_is_no_argument_of_other_cells(name: str) -> None:
    # torch takes **kwargs and raises a ValueError by hand; a signature spelled out raises Python's own.
    with pytest.raises(TypeError, match="proj_size"):
        getattr(nn, name)(I, H, proj_size=2)


class Shapes(NamedTuple):
    """A layer under test, and a state for it of any shape."""

    layer: Any
    state: Callable[..., Any]


ALIKE_IN_FORWARD: dict[str, Callable[[Shapes], Any]] = {
    "input of no axes": lambda it: it.layer(torch.randn(())),
    "input of 1 axis": lambda it: it.layer(torch.randn(I)),
    "input of 4 axes": lambda it: it.layer(torch.randn(2, 2, 2, I)),
    "input of 4 axes, too wide": lambda it: it.layer(torch.randn(2, 2, 2, 2 * I)),
    "input too wide": lambda it: it.layer(torch.randn(7, 5, I + 2)),
    "input too narrow": lambda it: it.layer(torch.randn(7, 5, 1)),
    "one sequence too wide": lambda it: it.layer(torch.randn(7, I + 2)),
    "doubles": lambda it: it.layer(torch.randn(7, 5, I).double()),
    "doubles, too wide": lambda it: it.layer(torch.randn(7, 5, I + 2).double()),
    "halves": lambda it: it.layer(torch.randn(7, 5, I).half()),
    "bfloats": lambda it: it.layer(torch.randn(7, 5, I).bfloat16()),
    "integers": lambda it: it.layer(torch.ones(7, 5, I, dtype=torch.int64)),
    "booleans": lambda it: it.layer(torch.ones(7, 5, I, dtype=torch.bool)),
    "complex": lambda it: it.layer(torch.randn(7, 5, I) + 0j),
    "another device": lambda it: it.layer(torch.randn(7, 5, I, device="meta")),
    "a list": lambda it: it.layer([[1.0] * I]),
    "nothing": lambda it: it.layer(None),
    "an array": lambda it: it.layer(np.zeros((7, 5, I), np.float32)),
    "state of one sequence": lambda it: it.layer(torch.randn(5, 5, I), it.state(4, H)),
    "state of 4 axes": lambda it: it.layer(torch.randn(5, 5, I), it.state(1, 4, 5, H)),
    "state of another batch": lambda it: it.layer(torch.randn(5, 5, I), it.state(4, 3, H)),
    "state of fewer layers": lambda it: it.layer(torch.randn(5, 5, I), it.state(2, 5, H)),
    "state of more layers": lambda it: it.layer(torch.randn(5, 5, I), it.state(6, 5, H)),
    "state too wide": lambda it: it.layer(torch.randn(5, 5, I), it.state(4, 5, H + 1)),
    "state batch first": lambda it: it.layer(torch.randn(5, 5, I), it.state(5, 4, H)),
    "state for another batch, input too wide": lambda it: it.layer(
        torch.randn(5, 5, I + 1), it.state(4, 3, H)
    ),
    "state on another device": lambda it: it.layer(torch.randn(5, 5, I), it.state(4, 5, H, device="meta")),
    "batched state of one sequence": lambda it: it.layer(torch.randn(5, I), it.state(4, 1, H)),
    "another state of one sequence": lambda it: it.layer(torch.randn(5, I), it.state(3, H)),
    "a string for a state's part": lambda it: it.layer(torch.randn(5, 5, I), ("h", "c")),
}
ALIKE_WHEN_PACKED: dict[str, Callable[[Shapes], Any]] = {
    "state of 2 axes": lambda it: it.layer(packed_of(I), it.state(4, 5)),
    "state of fewer layers": lambda it: it.layer(packed_of(I), it.state(3, 5, H)),
    "state of another batch": lambda it: it.layer(packed_of(I, ordered=True), it.state(4, 4, H)),
    "too wide": lambda it: it.layer(packed_of(I + 2)),
    "doubles": lambda it: it.layer(packed_of(I, torch.float64)),
    "data of 3 axes": lambda it: it.layer(packed_of(2, I)),
    "data of 1 axis": lambda it: it.layer(packed_of()),
}


def packed_of(*features: Any, ordered: bool = False) -> PackedSequence:
    """A ragged batch, packed, of any features, or of another dtype if one is named last."""
    sizes = [f for f in features if isinstance(f, int)]
    dtype = features[-1] if features and isinstance(features[-1], torch.dtype) else torch.float32
    lengths = torch.tensor(sorted(RAGGED, reverse=True) if ordered else RAGGED)
    return pack_padded_sequence(torch.randn(T, B, *sizes, dtype=dtype), lengths, enforce_sorted=ordered)


def shapes(library: Any, name: str, **options: Any) -> Shapes:
    def make(*sizes: int, **how: Any) -> Any:
        part = torch.randn(*sizes, **how)
        return (part, part.clone()) if name == "LSTM" else part

    return Shapes(getattr(library, name)(I, H, 2, bidirectional=True, **options), make)


@pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch first"])
@pytest.mark.parametrize("case", ALIKE_IN_FORWARD)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_refuses_input_as_torch_does(name: str, case: str, batch_first: bool) -> None:
    assert_refuses_alike(
        lambda library: ALIKE_IN_FORWARD[case](shapes(library, name, batch_first=batch_first))
    )


@pytest.mark.parametrize("case", ALIKE_WHEN_PACKED)
@pytest.mark.parametrize("name", ["RNN", "GRU"])
def test_a_layer_refuses_packed_input_as_torch_does(name: str, case: str) -> None:
    assert_refuses_alike(lambda library: ALIKE_WHEN_PACKED[case](shapes(library, name)))


@pytest.mark.parametrize("case", ALIKE_WHEN_PACKED)
def test_an_lstm_refuses_packed_input_as_the_other_layers_do(case: str) -> None:
    # torch's LSTM checks nothing of a packed input, and each of these trips over something within.
    refusal(lambda: ALIKE_WHEN_PACKED[case](shapes(torch.nn, "LSTM")))
    gru, gru_text = refusal(lambda: ALIKE_WHEN_PACKED[case](shapes(torch.nn, "GRU")))
    got, text = refusal(lambda: ALIKE_WHEN_PACKED[case](shapes(nn, "LSTM")))
    said = gru_text.split("\n")[0].replace("Expected hidden size", "Expected hidden[0] size")
    assert (got, text.split("\n")[0]) == (gru, said)


@pytest.mark.parametrize(
    ("x", "good", "wrong"),
    [
        *(((5, 5, I), (4, 5, H), wrong) for wrong in ((4, 5, H + 1), (3, 5, H), (4, 6, H), (4, H))),
        ((5, I), (4, H), (4, 1, H)),
        ((5, I), (4, H), (3, H)),
    ],
    ids=str,
)
def test_an_lstms_cell_state_alone_may_be_wrong(x: Any, good: Any, wrong: Any) -> None:
    given = (torch.randn(good), torch.randn(wrong))
    assert_refuses_alike(lambda library: shapes(library, "LSTM").layer(torch.randn(x), given))


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("name", LAYERS)
def test_a_state_of_another_dtype_is_refused_by_name(name: str, which: int) -> None:
    # torch's words come from the product within: mat1 and mat2 must have the same dtype.
    parts = [torch.randn(4, 5, H), torch.randn(4, 5, H)]
    parts[which if name == "LSTM" else 0] = torch.randn(4, 5, H).double()
    given = tuple(parts) if name == "LSTM" else parts[0]
    assert_refuses_with(
        RuntimeError,
        r"hx dtype \(torch.float64\) does not match weight dtype \(torch.float32\)\n  Fix: ",
        lambda library: shapes(library, name).layer(torch.randn(5, 5, I), given),
    )


@pytest.mark.parametrize(
    "given",
    [torch.randn(4, 5, H), (), (torch.randn(4, 5, H),), (torch.randn(4, 5, H),) * 3, "state", 0],
    ids=["one tensor", "none", "one", "three", "string", "number"],
)
def test_an_lstms_state_that_is_no_pair_is_refused_by_name(given: Any) -> None:
    # torch never checks it: an IndexError, an AttributeError or a RuntimeError from wherever it is
    # first used.  One check, one exception.
    refusal(lambda: shapes(torch.nn, "LSTM").layer(torch.randn(5, 5, I), given))
    with pytest.raises(TypeError, match=r"hx must be a tuple \(h_0, c_0\)\n  Received: .*\n  Fix: "):
        shapes(nn, "LSTM").layer(torch.randn(5, 5, I), given)


@pytest.mark.parametrize(
    "given", [(torch.zeros(4, 5, H),) * 2, [torch.zeros(4, 5, H)], "state"], ids=["pair", "list", "string"]
)
@pytest.mark.parametrize("name", ["RNN", "GRU"])
def test_a_pair_for_a_state_of_one_part_is_refused_as_torch_does(name: str, given: Any) -> None:
    assert_refuses_alike(lambda library: shapes(library, name).layer(torch.randn(5, 5, I), given))


def test_a_list_is_a_pair_to_an_lstm_as_to_torchs() -> None:
    module, reference = pair("lstm")
    x, initial = batch(), list(state(module))
    assert_close(module(x, initial)[0], reference(x, initial)[0], FORWARD, "output")


FURTHER_LINES = {
    "input of 4 axes": r"\n  Received: input \(2, 2, 2, 5\)\.\n  Fix: pass \(batch, time, features\)",
    "input too wide": r"\n  Received: input \(7, 5, 7\) read as \(batch, time, features\) because "
    r"batch_first=True\.\n  Fix: create the layer with input_size=7",
    "one sequence too wide": r"\n  Received: input \(7, 7\) read as \(time, features\)\.\n  Fix: ",
    "state of another batch": r"\n  Axes: .* 2 x 2, batch, hidden_size\); the batch is 5 .*\n  Fix: ",
    "another device": r"\n  Fix: input\.to\('cpu'\)",
}


@pytest.mark.parametrize("case", FURTHER_LINES)
@pytest.mark.parametrize("name", LAYERS)
def test_what_torch_does_not_say_is_said_below_its_line(name: str, case: str) -> None:
    _, text = refusal(lambda: ALIKE_IN_FORWARD[case](shapes(nn, name, batch_first=True)))
    assert re.search(FURTHER_LINES[case], text), text


@pytest.mark.parametrize(
    "wrong",
    [
        [T, None, 1, 1, 1],
        "abcde",
        [2**63, 1, 1, 1, 1],
        {T: 1},
        torch.tensor([T, 1, 1, 1, 1], device="meta"),
        torch.tensor([T, 1, 1, 1, 1]).to_sparse(),
        torch.tensor([float(T), 1, 1, 1, 1], requires_grad=True),
    ],
    ids=["none in it", "string", "beyond int64", "dict", "meta", "sparse", "asking for a gradient"],
)
@pytest.mark.parametrize("name", LAYERS)
def test_lengths_that_are_no_integers_are_refused_by_what_they_should_be(name: str, wrong: Any) -> None:
    with pytest.raises(
        InputError, match=r"lengths must be one integer a sequence\.\n  Received: .*\n  Fix: "
    ):
        getattr(nn, name)(I, H)(batch(), lengths=wrong)


def sparse_and_nested() -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls nested tensors a prototype
        nested = torch.nested.nested_tensor([torch.randn(T, I), torch.randn(2, I)])
    return {"sparse": batch().to_sparse(), "nested": nested}


@pytest.mark.parametrize("kind", ["sparse", "nested"])
@pytest.mark.parametrize("name", LAYERS)
def test_an_input_that_does_not_lie_in_rows_is_refused_as_torch_does_in_words_of_ours(
    name: str, kind: str
) -> None:
    x = sparse_and_nested()[kind]
    assert_refuses_with(
        RuntimeError,
        r"input must be a dense tensor\n  Received: a .*\n  Fix: ",
        lambda library: getattr(library, name)(I, H)(x),
    )


@pytest.mark.parametrize("name", LAYERS)
def test_a_sparse_state_or_option_is_refused(name: str) -> None:
    module = getattr(nn, name)(I, H)
    part = torch.zeros(1, B, H).to_sparse()
    with pytest.raises(RuntimeError, match=r"hx must be a dense tensor\n  Received: .*sparse.*\n  Fix: "):
        module(batch(), (part, part) if name == "LSTM" else part)
    resets = torch.zeros(T, B, dtype=torch.bool).to_sparse()
    with pytest.raises(RuntimeError, match=r"resets must be (.|\n)*  Received: .*sparse_coo"):
        module(batch(), resets=resets)
    with pytest.raises(RuntimeError, match=r"recurrent_mask must be (.|\n)*  Received: .*sparse_coo"):
        module(batch(), recurrent_mask=part)


@pytest.mark.parametrize("name", LAYERS)
def test_a_weight_that_lies_elsewhere_is_refused_as_torch_does(name: str) -> None:
    def call(library: Any) -> Any:
        module = getattr(library, name)(I, H)
        module.weight_hh_l0 = torch.nn.Parameter(torch.empty_like(module.weight_hh_l0, device="meta"))
        return module(batch())

    assert_refuses_alike(call)


@pytest.mark.parametrize(
    "given", [(None, None), (torch.zeros(1, B, H), None)], ids=["both", "the cell state"]
)
def test_a_pair_with_nothing_in_it_is_no_state(given: Any) -> None:
    refusal(lambda: torch.nn.LSTM(I, H)(batch(), given))
    with pytest.raises(TypeError, match=r"hx must be a tuple \(h_0, c_0\)\n  Received: tuple of .*NoneType"):
        nn.LSTM(I, H)(batch(), given)
    step = tuple(part if part is None else part[0] for part in given)
    refusal(lambda: torch.nn.LSTMCell(I, H)(batch()[0], step))
    with pytest.raises(TypeError, match=r"hx must be a tuple \(h, c\)\n  Received: tuple of .*NoneType"):
        nn.LSTMCell(I, H)(batch()[0], step)


@pytest.mark.parametrize("name", LAYERS + STEPS)
def test_autocast_narrows_no_float64(name: str) -> None:
    x = torch.randn(3, I, dtype=torch.float64)

    def call(library: Any) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return getattr(library, name)(I, H)(x)

    refusal(lambda: call(torch.nn))
    kind, text = refusal(lambda: call(nn))
    assert issubclass(kind, ValueError | RuntimeError)
    assert "dtype (torch.float64) does not match weight dtype (torch.float32)" in text


# -- refusals of the cells


def cell_shapes(library: Any, name: str) -> Shapes:
    def make(*sizes: int, **how: Any) -> Any:
        part = torch.randn(*sizes, **how)
        return (part, part.clone()) if name == "LSTMCell" else part

    return Shapes(getattr(library, name)(I, H), make)


ALIKE_IN_A_STEP: dict[str, Callable[[Shapes], Any]] = {
    "input of no axes": lambda it: it.layer(torch.randn(())),
    "input of 3 axes": lambda it: it.layer(torch.randn(1, 5, I)),
    "input too wide": lambda it: it.layer(torch.randn(5, I + 2)),
    "one sample too wide": lambda it: it.layer(torch.randn(I + 2)),
    "a list": lambda it: it.layer([1.0]),
    "nothing": lambda it: it.layer(None),
    "state of 3 axes": lambda it: it.layer(torch.randn(5, I), it.state(1, 5, H)),
    "state of no axes": lambda it: it.layer(torch.randn(5, I), it.state()),
    "state of one sample": lambda it: it.layer(torch.randn(5, I), it.state(H)),
    "state of another batch": lambda it: it.layer(torch.randn(5, I), it.state(3, H)),
    "state for all samples": lambda it: it.layer(torch.randn(5, I), it.state(1, H)),
    "state too wide": lambda it: it.layer(torch.randn(5, I), it.state(5, H + 1)),
    "batched state of one sample": lambda it: it.layer(torch.randn(I), it.state(1, H)),
    "state of one sample, too wide": lambda it: it.layer(torch.randn(I), it.state(H + 1)),
    "a string for a state": lambda it: it.layer(torch.randn(5, I), "state"),
}


@pytest.mark.parametrize("case", ALIKE_IN_A_STEP)
@pytest.mark.parametrize("name", STEPS)
def test_a_cell_refuses_input_as_torch_does(name: str, case: str) -> None:
    assert_refuses_alike(lambda library: ALIKE_IN_A_STEP[case](cell_shapes(library, name)))


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        *((sizes, {}) for sizes in ((-1, H), (I, -1), (5.0, H), ("5", H), (I,), ())),
        ((I, H), {"dtype": torch.int64}),
        ((I, H), {"device": "nowhere"}),
        ((I, H), {"proj_size": 1}),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", STEPS)
def test_a_cell_refuses_arguments_as_torch_does(
    name: str, sizes: tuple[Any, ...], options: dict[str, Any]
) -> None:
    assert_refuses_alike(lambda library: getattr(library, name)(*sizes, **options))


@pytest.mark.parametrize("wrong", [(5, H + 1), (4, H), (1, 5, H)], ids=str)
def test_an_lstm_cells_cell_state_alone_may_be_wrong(wrong: tuple[int, ...]) -> None:
    given = (torch.randn(5, H), torch.randn(wrong))
    assert_refuses_alike(lambda library: library.LSTMCell(I, H)(torch.randn(5, I), given))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_an_lstm_cell_refuses_a_state_that_is_no_pair_as_torch_does(count: int) -> None:
    given: Any = (torch.randn(5, H),) * count
    assert_refuses_alike(lambda library: library.LSTMCell(I, H)(torch.randn(5, I), given))
    # Of one sample torch takes the first two of three, and trips over one.
    with pytest.raises(RuntimeError, match="lstm_cell expects two hidden states"):
        nn.LSTMCell(I, H)(torch.randn(I), tuple(part[0] for part in given))


def test_an_lstm_cell_refuses_one_tensor_for_its_state() -> None:
    assert_refuses_with(
        TypeError, "tuple", lambda library: library.LSTMCell(I, H)(torch.randn(5, I), torch.randn(2, 5))
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64, torch.complex64], ids=str)
@pytest.mark.parametrize("name", STEPS)
def test_a_cell_refuses_another_dtype_by_name(name: str, dtype: torch.dtype) -> None:
    # torch's words come from the product within.
    assert_refuses_with(
        RuntimeError,
        f"dtype .*{dtype}.*\n  Fix: ",
        lambda library: getattr(library, name)(I, H)(torch.ones(5, I, dtype=dtype)),
    )
    if dtype.is_floating_point:
        assert_refuses_with(
            RuntimeError,
            f"{dtype}(.|\n)*\n  Fix: ",
            lambda library: cell_shapes(library, name).layer(
                torch.randn(5, I), cell_shapes(library, name).state(5, H, dtype=dtype)
            ),
        )


@pytest.mark.parametrize("name", STEPS)
def test_a_cell_refuses_another_device_by_name(name: str) -> None:
    assert_refuses_with(
        RuntimeError,
        r"device(.|\n)*meta(.|\n)*\n  Fix: ",
        lambda library: getattr(library, name)(I, H)(torch.randn(5, I, device="meta")),
    )
    assert_refuses_with(
        RuntimeError,
        r"device(.|\n)*meta(.|\n)*\n  Fix: ",
        lambda library: cell_shapes(library, name).layer(
            torch.randn(5, I), cell_shapes(library, name).state(5, H, device="meta")
        ),
    )


def test_a_cell_refuses_a_nonlinearity_when_it_is_made() -> None:
    # torch's cell takes any word and refuses at the first step; torch's layer refuses as ours does.
    with pytest.raises(ValueError, match=r"Unknown nonlinearity 'gelu'\. Select from 'tanh' or 'relu'."):
        nn.RNNCell(I, H, nonlinearity="gelu")


@pytest.mark.parametrize("sizes", [(0, H), (I, 0)], ids=str)
@pytest.mark.parametrize("name", STEPS)
def test_a_cell_of_no_size_does_not_step(name: str, sizes: tuple[int, int]) -> None:
    # torch steps over nothing; the kernels need one input and one unit, as torch's layers do.
    with pytest.raises(InputError, match=r"\n  Received: .*\n  Fix: "):
        getattr(nn, name)(*sizes)(torch.randn(2, sizes[0]))


@pytest.mark.parametrize(("name", "value"), [("bidirectional", True), ("input_size", 9), ("hidden_size", 9)])
def test_a_size_changed_on_a_layer_that_is_there_is_not_passed_over(name: str, value: Any) -> None:
    layer, x = nn.LSTM(4, 8), torch.randn(3, 1, 4)
    with torch.no_grad():
        layer(x)
        setattr(layer, name, value)
        with pytest.raises((RuntimeError, AttributeError)):
            layer(x)
