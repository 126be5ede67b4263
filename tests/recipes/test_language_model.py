"""The language-model recipe: trained for real, resumed to the bit, served without torch; generation."""

import dataclasses
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from unspool import LanguageModel, language, training
from unspool.data import texts
from unspool.errors import ConfigError, DataError, InputError, ModelFileError
from unspool.kernels.contract import Cell
from unspool.recipes import language_model as recipe
from unspool.recipes.outcome import Outcome
from unspool.vocabulary import Vocabulary

TEXT = "the cat sat on the mat.\nthe dog sat on the log.\n" * 60
SMALL = {"hidden_size": 24, "embedding_size": 8, "window": 20, "layer_dropout": 0.1}
QUICK = {"epochs": 8, "batch_size": 4, "learning_rate": 0.02, "warmup_steps": 5, "quiet": True}


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "book.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def outcome(book: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    config = recipe.Config(train=book, **SMALL)  # type: ignore[arg-type]
    found = recipe.train(config, recipe.Options(**QUICK), tmp_path_factory.mktemp("runs") / "lm")  # type: ignore[arg-type]
    assert found is not None
    return found


def test_it_learns_a_text_that_repeats_itself(outcome: Outcome) -> None:
    assert outcome.measured.per_unit < 0.4
    assert outcome.measured.bits_per_unit == pytest.approx(outcome.measured.per_unit / np.log(2))
    assert outcome.measured.perplexity == pytest.approx(np.exp(outcome.measured.per_unit))
    model = LanguageModel.load(outcome.best)
    assert model.generate("the cat sat", 12, temperature=0) in (" on the mat.", " on the log.")


def test_with_and_without_torch_the_likelihood_is_the_same(outcome: Outcome) -> None:
    assert outcome.part == "dev"
    assert outcome.measured.per_unit == pytest.approx(outcome.dev, abs=1e-5)


