"""The recipe's own parts: data, words, network, dropout, loss, score, and the folder that is left.

That a saved network answers as the torch one does is held by test_model; the loop by test_training.
"""

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import networks
from unspool import model as serving
from unspool import training
from unspool.data.readers import Example
from unspool.errors import ConfigError, DataError
from unspool.recipes import sentiment
from unspool.recipes.sentiment import Config, Network, Options
from unspool.vocabulary import PAD, PAD_TOKEN, UNKNOWN, UNKNOWN_TOKEN, Vocabulary

STILL = {
    "word_dropout": 0.0,
    "embedding_dropout": 0.0,
    "layer_dropout": 0.0,
    "recurrent_dropout": 0.0,
    "output_dropout": 0.0,
}
LENGTHS = (7, 4, 0, 1, 7)
VOCABULARY = 12
HEAD = "text\tlabel\n"


@pytest.fixture(scope="module", autouse=True)
def one_torch_thread(native: object) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def lively(config: Config, classes: int = 3, seed: int = 0) -> Network:
    """A network whose every parameter is drawn anew, so that no part of it can be left out unseen."""
    network = Network(config, VOCABULARY, classes)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.7, generator=generator)
    return network


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Ragged rows, an empty one among them, with the padding word past each length."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor(LENGTHS)
    tokens = torch.randint(1, VOCABULARY, (len(LENGTHS), max(LENGTHS)), generator=generator)
    tokens[torch.arange(max(LENGTHS)) >= lengths.unsqueeze(1)] = PAD
    return tokens, lengths


def noise(step: int = 3, first: int = 0, stop: int = len(LENGTHS)) -> training.Noise:
    return training.Noise(1, step, first, stop, len(LENGTHS))


def small(cell: str = "lstm", **options: Any) -> Config:
    sizes = {"embedding_size": 5, "hidden_size": 4}
    return Config(**{**STILL, **sizes, "cell": cell, **options})


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


# ---- options


@pytest.mark.parametrize(
    "bad",
    [{"data": "imbd"}, {"dev": Path("b.tsv")}, {"test": Path("c.tsv")}, {"fold": 10}, {"fold": -1},
     {"cell": "gry"}, {"pooling": "min"}, {"vector_words": -1}, {"vector_scale": 0.0},
     {"vector_scale": math.nan}, {"label_smoothing": 1.1},
     {"hidden_size": 0}, {"num_layers": 0}, {"embedding_size": 0}, {"min_count": 0},
     {"max_length": 0}, {"word_dropout": 1.0}, {"embedding_dropout": -0.1}, {"layer_dropout": 1.0},
     {"recurrent_dropout": math.nan}, {"output_dropout": 1.0}],
    ids=lambda bad: "{}={}".format(*next(iter(bad.items()))),
)  # fmt: skip
def test_an_option_out_of_range_is_named(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"{next(iter(bad))} .*\n *Received: .*\n *Fix: "):
        Config(**bad)


def test_options_that_a_benchmark_does_not_use_are_free_with_own_files() -> None:
    own = Path("a.tsv")
    assert Config(data="mine", train=own, dev=own, test=own).train == own


# ---- data and words


def test_three_files_are_three_parts(tmp_path: Path) -> None:
    for name, text in (("a", "one"), ("b", "two"), ("c", "three")):
        (tmp_path / f"{name}.tsv").write_text(f"said\tmark\n{text}\tyes\nno {text}\tno\n")
    columns = {"text_column": "said", "label_column": "mark"}
    paths = {part: tmp_path / f"{name}.tsv" for part, name in (("train", "a"), ("dev", "b"), ("test", "c"))}
    splits = sentiment.read(Config(**paths, **columns))  # type: ignore[arg-type]
    assert [part[0] for part in splits] == [Example(text, "yes") for text in ("one", "two", "three")]
    (tmp_path / "c.tsv").write_text("said\tmark\nthree\tperhaps\n")
    with pytest.raises(DataError, match=r"c\.tsv:2: this label is unknown"):
        sentiment.read(Config(**paths, **columns))  # type: ignore[arg-type]


