"""What the layers have beyond torch's: recurrent dropout, the forget gate's bias at the start, the trace.

And what of a cell is optional: projection, which torch has too, layer normalisation, peepholes, zoneout, a
clipped cell state.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from unspool import nn, ops
from unspool.errors import InputError
from unspool.introspect import gradient_terms
from unspool.kernels import masks
from unspool.ops.arguments import Layer, flat_weights

KINDS = [nn.RNN, nn.LSTM, nn.GRU]
BOTH = ["native", "reference"]


@pytest.mark.parametrize("kernels", BOTH)
@pytest.mark.parametrize("kind", KINDS)
def test_recurrent_dropout_is_the_mask_of_torchs_seed(kind: Any, kernels: str) -> None:
    torch.manual_seed(1)
    layer = kind(3, 5, 2, bidirectional=True, recurrent_dropout=0.4, kernels=kernels)
    x = torch.randn(7, 4, 3)
    torch.manual_seed(2)
    dropped, _ = layer(x)
    torch.manual_seed(2)
    again, _ = layer(x)
    other, _ = layer(x)
    torch.manual_seed(2)
    seed = int(torch.randint(2**63 - 1, ()))
    mask = torch.cat([torch.from_numpy(masks.recurrent(seed, 0, k, 2, 4, 5, 0.4)) for k in range(2)])
    layer.eval()
    given, _ = layer(x, recurrent_mask=mask)
    plain, _ = layer(x)
    assert torch.equal(dropped, again)
    assert torch.equal(dropped, given)
    assert not torch.equal(dropped, other)
    assert not torch.equal(dropped, plain)


def test_a_packed_batch_draws_the_masks_of_the_padded_one() -> None:
    torch.manual_seed(1)
    layer = nn.LSTM(3, 5, recurrent_dropout=0.4)
    x, lengths = torch.randn(7, 4, 3), torch.tensor([2, 7, 3, 5])
    torch.manual_seed(2)
    padded, _ = layer(x, lengths=lengths)
    torch.manual_seed(2)
    packed, _ = layer(pack_padded_sequence(x, lengths, enforce_sorted=False))
    assert torch.equal(pad_packed_sequence(packed)[0], padded)


def test_recurrent_dropout_has_gradients_and_resting_evaluation() -> None:
    torch.manual_seed(1)
    layer = nn.GRU(3, 5, recurrent_dropout=0.4)
    layer(torch.randn(7, 4, 3))[0].sum().backward()
    assert all(bool(p.grad.abs().sum() > 0) for p in layer.parameters() if p.grad is not None)
    assert "recurrent_dropout=0.4" in repr(layer)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    layer.eval()(torch.randn(7, 4, 3, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(before, torch.get_rng_state())  # nothing is drawn in evaluation


@pytest.mark.parametrize("share", [-0.1, 1.0, 1.5, float("nan"), True, "0.5"])
def test_a_recurrent_dropout_that_is_none_is_refused(share: Any) -> None:
    with pytest.raises(ValueError, match="recurrent_dropout should be"):
        nn.LSTM(3, 5, recurrent_dropout=share)


def test_the_forget_gates_bias_starts_where_it_is_told() -> None:
    torch.manual_seed(1)
    plain = torch.nn.LSTM(3, 5, 2, bidirectional=True)
    torch.manual_seed(1)
    layer = nn.LSTM(3, 5, 2, bidirectional=True, forget_bias=1.5)
    assert "forget_bias=1.5" in repr(layer)
    others = [n for n in range(20) if not 5 <= n < 10]
    for name, parameter in layer.named_parameters():
        theirs = dict(plain.named_parameters())[name]
        if name.startswith("bias"):
            assert (parameter[5:10] == (1.5 if "_ih_" in name else 0)).all()
            assert torch.equal(parameter[others], theirs[others])
        else:
            assert torch.equal(parameter, theirs)
    for wrong in (float("inf"), True, "1"):
        with pytest.raises(ValueError, match="forget_bias should be"):
            nn.LSTM(3, 5, forget_bias=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="forget_bias needs biases"):
        nn.LSTM(3, 5, bias=False, forget_bias=1.0)


@pytest.mark.parametrize("kernels", BOTH)
@pytest.mark.parametrize("kind", KINDS)
def test_the_trace_is_of_the_run_that_forward_makes(kind: Any, kernels: str) -> None:
    torch.manual_seed(1)
    layer = kind(3, 5, 2, bidirectional=True, batch_first=True, kernels=kernels)
    x, lengths, resets = torch.randn(4, 7, 3), [7, 0, 3, 5], torch.rand(4, 7) < 0.2
    out, _ = layer(x, lengths=lengths, resets=resets)
    low, top = layer.trace(x, lengths=lengths, resets=resets)
    gates = len(layer.cell.gates)
    for trace in (low, top):
        assert trace.gates.shape == (7, 4, 2, gates, 5)
        assert trace.hidden.shape == (7, 4, 2, 5)
        assert (trace.cell is not None) == (kind is nn.LSTM)
        assert (trace.recurrent_candidate is not None) == (kind is nn.GRU)
        assert not trace.gates[:, 1].any()
        assert not trace.hidden.requires_grad
    assert torch.equal(top.hidden.reshape(7, 4, 10).transpose(0, 1), out)
    if kind is nn.LSTM:
        o, c = top.gates[..., 3, :], top.cell
        torch.testing.assert_close(o * torch.tanh(c), top.hidden)


def test_a_trace_takes_a_state_and_one_sequence_and_refuses_packed_input() -> None:
    torch.manual_seed(1)
    layer = nn.LSTM(3, 5)
    hx = (torch.randn(1, 5), torch.randn(1, 5))
    x = torch.randn(7, 3)
    (trace,) = layer.trace(x, hx)
    assert torch.equal(trace.hidden[:, 0, 0], layer(x, hx)[0])
    with pytest.raises(ValueError, match="trace takes padded input"):
        layer.trace(pack_padded_sequence(torch.randn(2, 1, 3), torch.tensor([2])))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="hx must be a tuple"):
        layer.trace(x, hx[0])


# -- more than the plain cell

OPTIONS: dict[str, dict[str, Any]] = {
    "projection": {"proj_size": 3},
    "norm": {"layer_norm": True},
    "peephole": {"peephole": True},
    "zoneout": {"zoneout": (0.3, 0.4)},
    "clip": {"cell_clip": 0.2},
    "all": {
        "proj_size": 3,
        "layer_norm": True,
        "peephole": True,
        "zoneout": 0.2,
        "cell_clip": 0.3,
    },
}
DTYPES = {"native": torch.float32, "reference": torch.float64}
CLOSE = {"native": 2e-6, "reference": 1e-12}


def away_from_the_start(layer: Any) -> None:
    """Norms start at gain 1 and bias 0, which hides whether they are read."""
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name.startswith("norm_"):
                parameter.add_(torch.rand_like(parameter) - 0.5)


def results(layer: Any, x: Tensor, hx: Any = None) -> list[Tensor]:
    """The output, the final state, and every gradient of a sum that no two of them give alike."""
    x = x.clone().requires_grad_()
    out, final = layer(x, hx)
    parts = [out, *(final if isinstance(final, tuple) else (final,))]
    loss = sum(
        (part * torch.linspace(-1, 2, part.numel(), dtype=part.dtype).view_as(part)).sum() for part in parts
    )
    return [*parts, *torch.autograd.grad(loss, [x, *layer.parameters()])]  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize(
    "given", [{}, {"num_layers": 2, "bidirectional": True, "batch_first": True}, {"bias": False}]
)
@pytest.mark.parametrize("kernels", BOTH)
def test_a_projected_lstm_is_torchs(kernels: str, given: dict[str, Any]) -> None:
    torch.manual_seed(1)
    theirs = torch.nn.LSTM(4, 6, proj_size=3, dtype=DTYPES[kernels], **given)
    torch.manual_seed(1)
    ours = nn.LSTM(4, 6, proj_size=3, dtype=DTYPES[kernels], kernels=kernels, **given)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for own, their in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(own, their)
    assert [len(four) for four in ours.all_weights] == [len(four) for four in theirs.all_weights]
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(5, 5, 4, dtype=DTYPES[kernels])
    rows = len(ours.all_weights)
    hx = (torch.randn(rows, 5, 3, dtype=x.dtype), torch.randn(rows, 5, 6, dtype=x.dtype))
    for state in (None, hx):
        for own, their in zip(results(ours, x, state), results(theirs, x, state), strict=True):
            torch.testing.assert_close(own, their, atol=20 * CLOSE[kernels], rtol=20 * CLOSE[kernels])
    one, _ = ours(x[0])
    torch.testing.assert_close(one, theirs(x[0])[0], atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_a_projected_lstm_takes_packed_sequences_lengths_and_masks() -> None:
    torch.manual_seed(1)
    theirs = torch.nn.LSTM(4, 6, proj_size=3, bidirectional=True)
    ours = nn.LSTM(4, 6, proj_size=3, bidirectional=True)
    ours.load_state_dict(theirs.state_dict())
    x, lengths = torch.randn(7, 4, 4), torch.tensor([2, 7, 3, 5])
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    want, (h, c) = theirs(packed)
    got, (own_h, own_c) = ours(packed)
    padded, _ = ours(x, lengths=lengths)
    torch.testing.assert_close(got.data, want.data)
    torch.testing.assert_close(own_h, h)
    torch.testing.assert_close(own_c, c)
    assert torch.equal(pad_packed_sequence(got)[0], padded)
    dropping = nn.LSTM(4, 6, proj_size=3, recurrent_dropout=0.5)
    assert dropping(x)[0].shape == (7, 4, 3)
    with pytest.raises(RuntimeError, match="batch, proj_size"):
        dropping(x, recurrent_mask=torch.ones(1, 4, 6))


@pytest.mark.parametrize("wrong", [-1, 6, 7])
def test_a_projection_that_does_not_fit_is_refused_as_torch_does(wrong: int) -> None:
    with pytest.raises(ValueError, match="proj_size") as theirs:
        torch.nn.LSTM(4, 6, proj_size=wrong)
    with pytest.raises(ValueError, match=r"\n  Received: .*\n  Fix: ") as ours:
        nn.LSTM(4, 6, proj_size=wrong)
    assert str(ours.value).splitlines()[0] == str(theirs.value)


@pytest.mark.parametrize(
    "wrong", [{"proj_size": True}, {"proj_size": 1.0}, {"layer_norm": 1}, {"peephole": "yes"}], ids=str
)
def test_an_option_of_another_type_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=f"{next(iter(wrong))} should be of type"):
        nn.LSTM(4, 6, **wrong)


def test_a_state_of_the_wrong_size_is_refused_by_what_it_should_be() -> None:
    layer, x = nn.LSTM(4, 6, proj_size=3), torch.randn(5, 2, 4)
    with pytest.raises(RuntimeError, match=r"hidden\[0\] size \(1, 2, 3\)(.|\n)*proj_size"):
        layer(x, (torch.zeros(1, 2, 6), torch.zeros(1, 2, 6)))
    with pytest.raises(RuntimeError, match=r"hidden\[1\] size \(1, 2, 6\)(.|\n)*hidden_size"):
        layer(x, (torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)))


def normed(z: Tensor, norm: Tensor) -> Tensor:
    return torch.nn.functional.layer_norm(z, z.shape[-1:], norm[0], norm[1])


def written_out(layer: Any, x: Tensor, shares: Any = None) -> tuple[Tensor, Tensor]:
    """One forward layer of an LSTM with every option, an equation a line, by torch's operations."""
    w = dict(layer.named_parameters())
    h, c = (
        x.new_zeros(x.size(1), layer.proj_size or layer.hidden_size),
        x.new_zeros(x.size(1), layer.hidden_size),
    )
    peep_i, peep_f, peep_o = w.get("peephole_l0", x.new_zeros(3, layer.hidden_size))
    outputs = []
    if shares is None:  # in evaluation the mean
        both = layer.zoneout if isinstance(layer.zoneout, tuple) else (layer.zoneout, layer.zoneout)
        shares = [torch.full((len(x),), share, dtype=x.dtype) for share in both]
    for x_t, zone_h, zone_c in zip(x, *shares, strict=True):
        of_x, of_h = x_t @ w["weight_ih_l0"].T, h @ w["weight_hh_l0"].T
        if layer.layer_norm:
            of_x, of_h = normed(of_x, w["norm_input_l0"]), normed(of_h, w["norm_recurrent_l0"])
        i, f, g, o = (of_x + of_h + w["bias_ih_l0"] + w["bias_hh_l0"]).chunk(4, -1)
        c_prev, h_prev = c, h
        c = torch.sigmoid(f + peep_f * c_prev) * c_prev + torch.sigmoid(i + peep_i * c_prev) * torch.tanh(g)
        c = c.clamp(-layer.cell_clip, layer.cell_clip) if layer.cell_clip else c
        shown = normed(c, w["norm_cell_l0"]) if layer.layer_norm else c
        h = torch.sigmoid(o + peep_o * c) * torch.tanh(shown)
        if layer.proj_size:
            h = h @ w["weight_hr_l0"].T
        c, h = zone_c * c_prev + (1 - zone_c) * c, zone_h * h_prev + (1 - zone_h) * h
        outputs.append(h)
    return torch.stack(outputs), (h, c)  # type: ignore[return-value]