def test_a_likelihood_does_not_depend_on_how_much_is_read_at_once(
    outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = LanguageModel.load(outcome.best)
    numbers = model.vocabulary.encode(list(TEXT[:200]))
    whole, _ = model.run(numbers)
    first, states = model.run(numbers[:70])
    second, _ = model.run(numbers[70:], states)
    assert np.concatenate([first, second]).tobytes() == whole.tobytes()
    before = model.likelihood(TEXT[:700]).nats
    monkeypatch.setattr(language, "_AT_ONCE", 7)
    assert model.likelihood(TEXT[:700]).nats == pytest.approx(before, rel=1e-12)
    assert model.likelihood("").units == model.likelihood("t").units == 0


def test_generation_follows_its_seed_and_its_limits(outcome: Outcome) -> None:
    model = LanguageModel.load(outcome.best)
    one = model.generate("the ", 80, seed=1, temperature=2.0)
    assert one == model.generate("the ", 80, seed=1, temperature=2.0)
    assert one != model.generate("the ", 80, seed=2, temperature=2.0)
    likeliest = model.generate("the ", 80, temperature=0)
    assert model.generate("the ", 80, top_k=1, temperature=5.0, seed=3) == likeliest
    assert model.generate("the ", 80, top_p=1e-9, temperature=5.0, seed=3) == likeliest
    assert len(model.generate("the ", 80)) == 80
    for wrong in ({"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}, {"seed": -1}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            model.generate("the ", 1, **wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="empty prompt"):
        model.generate("", 1)


def test_top_p_and_top_k_choose_among_the_likeliest_alone() -> None:
    logs = np.log(np.array([0.5, 0.3, 0.1, 0.06, 0.03, 0.01], np.float32))
    # The first two are padding and the unknown unit: never chosen.  The rest: 0.5, 0.3, 0.15, 0.05.
    draw = np.random.default_rng(0)
    chosen = {name: {language._choose(logs, draw, 1.0, *limits) for _ in range(500)} for name, limits in {
        "all": (None, None), "k": (2, None), "p": (None, 0.5), "more": (None, 0.51), "both": (3, 0.9)
    }.items()}  # fmt: skip
    assert chosen == {"all": {2, 3, 4, 5}, "k": {2, 3}, "p": {2}, "more": {2, 3}, "both": {2, 3, 4}}


@pytest.mark.parametrize("units", ["characters", "bytes", "words"])
def test_units_are_cut_and_joined_again(units: str) -> None:
    text = "die Katze saß\nauf der Matte"
    cut = language.units_of(text, units)
    assert language.text_of(cut, units) == text
    assert len(cut) == {"characters": 27, "bytes": 28, "words": 7}[units]
    assert language.units_of("", units) == []


def test_a_run_that_was_stopped_ends_with_the_same_bits(book: Path, tmp_path: Path) -> None:
    """Stopped in mid-epoch, where each column's state is carried into the next window."""
    config = recipe.Config(train=book, **SMALL)  # type: ignore[arg-type]
    options = recipe.Options(**{**QUICK, "epochs": 2})  # type: ignore[arg-type]
    recipe.train(config, options, tmp_path / "whole")
    real = recipe.loss
    calls = 0

    def interrupted(*arguments: object) -> training.Loss:
        nonlocal calls
        calls += 1
        if calls == 13:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "loss", interrupted)
        with pytest.raises(SystemExit):
            recipe.train(config, options, tmp_path / "stopped")
    assert (tmp_path / "stopped" / "last" / "carried.safetensors").exists()
    recipe.train(config, dataclasses.replace(options, resume=True), tmp_path / "stopped")
    for name in ("best", "last"):
        a, b = (tmp_path / run / name / "model.safetensors" for run in ("whole", "stopped"))
        assert a.read_bytes() == b.read_bytes()
    assert not (tmp_path / "whole" / "best" / "carried.safetensors").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"num_layers": 2, "cell": "gru", "units": "words"},
        {"tied": True, "embedding_size": 24, "embedding_dropout": 0.1, "input_dropout": 0.1},
        {"weight_dropout": 0.3, "activation": 2.0, "slowness": 1.0, "recurrent_dropout": 0.2},
        {"layers": "torch", "weight_dropout": 0.3},
        {"units": "bytes", "cell": "rnn_tanh"},
        {"units": "subwords", "subwords": 300},
        {"adaptive_softmax": 4, "units": "words"},
        {"adaptive_softmax": 20, "units": "subwords", "subwords": 300, "hidden_size": 64},
    ],
)
def test_every_option_trains_and_is_served(book: Path, tmp_path: Path, change: dict[str, object]) -> None:
    config = recipe.Config(train=book, **{**SMALL, **change})  # type: ignore[arg-type]
    found = recipe.train(config, recipe.Options(**{**QUICK, "epochs": 2}), tmp_path / "run")  # type: ignore[arg-type]
    assert found is not None
    assert found.measured.per_unit == pytest.approx(found.dev, abs=2e-5)


def test_ours_and_torchs_layers_are_the_same_network(book: Path) -> None:
    results = []
    for layers in ("unspool", "torch"):
        torch.manual_seed(0)
        network = recipe.Network(recipe.Config(train=book, layers=layers, **SMALL), 20)  # type: ignore[arg-type]
        read = torch.arange(18).reshape(6, 3)
        nats, _, _, _ = network(read, (read + 1) % 20, None)
        nats.backward()
        results.append({name: p.grad for name, p in network.named_parameters()} | {"": nats})
    for name, ours in results[0].items():
        torch.testing.assert_close(ours, results[1][name], atol=1e-4, rtol=1e-4, msg=name)