def test_a_tenth_is_held_out_where_no_dev_file_is_given(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text(HEAD + "".join(f"film {i}\t{'good' if i % 2 else 'bad'}\n" for i in range(50)))
    train, dev, test = sentiment.read(Config(train=path))
    assert (len(train), len(dev), len(test)) == (45, 5, 0)
    assert {example.text for example in (*train, *dev)} == {f"film {i}" for i in range(50)}


def test_texts_become_numbers() -> None:
    vocabulary = Vocabulary((PAD_TOKEN, UNKNOWN_TOKEN, "good", "film", "not"), lowercase=True)
    examples = [Example("Not good", "no"), Example("a good film film film", "yes"), Example(" ", "yes")]
    data = sentiment.encode(examples, vocabulary, ("no", "yes"), 4)
    assert [s.tolist() for s in data.sequences] == [[4, 2], [UNKNOWN, 2, 3, 3], []]
    assert (data.lengths.tolist(), data.labels.tolist(), data.cut) == ([2, 4, 0], [0, 1, 1], 1)


def test_a_share_is_some_rows_of_the_padded_batch() -> None:
    data = sentiment.Data(
        [np.arange(1, n + 1) for n in (3, 1, 5, 2)], np.array([3, 1, 5, 2]), np.array([0, 1, 1, 0]), 0
    )
    positions = np.array([2, 0, 3])
    whole = sentiment.share_of(data, positions, 0, 3)
    assert whole.tokens.tolist() == [[1, 2, 3, 4, 5], [1, 2, 3, 0, 0], [1, 2, 0, 0, 0]]
    assert (whole.lengths.tolist(), whole.labels.tolist()) == ([5, 3, 2], [1, 0, 0])
    for first, stop in ((0, 1), (1, 3), (2, 2)):
        share = sentiment.share_of(data, positions, first, stop)
        for part, all_rows in zip(share, whole, strict=True):
            assert torch.equal(part, all_rows[first:stop])


TRAIN = [Example("good film good", "a"), Example("film rare dull", "b"), Example("odd odd", "b")]
GLOVE = "the 9 9 9\ngood 1 2 3\nunseen -1 0 0.5\nrare 4 5 6\nlate 7 7 7\n"


def test_without_vectors_frequent_words_are_known() -> None:
    vocabulary, table = sentiment.build_vocabulary(Config(min_count=2), TRAIN)
    assert set(vocabulary.tokens[2:]) == {"film", "good", "odd"}
    assert table is None


@pytest.mark.parametrize(
    ("vector_words", "known"),
    [(0, {"film", "good", "odd", "rare"}), (3, {"film", "good", "odd", "rare", "the", "unseen"})],
)
def test_words_start_from_their_vectors(tmp_path: Path, vector_words: int, known: set[str]) -> None:
    (tmp_path / "v.txt").write_text(GLOVE)
    config = small(vectors=str(tmp_path / "v.txt"), vector_words=vector_words, vector_scale=0.5, min_count=2)
    vocabulary, table = sentiment.build_vocabulary(config, TRAIN)
    assert table is not None
    assert vocabulary.tokens[:2] == (PAD_TOKEN, UNKNOWN_TOKEN)
    assert set(vocabulary.tokens[2:]) == known

    with training.seeded(1):
        network = Network(config, len(vocabulary), 2, table)
    weight = network.embedding.weight.detach()
    assert weight.shape == (len(vocabulary), 3)  # the file's size, not the option's 5
    assert network.layers[0].weight_ih_l0.shape[1] == 3
    rows = {token: weight[i] for i, token in enumerate(vocabulary.tokens)}
    assert rows["good"].tolist() == [0.5, 1.0, 1.5]
    assert rows["rare"].tolist() == [2.0, 2.5, 3.0]
    if vector_words:
        assert rows["unseen"].tolist() == [-0.5, 0.0, 0.25]
    assert rows[PAD_TOKEN].tolist() == [0, 0, 0]
    for token in (UNKNOWN_TOKEN, "film", "odd"):  # they have none, and start at random
        assert 0 < rows[token].abs().max() < 0.6
    assert not torch.equal(rows["film"], rows["odd"])
    assert network.embedding.weight.requires_grad


# ---- the network


@pytest.mark.parametrize("cell", networks.CELLS)
def test_weights_start_as_the_docstring_says(cell: str) -> None:
    config = small(cell, hidden_size=20, embedding_size=30, num_layers=2)
    with training.seeded(3):
        network = Network(config, 400, 2)
    words = network.embedding.weight.detach()
    assert (words[PAD] == 0).all()
    assert words[1:].std().item() == pytest.approx(0.1, rel=0.05)
    assert words[1:].mean().item() == pytest.approx(0, abs=0.005)
    assert (network.classifier.bias == 0).all()
    for layer in network.layers:
        for name, parameter in layer.named_parameters():
            for k, gate in enumerate(parameter.detach().split(20)):
                if "weight_hh" in name:
                    same(gate @ gate.T, torch.eye(20))
                elif "weight_ih" in name:
                    limit = math.sqrt(6 / (20 + gate.size(1)))
                    assert 0.9 * limit < gate.abs().max().item() <= limit
                    assert gate.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.1)
                else:
                    forget = cell == "lstm" and k == 1 and "bias_ih" in name
                    assert (gate == (1 if forget else 0)).all(), name


