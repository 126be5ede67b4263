"""sentiment begun from a language model: its words and weights, rates by layer, layers let loose in turn."""

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from unspool import LanguageModel, Model, Tagger, nn, training
from unspool.data import texts
from unspool.errors import ConfigError, InputError, ModelFileError
from unspool.recipes import language_model, pretraining, sentiment, tagging
from unspool.run.groups import trained
from unspool.vocabulary import UNKNOWN

WORDS = ["warm", "dull", "film", "plot", "a", "the", "was", "and", "sharp", "flat"]
QUICK: dict[str, Any] = {"batch_size": 8, "learning_rate": 0.02, "warmup_steps": 0, "quiet": True}


def rows(count: int, seed: int) -> str:
    draw = np.random.default_rng(seed)
    lines = ["text\tlabel"]
    for _ in range(count):
        good = draw.random() < 0.5
        noun, tone = (
            draw.choice(["Film", "plot"]),
            draw.choice(["warm", "sharp"] if good else ["dull", "flat"]),
        )
        lines.append(f"The {noun} was {tone}, and {'fresh' if good else 'stale'}.\t{'yes' if good else 'no'}")
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reviews") / "reviews.tsv"
    path.write_text(rows(120, 0))
    (path.parent / "dev.tsv").write_text(rows(30, 2))
    return path