def test_subwords_are_learned_from_the_training_part_alone_and_lose_nothing() -> None:
    config = recipe.Config(units="subwords", subwords=300)
    units = recipe.Units.learn(config, TEXT)
    assert units.subwords is not None
    assert len(units.known) == 2 + len(units.subwords.pieces())
    for text in (TEXT[:200], "Ünknown €\n\tsigns", "two  spaces"):
        cut = language.units_of(text, "subwords", units.subwords)
        assert 1 not in units.numbers(text), "every byte is known"
        assert language.text_of(cut, "subwords", units.subwords).removeprefix(" ") == text
    assert len(units.numbers(TEXT)) < len(TEXT) / 2


def test_an_adaptive_softmax_is_torchs_and_its_probabilities_sum_to_one(book: Path) -> None:
    """Grave et al. 2017, by torch's own module: the head, and each cluster, on random weights."""
    torch.manual_seed(1)
    config = recipe.Config(train=book, adaptive_softmax=3, hidden_size=32)
    network = recipe.Network(config, 40)
    d = language.Description(language.TASK, "characters", Cell.LSTM, config.embedding_size, 32, 1, 3)
    assert language.clusters(3, 40) == [(3, 15), (15, 40)]
    known = Vocabulary.build([[chr(97 + i)] for i in range(38)], lowercase=False)
    model = LanguageModel(d, known, training.weights(network))
    logs, _ = model.run(np.arange(40))
    x, _ = network.layers[0](network.embedding(torch.arange(40))[:, None])
    with torch.no_grad():
        wanted = network.scores.log_prob(x[:, 0])  # type: ignore[operator]
    np.testing.assert_allclose(logs, wanted.numpy(), atol=2e-6)
    np.testing.assert_allclose(np.exp(logs).sum(1), 1, atol=1e-6)


@pytest.mark.parametrize(("first", "hidden"), [(500, 24), (1, 8)])
def test_an_adaptive_softmax_that_cannot_be_is_refused(
    book: Path, tmp_path: Path, first: int, hidden: int
) -> None:
    config = recipe.Config(train=book, adaptive_softmax=first, hidden_size=hidden)
    with pytest.raises(InputError, match=r"adaptive_softmax (leaves nothing|is too small)"):
        recipe.train(config, recipe.Options(**QUICK), tmp_path / "run")  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_columns_cover_the_text_once_and_windows_follow_on() -> None:
    numbers = np.arange(103)
    starts = recipe.columns(numbers, 4, 10)
    shares = [recipe.share_of(numbers, s, 10, 25) for s in starts]
    assert [share.begins for share in shares] == [True, False, False]
    read = torch.cat([share.read for share in shares]).numpy()
    assert np.array_equal(read.T.ravel(), np.arange(100))
    for share in shares:
        assert torch.equal(share.follow, share.read + 1)
    with pytest.raises(DataError, match="too short for 200 columns"):
        recipe.columns(numbers, 200, 10)


def test_what_cannot_be_is_refused(book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="cannot be bidirectional") as caught:
        recipe.Config(bidirectional=True)
    assert "has read the very unit" in str(caught.value)
    for change in ({"data": "ptb"}, {"units": "letters"}, {"tied": True}, {"window": 0}, {"slowness": -1}):
        with pytest.raises(ConfigError, match=f"option {next(iter(change))}"):
            recipe.Config(**change)  # type: ignore[arg-type]
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="one process"):
        recipe.train(recipe.Config(train=book), recipe.Options(), tmp_path / "run")


def test_texts_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"good\nb\xe4d")
    with pytest.raises(DataError, match=r"a\.txt:2: the text is not UTF-8"):
        texts.read(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="no text in it"):
        texts.read(path)


def test_a_folder_of_another_task_is_refused(outcome: Outcome) -> None:
    from unspool import Tagger

    with pytest.raises(ModelFileError):
        Tagger.load(outcome.best)


def test_the_source_of_python_is_there() -> None:
    parts = texts.benchmark("python-source")
    assert len(parts.train) > 4 * len(parts.dev) > 0
    assert "def " in parts.test