@pytest.mark.parametrize("pooling", serving.POOLINGS)
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", networks.CELLS)
def test_no_row_depends_on_its_batch(cell: str, bidirectional: bool, num_layers: int, pooling: str) -> None:
    config = small(cell, bidirectional=bidirectional, num_layers=num_layers, pooling=pooling)
    network = lively(config)
    tokens, lengths = batch()
    with torch.no_grad():
        together = network(tokens, lengths)
        for row, length in enumerate(LENGTHS):
            same(network(tokens[row : row + 1, :length], lengths[row : row + 1])[0], together[row])
        same(network(F.pad(tokens, (0, 4), value=PAD), lengths), together)
    assert together.std(0).min() > 0.01
    same(together[LENGTHS.index(0)], network.classifier.bias)


# ---- dropout


def dropped(config: Config, network: Network | None = None) -> Tensor:
    network = network or lively(config)
    with torch.no_grad():
        return network(*batch(), noise())


def undisturbed(config: Config) -> Tensor:
    """What a network of the same parameters answers without noise."""
    with torch.no_grad():
        return lively(config)(*batch())


def test_word_dropout_puts_the_unknown_word_in_place_of_words() -> None:
    config = small(word_dropout=0.4)
    tokens, lengths = batch()
    mask = noise().keep(0.4, max(LENGTHS)) == 0
    replaced = torch.where(mask & (tokens != PAD), UNKNOWN, tokens)
    assert 0 < (replaced != tokens).sum() < sum(LENGTHS)
    with torch.no_grad():
        same(dropped(config), lively(config)(replaced, lengths))
    assert not torch.allclose(dropped(config), undisturbed(config))


def test_embedding_dropout_drops_the_same_numbers_of_all_words() -> None:
    config = small(embedding_dropout=0.4)
    mask = noise().keep(0.4, 5)  # (B, E)
    network = lively(config)
    network.embedding.register_forward_hook(lambda module, given, x: x * mask)  # (T, B, E)
    with torch.no_grad():
        same(dropped(config), network(*batch()))
    assert not torch.allclose(dropped(config), undisturbed(config))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_layer_dropout_drops_between_layers(bidirectional: bool) -> None:
    options: dict[str, Any] = {"layer_dropout": 0.4, "bidirectional": bidirectional}
    config = small(num_layers=3, **options)
    drawn = noise()
    masks = [drawn.keep(0.4, 8 if bidirectional else 4) for _ in range(2)]
    network = lively(config)
    for layer, mask in zip(network.layers[1:], masks, strict=True):
        layer.register_forward_pre_hook(lambda module, given, mask=mask: (given[0] * mask,))
    with torch.no_grad():
        same(dropped(config), network(*batch()))
    assert not torch.allclose(dropped(config), undisturbed(config))
    one = small(**options)  # where there is one layer, there is no between
    assert torch.equal(dropped(one), undisturbed(one))


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", networks.CELLS)
def test_recurrent_dropout_drops_columns_of_the_recurrent_weights(
    cell: str, bidirectional: bool, num_layers: int
) -> None:
    config = small(cell, recurrent_dropout=0.4, bidirectional=bidirectional, num_layers=num_layers)
    directions = 2 if bidirectional else 1
    drawn = noise()
    masks = [drawn.keep(0.4, directions, 4) for _ in range(num_layers)]  # (B, D, H)
    tokens, lengths = batch()
    found = dropped(config)
    with torch.no_grad():
        for row in range(len(LENGTHS)):
            network = lively(config)
            for layer, mask in zip(network.layers, masks, strict=True):
                for d, suffix in enumerate(("", "_reverse")[:directions]):
                    getattr(layer, f"weight_hh_l0{suffix}").mul_(mask[row, d])
            same(found[row], network(tokens[row : row + 1], lengths[row : row + 1])[0])
    assert not torch.allclose(found, undisturbed(config))