@pytest.fixture(scope="module")
def folder(reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model of the reviews' words, of two layers."""
    config = language_model.Config(
        train=reviews, text_column="text", units="words", num_layers=2, hidden_size=12, embedding_size=10
    )
    options = language_model.Options(epochs=3, **{**QUICK, "batch_size": 4})
    outcome = language_model.train(config, options, tmp_path_factory.mktemp("runs") / "lm")
    assert outcome is not None
    return outcome.best


def config_of(reviews: Path, folder: Path, **more: Any) -> sentiment.Config:
    still = dict.fromkeys(("word_dropout", "embedding_dropout", "layer_dropout", "output_dropout"), 0.0)
    options: dict[str, Any] = {"dev": reviews.parent / "dev.tsv", "min_count": 1, **still, **more}
    return sentiment.Config(train=reviews, init_from=folder, **options)


def test_a_table_is_read_as_classifiers_read_it(reviews: Path) -> None:
    first = texts.table(reviews, "text").split("\n")[0]
    assert first.startswith("the ")
    assert " , and " in first


def test_it_begins_with_the_language_models_words_and_weights(folder: Path, tmp_path: Path) -> None:
    model = LanguageModel.load(folder)
    config = pretraining.shaped(config_of(tmp_path / "other.tsv", folder), model)
    assert (config.hidden_size, config.num_layers, config.embedding_size) == (12, 2, 10)
    assert not config.bidirectional
    known = pretraining.vocabulary(model, [["the", "mouldy"]], 1)
    assert known.tokens == (*model.vocabulary.tokens, "mouldy")
    network = sentiment.Network(config, len(known), 2)
    pretraining.fill_words(network.embedding, model)
    for k, layer in enumerate(network.layers):
        pretraining.fill_layer(layer, model, k)
    start = network.embedding.weight.detach().numpy()
    np.testing.assert_array_equal(start[UNKNOWN:-1], model.embedding[UNKNOWN:])
    np.testing.assert_allclose(start[-1], model.embedding[2:].mean(0), atol=1e-6)
    assert (start[0] == 0).all()
    # It reads a text as the language model does, to the bit.
    numbers = known.encode(["the", "film", "was"])
    x = network.embedding(torch.from_numpy(numbers))[:, None]
    for layer in network.layers:
        x, _ = layer(x)
    traces = model.traced(model.embed(numbers[None]), np.array([3]))
    np.testing.assert_array_equal(x[:, 0].detach().numpy(), traces[-1].hidden[:, 0, 0])


def test_layers_are_let_loose_from_the_top_at_falling_rates(
    reviews: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epoch by epoch: which tensors changed; and the rates that AdamW was given."""
    model = LanguageModel.load(folder)
    kept: list[dict[str, Any]] = []
    real = sentiment.score

    def seen(data: Any, network: torch.nn.Module) -> training.Score:
        kept.append({name: array.copy() for name, array in training.weights(network).items()})
        return real(data, network)

    rates: set[tuple[float, ...]] = set()
    step = torch.optim.AdamW.step

    def stepping(self: torch.optim.AdamW, *arguments: Any) -> Any:
        rates.add(tuple(round(group["lr"] / self.param_groups[0]["lr"], 6) for group in self.param_groups))
        return step(self, *arguments)

    monkeypatch.setattr(sentiment, "score", seen)
    monkeypatch.setattr(torch.optim.AdamW, "step", stepping)
    sentiment.train(
        config_of(reviews, folder, rate_ratio=2.0), sentiment.Options(epochs=4, **QUICK), tmp_path / "run"
    )
    start = {f"layers.{k}.weight_hh_l0": model.tensors[f"layers.{k}.weight_hh_l0"] for k in range(2)}
    start["embedding.weight"] = model.tensors["embedding.weight"][1:]
    moved = []
    for epoch in kept:
        epoch["embedding.weight"] = epoch["embedding.weight"][1 : len(model.vocabulary)]
        moved.append([name for name in start if not np.array_equal(epoch[name], start[name])])
    top, low, words = "layers.1.weight_hh_l0", "layers.0.weight_hh_l0", "embedding.weight"
    assert [set(names) for names in moved] == [set(), {top}, {top, low}, {top, low, words}]
    assert rates == {(1.0, 0.5, 0.25, 0.125)}


def test_it_is_served_without_the_language_model_and_learns(
    reviews: Path, folder: Path, tmp_path: Path
) -> None:
    found = sentiment.train(
        config_of(reviews, folder, unfreeze=0), sentiment.Options(epochs=6, **QUICK), tmp_path / "run"
    )
    assert found is not None
    assert found.measured.value == 1.0
    served = Model.load(found.best)
    assert not served.description.bidirectional
    assert served.predict(["The plot was warm, and fresh."])[0]["label"] == "yes"


def test_a_run_that_was_stopped_ends_with_the_same_bits(reviews: Path, folder: Path, tmp_path: Path) -> None:
    """Stopped in the second epoch, where one layer has just been let loose and others have no moments yet."""
    config, options = config_of(reviews, folder), sentiment.Options(epochs=3, **QUICK)
    sentiment.train(config, options, tmp_path / "whole")
    real, calls = sentiment.loss, 0

    def interrupted(*arguments: Any) -> training.Loss:
        nonlocal calls
        calls += 1
        if calls == 18:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sentiment, "loss", interrupted)
        with pytest.raises(SystemExit):
            sentiment.train(config, options, tmp_path / "stopped")
    sentiment.train(config, dataclasses.replace(options, resume=True), tmp_path / "stopped")
    whole, stopped = (
        load_file(tmp_path / run / "last" / "model.safetensors") for run in ("whole", "stopped")
    )
    for name, array in whole.items():
        assert array.tobytes() == stopped[name].tobytes(), name


def test_a_taggers_first_layer_reads_forward_as_the_language_model_does(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At first to the numbers, whatever the letters say; then let loose after what is fresh; served."""
    model = LanguageModel.load(folder)
    path = tmp_path / "tags.tsv"
    path.write_text("The\tD\nplot\tN\nwas\tV\nwarm\tA\n\nA\tD\nFilm\tN\nwas\tV\nflat\tA\n\n" * 12)
    kept: list[dict[str, Any]] = []
    real = tagging.score

    def seen(data: Any, labels: Any, network: Any, *tables: Any) -> training.Score:
        kept.append({name: array.copy() for name, array in training.weights(network).items()})
        return real(data, labels, network, *tables)

    monkeypatch.setattr(tagging, "score", seen)
    still = dict.fromkeys(("word_dropout", "input_dropout", "layer_dropout"), 0.0)
    config = tagging.Config(train=path, dev=path, init_from=folder, min_count=1, **still)  # type: ignore[arg-type]
    found = tagging.train(config, tagging.Options(epochs=3, **QUICK), tmp_path / "run")
    assert found is not None
    assert found.measured.as_json["value"] == 1.0
    served = Tagger.load(found.best)
    assert (served.description.hidden_size, served.description.word_size) == (12, 10)
    lower = model.tensors["layers.0.weight_hh_l0"]
    names = ("layers.0.weight_hh_l0", "layers.0.weight_hh_l0_reverse", "words.weight")
    assert [np.array_equal(epoch[names[0]], lower) for epoch in kept] == [True, False, False]
    known = len(model.vocabulary)
    same = [np.array_equal(epoch[names[2]][1:known], model.embedding[1:]) for epoch in kept]
    assert same == [True, True, False]
    assert not np.array_equal(kept[0][names[1]], kept[1][names[1]])

    layer = nn.LSTM(10 + 6, 12, bidirectional=True)
    pretraining.fill_layer(layer, model, 0)
    x = torch.from_numpy(model.embed(np.array([[2, 3, 4]])))
    out, _ = layer(torch.cat([x, torch.randn(3, 1, 6)], 2))
    traces = model.traced(x.numpy(), np.array([3]))
    np.testing.assert_allclose(out[:, 0, :12].detach().numpy(), traces[0].hidden[:, 0, 0], atol=1e-6)


def test_what_cannot_be_begun_from_is_refused(
    reviews: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t.txt").write_text("the cat sat on the mat.\n" * 40)
    letters = language_model.Config(train=tmp_path / "t.txt", hidden_size=8, embedding_size=4)
    outcome = language_model.train(letters, language_model.Options(epochs=1, **QUICK), tmp_path / "lm")
    assert outcome is not None
    run = tmp_path / "run"
    with pytest.raises(ConfigError, match="reads characters, and this task reads words"):
        sentiment.train(config_of(reviews, outcome.best), sentiment.Options(**QUICK), run)
    with pytest.raises(ModelFileError):
        sentiment.train(config_of(reviews, tmp_path / "nowhere"), sentiment.Options(**QUICK), run)
    assert not run.exists()
    with pytest.raises(ConfigError, match="init_from"):
        sentiment.Config(init_from=folder, vectors="glove-50d")
    with pytest.raises(ConfigError, match="text_column"):
        language_model.Config(text_column="text")
    with pytest.raises(InputError, match="each parameter of the model once"):
        trained(
            torch.nn.Linear(2, 2),
            training.Task(None, None, None, None, None, groups=[training.Group(["weight"])]),  # type: ignore[arg-type]
            1,
        )
