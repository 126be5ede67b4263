"""Rule 10: what does not fit is refused with a clear error before a pointer is taken; nothing crashes.

A sound call is drawn, one to three things in it are spoilt so that it cannot be right any more, and the call
must raise: at the kernels, at the engine itself behind their back, at a stream and at the torch layers, each
time with backward.  A call that goes through is as bad as one that kills the process.

The named cases that killed or misled others' layers are in `test_known_crashes`.
"""

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contract.cases import Case, draw
from contract.sets import options
from unspool import nn
from unspool.errors import InputError
from unspool.kernels.contract import Cell, State
from unspool.stream import Stream
from verification.effort import Tally, draws

CALLS = 20  # a drawn example makes so many calls: hypothesis itself takes longer than a call
Path = tuple[str | int, ...]
Spoil = Callable[[Any, np.random.Generator], Any]

# Nothing here allocates much: sizes that are wrong are wrong by one, by a factor of two, or 0.
_WRONG_DTYPES = (
    "float64",
    "float16",
    "int32",
    "int64",
    "complex64",
    "bool",
    ">f4",
    "U3",
    "object",
    "datetime64[s]",
)
_NO_ARRAYS: tuple[Callable[[Any], Any], ...] = (
    lambda a: a.tolist(),
    lambda a: "an array",
    lambda a: object(),
    lambda a: 3.5,
    lambda a: {"x": a},
    lambda a: memoryview(np.zeros(3, np.float32)),
    lambda a: (a,),
    lambda a: type(a),
)


def _axis(array: Any, rng: np.random.Generator) -> Any:
    """One axis longer or shorter than the others say."""
    shape = list(array.shape)
    at = int(rng.integers(len(shape)))
    wrong = [n for n in (shape[at] + 1, shape[at] - 1, 2 * shape[at], 0) if n >= 0 and n != shape[at]]
    shape[at] = int(rng.choice(wrong))
    return np.resize(array, shape) if 0 not in shape else np.empty(shape, array.dtype)


def _rank(array: Any, rng: np.random.Generator) -> Any:
    """An axis too many or too few."""
    ways = [lambda: array[None], lambda: array[..., None], lambda: array[0], lambda: array.dtype.type(1)]
    if array.ndim > 1:
        ways.append(lambda: array.reshape(-1))
        ways.append(lambda: array[..., 0])
    return ways[rng.integers(len(ways))]()


def _dtype(array: Any, rng: np.random.Generator) -> Any:
    allowed = "bool" if array.dtype == bool else "int" if array.dtype.kind == "i" else "float32"
    wrong = [name for name in _WRONG_DTYPES if not name.startswith(allowed)]
    name = wrong[rng.integers(len(wrong))]
    return np.zeros(array.shape, name) if name[0] in "Ud" else array.astype(name)


def _kind(array: Any, rng: np.random.Generator) -> Any:
    ways = list(_NO_ARRAYS)
    if array.dtype == np.float32:
        ways.append(torch.from_numpy)
        ways.append(np.ma.array)
    return ways[rng.integers(len(ways))](array)


def _values(lengths: Any, rng: np.random.Generator) -> Any:
    """Lengths that no sequence has."""
    spoilt = lengths.copy()
    info = np.iinfo(np.int64)
    wrong = [-1, 10**6, info.min, info.max, info.min + 1]
    spoilt[rng.integers(len(spoilt))] = wrong[rng.integers(len(wrong))]
    return spoilt if rng.random() < 0.7 else np.full(len(lengths), 2**64 - 1, np.uint64)


def _spoils(path: Path, array: Any) -> list[Spoil]:
    ways: list[Spoil] = [_axis, _rank, _dtype, _kind]
    return [*ways, _values] if path == ("lengths",) else ways


def _leaves(thing: Any, path: Path = ()) -> Iterator[Path]:
    """The ways to every array in nested tuples and dicts."""
    if isinstance(thing, np.ndarray):
        yield path
    elif isinstance(thing, dict):
        for key, part in thing.items():
            yield from _leaves(part, (*path, key))
    elif isinstance(thing, tuple | list):
        names = getattr(thing, "_fields", range(len(thing)))
        for key, part in zip(names, thing, strict=True):
            yield from _leaves(part, (*path, key))