@pytest.mark.parametrize("kernels", BOTH)
@pytest.mark.parametrize("chosen", OPTIONS)
def test_an_lstm_with_options_is_its_equations_written_out(kernels: str, chosen: str) -> None:
    torch.manual_seed(1)
    layer = nn.LSTM(4, 6, dtype=DTYPES[kernels], kernels=kernels, **OPTIONS[chosen]).eval()
    away_from_the_start(layer)

    class WrittenOut(torch.nn.Module):
        def forward(self, x: Tensor, hx: Any) -> Any:
            return written_out(layer, x)

        def parameters(self, recurse: bool = True) -> Any:
            return layer.parameters()

    x = torch.randn(7, 5, 4, dtype=DTYPES[kernels])
    got, want = results(layer, x), results(WrittenOut(), x)
    for own, their in zip(got, want, strict=True):
        assert (own - their.view_as(own)).norm() <= 10 * CLOSE[kernels] * their.norm()
        assert their.any()


@pytest.mark.parametrize("kind", KINDS)
def test_layer_norm_has_the_kernel_sets_agree_for_every_cell(kind: Any) -> None:
    torch.manual_seed(1)
    layer = kind(4, 6, 2, layer_norm=True, bidirectional=True, kernels="native")
    away_from_the_start(layer)
    definition = kind(4, 6, 2, layer_norm=True, bidirectional=True, kernels="reference", dtype=torch.float64)
    definition.load_state_dict(layer.state_dict())
    x = torch.randn(7, 5, 4)
    for own, their in zip(results(layer, x), results(definition, x.double()), strict=True):
        assert (own - their).norm() <= 20 * CLOSE["native"] * their.norm()
    plain = kind(4, 6, 2, bidirectional=True)
    plain.load_state_dict(layer.state_dict(), strict=False)
    assert not torch.allclose(plain(x)[0], layer(x)[0], atol=1e-2)


