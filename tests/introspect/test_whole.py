"""A user's own torch models, of our layers or swapped: terms, flows, contributions, patches, faults."""

from typing import Any

import numpy as np
import pytest
import torch

import networks
import unspool
from unspool import introspect, nn
from unspool.errors import InputError
from unspool.kernels.contract import Cell, Gate

KINDS: tuple[Any, ...] = (nn.RNN, nn.LSTM, nn.GRU)
THEIRS: tuple[Any, ...] = (torch.nn.RNN, torch.nn.LSTM, torch.nn.GRU)


class Tagger(torch.nn.Module):
    """Words in, scores of every word out; a state of its own to start with, and two recurrent modules."""

    def __init__(
        self, kind: Any, *, swapped: bool = False, directions: int = 2, batch_first: bool = True
    ) -> None:
        super().__init__()
        theirs = THEIRS[KINDS.index(kind)] if swapped else kind
        self.embedding = torch.nn.Embedding(11, 3)
        self.encoder = theirs(3, 4, 2, bidirectional=directions == 2, batch_first=batch_first)
        self.start = torch.nn.Parameter(torch.randn(2 * directions, 1, 4))
        self.drop = torch.nn.Dropout(0.5)
        self.reader = nn.GRU(4 * directions, 3, batch_first=batch_first)
        self.scores = torch.nn.Linear(3, 5)
        self.batch_first = batch_first

    def forward(self, tokens: torch.Tensor, lengths: Any = None) -> torch.Tensor:
        x = self.embedding(tokens)
        start = self.start.expand(-1, x.shape[0 if self.batch_first else 1], -1).contiguous()
        state: Any = (start, 0.5 * start) if isinstance(self.encoder, torch.nn.LSTM | nn.LSTM) else start
        more = {} if lengths is None else {"lengths": lengths}
        h, _ = self.encoder(x, state, **more)
        h, _ = self.reader(self.drop(h), **more)
        return self.scores(h)  # type: ignore[no-any-return]


class Classifier(torch.nn.Module):
    """Vectors in, one answer out, read from the last states of a bidirectional layer."""

    def __init__(self, kind: Any = nn.LSTM) -> None:
        super().__init__()
        self.encoder = kind(3, 4, bidirectional=True)
        self.head = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, state = self.encoder(x)
        h = state[0] if isinstance(state, tuple) else state
        return self.head(torch.cat([h[0], h[1]], -1))  # type: ignore[no-any-return]


