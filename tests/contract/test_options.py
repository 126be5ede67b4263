"""What a layer may have beyond the plain cell, under the contract: each option alone, and all together."""

import numpy as np
import pytest

from contract.cases import (
    CLIPS,
    INPUT_OF,
    Case,
    Data,
    Floats,
    alone,
    differing_bits,
    disagreements,
    distance,
    draw,
    named,
    of_sequence,
    timed_state,
    with_dtype,
)
from contract.sets import (
    REFERENCE,
    KernelSet,
    backward,
    differences,
    forward,
    infer,
    options,
    prepare,
    run,
    threads,
    wanted,
)
from contract.test_outputs import Guarded
from unspool.errors import InputError
from unspool.kernels.contract import Cell, State, Trace

OF_ALL = ("norm_input", "norm_recurrent", "preactivation_clip", "zoneout")
OF_LSTM = ("peephole", "projection", "norm_cell", "cell_clip")
EVERYTHING = {cell: OF_ALL + (OF_LSTM if cell is Cell.LSTM else ()) for cell in Cell}


def _case(
    cell: Cell,
    chosen: tuple[str, ...],
    hidden: int = 17,
    directions: int = 2,
    *,
    input: int = 9,
    time: int = 6,
    batch: int = 7,
) -> Case:
    return Case(cell, directions, hidden, input, time, batch, True, True, True, True, chosen)


SINGLE = tuple(_case(cell, (name,)) for cell in Cell for name in EVERYTHING[cell])
PAIRS = tuple(
    _case(Cell.LSTM, pair)
    for pair in (("projection", "zoneout"), ("projection", "norm_cell"), ("peephole", "zoneout"))
)
TOGETHER = tuple(_case(cell, EVERYTHING[cell]) for cell in Cell)
EACH = SINGLE + PAIRS + TOGETHER
# Tails beside every vector width.  A norm over so few numbers as one unit has says nothing.
SIZES = tuple(
    _case(cell, chosen, hidden, directions, input=max(5, INPUT_OF[hidden]))  # of one a norm leaves the sign
    for cell in Cell
    for chosen in (EVERYTHING[cell], *([("projection",)] if cell is Cell.LSTM else []))
    for hidden in INPUT_OF
    if hidden > 1
    for directions in (1, 2)
)
MANY = tuple(
    _case(cell, EVERYTHING[cell], hidden, input=9, time=time, batch=batch)
    for cell in Cell
    for hidden, time, batch in ((9, 150, 1), (33, 20, 14))
)
HEAVY = tuple(_case(cell, EVERYTHING[cell], 65, input=33, time=20, batch=23) for cell in Cell)

# A norm divides by how far its numbers lie apart, and what was rounded before it is divided too, at each step
# again.
NORMED = 20.0


def far(got: dict[str, Floats], want: dict[str, Floats], case: Case) -> list[str]:
    """What is farther off than the table allows, and than a norm makes of it."""
    lines = disagreements(got, want)
    if not any(name.startswith("norm") for name in case.options):
        return lines
    allowed = {
        line.split(" is off")[0]: float(line.rsplit(" ", 1)[1]) * NORMED for line in lines if "is off" in line
    }
    return [
        line
        for line in lines
        if (name := line.split(" is off")[0]) not in allowed
        or distance(got[name], want[name]) > allowed[name]
    ]


@pytest.mark.parametrize("case", EACH + MANY, ids=str)
def test_agrees_with_the_reference_in_float64(kernels: KernelSet, case: Case) -> None:
    assert not far(run(kernels, case.cell, draw(case)).all, wanted(case).all, case)


@pytest.mark.parametrize("case", SIZES, ids=str)
def test_agrees_at_every_size(exact: KernelSet, case: Case) -> None:
    assert not far(run(exact, case.cell, draw(case)).all, wanted(case).all, case)


@pytest.mark.parametrize("case", EACH, ids=str)
def test_an_option_changes_the_result(case: Case) -> None:
    """Else nothing here would see it."""
    data = draw(case)
    hidden = wanted(case).all["trace.hidden"]
    plain = case._replace(options=tuple(name for name in case.options if name == "projection"))
    without = data._replace(
        weights=tuple(
            w._replace(peephole=None, norm_input=None, norm_recurrent=None, norm_cell=None)
            for w in data.weights
        ),
        zoneout=None,
        clips=None,
    )
    if plain.options == case.options:
        assert hidden.shape[-1] < case.hidden
        return
    other = run(REFERENCE, case.cell, with_dtype(without, "float64")).all["trace.hidden"]
    assert distance(hidden, other) > 1e-3


