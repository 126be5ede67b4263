"""What a model's own layers computed while they ran: the same bits, gates, flows, files, faults, monitors."""

import copy
import gc
import weakref
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

import unspool
from unspool import files, introspect, nn
from unspool.errors import InputError, ModelFileError
from unspool.introspect import monitor as monitoring
from unspool.kernels.contract import Gate


class Network(torch.nn.Module):
    """Two recurrent layers of unlike kinds under a user's names."""

    def __init__(self, kind: Any = nn.LSTM) -> None:
        super().__init__()
        self.encoder = kind(3, 5, 2, bidirectional=True, batch_first=True)
        self.head = torch.nn.ModuleDict({"reader": nn.GRU(10, 4)})

    def forward(self, x: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        h, _ = self.encoder(x, lengths=lengths)
        return self.head["reader"](h.transpose(0, 1), lengths=lengths)[0]  # type: ignore[no-any-return]


def drawn() -> tuple[Network, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return Network(), torch.randn(4, 9, 3), torch.tensor([9, 1, 5, 0])


@pytest.mark.parametrize("gradients", [False, True])
def test_a_captured_model_computes_the_same_bits(gradients: bool) -> None:
    model, x, lengths = drawn()
    found = []
    for tapped in (False, True):
        with torch.set_grad_enabled(gradients):
            if tapped:
                with unspool.capture(model):
                    out = model(x, lengths)
            else:
                out = model(x, lengths)
        if gradients:
            model.zero_grad()
            out.sum().backward()
            found.append([out.detach(), *(p.grad for p in model.parameters())])
        else:
            found.append([out])
    for off, on in zip(*found, strict=True):
        assert torch.equal(off, on)


def test_it_holds_every_gate_state_and_flow_by_the_modules_names(tmp_path: Path) -> None:
    model, x, lengths = drawn()
    with unspool.capture(model) as recording:
        model(x, lengths).sum().backward()
    assert recording.names == ("encoder", "head.reader")
    alone = introspect.stack.of(model.encoder).forward(
        np.ascontiguousarray(x.numpy().swapaxes(0, 1)), lengths
    )
    encoder = recording["encoder"]
    for kept, want in zip(encoder.traces, alone.traces, strict=True):
        for part, wanted in zip(kept, want, strict=True):
            assert (part is None) is (wanted is None)
            if part is not None:
                np.testing.assert_array_equal(part, wanted)
    assert encoder.gate(Gate.FORGET, layer=0, direction=1).shape == (9, 4, 5)
    assert (encoder.gate(Gate.FORGET)[1:, 1] == 0).all()
    flow = recording["head.reader"].flows[0]
    assert flow is not None
    assert (flow.d_hidden[8, 0] == 1).all()  # nothing but the sum itself reaches the last step
    assert "encoder: lstm" in str(recording)
    recording.save(tmp_path / "capture.safetensors")
    again = introspect.Capture.load(tmp_path / "capture.safetensors")
    assert again.names == recording.names
    np.testing.assert_array_equal(again["encoder"].hidden(direction=1), encoder.hidden(direction=1))
    np.testing.assert_array_equal(again["head.reader"].flows[0].d_hidden, flow.d_hidden)  # type: ignore[union-attr]
    np.testing.assert_array_equal(again["encoder"].lengths, lengths)


def test_what_the_caller_writes_afterwards_does_not_reach_the_recording() -> None:
    layer, x = nn.LSTM(2, 3), torch.randn(4, 1, 2)
    with torch.no_grad(), unspool.capture(layer) as recording:
        out, _ = layer(x)
        kept = out.clone()
        out.zero_()
        x.zero_()
    assert recording.names == ("",)
    np.testing.assert_array_equal(recording[""].hidden()[:, 0], kept[:, 0])
    assert recording[""].inputs[0].any()


def same(ours: Any, theirs: Any) -> None:
    """The same arrays, bit for bit, in the same places."""
    assert type(ours) is type(theirs)
    if isinstance(ours, np.ndarray):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    elif isinstance(ours, introspect.Reading):
        same(vars(ours), vars(theirs))
    elif isinstance(ours, dict):
        assert list(ours) == list(theirs)
        same(list(ours.values()), list(theirs.values()))
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            same(one, other)
    else:
        assert ours == theirs


@pytest.mark.parametrize("form", ["time first", "batch first", "one sequence", "with gaps", "ragged"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("stated", [False, True])
@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_small_calls_are_recorded_as_the_general_way_records_them(
    kind: Any, stated: bool, layers: int, bidirectional: bool, bias: bool, form: str
) -> None:
    torch.manual_seed(3)
    layer = kind(5, 7, layers, bias=bias, bidirectional=bidirectional, batch_first=form == "batch first")
    general = copy.deepcopy(layer)
    general._small = ()
    x = {
        "time first": torch.randn(6, 4, 5),
        "ragged": torch.randn(6, 4, 5),
        "batch first": torch.randn(1, 6, 5),
        "one sequence": torch.randn(6, 5),
        "with gaps": torch.randn(4, 6, 10).swapaxes(0, 1)[..., ::2],
    }[form]
    rows = (layers * (2 if bidirectional else 1), *{2: (), 3: (x.size(1),)}[x.dim()], 7)
    if form == "batch first":
        rows = (rows[0], 1, 7)
    parts = [torch.randn(rows) for _ in range(2 if kind is nn.LSTM else 1)]
    hx = None if not stated else tuple(parts) if kind is nn.LSTM else parts[0]
    lengths = torch.tensor([2, 6, 0, 3]) if form == "ragged" else None
    found = []
    with torch.no_grad():
        plain = layer(x, hx, lengths=lengths)
        for one in (layer, general):
            with unspool.capture(one) as recording:
                if one is layer:
                    with patch.object(one, "_run", side_effect=AssertionError):  # the general way
                        results = one(x, hx, lengths=lengths)
                else:
                    results = one(x, hx, lengths=lengths)
            (reading,) = recording.readings[""]
            found.append((results, reading))
    (ours, short), (theirs, long) = found
    for results in (ours, theirs):
        for off, on in zip(flat(plain), flat(results), strict=True):
            assert torch.equal(off, on)
    same(short, long)


def flat(results: Any) -> list[torch.Tensor]:
    return [results] if isinstance(results, torch.Tensor) else [t for part in results for t in flat(part)]


@pytest.mark.parametrize("steps", [3, 300])  # below and above the memory that the engine keeps
def test_what_the_caller_writes_after_a_small_call_does_not_reach_the_recording(steps: int) -> None:
    layer = nn.LSTM(64, 64, 2)
    general = copy.deepcopy(layer)
    general._small = ()
    x, hx = torch.randn(steps, 1, 64), (torch.randn(2, 1, 64), torch.randn(2, 1, 64))
    found = []
    for one in (layer, general):
        mine = [part.clone() for part in (x, *hx, torch.tensor([steps - 1]))]
        with torch.no_grad(), unspool.capture(one) as recording:
            out, final = one(mine[0], (mine[1], mine[2]), lengths=mine[3])
            for part in (*mine, out, *final):
                part.zero_()
        found.append(recording[""])
    assert found[0].inputs[0].any()
    same(*found)


@pytest.mark.parametrize("read", [False, True])
def test_a_capture_that_nobody_has_any_more_is_gone_at_once(read: bool) -> None:
    """Without the collector of cycles: its memory is the next one's."""
    layer, x = nn.LSTM(3, 4), torch.randn(5, 1, 3)
    gc.disable()
    try:
        with torch.no_grad(), unspool.capture(layer) as recording:
            layer(x)
        if read:
            assert recording[""].traces
        tap = weakref.ref(recording._taps[0])
        del recording
        assert tap() is None
    finally:
        gc.enable()


def test_calls_are_recorded_in_the_order_in_which_they_ran() -> None:
    """Small ones, and between them one of which a gradient is asked, and one with resets."""
    layer = nn.GRU(3, 4)
    given = [torch.randn(steps, 2, 3) for steps in (1, 2, 3, 4, 5)]
    with unspool.capture(layer) as recording:
        for k, x in enumerate(given):
            with torch.set_grad_enabled(k == 1):
                layer(x, resets=torch.zeros(4, 2, dtype=torch.bool) if k == 3 else None)
            if k != 2:  # read between, or not
                assert len(recording[""].inputs[0]) == k + 1
    calls = recording.readings[""]
    assert len(calls) == 5
    for x, reading in zip(given, calls, strict=True):
        np.testing.assert_array_equal(reading.inputs[0], x)


def test_a_call_whose_upper_layer_is_no_small_one_is_recorded_once() -> None:
    layer, x = nn.LSTM(3, 4, 2), torch.randn(5, 1, 3)
    whole = layer.weight_hh_l1.detach()
    layer.weight_hh_l1 = torch.nn.Parameter(torch.stack([whole, whole], -1)[..., 0])
    with torch.no_grad(), unspool.capture(layer) as recording:
        layer(x)
    (reading,) = recording.readings[""]
    assert len(reading.traces) == 2


def test_taps_are_gone_after_the_block_even_where_it_fails() -> None:
    model, x, _ = drawn()
    with pytest.raises(ZeroDivisionError), unspool.capture(model):
        raise ZeroDivisionError
    assert model.encoder.tap is None
    with unspool.capture(model) as recording:
        pass
    model(x)
    with pytest.raises(InputError, match="has not run"):
        recording["encoder"]


def test_what_does_not_exist_is_refused(tmp_path: Path) -> None:
    model, x, _ = drawn()
    with (
        pytest.raises(InputError, match=r"no recurrent layer of unspool.nn"),
        unspool.capture(torch.nn.LSTM(2, 3)),
    ):
        pass
    with pytest.raises(InputError, match="no torch module"), unspool.capture("model"):
        pass
    with unspool.capture(model) as recording:
        with pytest.raises(InputError, match="captured already"), unspool.capture(model):
            pass
        model(x)
    with pytest.raises(InputError, match=r"'encoder', 'head\.reader'"):
        recording["decoder"]
    with pytest.raises(InputError, match="no layer 2"):
        recording["encoder"].gate(Gate.INPUT, layer=2)
    with pytest.raises(InputError, match="no such gate"):
        recording["head.reader"].gate(Gate.FORGET)
    with pytest.raises(InputError, match="another model"):
        introspect.locate_captured(nn.LSTM(3, 5), recording)
    with pytest.raises(InputError, match="another model"):
        introspect.locate_captured(Network(nn.GRU), recording)
    (tmp_path / "broken").write_bytes(b"nothing")
    with pytest.raises(ModelFileError):
        introspect.Capture.load(tmp_path / "broken")


def test_a_file_whose_arrays_do_not_fit_is_no_capture(tmp_path: Path) -> None:
    path = tmp_path / "capture.safetensors"
    for made, missing in ((nn.LSTM, "cell"), (nn.GRU, "recurrent_candidate")):
        layer = made(3, 4, 2)
        with unspool.capture(layer) as recording:
            layer(torch.randn(5, 2, 3, requires_grad=True))[0].sum().backward()
        recording.save(path)
        whole, about = files.unseal("capture", 1, path)
        about = {"names": about["names"], "cells": about["cells"]}
        assert introspect.Capture.load(path).names == ("",)
        broken: list[tuple[dict[str, Any], dict[str, Any]]] = [
            (whole, {"names": [], "cells": []}),
            (whole, {"names": ["a", "b"], "cells": ["gru"]}),
            (whole, about | {"cells": ["rnn_tanh"]}),
            (whole | {"0.2.hidden": whole["0.1.hidden"]}, about),
            (whole | {"0.lengths": np.array([5, 6])}, about),
            (whole | {"0.lengths": np.array([5])}, about),
            (whole | {"0.lengths": np.array([5.0, 5.0])}, about),
            *(({name: a for name, a in whole.items() if name != gone}, about) for gone in whole),
            *((whole | {name: np.ascontiguousarray(a[:-1])}, about) for name, a in whole.items()),
            *(
                (whole | {name: np.ascontiguousarray(a[..., :-1])}, about)
                for name, a in whole.items()
                if "input" not in name
            ),
            *(
                (whole | {name: np.zeros(a.shape, np.int32)}, about)
                for name, a in whole.items()
                if "hidden" in name
            ),
        ]
        assert f"0.0.{missing}" in whole
        for tensors, said in broken:
            path.write_bytes(files.seal("capture", 1, tensors, said))
            with pytest.raises(ModelFileError, match="is not a capture"):
                introspect.Capture.load(path)


@pytest.mark.parametrize("seed", range(100))
def test_a_nan_planted_between_or_in_the_layers_is_located(seed: int) -> None:
    model, x, lengths = drawn()
    rng = np.random.default_rng(seed)
    b = int(rng.choice([0, 1, 2]))
    t = int(rng.integers(int(lengths[b])))
    if seed % 2:
        x[b, t, 1] = np.nan
        want = ("encoder", "the input", 0, t, b)
    else:  # behind the first module, before the second

        def spoil(module: Any, given: Any, out: Any) -> Any:
            out[0][b, t, 7] = np.inf
            return out

        model.encoder.register_forward_hook(spoil)
        want = ("head.reader", "the input", 0, t, b)
    with torch.no_grad(), unspool.capture(model) as recording:
        model(x, lengths)
    fault = introspect.locate_captured(model, recording)
    assert fault is not None
    assert (fault.module, fault.what, fault.layer, fault.step, fault.sample) == want
    assert want[0] in str(fault)


def test_a_monitor_measures_every_nth_step_and_warns_once() -> None:
    torch.manual_seed(1)
    layer = nn.RNN(2, 16)
    with torch.no_grad():
        layer.weight_hh_l0.mul_(0.2)
    monitor = introspect.Monitor(layer, every=2)
    x = torch.randn(60, 3, 2)
    said, seen = [], []
    for step in range(5):
        with monitor.step(step):
            layer(x)[0][-1].sum().backward()
        seen.append(bool(monitor.numbers))
        said += monitor.warnings
        assert layer.tap is None
    assert seen == [True, False, True, False, True]
    assert len(said) == 1
    assert "vanished" in said[0]
    assert "forget-gate bias" in said[0]
    flow = introspect.gradient_flow(layer, x, at=59)
    with monitor.step(6):
        layer(x[:, :1])[0][-1].sum().backward()
    flow = introspect.gradient_flow(layer, x[:, :1], at=59)
    shares = flow.by_lag() / flow.by_lag()[0]
    assert monitor.numbers["model.0.forward/gradient/lag_5"] == pytest.approx(shares[5], rel=1e-4)
    assert monitor.numbers["model.0.forward/vanished"] == pytest.approx((shares < 1e-4).mean())


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("exploding", ("exploded", "clip the gradient's norm", "shorter window")),
        ("vanishing", ("vanished", "an LSTM or GRU", "forget-gate bias", "shorter window")),
        ("shut", ("of the values of input lie at its ends", "lower learning rate")),
    ],
)
def test_a_monitor_warns_in_words_with_the_remedy(kind: str, said: tuple[str, ...]) -> None:
    torch.manual_seed(1)
    layer: Any = nn.LSTM(2, 8) if kind == "shut" else nn.RNN(2, 8, nonlinearity="relu")
    with torch.no_grad():
        if kind == "shut":
            layer.bias_ih_l0[:8] = -40
        else:
            layer.weight_hh_l0.copy_(torch.eye(8) * (3 if kind == "exploding" else 0.1))
            layer.bias_ih_l0.fill_(5)
    monitor = introspect.Monitor(layer, every=1)
    with monitor.step(0):
        layer(torch.randn(20, 3, 2))[0][-1].sum().backward()
    (text,) = [warning for warning in monitor.warnings if said[0] in warning]
    assert all(part in text.split("Remedy: ")[1] for part in said[1:])


def test_a_monitor_counts_lags_from_each_sequences_own_last_step() -> None:
    torch.manual_seed(2)
    layer = nn.LSTM(2, 4, bidirectional=True)
    x, lengths = torch.randn(12, 2, 2), torch.tensor([12, 7])
    monitor = introspect.Monitor(layer)
    with monitor.step(0):
        _, (h, _) = layer(x, lengths=lengths)
        h.sum().backward()
    for d, name in enumerate(("forward", "reverse")):
        shares = []
        for b, n in enumerate(lengths.tolist()):
            d_output = torch.zeros(8)
            d_output[d * 4 : d * 4 + 4] = 1
            at = n - 1 if d == 0 else 0
            by_lag = introspect.gradient_flow(layer, x[:n, b], at=at, direction=d, d_output=d_output).by_lag()
            shares.append(by_lag[5] / by_lag[0])
        assert monitor.numbers[f"model.0.{name}/gradient/lag_5"] == pytest.approx(np.median(shares), rel=1e-4)
    assert monitor.numbers["model.0.forward/gate_memory"] > 0


def test_a_rows_middle_is_its_median_but_for_what_is_nan() -> None:
    drawn = np.random.default_rng(0)
    rows = drawn.random((500, 7))
    rows[drawn.random(rows.shape) < 0.3] = np.nan
    rows[drawn.random(rows.shape) < 0.1] = np.inf
    rows[:, 0] = drawn.random(500)
    np.testing.assert_array_equal(monitoring._middle(rows), np.nanmedian(rows, 1))