@pytest.mark.parametrize("pooling", ["max", "mean-max"])
def test_output_dropout_drops_of_the_pooled_vector(pooling: str) -> None:
    config = small(output_dropout=0.4, pooling=pooling)
    mask = noise().keep(0.4, 8 if pooling == "max" else 16)
    network = lively(config)
    network.classifier.register_forward_pre_hook(lambda module, given: (given[0] * mask,))
    with torch.no_grad():
        same(dropped(config), network(*batch()))
    assert not torch.allclose(dropped(config), undisturbed(config))


ALL = dict.fromkeys(STILL, 0.4)


def test_without_noise_nothing_is_dropped() -> None:
    config, still = small(num_layers=2, **ALL), small(num_layers=2)
    assert torch.equal(undisturbed(config), undisturbed(still))
    assert torch.equal(dropped(still), undisturbed(still))
    tokens, lengths = batch()
    data = sentiment.Data(
        [row[:n].numpy() for row, n in zip(tokens, LENGTHS, strict=True)],
        lengths.numpy(), np.array([0, 1, 2, 0, 1]), 0,
    )  # fmt: skip
    with torch.no_grad():
        assert sentiment.score(data, lively(config).train()) == sentiment.score(data, lively(still))


def test_what_is_dropped_does_not_depend_on_the_shares() -> None:
    config = small(num_layers=2, **ALL)
    network = lively(config)
    tokens, lengths = batch()
    whole = dropped(config, network)
    with torch.no_grad():
        for first, stop in ((0, 2), (2, 5)):
            share = network(tokens[first:stop], lengths[first:stop], noise(first=first, stop=stop))
            same(share, whole[first:stop])
    with torch.no_grad():
        assert not torch.allclose(network(tokens, lengths, noise(step=4)), whole)


# ---- loss and score


def test_the_loss_is_the_summed_cross_entropy() -> None:
    labels = torch.tensor([0, 1, 2, 0, 1])
    share = sentiment.Share(*batch(), labels)
    for smoothing in (0.0, 0.3):
        config = small(label_smoothing=smoothing)
        network = lively(config)
        loss = sentiment.loss(config, network, share, noise())
        logs = torch.log_softmax(network(*batch()), 1)
        target = F.one_hot(labels, 3) * (1 - smoothing) + smoothing / 3
        same(loss.total, -(target * logs).sum())
        assert (loss.count, loss.tokens, loss.places) == (5, sum(LENGTHS), 5 * max(LENGTHS))


@pytest.mark.parametrize("pooling", serving.POOLINGS)
@pytest.mark.parametrize("cell", networks.CELLS)
def test_an_empty_share_has_a_loss_of_zero(cell: str, pooling: str) -> None:
    config = small(cell, num_layers=2, pooling=pooling, **ALL)
    network = lively(config)
    tokens, lengths = batch()
    for steps in (max(LENGTHS), 0):
        network.zero_grad()
        share = sentiment.Share(tokens[:0, :steps], lengths[:0], torch.zeros(0, dtype=torch.int64))
        loss = sentiment.loss(config, network, share, noise(first=2, stop=2))
        assert (loss.total.item(), loss.count, loss.tokens, loss.places) == (0, 0, 0, 0)
        loss.total.backward()
        for name, parameter in network.named_parameters():
            # Other ranks wait for every gradient; a whole batch without words is no file's.
            assert parameter.grad is not None or steps == 0, name
            assert parameter.grad is None or (parameter.grad == 0).all(), name


def test_texts_without_words_still_have_a_loss() -> None:
    config = small(**ALL)
    share = sentiment.Share(
        torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), torch.tensor([0, 1])
    )
    network = lively(config)
    loss = sentiment.loss(config, network, share, training.Noise(1, 1, 0, 2, 2))
    logs = torch.log_softmax(network.classifier.bias, 0)
    same(loss.total, -(logs[0] + logs[1]))


def test_the_score_is_counted_by_hand() -> None:
    config = small()
    network = lively(config).eval()
    generator = np.random.default_rng(0)
    sequences = [generator.integers(1, VOCABULARY, n) for n in generator.integers(0, 30, 300)]
    lengths = np.array([len(s) for s in sequences])
    labels = generator.integers(0, 3, 300)
    right, total = 0, 0.0
    with torch.no_grad():
        for sequence, label in zip(sequences, labels, strict=True):
            logits = network(torch.from_numpy(sequence)[None], torch.tensor([len(sequence)]))[0]
            right += int(logits.argmax()) == label
            total -= float(torch.log_softmax(logits, 0)[label])
        score = sentiment.score(sentiment.Data(sequences, lengths, labels, 0), network)
    assert 30 < right < 270
    assert score.metric == right / 300
    assert score.loss == pytest.approx(total / 300, rel=1e-5)