@pytest.mark.parametrize("case", EACH, ids=str)
def test_infer_returns_the_hidden_states_of_forward(kernels: KernelSet, case: Case) -> None:
    data = draw(case)
    trace, final = forward(kernels, case.cell, data)
    want = named(trace.hidden, "trace.hidden") | named(final, "final")
    assert not differences(kernels, infer(kernels, case.cell, data), want)


@pytest.mark.parametrize("case", EACH, ids=str)
def test_outputs_are_written_in_full_and_nothing_beside_them(
    exact: KernelSet, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = draw(case)
    guarded = Guarded()
    with monkeypatch.context() as patched:
        patched.setattr(exact.kernels, "empty", guarded)
        got = run(exact, case.cell, data).all
        infer(exact, case.cell, data)
    assert guarded.intact()
    assert not any(np.isnan(output).any() for output in guarded.outputs())
    assert not differing_bits(got, run(exact, case.cell, data).all)


@pytest.mark.parametrize("case", EACH, ids=str)
def test_a_sample_alone_equals_the_sample_in_a_batch(exact: KernelSet, case: Case) -> None:
    data = draw(case)
    assert data.lengths is not None
    together = run(exact, case.cell, data).all
    for b in range(case.batch):
        length = int(data.lengths[b])
        single = run(exact, case.cell, alone(data, b, 0, length)).all
        assert not differing_bits(of_sequence(together, b, 0, length), of_sequence(single, 0))


@pytest.mark.parametrize("case", HEAVY, ids=str)
def test_no_result_depends_on_the_number_of_threads(exact: KernelSet, case: Case) -> None:
    data = draw(case)
    with threads(exact, 1):
        want = run(exact, case.cell, data).all
    for count in (2, 3, 5):
        with threads(exact, count):
            assert not differing_bits(run(exact, case.cell, data).all, want), count
            got = infer(exact, case.cell, data)
            assert not differing_bits(got, {name: want[name] for name in got}), count


@pytest.mark.parametrize("case", TOGETHER, ids=str)
def test_a_sequence_cut_in_two_is_the_whole(kernels: KernelSet, case: Case) -> None:
    case = case._replace(directions=1)
    data = draw(case)
    assert data.lengths is not None
    assert data.resets is not None
    assert data.zoneout is not None
    at = case.time // 2
    pieces = []
    state = data.state
    for steps, lengths in (
        (slice(None, at), np.minimum(data.lengths, at)),
        (slice(at, None), np.maximum(data.lengths - at, 0)),
    ):
        piece = data._replace(
            x=data.x[steps],
            state=state,
            lengths=lengths,
            resets=data.resets[steps],
            zoneout=timed_state(data.zoneout, steps, slice(None)),
        )
        trace, state = forward(kernels, case.cell, piece)
        pieces.append(named(trace, "trace"))
    joined = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    joined |= named(state, "final")
    want = run(kernels, case.cell, data).all
    assert not differences(kernels, joined, {name: want[name] for name in joined})


@pytest.mark.parametrize("case", EACH, ids=str)
def test_padding_is_never_read_and_0_past_the_end(kernels: KernelSet, case: Case) -> None:
    data = draw(case)
    assert data.lengths is not None
    padding = np.arange(case.time)[:, None] >= data.lengths[None, :]

    def spoiled(array: Floats) -> Floats:
        array = array.copy()
        array[padding] = np.nan
        return array

    def shares(state: State | None) -> State | None:
        return None if state is None else State(*(None if part is None else spoiled(part) for part in state))

    worse = data._replace(
        x=spoiled(data.x),
        d_hidden=None if data.d_hidden is None else spoiled(data.d_hidden),
        zoneout=shares(data.zoneout),
    )
    want, got = run(kernels, case.cell, data).all, run(kernels, case.cell, worse).all
    assert not differences(kernels, got, want)
    for name, array in got.items():
        if name.startswith(("trace", "flow", "d_x")):
            assert not array[padding].any(), name


@pytest.mark.parametrize("case", TOGETHER, ids=str)
def test_nan_stays_in_its_sample(kernels: KernelSet, case: Case) -> None:
    data = draw(case)
    assert data.lengths is not None
    assert data.zoneout is not None
    b, t = int(np.argmax(data.lengths)), case.time // 2
    want = run(kernels, case.cell, data).all
    for array in (data.x, *(part for part in data.zoneout if part is not None)):
        kept = array[t, b].copy()
        array[t, b] = np.nan
        got = run(kernels, case.cell, data).all
        array[t, b] = kept
        assert any(np.isnan(part).any() for part in of_sequence(got, b).values())
        for other in set(range(case.batch)) - {b}:
            assert not differences(kernels, of_sequence(got, other), of_sequence(want, other)), other


@pytest.mark.parametrize("case", TOGETHER, ids=str)
@pytest.mark.parametrize(("time", "batch"), [(0, 3), (4, 0)])
def test_no_time_steps_and_no_sequences_are_legal(
    kernels: KernelSet, case: Case, time: int, batch: int
) -> None:
    bare = case._replace(
        time=max(time, 1), batch=max(batch, 1), lengths=False, resets=False, reset_state=False
    )
    data = draw(bare)
    assert data.zoneout is not None

    def rows(state: State | None) -> State | None:
        return (
            None if state is None else State(*(None if part is None else part[:, :batch] for part in state))
        )

    data = data._replace(
        x=data.x[:time, :batch],
        state=rows(data.state),
        recurrent_mask=None,
        d_hidden=None if data.d_hidden is None else data.d_hidden[:time, :batch],
        d_state=rows(data.d_state),
        zoneout=timed_state(data.zoneout, slice(time), slice(batch)),
    )
    ran = run(kernels, case.cell, data).all
    for name, array in (named(data.state, "final") | named(data.d_state, "d_state")).items():
        assert np.array_equal(ran[name], array), name
    for name, array in ran.items():
        assert not name.startswith("d_weights") or not array.any(), name


@pytest.mark.parametrize("case", [_case(cell, ()) for cell in Cell], ids=str)
def test_zoneout_of_nothing_and_bounds_out_of_reach_are_the_plain_cell(exact: KernelSet, case: Case) -> None:
    """To the bit: the sweep with options is the plain one."""
    data = draw(case)
    shares = (case.time, case.batch, case.directions, case.hidden)
    nothing = np.zeros(shares, np.float32)
    clips = {name: 1e6 for name in CLIPS if name == "preactivation_clip" or case.cell is Cell.LSTM}
    other = data._replace(zoneout=State(nothing, nothing if case.cell is Cell.LSTM else None), clips=clips)
    got, want = run(exact, case.cell, other).all, run(exact, case.cell, data).all
    # 0 times something negative is -0, which is 0.
    assert not differing_bits({n: a + 0 for n, a in got.items()}, {n: a + 0 for n, a in want.items()})


def _patches(case: Case) -> dict[str, Trace]:
    rng = np.random.default_rng(7)
    across = (case.time, case.batch, case.directions)
    shapes = {"gates": (*across, len(case.cell.gates), case.hidden), "hidden": (*across, case.output)}
    if case.cell is Cell.LSTM:
        shapes["cell"] = (*across, case.hidden)
    made = {}
    for name, shape in shapes.items():
        array = np.where(rng.random(shape) < 0.2, rng.uniform(-1, 1, shape), np.nan).astype(np.float32)
        made[name] = Trace(**({"gates": None, "hidden": None} | {name: array}))
    return made


@pytest.mark.parametrize("case", [_case(cell, ()) for cell in Cell] + list(TOGETHER), ids=str)
def test_a_patch_takes_a_values_place(exact: KernelSet, case: Case) -> None:
    data = draw(case)
    prepared = prepare(exact, case.cell, data)
    double = with_dtype(data, "float64")
    reference = prepare(REFERENCE, case.cell, double)
    plain, _ = forward(exact, case.cell, data, prepared)
    for name, patch in _patches(case).items():
        trace, final = exact.kernels.forward(prepared, data.x, data.state, **options(data), patch=patch)
        hidden, _ = exact.kernels.infer(prepared, data.x, data.state, **options(data), patch=patch)
        assert hidden.tobytes() == trace.hidden.tobytes()
        wide = Trace(*(None if part is None else part.astype("float64") for part in patch))
        want = REFERENCE.kernels.forward(reference, double.x, double.state, **options(double), patch=wide)
        got = named(trace, "trace") | named(final, "final")
        assert not far(got, named(want[0], "trace") | named(want[1], "final"), case), name
        assert getattr(trace, name).tobytes() != getattr(plain, name).tobytes()


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
@pytest.mark.parametrize("name", ["peephole", "projection", "norm_input", "norm_cell", "cell_clip"])
def test_a_narrow_precision_refuses_an_option_by_name(kernels: KernelSet, precision: str, name: str) -> None:
    data: Data = draw(_case(Cell.LSTM, (name,)))
    weights = [type(w)(*(None if part is None else kernels.give(part) for part in w)) for w in data.weights]
    with pytest.raises(InputError, match=f"{name} does not run in {precision}"):
        kernels.kernels.prepare(Cell.LSTM, weights, precision=precision, **(data.clips or {}))


@pytest.mark.parametrize("case", TOGETHER, ids=str)
def test_a_second_backward_pass_returns_the_same(kernels: KernelSet, case: Case) -> None:
    data = draw(case)
    trace, _ = forward(kernels, case.cell, data)
    first = backward(kernels, case.cell, data, trace)
    assert not differences(kernels, backward(kernels, case.cell, data, trace), first)