def _at(thing: Any, path: Path) -> Any:
    for key in path:
        thing = getattr(thing, key) if hasattr(thing, "_fields") else thing[key]
    return thing


def _put(thing: Any, path: Path, value: Any) -> Any:
    """The same, with another thing at the end of the path."""
    if not path:
        return value
    key, *rest = path
    inner = _put(_at(thing, (key,)), tuple(rest), value)
    if hasattr(thing, "_fields"):
        return thing._replace(**{str(key): inner})
    if isinstance(thing, dict):
        return thing | {key: inner}
    return type(thing)(inner if n == key else part for n, part in enumerate(thing))


def _structures(call: dict[str, Any]) -> list[tuple[Path, Any]]:
    """What cannot stand where a named tuple, a list or an array has to."""
    cell = call["cell"]
    wrong: list[tuple[Path, Any]] = [
        (("cell",), cell.value),
        (("cell",), None),
        (("weights",), None),
        (("weights",), ()),
        (("weights",), call["weights"] * 3),
        (("weights",), [tuple(w) for w in call["weights"]]),
        (("x",), None),
        (("state",), tuple(call["state"])),
        (("state",), call["state"].hidden),
        (("d_state",), list(call["d_state"])),
        (("trace",), None),
        (("trace",), tuple(call["trace"])),
        (("trace",), call["trace"]._replace(gates=None)),
        (("trace",), call["trace"]._replace(hidden=None)),
        (("state",), State(None, call["state"].cell)),
    ]
    if cell is Cell.LSTM:
        wrong += [(("state",), State(call["state"].hidden)), (("d_state",), State(call["d_state"].hidden))]
        wrong += [(("trace",), call["trace"]._replace(cell=None))]
    else:
        wrong += [(("state",), State(*[call["state"].hidden] * 2))]
        wrong += [(("d_state",), State(*[call["d_state"].hidden] * 2))]
    if cell is Cell.GRU:
        wrong += [(("trace",), call["trace"]._replace(recurrent_candidate=None))]
        wrong += [(("weights", 0), call["weights"][0]._replace(candidate_bias=None))]
    return wrong


def _spoil(call: dict[str, Any], rng: np.random.Generator) -> tuple[dict[str, Any], list[str]]:
    """One to three things wrong; at most one of them a size, since two wrong sizes may fit each other."""
    done = []
    if rng.random() < 0.25:
        wrong = _structures(call)
        path, value = wrong[rng.integers(len(wrong))]
        return _put(call, path, value), [f"{path}: a {type(value).__name__} that does not belong there"]
    paths = list(_leaves(call))
    sized = False
    for n in rng.permutation(len(paths))[: rng.integers(1, 4)]:
        array = _at(call, paths[n])
        ways = _spoils(paths[n], array)
        way = ways[rng.integers(len(ways))]
        if way is _axis:
            if sized:
                continue
            sized = True
        call = _put(call, paths[n], way(array, rng))
        done.append(f"{paths[n]}: {way.__name__.strip('_')}")
    return call, done


@st.composite
def cases(draw_from: st.DrawFn) -> Case:
    """Small layers with resets, which tie the sizes of x together."""
    return Case(
        cell=draw_from(st.sampled_from(Cell)),
        directions=draw_from(st.integers(1, 2)),
        hidden=draw_from(st.sampled_from([1, 3, 17])),
        input=draw_from(st.sampled_from([1, 4])),
        time=draw_from(st.integers(1, 4)),
        batch=draw_from(st.integers(1, 4)),
        lengths=draw_from(st.booleans()),
        resets=True,
        reset_state=draw_from(st.booleans()),
        mask=draw_from(st.booleans()),
    )


def _sound(native: ModuleType, case: Case, seed: int) -> dict[str, Any]:
    """Every argument of a sound call, the trace among them."""
    data = draw(case, seed)
    prepared = native.prepare(case.cell, data.weights)
    trace, _ = native.forward(prepared, data.x, data.state, **options(data))
    return {
        "cell": case.cell,
        "weights": data.weights,
        "x": data.x,
        "state": data.state,
        "trace": trace,
        "d_hidden": data.d_hidden,
        "d_state": data.d_state,
        **{key: value for key, value in options(data).items() if value is not None},
    }