@pytest.mark.parametrize(
    ("cell", "num_layers", "bidirectional", "pooling"),
    [("lstm", 2, True, "mean-max"), ("gru", 1, True, "last"), ("gru", 2, False, "max"),
     ("rnn_tanh", 1, True, "mean"), ("rnn_relu", 1, False, "max"), ("lstm", 1, False, "last")],
)  # fmt: skip
def test_gradients_are_finite_differences(
    cell: str, num_layers: int, bidirectional: bool, pooling: str
) -> None:
    options = {"num_layers": num_layers, "bidirectional": bidirectional, "pooling": pooling}
    config = small(cell, embedding_size=3, hidden_size=3, label_smoothing=0.1, **options, **ALL)
    network = lively(config, seed=1).double()
    share = sentiment.Share(*batch(), torch.tensor([0, 1, 2, 0, 1]))

    class Double(training.Noise):
        def keep(self, p: float, *shape: int) -> Tensor:
            return super().keep(p, *shape).double()

    def loss() -> Tensor:
        drawn = Double(1, 3, 0, len(LENGTHS), len(LENGTHS))
        return sentiment.loss(config, network, share, drawn).total

    loss().backward()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.norm() > 1e-3, name
        for _ in range(4):  # directions that no wrong entry can hide from
            direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            sides = []
            for step in (1e-5, -2e-5):
                with torch.no_grad():
                    parameter += step * direction
                    sides.append(float(loss()))
            with torch.no_grad():
                parameter += 1e-5 * direction
            expected = (sides[0] - sides[1]) / 2e-5
            found = float((parameter.grad * direction).sum())
            assert found == pytest.approx(expected, rel=1e-5, abs=1e-6), name


# ---- the run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Sentences whose label is told by one word, early or late."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    marks = {"fresh": ["moving", "funny", "warm"], "rotten": ["dull", "flat", "tired"]}
    paths = {}
    for part, count in (("train", 160), ("dev", 40), ("test", 40)):
        lines = []
        for i in range(count):
            label = ("fresh", "rotten")[i % 2]
            filler = ["the", "film", "it", "was", "and", f"n{i}"]
            text = [str(word) for word in random.choice(filler, random.integers(3, 9))]
            text.insert(int(random.integers(0, len(text) + 1)), str(random.choice(marks[label])))
            lines.append(f"{' '.join(text)}\t{label}\n")
        paths[part] = folder / f"{part}.tsv"
        paths[part].write_text(HEAD + "".join(lines))
    return paths


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", networks.CELLS)
def test_every_cell_learns(cell: str, bidirectional: bool, data: dict[str, Path], tmp_path: Path) -> None:
    sizes = {"hidden_size": 8, "embedding_size": 12}
    config = Config(**data, **sizes, **STILL, cell=cell, bidirectional=bidirectional)  # type: ignore[arg-type]
    options = Options(epochs=6, batch_size=16, learning_rate=0.02, warmup_steps=0, quiet=True)
    outcome = sentiment.train(config, options, tmp_path / "run")
    assert outcome is not None
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [record["train_loss"] for record in records]
    assert losses[-1] < 0.3 * losses[0], losses
    assert outcome.dev == max(record["accuracy"] for record in records) >= 0.9
    assert (outcome.part, outcome.measured.examples) == ("test", 40)
    assert outcome.measured.value >= 0.9