def test_norms_start_at_gain_1_and_bias_0_and_the_rest_as_torchs() -> None:
    torch.manual_seed(1)
    layer = nn.LSTM(4, 6, layer_norm=True)
    torch.manual_seed(1)
    plain = torch.nn.LSTM(4, 6)
    for name, parameter in layer.named_parameters():
        if name.startswith("norm_"):
            assert parameter[0].eq(1).all()
            assert parameter[1].eq(0).all()
        else:
            assert torch.equal(parameter, plain.get_parameter(name))


@pytest.mark.parametrize("kernels", BOTH)
@pytest.mark.parametrize("chosen", OPTIONS)
def test_options_can_be_derived_twice(kernels: str, chosen: str) -> None:
    torch.manual_seed(1)
    layer = nn.LSTM(3, 4, dtype=torch.float64, kernels="reference", **OPTIONS[chosen]).eval()
    away_from_the_start(layer)
    x = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    if kernels == "reference":
        assert torch.autograd.gradgradcheck(lambda x: layer(x)[0], (x,))
        return
    narrow = nn.LSTM(3, 4, **OPTIONS[chosen]).eval()
    narrow.load_state_dict(layer.state_dict())

    def second(layer: Any, x: Tensor) -> list[Tensor]:
        (d_x,) = torch.autograd.grad(layer(x)[0].square().sum(), x, create_graph=True)
        return list(torch.autograd.grad(d_x.square().sum(), [x, *layer.parameters()], allow_unused=True))

    for own, their in zip(second(narrow, x.detach().float().requires_grad_()), second(layer, x), strict=True):
        assert (own is None) == (their is None)
        if own is not None and their is not None:
            torch.testing.assert_close(own.double(), their, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("chosen", OPTIONS)
def test_options_map_over_samples(chosen: str) -> None:
    torch.manual_seed(1)
    layer = nn.LSTM(3, 4, **OPTIONS[chosen]).eval()
    weights, x = dict(layer.named_parameters()), torch.randn(5, 3, 3)

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(layer, weights, (x,))[0].square().sum()  # type: ignore[no-any-return]

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, x)
    for n in range(len(x)):
        one = torch.autograd.grad(loss(weights, x[n]), list(weights.values()))
        for name, want in zip(weights, one, strict=True):
            torch.testing.assert_close(each[name][n], want, atol=1e-5, rtol=1e-4)


