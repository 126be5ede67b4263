"""What is seen of a language model: gates, gradients, and which unit moved what comes next."""

from pathlib import Path

import numpy as np
import pytest
import torch

from unspool import LanguageModel, introspect, language, training
from unspool.errors import InputError
from unspool.kernels.contract import Cell, Gate
from unspool.recipes import language_model as recipe
from unspool.vocabulary import Vocabulary


def build(cell: str = "lstm", layers: int = 2, adaptive: int = 0) -> tuple[LanguageModel, recipe.Network]:
    torch.manual_seed(3)
    config = recipe.Config(
        cell=cell,  # type: ignore[arg-type]
        num_layers=layers,
        hidden_size=32,
        embedding_size=6,
        adaptive_softmax=adaptive,
    )
    network = recipe.Network(config, 28)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter *= 4
    known = Vocabulary.build([[chr(97 + i)] for i in range(26)], lowercase=False)
    d = language.Description(language.TASK, "characters", Cell(cell), 6, 32, layers, adaptive)
    return LanguageModel(d, known, training.weights(network)), network


def test_a_recording_holds_each_unit_and_is_read_again(tmp_path: Path) -> None:
    model, _ = build()
    found = introspect.record(model, "ab !")
    assert found.words == ("a", "b", " ", "!")
    assert found.known == (True, True, False, False)
    assert found.gate(Gate.FORGET, layer=0).shape == (4, 32)
    found.save(tmp_path / "r.safetensors")
    again = introspect.Recording.load(tmp_path / "r.safetensors")
    assert again.words == found.words
    assert again.hidden().tobytes() == found.hidden().tobytes()
    with pytest.raises(InputError, match="there is no text"):
        introspect.record(model, "")


@pytest.mark.parametrize("adaptive", [0, 4])
@pytest.mark.parametrize("target", [None, "b", "z"])
def test_contributions_add_up_to_what_moved_the_next_unit(adaptive: int, target: str | None) -> None:
    model, _ = build(adaptive=adaptive)
    found = introspect.contributions(model, "hello", target=target, steps=512)
    assert len(found.values) == 5
    assert found.margin - found.margin_without == pytest.approx(
        float(found.values.sum()), abs=2e-3 * abs(found.values).sum()
    )
    logs, _ = model.run(model.vocabulary.encode(list("hello")))
    chances = dict(zip(model.vocabulary.tokens, np.exp(logs[-1]), strict=True))
    assert found.score == pytest.approx(chances[found.label])
    if target is None:
        assert found.margin >= 0
    else:
        assert found.label == target != found.rival
    # What comes after a step has no part in it.
    early = introspect.contributions(model, "hello", target=target, at=2, steps=64)
    alone = introspect.contributions(model, "hel", target=target, steps=64)
    assert early.values.tobytes() == alone.values.tobytes()
    with pytest.raises(InputError, match="knows no unit"):
        introspect.contributions(model, "hello", target="€")


@pytest.mark.parametrize("adaptive", [0, 4])
def test_the_gradient_of_a_probability_is_autograds(adaptive: int) -> None:
    model, network = build(adaptive=adaptive)
    hidden = torch.randn(3, 32, requires_grad=True)
    for unit in (1, 3, 9, 27):
        scores = network.scores
        logs = scores.log_prob(hidden) if adaptive else scores(hidden).log_softmax(1)  # type: ignore[operator]
        (wanted,) = torch.autograd.grad(logs[:, unit].sum(), hidden)
        given = model.read_out_gradient(hidden.detach().numpy(), unit)
        np.testing.assert_allclose(given, wanted.numpy(), atol=3e-5)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_statistics_and_gradients_take_a_text(cell: str) -> None:
    model, network = build(cell)
    text = "abcdefgh"
    x = torch.from_numpy(model.embed(model.encode([text]).tokens)[:, 0].copy())
    lower = network.layers[0]
    spans = introspect.memory_span(model, text)
    torch.testing.assert_close(
        torch.from_numpy(spans[0].steps), torch.from_numpy(introspect.memory_span(lower, x)[0].steps)
    )
    shares = introspect.saturation(model, text)
    assert {one.layer for one in shares} == {0, 1}
    flow = introspect.gradient_flow(model, text, at=5)
    assert flow.hidden.shape == (8,)
    assert flow.hidden[5] > 0
    assert (flow.hidden[6:] == 0).all()
    terms = introspect.gradient_terms(model, text, at=5, weight="weight_hh_l1")
    assert terms.total().shape[1] == 32
    assert len(introspect.record(model, text).traces) == 2


def test_a_batch_of_texts_is_read_by_their_lengths() -> None:
    model, _ = build()
    both = introspect.gradient_flow(model, ["abcd", "ab"], at=1).hidden
    one = introspect.gradient_flow(model, "ab", at=1).hidden
    other = introspect.gradient_flow(model, "abcd", at=1).hidden
    np.testing.assert_allclose(both[:2] ** 2, one**2 + other[:2] ** 2, rtol=1e-5)
