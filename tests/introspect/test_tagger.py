"""What is seen of a tagger: gates and gradients over its words, and which word moved a label."""

import itertools

import numpy as np
import pytest
import torch

from unspool import Tagger, crf, introspect, tagger, training
from unspool.errors import InputError
from unspool.kernels.contract import Cell, Gate
from unspool.model import side_by_side
from unspool.recipes import reader, tagging
from unspool.sentences import Tables
from unspool.vocabulary import Vocabulary

TEXT = "the cat Sat on thé mat"


@pytest.fixture(scope="module")
def model() -> Tagger:
    """A tagger whose chain speaks as loud as its emissions."""
    torch.manual_seed(3)
    words = Vocabulary.build([["the", "cat", "sat", "on"]], lowercase=True)
    letters = Vocabulary.build([list("abcdefghijklmnopqrstuvwxyz")], lowercase=False)
    config = tagging.Config(
        num_layers=2, hidden_size=12, word_size=6, letter_size=5, letter_hidden_size=4, cell="lstm"
    )
    tables = Tables(words, letters, Vocabulary.build([], lowercase=True))
    network = tagging.Network(config, reader.Words(tables, np.zeros((2, 0), np.float32)), 4)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter *= 2
        for part in network.chain:
            part += torch.randn_like(part)
    d = tagger.Description(
        tagger.TASK, ("A", "B", "C", "D"), "none", "columns", "label", Cell.LSTM, 6, 0, 8, 5, 4, 12, 2
    )
    return Tagger(d, tables, training.weights(network))


def margin(model: Tagger, x: np.ndarray, at: int, label: int, rival: int) -> float:
    """By listing every labelling there is."""
    emissions = model.read_out(model.run(x, np.array([len(x)]))).astype(np.float64)
    sums = {label: [], rival: []}
    for labels in itertools.product(range(4), repeat=len(x)):
        if labels[at] in sums:
            given = np.array(labels)[:, None]
            sums[labels[at]].append(float(crf.score(emissions, given, np.array([len(x)]), model.chain)[0]))
    return float(np.logaddexp.reduce(sums[label]) - np.logaddexp.reduce(sums[rival]))


@pytest.mark.parametrize(("target", "at"), [(None, None), ("A", 0), ("C", -1), ("D", 3)])
def test_contributions_add_up_to_what_moved_the_label(
    model: Tagger, target: str | None, at: int | None
) -> None:
    found = introspect.contributions(model, TEXT, target=target, at=at, steps=512)
    assert found.words == tuple(TEXT.split())
    place = introspect.uncertain(model, TEXT) if at is None else at % 6
    encoded = model.encode([TEXT.split()])
    x = model.embed(encoded)
    names = model.description.labels
    label, rival = names.index(found.label), names.index(found.rival)
    assert found.margin == pytest.approx(margin(model, x, place, label, rival), abs=1e-4)
    assert found.margin_without == pytest.approx(margin(model, x * 0, place, label, rival), abs=1e-4)
    assert abs(found.gap) < 2e-3 * abs(found.values).sum()
    likely = crf.marginals(model.emissions(encoded), encoded.lengths, model.chain)[:, 0]
    assert found.score == pytest.approx(float(likely[place, label]), abs=1e-5)
    if target is None:
        assert likely[place].max() == likely.max(1).min()
        assert model.predict([TEXT.split()])[0][place] == found.label
    else:
        assert found.label == target != found.rival


def test_the_other_words_move_a_label_through_the_chain_alone_too(model: Tagger) -> None:
    """A layer without memory carries nothing from word to word: what is left comes by the labels."""
    tensors = dict(model._tensors)
    for name, array in tensors.items():
        if "_hh_" in name and name.startswith("layers."):
            tensors[name] = np.zeros_like(array)
        if name.startswith("layers.") and "bias" in name:
            forgets = array.reshape(4, -1).copy()
            forgets[1] = -50
            tensors[name] = forgets.reshape(-1)
    without = Tagger(model.description, model.tables, tensors)
    values = introspect.contributions(without, TEXT, at=2).values
    assert (abs(values) > 1e-5).all()
    loose = {**tensors, "transitions": np.zeros((4, 4), np.float32)}
    without = Tagger(model.description, model.tables, loose)
    values = introspect.contributions(without, TEXT, at=2).values
    assert list(np.flatnonzero(abs(values) > 1e-5)) == [2]


def test_gates_and_statistics_are_those_of_the_layers(model: Tagger) -> None:
    recording = introspect.record(model, TEXT)
    assert recording.words == tuple(TEXT.split())
    assert recording.known == (True, True, True, True, False, False)
    assert (recording.directions, len(recording.traces)) == (2, 2)
    assert recording.gate(Gate.FORGET, layer=0, direction=1).shape == (6, 12)
    emissions = model.read_out(recording.traces[-1].hidden)
    assert emissions.tobytes() == model.emissions(model.encode([TEXT.split()])).tobytes()
    assert side_by_side(recording.traces[-1].hidden).shape == (6, 1, 24)
    spans = introspect.memory_span(model, TEXT)
    assert {(one.layer, one.direction) for one in spans} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert [one.low for one in introspect.saturation(model, TEXT)] == [
        one.low for one in introspect.saturation(recording)
    ]
    context = introspect.right_context(model, TEXT)
    assert context.reverse is not None
    assert context.reverse[-1] == 0 < context.reverse[0]


def test_gradients_take_a_text_and_texts(model: Tagger) -> None:
    flow = introspect.gradient_flow(model, TEXT, at=3, direction=1)
    assert (flow.hidden[3:] > 0).all()
    assert (flow.hidden[:3] == 0).all()
    lower = introspect.gradient_flow(model, TEXT, at=3, level=0)
    assert (lower.hidden > 0).all()  # the upper layer read both ways
    assert introspect.gradient_terms(model, TEXT, at=3, weight="weight_hh_l1_reverse").total().shape == (
        48,
        12,
    )
    both = introspect.gradient_flow(model, ["the cat", "on"], at=0).hidden
    parts = [introspect.gradient_flow(model, text, at=0).hidden for text in ("the cat", "on")]
    assert both[0] ** 2 == pytest.approx(sum(part[0] ** 2 for part in parts), rel=1e-5)
    assert introspect.jacobian(model, TEXT, at=3, of=1).hidden_hidden.shape == (12, 12)


def test_what_cannot_be_asked_is_refused(model: Tagger) -> None:
    for wrong, said in (
        ({"target": "Z"}, "knows no label 'Z'"),
        ({"at": 6}, "there is no step"),
        ({"lengths": [6]}, "its own length"),
    ):
        with pytest.raises(InputError, match=said):
            introspect.contributions(model, TEXT, **wrong)
    for ask in (introspect.contributions, introspect.record, introspect.right_context):
        with pytest.raises(InputError, match="has no words"):
            ask(model, " ")
    with pytest.raises(InputError, match="a text without words"):
        introspect.memory_span(model, ["the cat", ""])
