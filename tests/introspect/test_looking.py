"""Saturation, span of memory, faults and interventions: planted, and found where they were planted."""

from typing import Any

import numpy as np
import pytest
import torch

import networks
from unspool import introspect, nn
from unspool.errors import InputError
from unspool.kernels.contract import Cell, Gate


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("directions", [1, 2])
def test_what_follows_changes_the_reverse_reading_alone(directions: int, layers: int) -> None:
    model = networks.build("lstm", layers, directions == 2).model
    found = introspect.right_context(model, "the movie was terribly exciting")
    assert len(found.words) == 5
    if directions == 1:
        assert found.reverse is None
        assert (found.forward == 0).all()
        assert "one direction" in str(found)
        return
    assert found.reverse is not None
    assert (found.reverse[:-1] > 0).all()
    assert found.reverse[-1] == 0
    if layers == 1:
        assert (found.forward == 0).all()
        assert "nothing, to the bit" in str(found)
    whole = model.run(model.embed(model.encode(["the movie was terribly exciting"]).tokens), np.array([5]))
    cut = model.run(model.embed(model.encode(["the movie was terribly"]).tokens), np.array([4]))
    apart = np.linalg.norm(whole[3, 0, 1] - cut[3, 0, 1]) / np.linalg.norm(whole[3, 0, 1])
    assert found.reverse[3] == pytest.approx(apart)


def test_saturation_is_counted_over_real_steps() -> None:
    torch.manual_seed(0)
    layer = nn.LSTM(3, 4)
    with torch.no_grad():
        layer.bias_ih_l0[4] = 100.0  # the forget gate of unit 0 is wide open
        layer.bias_ih_l0[0 + 1] = -100.0  # the input gate of unit 1 is shut
    found = {
        s.gate: s for s in introspect.saturation(layer, torch.randn(9, 2, 3), lengths=torch.tensor([9, 1]))
    }
    assert found[Gate.FORGET].high == pytest.approx(0.25)
    assert found[Gate.FORGET].units.tolist() == [1, 0, 0, 0]
    assert found[Gate.INPUT].low == pytest.approx(0.25)
    assert found[Gate.OUTPUT].low == found[Gate.OUTPUT].high == 0


@pytest.mark.parametrize("chosen", ["proj_size", "layer_norm", "peephole", "zoneout", "cell_clip"])
@pytest.mark.parametrize("batch_first", [False, True])
def test_a_layer_with_options_is_looked_at_without_derivatives(chosen: str, batch_first: bool) -> None:
    """Its gates are those of its trace, as it answers: in eval mode, zoneout by its mean."""
    option: Any = {"proj_size": 3, "zoneout": 0.3, "cell_clip": 0.2}.get(chosen, True)
    torch.manual_seed(0)
    layer = nn.LSTM(3, 4, 2, batch_first=batch_first, bidirectional=True, **{chosen: option})
    x, lengths = torch.randn(2, 9, 3) if batch_first else torch.randn(9, 2, 3), torch.tensor([9, 2])
    wanted = layer.eval().trace(x, lengths=lengths)
    layer.train()
    taken = introspect.record(layer, x.numpy().astype(np.float64), lengths=lengths)
    for ours, theirs in zip(taken[""].traces, wanted, strict=True):
        assert np.array_equal(ours.gates, theirs.gates.numpy())
        assert np.array_equal(ours.hidden, theirs.hidden.numpy())
    real = np.arange(9)[:, None] < lengths.numpy()
    for s in introspect.saturation(layer, x, lengths=lengths):
        gate = wanted[s.layer].gates[:, :, s.direction, list(Cell.LSTM.gates).index(s.gate)].numpy()[real]
        assert s.high == pytest.approx((gate > 0.95).mean())
    assert {(s.layer, s.direction) for s in introspect.memory_span(layer, x)} == {
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    }
    for span in introspect.memory_span(layer, x, lengths=lengths):
        forget = (
            wanted[span.layer].gates[:, :, span.direction, list(Cell.LSTM.gates).index(Gate.FORGET)].numpy()
        )
        assert span.steps == pytest.approx(-1 / np.log(forget[real].astype(np.float64)).mean(0))
    assert layer.training
    for look, where in (
        (introspect.gradient_flow, {"at": 3}),
        (introspect.gradient_terms, {"at": 3}),
        (introspect.jacobian, {"at": 3, "of": 1}),
    ):
        for given in (layer, torch.nn.Sequential(layer)):
            with pytest.raises(InputError, match=f"derivatives(.|\n)*{chosen}(.|\n)*record, saturation"):
                look(given, x, **where)  # type: ignore[operator]