def test_options_are_compiled_and_exported() -> None:
    torch.manual_seed(1)
    layer = nn.LSTM(3, 4, 2, bidirectional=True, **OPTIONS["all"]).eval()
    x = torch.randn(5, 2, 3)
    compiled: Any = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for own, their in zip(results(layer, x), results_of(compiled, layer, x), strict=True):
        torch.testing.assert_close(own, their)
    program = torch.export.export(layer.eval(), (x,))
    torch.testing.assert_close(program.module()(x)[0], layer(x)[0])


def results_of(call: Any, layer: Any, x: Tensor) -> list[Tensor]:
    """`results` of a call that stands for a layer."""

    class Calling(torch.nn.Module):
        def forward(self, x: Tensor, hx: Any) -> Any:
            return call(x)

        def parameters(self, recurse: bool = True) -> Any:
            return layer.parameters()

    return results(Calling(), x)


@pytest.mark.parametrize("chosen", OPTIONS)
def test_a_trace_a_cut_and_a_repr_of_a_layer_with_options(chosen: str) -> None:
    torch.manual_seed(1)
    layer = nn.LSTM(3, 4, kernels="native", **OPTIONS[chosen]).eval()
    x = torch.randn(6, 2, 3)
    whole, _ = layer(x)
    first, state = layer(x[:2])
    rest, _ = layer(x[2:], state)
    assert torch.equal(torch.cat([first, rest]), whole)
    (trace,) = layer.trace(x)
    assert torch.equal(trace.hidden[:, :, 0], whole)
    assert trace.cell.shape == (6, 2, 1, 4)
    for name, value in OPTIONS[chosen].items():
        assert f"{name}={value}" in repr(layer)
    assert "kernels=native[" in repr(layer)