def test_the_run_leaves_a_model_and_its_answers(data: dict[str, Path], tmp_path: Path) -> None:
    """What torch scored in training is what the folder says without it."""
    config = Config(train=data["train"], dev=data["dev"], hidden_size=8, embedding_size=12, max_length=5)
    options = Options(epochs=2, batch_size=16, learning_rate=0.01, warmup_steps=0, quiet=True)
    outcome = sentiment.train(config, options, tmp_path / "run")
    assert outcome is not None
    assert (outcome.part, outcome.best) == ("dev", tmp_path / "run/best")
    assert 0.5 < outcome.measured.value < 1
    assert outcome.measured.value == outcome.dev

    model = serving.Model.load(outcome.best)
    assert model.description.labels == ("fresh", "rotten")
    assert (model.description.cell.value, model.description.max_length) == ("lstm", 5)
    rows = [line.split("\t") for line in data["dev"].read_text().splitlines()[1:]]
    answers = [json.loads(line) for line in (tmp_path / "run/predictions-dev.jsonl").read_text().splitlines()]
    assert [(answer["text"], answer["gold"]) for answer in answers] == [(text, label) for text, label in rows]
    assert [{k: v for k, v in a.items() if k != "gold"} for a in answers] == model.predict(
        [r[0] for r in rows]
    )
    right = sum(answer["label"] == answer["gold"] for answer in answers)
    assert outcome.measured.value == right / len(rows)


def test_the_card_says_what_was_measured_once(data: dict[str, Path], tmp_path: Path) -> None:
    config = Config(**data, hidden_size=4, embedding_size=6)  # type: ignore[arg-type]
    options = Options(epochs=1, batch_size=16, quiet=True, seed=5)

    def card(options: Options) -> str:
        outcome = sentiment.train(config, options, tmp_path / "run")
        assert outcome is not None
        measured = f"| test | {outcome.measured.value:.4f} ("
        text = (outcome.best / "README.md").read_text(encoding="utf-8")
        assert text.count(measured) == text.count("| test |") == 1
        assert f"| dev (chose the epoch) | {outcome.dev:.4f} |" in text
        return text

    text = card(options)
    assert text.startswith("---\n")
    assert "1 × lstm of 4 units, two directions, max pooling,\ntrained on train.tsv with seed 5" in text
    assert card(dataclasses.replace(options, resume=True)) == text


def test_words_that_training_did_not_see_can_be_read_by_their_vectors(
    data: dict[str, Path], tmp_path: Path
) -> None:
    """`charming` is in no training text; its vector is that of a word of praise."""
    good, bad = "1 1 0 0.2", "-1 -1 0.1 0"
    lines = [f"{word} {good}\n" for word in ("moving", "funny", "warm", "charming")]
    lines += [f"{word} {bad}\n" for word in ("dull", "flat", "tired", "dreary")]
    (tmp_path / "v.txt").write_text("".join(lines))
    config = Config(**data, vectors=str(tmp_path / "v.txt"), hidden_size=8, **STILL)  # type: ignore[arg-type]
    options = Options(epochs=4, batch_size=16, learning_rate=0.02, warmup_steps=0, quiet=True)
    outcome = sentiment.train(config, options, tmp_path / "run")
    assert outcome is not None
    model = serving.Model.load(outcome.best)
    answers = model.predict(["it was charming", "it was dreary", "it was zzz"])
    assert [answer["label"] for answer in answers[:2]] == ["fresh", "rotten"]
    assert model.description.embedding_size == 4


def test_what_is_said_of_the_data(
    data: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = Config(**data, hidden_size=4, embedding_size=6, max_length=4)  # type: ignore[arg-type]
    sentiment.train(config, Options(epochs=1), tmp_path / "run")
    out, err = capsys.readouterr()
    assert out == ""
    longer = sum(len(line.split("\t")[0].split()) > 4 for line in data["train"].read_text().splitlines()[1:])
    assert f"{data['train']}: 160 texts to train on, 40 dev, 40 test; " in err
    assert f"{longer} train texts are cut at 4 words" in err
    known = len(serving.Model.load(tmp_path / "run/best").vocabulary)
    assert f"{known} words known" in err


def test_only_the_first_rank_measures(
    data: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RANK", "1")
    result = training.Result(tmp_path, 0.5, 1, 1, 1, 0, [])
    assert sentiment.measure(sentiment.read(Config(**data)), result) is None  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_ours_and_torchs_layers_are_the_same_network() -> None:
    results = []
    for whose in ("unspool", "torch"):
        torch.manual_seed(0)
        network = sentiment.Network(small(num_layers=2, layers=whose), 20, 2)
        logits = network(torch.arange(2, 20).reshape(3, 6), torch.tensor([6, 2, 5]))
        logits.square().sum().backward()
        results.append({name: p.grad for name, p in network.named_parameters()} | {"": logits})
    for name, ours in results[0].items():
        torch.testing.assert_close(ours, results[1][name], atol=1e-5, rtol=1e-4, msg=name)
    with pytest.raises(ConfigError, match="recurrent_dropout"):
        small(layers="torch", recurrent_dropout=0.1)