def tagger(seed: int) -> tuple[Tagger, torch.Tensor, Any]:
    torch.manual_seed(seed)
    swapped = seed % 2 == 1
    kind = KINDS[seed % 3]
    model = Tagger(kind, swapped=swapped, directions=1 + seed % 4 // 2, batch_first=seed % 5 > 1).double()
    if swapped:
        assert nn.swap(model).swapped == ("encoder",)
    tokens = torch.randint(0, 11, (2, 6) if model.batch_first else (6, 2))
    return model, tokens, torch.tensor([6, 4]) if seed % 3 and not swapped else None


@pytest.mark.parametrize("seed", range(24))
def test_terms_of_a_models_weights_add_up_to_autograds_gradient(seed: int) -> None:
    """With states of its own to start from, behind dropout, ragged, ours or swapped; nothing stays."""
    model, tokens, lengths = tagger(seed)
    at, d_output = 3, torch.randn(2, 5, dtype=torch.float64)
    own = [f"{m}.{name}" for m in ("encoder", "reader") for name, _ in getattr(model, m).named_parameters()]
    model.train()
    model.encoder.weight_hh_l0.requires_grad_(False)
    found = {
        name: introspect.gradient_terms(model, tokens, at=at, weight=name, d_output=d_output, lengths=lengths)
        for name in own
    }
    assert model.training
    assert model.drop.training
    assert not model.encoder.weight_hh_l0.requires_grad
    assert all(p.grad is None for p in model.parameters())
    model.encoder.weight_hh_l0.requires_grad_(True)
    out = model.eval()(tokens, lengths)
    ((out[:, at] if model.batch_first else out[at]) * d_output).sum().backward()
    for name, terms in found.items():
        grad = model.get_parameter(name).grad
        assert grad is not None
        size = max(float(grad.norm()), 1e-300)
        assert np.linalg.norm(terms.total() - grad.numpy()) <= 1e-9 * size, name
        each = [terms.term(k) for k in range(6)]
        assert np.linalg.norm(sum(each) - grad.numpy()) <= 1e-9 * size, name
        np.testing.assert_allclose(terms.norms, [np.linalg.norm(term) for term in each], atol=1e-9 * size)


@pytest.mark.parametrize("kind", KINDS)
def test_terms_count_on_where_a_module_is_called_step_by_step(kind: Any) -> None:
    class Loop(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = kind(3, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            state, out = None, []
            for step in x:
                h, state = self.cell(step[None], state)
                out.append(h[0])
            return torch.stack(out)

    torch.manual_seed(0)
    model, x = Loop().double(), torch.randn(5, 2, 3, dtype=torch.float64)
    whole = introspect.gradient_terms(model.cell, x, at=3)
    stepwise = introspect.gradient_terms(model, x, at=3)
    np.testing.assert_allclose(stepwise.norms[:4], whole.norms, rtol=1e-9, atol=1e-15)
    assert stepwise.norms[4] == 0
    np.testing.assert_allclose(stepwise.total(), whole.total(), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("option", ["resets", "recurrent_mask"])
@pytest.mark.parametrize("kind", KINDS)
def test_cuts_and_masks_are_in_the_terms_and_jacobians(kind: Any, option: str) -> None:
    class Cut(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = kind(3, 4, bidirectional=True)

        def forward(self, x: torch.Tensor, given: torch.Tensor) -> Any:
            return self.layer(x, **{option: given})

    torch.manual_seed(0)
    model, x = Cut().double(), torch.randn(7, 1, 3, dtype=torch.float64)
    given = torch.zeros(7, 1, dtype=torch.bool)
    given[3] = True
    if option == "recurrent_mask":
        given = torch.tensor([0.0, 2.0, 2.0, 0.0, 2.0, 0.0, 2.0, 0.0], dtype=torch.float64).view(2, 1, 4)
    model(x, given)[0][4].sum().backward()
    for name, parameter in model.layer.named_parameters():
        found = introspect.gradient_terms(model, (x, given), at=4, weight=name).total()
        assert parameter.grad is not None
        np.testing.assert_allclose(found, parameter.grad.numpy(), rtol=1e-9, atol=1e-13)
    for direction, (at, of) in enumerate(((5, 1), (1, 5))):
        across = introspect.jacobian(model, (x, given), at=at, of=of, direction=direction)
        if option == "resets":
            assert (across.hidden_hidden == 0).all()
        else:
            dead = given[direction, 0].numpy() == 0
            alone = introspect.jacobian(model.layer, x[:, 0], at=at, of=of, direction=direction)
            if kind is not nn.GRU:  # whose h passes by its own gate too
                assert (across.hidden_hidden[:, dead] == 0).all()
            assert not np.allclose(across.hidden_hidden, alone.hidden_hidden)
    if option == "resets" and kind is nn.LSTM:
        flow = introspect.gradient_flow(model, (x, given), at=5)
        assert (flow.hidden[:3] == 0).all()
        assert flow.cell_path is not None
        assert (flow.cell_path[:3] == 0).all()
        assert (flow.cell_path[3:5] > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_answers_once_has_the_flow_of_its_last_states(kind: Any) -> None:
    torch.manual_seed(0)
    model, x = Classifier(kind).double(), torch.randn(6, 2, 3, dtype=torch.float64)
    taken = introspect.record(model, x)
    assert all(flow is None for flow in taken["encoder"].flows)
    flow = introspect.gradient_flow(model, x, at=-1)
    back = introspect.gradient_flow(model, x, at=-1, direction=1)
    assert (flow.at, back.at) == (5, 0)
    assert flow.by_lag().shape == back.by_lag().shape == (6,)
    with unspool.capture(model) as seen:
        model(x).sum().backward()
    kept = seen["encoder"].flows[0]
    assert kept is not None
    for d, found in enumerate((flow, back)):
        np.testing.assert_allclose(found.hidden, np.sqrt((kept.d_hidden[:, :, d] ** 2).sum((1, 2))))
        if kind is nn.LSTM:
            assert found.cell is not None
            assert found.cell_path is not None
            assert found.cell_rest is not None
            assert found.cell_path[found.at] == pytest.approx(found.cell[found.at])
            assert found.cell_rest[found.at] == 0


def test_a_models_jacobian_is_that_of_the_layer_on_what_it_read() -> None:
    model, tokens, _ = tagger(7)
    tokens = tokens[:1] if model.batch_first else tokens[:, :1]
    read = introspect.record(model, tokens)["reader"].inputs[0][:, 0]
    found = introspect.jacobian(model, tokens, at=4, of=1, module="reader")
    want = introspect.jacobian(model.reader, read, at=4, of=1)
    np.testing.assert_allclose(found.hidden_hidden, want.hidden_hidden)


# ---- what moved the answer


@pytest.mark.parametrize("seed", range(12))
def test_contributions_add_up_to_the_difference_of_outputs(seed: int) -> None:
    model, tokens, lengths = tagger(seed)
    found = introspect.contributions(model, tokens, target=2, at=-3, lengths=lengths)
    with torch.no_grad():
        model.eval()
        out = model(tokens, lengths)
        model.embedding.weight.zero_()
        blank = model(tokens, lengths)
    pick = (slice(None), -3, 2) if model.batch_first else (-3, slice(None), 2)
    np.testing.assert_allclose(found.output, out[pick].numpy(), rtol=1e-12)
    np.testing.assert_allclose(found.output_without, blank[pick].numpy(), rtol=1e-12)
    axis = 1 if model.batch_first else 0
    assert found.values.shape == tokens.shape
    change = (out - blank)[pick].numpy()
    np.testing.assert_allclose(found.values.sum(axis) + found.gap, change, rtol=1e-9, atol=1e-12)
    assert (np.abs(found.gap) <= 1e-4 * (np.abs(change) + 1e-3 * np.abs(found.output))).all()
    if lengths is not None:
        assert (found.of_sample(1)[4:] == 0).all()
    if model.encoder.num_layers and not model.encoder.bidirectional:
        assert (found.of_sample(0)[4:] == 0).all()  # what is read after step 3 cannot have moved it


def test_contributions_are_autograds_where_the_network_is_linear() -> None:
    torch.manual_seed(0)
    layer = nn.RNN(3, 4, nonlinearity="relu").double()
    with torch.no_grad():
        layer.bias_ih_l0.fill_(50.0)  # no unit is ever cut: the output is linear in x
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    found = introspect.contributions(layer, x, target=lambda out: out[0][-1].sum(1), steps=1)
    (slope,) = torch.autograd.grad(layer(x)[0][-1].sum(), x)
    np.testing.assert_allclose(found.features, (slope * x).detach().numpy(), rtol=1e-9)
    assert found.batch_axis == 1
    float32 = introspect.contributions(layer.float(), x.detach().float(), target=0, at=-1)
    assert np.abs(float32.gap).max() < 1e-3


def test_where_the_output_jumps_the_path_is_cut_finer() -> None:
    """A unit that flips within a hundredth of the path: evenly spread points would miss most of it."""
    layer = nn.LSTM(1, 1).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.weight_ih_l0[2], layer.bias_ih_l0[2] = 2000.0, -1234.5  # the candidate
        layer.bias_ih_l0[0] = 5.0
    x = torch.ones(2, 1, 1, dtype=torch.float64)
    rough = introspect.contributions(layer, x, target=0, at=-1, steps=8)
    fine = introspect.contributions(layer, x, target=0, at=-1)
    change = float(fine.output[0] - fine.output_without[0])
    assert abs(float(rough.gap[0])) > 0.1 * abs(change)
    assert abs(float(fine.gap[0])) <= 1.1e-4 * abs(change)


def test_the_largest_output_is_explained_where_none_is_named() -> None:
    torch.manual_seed(1)
    model, x = Classifier(), torch.randn(6, 3, 3)
    found = introspect.contributions(model, x)
    with torch.no_grad():
        np.testing.assert_allclose(found.output, model(x).max(1).values.numpy(), rtol=1e-6)
    assert np.abs(found.gap).max() < 1e-4
    assert found.of_sample(2).shape == (6,)


# ---- statistics, faults, patches


@pytest.mark.parametrize("swapped", [False, True])
def test_statistics_of_a_model_are_those_of_its_layers(swapped: bool) -> None:
    torch.manual_seed(0)
    model = Tagger(nn.LSTM, swapped=swapped)
    if swapped:
        nn.swap(model)
    tokens = torch.randint(0, 11, (2, 6))
    taken = introspect.record(model, tokens)
    for found in (introspect.saturation(model, tokens), introspect.saturation(taken)):
        assert {one.module for one in found} == {"encoder", "reader"}
        assert len(found) == 2 * 2 * 4 + 3
    spans = introspect.memory_span(model, tokens)
    read = torch.from_numpy(taken["reader"].inputs[0].swapaxes(0, 1).copy())
    (alone,) = introspect.memory_span(model.reader, read)
    np.testing.assert_allclose(spans[-1].steps, alone.steps)
    assert spans[-1].module == "reader"
    with pytest.raises(InputError, match="rnn_tanh has no gate"):
        introspect.memory_span(Classifier(nn.RNN), torch.randn(4, 2, 3))


def test_a_records_texts_are_read_by_statistics_too() -> None:
    model = networks.build("lstm", 2).model
    text = "a dull film"
    found = introspect.saturation(model, text)
    want = introspect.saturation(introspect.record(model, text))
    assert [one.high for one in found] == [one.high for one in want]
    assert introspect.locate(model, [text, "fine"]) is None
    run = introspect.ablate(model, text, Gate.OUTPUT, level=0)
    assert (run.traces[0].hidden[:, :, 0] == 0).all()
    assert introspect.jacobian(model, text, at=2, of=0).hidden_hidden.shape == (6, 6)
    terms = introspect.gradient_terms(model, text, at=1, weight="weight_hh_l1")
    assert terms.norms.shape == (3,)
    with pytest.raises(InputError, match="without words"):
        introspect.saturation(model, [text, ""])


@pytest.mark.parametrize("seed", range(12))
def test_a_patch_in_a_model_is_what_the_rest_reads(seed: int) -> None:
    model, tokens, lengths = tagger(seed)
    where = {"steps": [2], "level": 1, "direction": model.encoder.bidirectional * 1, "lengths": lengths}
    run = introspect.patch(model, tokens, "hidden", 0.3, module="encoder", **where)
    assert (run.traces[1].hidden[2, :, where["direction"]] == 0.3).all()
    h = torch.from_numpy(run.traces[1].hidden.reshape(6, 2, -1))
    h = h.swapaxes(0, 1) if model.batch_first else h
    with torch.no_grad():
        want = model.scores(model.reader(h, **({} if lengths is None else {"lengths": lengths}))[0])
    np.testing.assert_allclose(run.output.numpy(), want.numpy(), rtol=1e-9)
    unchanged = introspect.patch(model, tokens, "hidden", 0.3, module="encoder", **{**where, "units": []})
    np.testing.assert_allclose(
        unchanged.output.numpy(), model.eval()(tokens, lengths).detach().numpy(), rtol=1e-9, atol=1e-12
    )
    assert model.encoder.tap is None
    assert not model.encoder._forward_hooks


@pytest.mark.parametrize("seed", range(100))
def test_a_value_planted_in_any_gate_or_state_is_located(seed: int) -> None:
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    kind = KINDS[seed % 3]
    layer = kind(3, 5, 2, bidirectional=bool(rng.integers(2)))
    names: list[Any] = [*Cell(layer.mode.lower()).gates, "hidden", *(["cell"] if kind is nn.LSTM else [])]
    what = names[int(rng.integers(len(names)))]
    level, direction = int(rng.integers(2)), int(rng.integers(1 + layer.bidirectional))
    t, unit = int(rng.integers(7)), int(rng.integers(5))
    planted = {"steps": [t], "units": [unit], "level": level, "direction": direction}
    x, lengths = torch.randn(9, 2, 3), torch.tensor([9, 7])
    run = introspect.patch(layer, x, what, np.array([[[1.0], [np.inf]]]), lengths=lengths, **planted)
    fault = introspect.locate(layer, run)
    assert fault is not None
    assert (fault.layer, fault.direction, fault.step, fault.sample) == (level, direction, t, 1)
    assert fault.unit == unit
    assert fault.kind == "not finite"
    assert str(getattr(what, "value", what)) in fault.what


@pytest.mark.parametrize("seed", range(12))
def test_a_gradient_that_is_not_finite_is_located_where_it_arose(seed: int) -> None:
    """The forward pass is sound; a NaN comes in from above at one step, and spreads to all before it."""
    torch.manual_seed(seed)
    model = Classifier(KINDS[seed % 3])
    step, sample = seed % 5, seed % 2
    x = torch.randn(5, 2, 3)
    with unspool.capture(model) as taken:
        out, _ = model.encoder(x)
        d = torch.zeros_like(out)
        d[step, sample, (seed % 4) + 4 * (seed % 2)] = np.nan
        out.backward(d)
    fault = introspect.locate(model, taken)
    assert fault is not None
    assert fault.what == "the gradient of the hidden state"
    assert (fault.module, fault.step, fault.sample) == ("encoder", step, sample)
    assert (fault.direction, fault.unit) == (seed % 2, seed % 4)


@pytest.mark.parametrize("seed", range(20))
def test_a_weight_that_is_not_finite_in_a_model_is_located(seed: int) -> None:
    model, tokens, lengths = tagger(seed)
    rng = np.random.default_rng(seed)
    name = str(rng.choice([name for name, _ in model.encoder.named_parameters()]))
    with torch.no_grad():
        model.encoder.get_parameter(name).view(-1)[-1] = np.nan
    fault = introspect.locate(model, tokens, lengths=lengths)
    assert fault is not None
    assert (fault.module, fault.layer, fault.direction) == (
        "encoder", int(name.split("_l")[1][0]), int("reverse" in name),
    )  # fmt: skip


# ---- what does not fit


def test_what_a_model_does_not_have_is_refused_naming_what_it_has() -> None:
    model, tokens, _ = tagger(1)
    classifier, x = Classifier(), torch.randn(6, 2, 3)
    for call, said in (
        (lambda: introspect.gradient_flow(model, tokens, at=1), r"'encoder', 'reader'"),
        (lambda: introspect.gradient_flow(model, tokens, at=1, module="decoder"), r"'encoder', 'reader'"),
        (lambda: introspect.gradient_flow(model, tokens, at=6, module="reader"), "no step at = 6"),
        (lambda: introspect.gradient_flow(model, tokens, at=1, module="reader", level=1), "no layer 1"),
        (lambda: introspect.gradient_terms(model, tokens, at=1), r"'encoder', 'reader'"),
        (lambda: introspect.gradient_terms(model, tokens, at=1, weight="reader.weight_hh_l1"), "r.weight_hh"),
        (lambda: introspect.gradient_terms(classifier, x, at=2), "answers once"),
        (lambda: introspect.gradient_terms(classifier, x, at=-1, lengths=[6, 2]), "no argument named"),
        (lambda: introspect.gradient_terms(classifier, x, at=-1, d_output=torch.ones(2)), "does not fit"),
        (lambda: introspect.jacobian(classifier, x, at=2, of=1), "of one sequence"),
        (lambda: introspect.patch(classifier, x, "hidden", 0.0, module="head"), "'encoder'"),
        (lambda: introspect.patch(classifier, x, "hidden", np.zeros(3)), "does not fit"),
        (lambda: introspect.patch(nn.LSTM(3, 4), x, "hidden", 0.0, module="a"), "no modules"),
        (lambda: introspect.contributions(model, tokens), "answers at every step"),
        (lambda: introspect.contributions(classifier, x, target=3), "no step target = 3|target = 3"),
        (lambda: introspect.contributions(classifier, torch.zeros(6, 2, 3, dtype=torch.long)), "embedding"),
        (lambda: introspect.contributions(networks.build().model, "a film", target=1), "own margin"),
        (lambda: introspect.record(torch.nn.Linear(2, 2), x), "no recurrent layer of unspool.nn"),
        (lambda: introspect.saturation(introspect.record(classifier, x), x), "one input already"),
        (lambda: introspect.locate(Tagger(nn.GRU), introspect.record(classifier, x)), "another model"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said) as caught:
            call()  # type: ignore[no-untyped-call]
        assert "Fix:" in str(caught.value) or "Received:" in str(caught.value)


def test_a_bidirectional_layer_is_refused_by_what_predicts_what_follows() -> None:
    """Its reverse direction has read the answer."""
    layer = nn.LSTM(3, 4, bidirectional=True)
    with pytest.raises(InputError, match="direction"):
        layer.stream(1)
    with pytest.raises(InputError, match="direction"):
        networks.build("lstm", bidirectional=True).model.stream(1)