@pytest.mark.parametrize("chosen", OPTIONS)
def test_what_does_not_run_options_yet_says_so(chosen: str) -> None:
    layer = nn.LSTM(3, 4, **OPTIONS[chosen])
    with pytest.raises(InputError, match=f"(.|\n)*Received: {next(iter(OPTIONS[chosen]))}"):
        gradient_terms(layer, torch.randn(5, 2, 3), at=-1)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_swap_takes_a_projected_lstm_and_gives_it_back() -> None:
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.LSTM(3, 4, 2, proj_size=2, bidirectional=True))
    x = torch.randn(5, 2, 3)
    before, _ = model(x)
    keys, held = set(model[0].__dict__), list(model.parameters())
    assert nn.swap(model).swapped == ("0",)
    assert type(model[0]) is nn.LSTM
    torch.testing.assert_close(model(x)[0], before)
    assert all(own is their for own, their in zip(model.parameters(), held, strict=True))
    assert nn.unswap(model) == ("0",)
    assert set(model[0].__dict__) == keys
    assert torch.equal(model(x)[0], before)


@pytest.mark.parametrize("kernels", BOTH)
def test_zoneout_keeps_units_by_the_masks_of_torchs_seed(kernels: str) -> None:
    torch.manual_seed(1)
    layer = nn.LSTM(4, 6, zoneout=(0.3, 0.4), dtype=DTYPES[kernels], kernels=kernels)
    x = torch.randn(7, 5, 4, dtype=DTYPES[kernels])
    torch.manual_seed(2)
    got = results(layer, x)
    torch.manual_seed(2)
    assert torch.equal(layer(x)[0], got[0])
    assert not torch.equal(layer(x)[0], got[0])
    torch.manual_seed(2)
    seed = int(torch.randint(2**63 - 1, ()))
    shares = [
        torch.from_numpy(masks.zoneout(seed, 0, 0, 1, 5, 6, 7, share, part))[:, :, 0].to(x.dtype)
        for part, share in (("hidden", 0.3), ("cell", 0.4))
    ]
    want, (h, c) = written_out(layer, x, shares)
    for own, their in zip(got, (want, h.unsqueeze(0), c.unsqueeze(0)), strict=False):
        torch.testing.assert_close(own, their, atol=CLOSE[kernels], rtol=CLOSE[kernels])
    kept = torch.cat([torch.zeros(1, 5, 6, dtype=x.dtype), got[0][:-1]]) == got[0]
    assert torch.equal(kept, shares[0].bool())