@pytest.mark.parametrize(("kind", "first"), [(nn.LSTM, 2), (nn.GRU, 2)])
def test_a_gate_of_e_to_the_minus_one_over_n_remembers_for_n_steps(kind: Any, first: int) -> None:
    layer = kind(3, 2)
    wanted = np.array([20.0, 3.0])
    keep = np.exp(-1 / wanted)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.bias_ih_l0[first : first + 2] = torch.from_numpy(np.log(keep / (1 - keep))).float()
    (found,) = introspect.memory_span(layer, torch.randn(30, 3))
    np.testing.assert_allclose(found.steps, wanted, rtol=1e-4)
    assert found.median == pytest.approx(11.5, rel=1e-4)
    with pytest.raises(InputError, match="no gate that keeps"):
        introspect.memory_span(nn.RNN(3, 2), torch.randn(4, 3))


@pytest.mark.parametrize("seed", range(100))
def test_a_planted_nan_is_located(seed: int) -> None:
    """In the input, or in a state or gate by a patch; or in a weight."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    kind = (nn.RNN, nn.LSTM, nn.GRU)[seed % 3]
    layer = kind(3, 5, 2, bidirectional=bool(rng.integers(2)))
    x = torch.randn(11, 3, 3)
    lengths = torch.tensor([11, 7, 9])
    assert introspect.locate(layer, x, lengths=lengths) is None
    bad = float(rng.choice([np.nan, np.inf, -np.inf]))
    if seed % 2:
        names = [name for name, _ in layer.named_parameters()]
        name = str(rng.choice(names))
        with torch.no_grad():
            getattr(layer, name).view(-1)[0] = bad
        fault = introspect.locate(layer, x, lengths=lengths)
        assert fault is not None
        assert (fault.layer, fault.direction) == (int(name.split("_l")[1][0]), int("reverse" in name))
        assert "weights" in fault.what
    else:
        b = int(rng.integers(3))
        t, i = int(rng.integers(int(lengths[b]))), int(rng.integers(3))
        x[t, b, i] = bad
        fault = introspect.locate(layer, x, lengths=lengths)
        assert fault is not None
        assert (fault.what, fault.layer, fault.step, fault.sample, fault.unit) == ("the input", 0, t, b, i)
        assert len(fault.norms) == min(t, 5)
        assert np.isfinite(fault.spectral_norm)
    assert fault.kind == "not finite"
    assert str(fault).startswith("not finite: the ")


def test_a_nan_past_a_sequences_end_is_none() -> None:
    x = torch.randn(5, 2, 3)
    x[4, 1] = np.nan
    assert introspect.locate(nn.LSTM(3, 4), x, lengths=torch.tensor([5, 4])) is None


def test_an_exploding_state_is_located_where_it_first_is_too_large() -> None:
    layer = nn.RNN(2, 2, nonlinearity="relu")
    with torch.no_grad():
        layer.weight_hh_l0.copy_(torch.eye(2) * 10)
        layer.weight_ih_l0.fill_(1.0)
        layer.bias_ih_l0.zero_()
        layer.bias_hh_l0.zero_()
    fault = introspect.locate(layer, torch.ones(12, 1, 2))
    assert fault is not None
    assert (fault.kind, fault.step, fault.spectral_norm) == ("exploding", 6, pytest.approx(10))
    assert (np.diff(fault.norms) > 0).all()


@pytest.mark.parametrize("direction", [0, 1])
def test_a_fault_says_what_led_there(direction: int) -> None:
    """The sizes of the sample's state over the five steps read before; its weights' largest factor."""
    torch.manual_seed(0)
    layer = nn.GRU(3, 5, 2, bidirectional=True)
    x, lengths = torch.randn(12, 3, 3), torch.tensor([12, 10, 11])
    with torch.no_grad():
        out = layer(x, lengths=lengths)[0]
    run = introspect.patch(
        layer, x, "hidden", np.array([[[1.0], [np.inf], [0.0]]]), lengths=lengths,
        steps=[6], units=[2], level=1, direction=direction,
    )  # fmt: skip
    fault = introspect.locate(layer, run)
    assert fault is not None
    assert (fault.layer, fault.direction, fault.step, fault.sample) == (1, direction, 6, 1)
    read_before = [1, 2, 3, 4, 5] if direction == 0 else [9, 8, 7]  # of 10 steps
    own = out[:, 1, direction * 5 : direction * 5 + 5].norm(dim=1)
    np.testing.assert_allclose(fault.norms, own[read_before], rtol=1e-5)
    weights = layer.get_parameter("weight_hh_l1" + "_reverse" * direction).detach()
    assert fault.spectral_norm == pytest.approx(float(torch.linalg.matrix_norm(weights, 2)), rel=1e-5)
    said = str(fault)
    assert f"largest singular value: {fault.spectral_norm:.4g}" in said
    assert ", ".join(f"{norm:.3g}" for norm in fault.norms) in said


@pytest.mark.parametrize("seed", range(100))
def test_a_planted_saturated_gate_is_located(seed: int) -> None:
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    kind, gates = ((nn.LSTM, 4), (nn.GRU, 3))[seed % 2]
    layer = kind(3, 5, 2, bidirectional=bool(rng.integers(2)))
    k, d = int(rng.integers(2)), int(rng.integers(2 if layer.bidirectional else 1))
    g, unit = int(rng.integers(gates)), int(rng.integers(5))
    with torch.no_grad():
        getattr(layer, f"bias_ih_l{k}" + "_reverse" * d)[g * 5 + unit] = float(rng.choice([-60.0, 60.0]))
    fault = introspect.locate(layer, torch.randn(8, 2, 3), saturated=True)
    assert fault is not None
    assert (fault.kind, fault.layer, fault.direction, fault.unit) == ("saturated", k, d, unit)
    names = {
        4: ("input gate", "forget gate", "candidate", "output gate"),
        3: ("reset gate", "update gate", "candidate"),
    }
    assert fault.what == f"the {names[gates][g]}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_patched_gate_is_what_the_run_had(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    layer = nn.LSTM(3, 4, 2, bidirectional=True).to(dtype)
    x = torch.randn(6, 2, 3, dtype=dtype)
    ran = introspect.patch(layer, x, Gate.FORGET, 0.25, steps=[2, 3], units=[1], level=0, direction=1)
    gates = ran.traces[0].gates
    assert (gates[2:4, :, 1, Gate.FORGET, 1] == 0.25).all()
    plain = introspect.stack.of(layer).forward(x.numpy())
    assert not (plain.traces[0].gates[2:4, :, 1, Gate.FORGET, 1] == 0.25).any()
    np.testing.assert_allclose(gates[:, :, 0], plain.traces[0].gates[:, :, 0], atol=1e-6)
    assert np.abs(ran.traces[1].hidden - plain.traces[1].hidden).max() > 1e-4
    silent = introspect.ablate(layer, x, "hidden", direction=0)
    assert (silent.traces[1].hidden[:, :, 0] == 0).all()
    kept = introspect.ablate(layer, x, "cell", steps=[0])
    assert (kept.traces[1].cell[0, :, 0] == 0).all()


def test_what_cannot_be_set_is_refused() -> None:
    layer, x = nn.GRU(3, 4), torch.randn(5, 3)
    for arguments, said in (
        (("cell", 0.0), "a gru has no cell"),
        ((Gate.FORGET, 0.0), "has no"),
        (("hidden", np.zeros((2, 3))), "does not fit"),
        (("hidden", np.nan), "cannot be NaN"),
    ):
        with pytest.raises(InputError, match=said):
            introspect.patch(layer, x, *arguments)  # type: ignore[arg-type]
    for where in ({"steps": [5]}, {"steps": [0, 0]}, {"units": [-1]}, {"units": [0.5]}):
        with pytest.raises(InputError, match="different whole numbers"):
            introspect.ablate(layer, x, "hidden", **where)
