"""swap and unswap: the same modules and parameters, the same answers, and everything given back."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parametrizations

from unspool import capture, nn
from unspool.errors import InputError
from unspool.kernels.contract import Gate


class Model(torch.nn.Module):
    """All six kinds, one of them inside a container, one shared by two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.LSTM(4, 6, 2, batch_first=True, bidirectional=True)
        self.rest = torch.nn.Sequential(torch.nn.Linear(12, 5))
        self.more = torch.nn.ModuleDict(
            {"gru": torch.nn.GRU(5, 7, bias=False), "rnn": torch.nn.RNN(7, 3, nonlinearity="relu")}
        )
        self.cells = torch.nn.ModuleList(
            [torch.nn.LSTMCell(3, 3), torch.nn.GRUCell(3, 3), torch.nn.RNNCell(3, 3)]
        )
        self.again = self.first

    def forward(self, x: Tensor) -> Tensor:
        x = self.rest(self.first(x)[0]).swapaxes(0, 1)
        x = self.more["rnn"](self.more["gru"](x)[0])[0][-1]
        h, _ = self.cells[0](x)
        last: Tensor = self.cells[2](self.cells[1](h))
        return last


def run(model: Any) -> list[Tensor]:
    x = torch.linspace(-1, 1, 2 * 5 * 4).reshape(2, 5, 4).requires_grad_()
    out = model(x)
    return [out, *torch.autograd.grad(out.square().sum(), [x, *model.parameters()])]


def test_a_swapped_model_is_the_same_model_with_the_same_answers_and_comes_back() -> None:
    torch.manual_seed(0)
    model = Model()
    before, modules, parameters = run(model), list(model.modules()), dict(model.named_parameters())
    keys = set(model.first.__dict__)
    called = []
    model.first.register_forward_hook(lambda module, given, result: called.append(type(module)))
    report = nn.swap(model)
    assert set(report.swapped) == {"first", "more.gru", "more.rnn", "cells.0", "cells.1", "cells.2"}
    assert report.left == ()
    assert [id(m) for m in model.modules()] == [id(m) for m in modules]
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert isinstance(model.again, nn.LSTM)
    after = run(model)
    for ours, theirs in zip(after, before, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert called == [nn.LSTM]
    assert "swapped 6 layers: first" in str(report)
    assert set(nn.unswap(model)) == set(report.swapped)
    assert set(model.first.__dict__) == keys
    assert type(model.first) is torch.nn.LSTM
    for again, theirs in zip(run(model), before, strict=True):
        assert torch.equal(again, theirs)
    assert nn.unswap(model) == ()


def test_what_is_left_says_why() -> None:
    class Own(torch.nn.LSTM):
        pass

    model = torch.nn.ModuleDict(
        {
            "own": Own(2, 2),
            "narrow": torch.nn.GRU(2, 2).bfloat16(),
            "bound": parametrizations.weight_norm(torch.nn.GRU(2, 2), "weight_hh_l0"),
            "plain": torch.nn.GRU(2, 2),
            "other": torch.nn.GRU(2, 2),
        }
    )
    report = nn.swap(model, select=lambda name, module: name != "other")
    assert report.swapped == ("plain",)
    why = {one.name: one.why for one in report.left}
    assert "class of its own" in why["own"]
    assert "bfloat16" in why["narrow"]
    assert "class of its own" in why["bound"]
    assert why["other"] == "not selected"
    assert "left own (Own): a class of its own" in str(report)
    assert nn.swap(model, select=["other"]).swapped == ("other",)
    assert nn.swap(model, select=["other"]).swapped == ()
    with pytest.raises(InputError, match="no module named 'nothing'"):
        nn.swap(model, select=["nothing"])
    wrong: Any
    for wrong in ([model], None, torch.nn.GRU):
        for call in (nn.swap, nn.unswap):
            with pytest.raises(TypeError, match=r"swap takes a torch module\n  Received: .*\n  Fix: "):
                call(wrong)
    wrong = 3
    with pytest.raises(TypeError, match=r"select should be module names.*\n  Received: int"):
        nn.swap(model, select=wrong)


def test_names_may_come_one_by_one_and_one_name_is_one() -> None:
    model = torch.nn.ModuleDict(
        {"one": torch.nn.GRU(2, 2), "on": torch.nn.GRU(2, 2), "o": torch.nn.GRU(2, 2)}
    )
    assert nn.swap(model, select=(name for name in ("one", "o"))).swapped == ("one", "o")
    assert nn.swap(model, select="on").swapped == ("on",)
    with pytest.raises(InputError, match="no module named 'two'"):
        nn.swap(model, select="two")


def test_a_layer_whose_attributes_ours_would_refuse_is_left_and_the_rest_is_swapped() -> None:
    model = torch.nn.ModuleList([torch.nn.GRU(2, 2), torch.nn.LSTM(2, 2), torch.nn.RNNCell(2, 2)])
    model[1].batch_first = 1  # type: ignore[assignment]
    model[2].nonlinearity = "gelu"
    report = nn.swap(model)
    assert report.swapped == ("0",)
    assert [one.name for one in report.left] == ["1", "2"]
    assert "batch_first should be of type bool" in report.left[0].why
    assert type(model[1]) is torch.nn.LSTM


def test_a_swapped_model_is_pickled_and_comes_back() -> None:
    model = Model()
    want = run(model)
    nn.swap(model)
    twin = pickle.loads(pickle.dumps(model))
    assert isinstance(twin.first, nn.LSTM)
    ours = run(model)
    for a, b in zip(run(twin), ours, strict=True):
        assert torch.equal(a, b)
    nn.unswap(twin)
    assert type(twin.first) is torch.nn.LSTM
    for a, b in zip(run(twin), want, strict=True):
        assert torch.equal(a, b)
    pickle.dumps(twin)


def test_a_layer_itself_can_be_swapped_copied_and_saved() -> None:
    layer: Any = torch.nn.GRU(3, 4, dropout=0.5, num_layers=2).eval()
    x = torch.randn(5, 2, 3)
    want = layer(x)[0]
    assert nn.swap(layer).swapped == ("",)
    assert not layer.training
    twin = copy.deepcopy(layer)
    torch.testing.assert_close(twin(x)[0], want)
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    assert "native" in repr(layer) or "reference" in repr(layer)
    nn.unswap(twin)
    assert type(twin) is torch.nn.GRU
    assert torch.equal(twin(x)[0], want)
    assert isinstance(layer, nn.GRU)


def test_an_optimizer_goes_on_and_new_parameters_are_kept_on_the_way_back() -> None:
    torch.manual_seed(1)
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    nn.swap(model)
    first = model.cells[0].bias_ih.detach().clone()
    model(torch.randn(2, 5, 4)).sum().backward()
    optimizer.step()
    assert not torch.equal(first, model.cells[0].bias_ih)
    model.first.weight_ih_l0 = torch.nn.Parameter(torch.zeros_like(model.first.weight_ih_l0))
    ours = run(model)
    nn.unswap(model)
    for a, b in zip(ours, run(model), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_a_swapped_model_can_be_looked_into() -> None:
    model = Model()
    nn.swap(model)
    with capture(model) as recording:
        model(torch.randn(2, 5, 4))
    gate = recording["first"].gate(Gate.FORGET, layer=1, direction=1)
    assert gate.shape == (5, 2, 6)