def test_a_pair_of_no_zoneout_is_none() -> None:
    layer = nn.LSTM(5, 8, zoneout=(0.0, 0.0))
    assert layer.zoneout == 0
    layer.stream()
    with pytest.raises(ValueError, match="zoneout"):
        layer.zoneout = (0.1, 2.0)


def test_a_packed_batch_draws_the_zoneout_of_the_padded_one() -> None:
    torch.manual_seed(1)
    layer = nn.GRU(3, 5, 2, zoneout=0.4, bidirectional=True)
    x, lengths = torch.randn(7, 4, 3), torch.tensor([2, 7, 3, 5])
    torch.manual_seed(2)
    padded, _ = layer(x, lengths=lengths)
    torch.manual_seed(2)
    packed, _ = layer(pack_padded_sequence(x, lengths, enforce_sorted=False))
    assert torch.equal(pad_packed_sequence(packed)[0], padded)
    assert not torch.equal(layer(x, lengths=lengths)[0], padded)


@pytest.mark.parametrize("kind", KINDS)
def test_zoneout_has_the_kernel_sets_agree_for_every_cell(kind: Any) -> None:
    torch.manual_seed(1)
    layer = kind(4, 6, 2, zoneout=0.25, bidirectional=True, kernels="native")
    definition = kind(4, 6, 2, zoneout=0.25, bidirectional=True, kernels="reference", dtype=torch.float64)
    definition.load_state_dict(layer.state_dict())
    x = torch.randn(7, 5, 4)
    for training in (True, False):
        torch.manual_seed(2)
        got = results(layer.train(training), x)
        torch.manual_seed(2)
        for own, their in zip(got, results(definition.train(training), x.double()), strict=True):
            assert (own - their).norm() <= 20 * CLOSE["native"] * their.norm()


