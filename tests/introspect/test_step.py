"""One step taken apart adds up to what the kernels kept; a unit's pattern is found where it was planted."""

import numpy as np
import pytest
import torch

import networks
from unspool import introspect, nn
from unspool.errors import InputError
from unspool.kernels.contract import Cell, Gate

TEXT = "the film was not dull , it was quietly moving"


@pytest.mark.parametrize("cell", networks.CELLS)
@pytest.mark.parametrize("direction", [0, 1])
@pytest.mark.parametrize("at", [0, 4, -1])
def test_the_parts_add_up_to_the_gates_and_the_products_to_the_states(
    cell: str, direction: int, at: int
) -> None:
    model = networks.build(cell, 2).model
    recording = introspect.record(model, TEXT)
    for layer in (0, 1):
        step = introspect.one_step(model, TEXT, at=at, layer=layer, direction=direction)
        place = {"layer": layer, "direction": direction}
        z = step.preactivation.astype(np.float64)
        for g, gate in enumerate(step.cell_kind.gates):
            squash = np.tanh if gate is Gate.CANDIDATE else lambda a: 1 / (1 + np.exp(-a))
            if cell == "rnn_relu":
                squash = lambda a: np.maximum(a, 0)  # noqa: E731
            np.testing.assert_allclose(squash(z[g]), step.gates[g], atol=1e-5)
            np.testing.assert_array_equal(step.gates[g], recording.gate(gate, **place)[at])
        np.testing.assert_array_equal(step.hidden, recording.hidden(**place)[at])
        gates = dict(zip(step.cell_kind.gates, step.gates, strict=True))
        if step.cell_kind is Cell.LSTM:
            assert step.cell is not None
            assert step.c_prev is not None
            kept, written = gates[Gate.FORGET] * step.c_prev, gates[Gate.INPUT] * gates[Gate.CANDIDATE]
            np.testing.assert_allclose(kept + written, step.cell, atol=1e-5)
            np.testing.assert_allclose(gates[Gate.OUTPUT] * np.tanh(step.cell), step.hidden, atol=1e-5)
        elif step.cell_kind is Cell.GRU:
            u = gates[Gate.UPDATE]
            want = u * step.h_prev + (1 - u) * gates[Gate.CANDIDATE]
            np.testing.assert_allclose(want, step.hidden, atol=1e-5)


def test_a_step_that_is_not_there_is_refused() -> None:
    model = networks.build().model
    for given in ({"at": 99}, {"at": 0, "layer": 3}, {"at": 0, "direction": 2}):
        with pytest.raises(InputError, match="there is no"):
            introspect.one_step(model, TEXT, **given)


def test_a_units_pattern_is_found_where_it_holds_and_nowhere_else() -> None:
    model = networks.build().model
    texts = ["not bad", "", "the film was fine", "it was not not good"]

    def take(recording: introspect.Recording) -> np.ndarray:
        return recording.hidden()

    values = [take(introspect.record(model, text))[:, 2] if text else np.zeros(0) for text in texts]
    bound = float(np.median(np.concatenate(values)))
    for above in (True, False):
        found = introspect.stretches(model, texts, take, 2, bound, above=above)
        covered = {(s.text, t) for s in found for t in range(s.first, s.last + 1)}
        wanted = {
            (n, t)
            for n, row in enumerate(values)
            for t, value in enumerate(row)
            if (value >= bound if above else value <= bound)
        }
        assert covered == wanted
        assert all(s.mean == pytest.approx(values[s.text][s.first : s.last + 1].mean()) for s in found)
        long = introspect.stretches(model, texts, take, 2, bound, above=above, shortest=2)
        assert long == [s for s in found if s.last > s.first]
    with pytest.raises(InputError, match="no unit 6"):
        introspect.stretches(model, texts, take, 6, 0.0)
    with pytest.raises(InputError, match="1 or more"):
        introspect.stretches(model, texts, take, 0, 0.0, shortest=0)


def test_the_growing_sum_ends_in_the_gradient_and_starts_with_the_last_term() -> None:
    torch.manual_seed(0)
    terms = introspect.gradient_terms(nn.LSTM(2, 3), torch.randn(7, 2), at=6)
    growing = terms.growing()
    assert growing[0] == pytest.approx(np.linalg.norm(terms.total()))
    assert growing[6] == pytest.approx(terms.norms[6])
    assert growing[4] == pytest.approx(np.linalg.norm(terms.term(4) + terms.term(5) + terms.term(6)))


def test_a_failure_report_names_its_place_without_the_model() -> None:
    torch.manual_seed(0)
    layer = nn.LSTM(2, 4, 2, bidirectional=True)
    x = torch.randn(9, 2, 2)
    x[7, 1, 0] = torch.inf
    with introspect.capture(layer) as taken, torch.no_grad():
        layer(x)
    want = introspect.locate_captured(layer, taken)
    found = introspect.locate_recorded(taken)
    assert want is not None
    assert found is not None
    assert (found.kind, found.what, found.layer, found.direction, found.step, found.sample, found.unit) == (
        (want.kind, want.what, want.layer, want.direction, want.step, want.sample, want.unit)
    )
    assert np.isnan(found.spectral_norm)