def _call(native: ModuleType, call: dict[str, Any]) -> None:
    given = {key: call[key] for key in call if key not in ("cell", "weights", "trace", "d_hidden", "d_state")}
    prepared = native.prepare(call["cell"], call["weights"])
    native.infer(prepared, **given)
    native.forward(prepared, **given)
    native.backward(
        prepared, trace=call["trace"], d_hidden=call["d_hidden"], d_state=call["d_state"], **given
    )


def _explore(what: str, short: int, long: int, one: Callable[[Case, int, np.random.Generator], None]) -> None:
    """Draw examples of CALLS calls each."""

    @settings(
        max_examples=draws(short, long) // CALLS,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=cases(), seed=st.integers(0, 2**32 - 1))
    def examples(case: Case, seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(CALLS):
            one(case, seed, rng)

    examples()


def test_a_sound_call_goes_through(native: ModuleType) -> None:
    """Else the tests below would see refusals that mean nothing."""
    for cell in Cell:
        for directions in (1, 2):
            case = Case(cell, directions, 3, lengths=True, resets=True, reset_state=True, mask=True)
            _call(native, _sound(native, case, 0))


def test_the_kernels_refuse_every_malformed_call(native: ModuleType) -> None:
    tally = Tally("malformed calls of the kernels, backward included")
    kept: dict[tuple[Case, int], dict[str, Any]] = {}

    def one(case: Case, seed: int, rng: np.random.Generator) -> None:
        if (case, seed) not in kept:
            kept.clear()
            kept[case, seed] = _sound(native, case, seed)
        call, wrong = _spoil(kept[case, seed], rng)
        with pytest.raises(InputError) as refused:  # noqa: PT012
            _call(native, call)
            pytest.fail(f"accepted: {case}, {', '.join(wrong)}")
        assert "Received:" in str(refused.value), wrong
        tally.add("calls")
        tally.add("refused")

    _explore("kernels", 4_000, 100_000, one)
    tally.close()


def _engine_call(native: ModuleType, case: Case, seed: int) -> tuple[Any, dict[str, tuple[Any, ...]]]:
    """The engine's own arguments, in its order, as `kernels.native` would hand them over; and the layer."""
    seen: dict[str, tuple[Any, ...]] = {}
    data = draw(case, seed)
    prepared = native.prepare(case.cell, data.weights)

    class Listening:
        def forward(self, *given: Any) -> None:
            seen["forward"] = given
            prepared.layer.forward(*given)

        def backward(self, *given: Any) -> None:
            seen["backward"] = given
            prepared.layer.backward(*given)

    listening = prepared._replace(layer=Listening())
    trace, _ = native.forward(listening, data.x, data.state, **options(data))
    native.backward(
        listening, data.x, trace, data.state, d_hidden=data.d_hidden, d_state=data.d_state, **options(data)
    )
    return prepared.layer, seen


def _wrong_for_the_engine(array: Any, rng: np.random.Generator) -> Any:
    """Another number of elements, another dtype, gaps, or nothing at all."""
    ways: list[Callable[[], Any]] = [
        lambda: np.zeros(array.size + 1, array.dtype),
        lambda: np.zeros(2 * array.size, array.dtype),
        lambda: np.zeros(array.size - 1, array.dtype),
        lambda: _dtype(array, rng),
        lambda: np.repeat(array[..., None], 2, axis=-1)[..., 0] if array.size > 1 else array.tolist(),
        lambda: array.tolist(),
        lambda: object(),
        lambda: "array",
    ]
    return ways[rng.integers(len(ways))]()


def test_the_engine_itself_refuses_every_malformed_call(native: ModuleType) -> None:
    """Behind the back of `checks`: the last line of defence holds alone."""
    tally = Tally("malformed calls of the engine behind the checks, backward included")
    kept: dict[tuple[Case, int], Any] = {}

    def one(case: Case, seed: int, rng: np.random.Generator) -> None:
        if (case, seed) not in kept:
            kept.clear()
            kept[case, seed] = _engine_call(native, case, seed)
        layer, seen = kept[case, seed]
        name = "forward" if rng.random() < 0.4 else "backward"
        paths = list(_leaves(seen[name]))
        path = paths[rng.integers(len(paths))]
        spoilt = _put(seen[name], path, _wrong_for_the_engine(_at(seen[name], path), rng))
        if rng.random() < 0.1:
            spoilt = (*spoilt[:-1], [0, -1, 2**40, 1.5, None][rng.integers(5)])
        with pytest.raises((ValueError, TypeError)):  # noqa: PT012
            getattr(layer, name)(*spoilt)
            pytest.fail(f"accepted: {case}, {name} with argument {path} spoilt")
        tally.add("calls")
        tally.add("refused")

    _explore("engine", 4_000, 50_000, one)
    tally.close()


def test_the_engine_takes_weights_of_sound_sizes_alone(native: ModuleType) -> None:
    core, isa = native._core, native.instruction_sets()[-1]
    ones = [np.ones(shape, np.float32) for shape in ((4, 1), (4, 1), (4,))]
    plain = (1, [], np.inf, np.inf)
    core.Layer(isa, "float32", 2, 1, 1, ones, 1, *plain)
    for cell, width, units, weights in (
        (2, 1, 2**62, ones),
        (2, 2**62, 1, ones),
        (2, 0, 1, ones),
        (2, 1, -1, ones),
        (4, 1, 1, ones),
        (-1, 1, 1, ones),
        (2, 1, 1, ones[:2]),
        (2, 1, 1, ones * 3),
        (2, 1, 1, []),
        (2, 1, 1, [*ones[:2], ones[2].astype(float)]),
        (3, 1, 1, ones),
    ):
        with pytest.raises((ValueError, TypeError)):
            core.Layer(isa, "float32", cell, width, units, weights, 1, *plain)
    peephole, projection = np.ones((3, 1), np.float32), np.ones((1, 1), np.float32)
    both = [peephole, projection, None, None, None]
    core.Layer(isa, "float32", 2, 1, 1, ones, 1, 1, both, 1.0, 1.0)
    for output, extras, clip in (
        (2, both, 1.0),
        (0, both, 1.0),
        (1, [peephole, projection], 1.0),
        (1, [projection, projection, None, None, None], 1.0),
        (1, [None, None, projection, None, None], 1.0),
        (1, [peephole.astype(float), None, None, None, None], 1.0),
        (1, [], 0.0),
        (1, [], np.nan),
    ):
        with pytest.raises((ValueError, TypeError)):
            core.Layer(isa, "float32", 2, 1, 1, ones, 1, output, extras, clip, 1.0)
    for precision in ("bfloat16", "int8"):
        with pytest.raises(ValueError, match="float32 alone"):
            core.Layer(isa, precision, 2, 1, 1, ones, 1, 1, [], 1.0, np.inf)


def test_streams_refuse_every_malformed_step(native: ModuleType) -> None:
    """And their state stays as it was."""
    tally = Tally("malformed steps of a stream")
    rows = 5
    data = draw(Case(Cell.LSTM, 1, 17, 4, time=1, batch=rows))
    stream = Stream([native.prepare(Cell.LSTM, data.weights)], rows)
    stream.step(data.x[0])
    before = stream.hidden.tobytes()

    def bad_rows(rng: np.random.Generator) -> Any:
        return (
            [0, 0],
            [-1],
            [rows],
            [2**62],
            [-(2**63)],
            np.array([2**64 - 1], np.uint64),
            [0.0, 1.0],
            "0",
            [[0, 1]],
            [True, False],
            3,
            list(range(rows + 1)),
            [0, None],
        )[rng.integers(13)]

    def one(case: Case, seed: int, rng: np.random.Generator) -> None:
        x: Any = data.x[0]
        given: dict[str, Any] = {}
        kind = rng.integers(3)
        if kind == 0:
            x = [_axis, _rank, _dtype, _kind][rng.integers(4)](x, rng)
            if isinstance(x, torch.Tensor):
                x = x.double()
        elif kind == 1:
            given = {"rows": bad_rows(rng)}
            x = x[: len(given["rows"])] if hasattr(given["rows"], "__len__") else x
        else:
            out = np.zeros((rows, 17), np.float32)
            given = {"out": [_axis, _rank, _dtype][rng.integers(3)](out, rng)}
            if rng.random() < 0.2:
                given = {
                    "out": [x[:, :0], stream.hidden[0], np.asfortranarray(out), "out", out[::-1]][
                        rng.integers(5)
                    ]
                }
        with pytest.raises((InputError, TypeError)):  # noqa: PT012
            stream.step(x, **given)
            pytest.fail(f"accepted: x {x!r}, {given}")
        assert stream.hidden.tobytes() == before
        tally.add("calls")
        tally.add("refused")

    _explore("stream", 1_000, 10_000, one)
    tally.close()


_TORCH_DTYPES = (
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int32,
    torch.int64,
    torch.complex64,
    torch.bool,
)


def _wrong_tensor(tensor: Any, rng: np.random.Generator) -> Any:
    ways: list[Callable[[], Any]] = [
        lambda: tensor.to(wrong[rng.integers(len(wrong))]),
        lambda: tensor[..., None],
        lambda: tensor.numpy() if not tensor.requires_grad else tensor.tolist(),
        lambda: tensor.tolist(),
        lambda: torch.tensor(0.5).to(tensor.dtype),
        lambda: torch.zeros([n + 1 for n in tensor.shape], dtype=tensor.dtype),
        lambda: torch.zeros([0 for _ in tensor.shape], dtype=tensor.dtype),
        lambda: tensor.to("meta"),
        lambda: "a tensor",
        lambda: tensor.to_sparse(),
    ]
    wrong = [dtype for dtype in _TORCH_DTYPES if dtype != tensor.dtype]
    return ways[rng.integers(len(ways))]()


def test_the_layers_refuse_every_malformed_call() -> None:
    """torch's layers, with a backward pass where a call goes through so far."""
    tally = Tally("malformed calls of the torch layers, backward included")

    def one(case: Case, seed: int, rng: np.random.Generator) -> None:
        module = {Cell.LSTM: nn.LSTM, Cell.GRU: nn.GRU}.get(case.cell, nn.RNN)
        layer = module(case.input, case.hidden, num_layers=2, bidirectional=case.directions == 2)
        state = torch.randn(2 * case.directions, case.batch, case.hidden)
        resets = torch.zeros(case.time, case.batch, dtype=torch.bool)
        call: dict[str, Any] = {
            "input": torch.randn(case.time, case.batch, case.input),
            "hx": (state, state.clone()) if case.cell is Cell.LSTM else state,
            "resets": resets,
        }
        if case.mask:
            call["recurrent_mask"] = torch.ones_like(state)
        if rng.random() < 0.02:  # a layer that refused everything would pass
            layer(**call)[0].sum().backward()
        if rng.random() < 0.15 and case.cell is Cell.LSTM:
            wrong: Any = [
                state,
                (state,),
                (state, state, state),
                (state[:1], state),
                (state, state[:1]),
                (state.repeat(2, 1, 1), state),
                (state, state.repeat(2, 1, 1)),
                (state, None),
                {},
            ][rng.integers(9)]
            call["hx"], told = wrong, "hx"
        elif rng.random() < 0.15:
            lengths: Any = [
                [-1] * case.batch,
                [case.time + 1] * case.batch,
                [0.5] * case.batch,
                [1] * (case.batch + 1),
                [],
                [2**62] * case.batch,
                torch.ones(case.batch, 1, dtype=torch.int64),
                torch.ones(case.batch, dtype=torch.bool),
                "1",
            ][rng.integers(9)]
            call["lengths"], told = lengths, "lengths"
        else:
            paths = [path for path in _tensors(call) if path]
            path = paths[rng.integers(len(paths))]
            call, told = _put(call, path, _wrong_tensor(_at(call, path), rng)), str(path)
        # AttributeError is torch's answer to what is no tensor, and so ours: tests/nn.
        with pytest.raises((ValueError, RuntimeError, TypeError, AttributeError)):  # noqa: PT012
            output, _ = layer(**call)
            output.sum().backward()
            pytest.fail(f"accepted: {layer}, {told}: {call}")
        tally.add("calls")
        tally.add("refused")

    _explore("layers", 2_000, 40_000, one)
    tally.close()


def _tensors(call: dict[str, Any]) -> Iterator[Path]:
    for key, value in call.items():
        if isinstance(value, torch.Tensor):
            yield (key,)
        elif isinstance(value, tuple):
            yield from ((key, n) for n in range(len(value)))