def test_under_autocast_options_run_in_float32() -> None:
    torch.manual_seed(1)
    x = torch.randn(6, 2, 3)
    for chosen in OPTIONS.values():
        layer = nn.LSTM(3, 4, **chosen).eval()
        want, _ = layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(layer(x)[0], want)


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (nn.LSTM, {"zoneout": 1.0}),
        (nn.LSTM, {"zoneout": (0.1, -0.1)}),
        (nn.LSTM, {"zoneout": (0.1, 0.1, 0.1)}),
        (nn.GRU, {"zoneout": (0.1, 0.1)}),
        (nn.LSTM, {"cell_clip": 0}),
        (nn.LSTM, {"cell_clip": float("inf")}),
        (nn.LSTM, {"cell_clip": float("nan")}),
    ],
    ids=str,
)
def test_a_number_out_of_range_is_refused(kind: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(wrong))} should be (.|\n)*Received: (.|\n)*Fix: "):
        kind(3, 4, **wrong)


def test_the_operators_hold_torchs_checks_with_options() -> None:
    torch.manual_seed(1)
    layer = nn.LSTM(2, 4, **OPTIONS["all"]).eval()
    taken: list[Any] = []
    run_layer = ops.layer

    def keeping(run: Any, x: Tensor, hidden: Any, cell: Any, weights: Any) -> Any:
        taken.extend(Layer(run, (x, hidden, cell, None, None, *flat_weights(weights))).flat)
        return run_layer(run, x, hidden, cell, weights)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ops, "layer", keeping)
        layer(torch.randn(3, 2, 2))
    flat = tuple(
        part.detach().requires_grad_() if isinstance(part, Tensor) and part.requires_grad else part
        for part in taken
    )
    for operator in (torch.ops.unspool.infer.default, torch.ops.unspool.forward.default):
        torch.library.opcheck(operator, flat)


@pytest.mark.parametrize("chosen", OPTIONS)
def test_a_layer_that_recomputes_has_the_bits_of_one_that_keeps(chosen: str) -> None:
    torch.manual_seed(1)
    layer = nn.LSTM(3, 4, 2, **OPTIONS[chosen])
    x, found = torch.randn(40, 3, 3), []
    for recompute in (None, "segments"):
        layer.recompute = recompute
        torch.manual_seed(2)
        found.append(results(layer, x))
    for n, (own, their) in enumerate(zip(*found, strict=True)):
        if n < 4:  # the output, the final state, dL/dx
            assert torch.equal(own, their)
        torch.testing.assert_close(own, their, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("chosen", [{"zoneout": 0.3}, {"cell_clip": 0.1}], ids=str)
def test_an_option_set_on_a_layer_that_is_there_acts_in_a_small_call(chosen: dict[str, float]) -> None:
    torch.manual_seed(1)
    made = nn.LSTM(3, 4, **chosen).eval()
    later = nn.LSTM(3, 4).eval()
    later.load_state_dict(made.state_dict())
    x = torch.randn(2, 1, 3)
    before, _ = later(x)
    for name, value in chosen.items():
        setattr(later, name, value)
    assert torch.equal(later(x)[0], made(x)[0])
    assert not torch.equal(later(x)[0], before)
