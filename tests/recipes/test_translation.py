"""The translation recipe: trained for real on pairs made here, and served without torch."""

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from unspool import Translator, training, translator
from unspool.data import pairs
from unspool.errors import ConfigError, InputError, ModelFileError
from unspool.recipes import translation
from unspool.recipes.outcome import Outcome

SMALL = {
    "hidden_size": 32,
    "embedding_size": 24,
    "input_dropout": 0.0,
    "layer_dropout": 0.0,
    "label_smoothing": 0.0,
    "source_units": "characters",
    "target_units": "words",
    "metric": "word-error",
}
SOUNDS = {"a": "A", "b": "B", "c": "K", "ch": "SH", "d": "D", "e": "E", "sh": "SH", "s": "S", "h": "H"}


def word(draw: random.Random) -> tuple[str, str]:
    """A word is spelled by its sounds, from the last to the first: order, and pairs of letters, matter."""
    letters = [draw.choice(list(SOUNDS)) for _ in range(draw.randint(1, 5))]
    text = "".join(letters)
    sounds, at = [], 0
    while at < len(text):
        size = 2 if text[at : at + 2] in SOUNDS else 1
        sounds.append(SOUNDS[text[at : at + size]])
        at += size
    return text, " ".join(reversed(sounds))


@pytest.fixture(scope="module")
def file_of_words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    draw = random.Random(1)
    for name, count in (("train", 1500), ("dev", 60), ("test", 60)):
        (folder / f"{name}.tsv").write_text("".join("\t".join(word(draw)) + "\n" for _ in range(count)))
    return folder


def config_of(folder: Path, **options: object) -> translation.Config:
    parts = {name: folder / f"{name}.tsv" for name in ("train", "dev", "test")}
    return translation.Config(**{**parts, **SMALL, **options})  # type: ignore[arg-type]


OPTIONS = translation.Options(
    epochs=5, batch_size=32, learning_rate=0.01, warmup_steps=5, quiet=True, device="cpu"
)


@pytest.fixture(scope="module")
def outcome(file_of_words: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    found = translation.train(config_of(file_of_words), OPTIONS, tmp_path_factory.mktemp("runs") / "words")
    assert found is not None
    return found


def network_of(served: Translator, config: translation.Config) -> translation.Network:
    network = translation.Network(config, len(served.source.table), len(served.target.table))
    network.load_state_dict(
        {name: torch.from_numpy(np.array(array)) for name, array in served._tensors.items()}
    )
    return network.eval()


def test_it_learns_to_turn_letters_into_sounds(outcome: Outcome, file_of_words: Path) -> None:
    assert outcome.measured.value < 0.1
    made = (outcome.folder / "predictions-test.txt").read_text().splitlines()
    gold = pairs.read(file_of_words / "test.tsv")
    wrong = sum(text not in pair.targets for text, pair in zip(made, gold, strict=True))
    assert wrong / len(gold) == outcome.measured.value
    assert "| test | word error" in (outcome.best / "README.md").read_text()
    (found,) = Translator.load(outcome.best).translate(["shab"])
    assert found.text == "B A SH"
    assert found.attention.shape == (4, 5)
    assert found.target == ("B", "A", "SH", "</s>")
    assert found.source == ("s", "h", "a", "b", "</s>")
    np.testing.assert_allclose(found.attention.sum(1), 1, atol=1e-5)


# The served translator decodes a step at a time; torch reads whole targets where nothing keeps it from it.
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 2, "tied": True},
        {"attention": "additive"},
        {"input_feeding": True},
        {"coverage": True},
        {"attention": "additive", "coverage": True, "input_feeding": True, "cell": "gru"},
    ],
    ids=str,
)
def test_with_and_without_torch_the_scores_are_the_same(file_of_words: Path, options: dict) -> None:
    config = config_of(file_of_words, **options)
    parts = translation.read(config)
    sides = [
        translator.Side.learn(units, texts, size=300, min_count=1, lowercase=False)
        for units, texts in (
            ("characters", [pair.source for pair in parts.train]),
            ("words", [text for pair in parts.train for text in pair.targets]),
        )
    ]
    torch.manual_seed(0)
    network = translation.Network(config, len(sides[0].table), len(sides[1].table)).eval()
    with torch.no_grad():  # far from where it starts, so that every weight is felt
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    d = translator.Description(
        "translation", "characters", "words", "word-error", translation.Cell(config.cell),
        config.embedding_size, config.hidden_size, config.num_layers, config.attention, config.coverage,
        config.input_feeding,
    )  # fmt: skip
    served = Translator(d, *sides, training.weights(network))
    data = translation.numbered(parts.test[:20], *sides)
    rows = np.arange(20)
    with torch.no_grad():
        scores = network.scores(network.read(translation.share_of(data, rows))).log_softmax(1).numpy()
    decoding = served.decode(served.read([data.sources[row] for row in rows]))
    last = np.full(20, translator.END)
    steps = []
    for t in range(max(map(len, data.targets))):
        steps.append(decoding.advance(last, rows))
        last = np.array([target[min(t, len(target) - 1)] for target in data.targets])
    mine = np.concatenate([[steps[t][b] for t in range(len(data.targets[b]))] for b in rows])
    live = np.isfinite(mine)
    assert (~live).sum() == len(mine)  # the padding alone is never said
    # Served scores are probabilities without the padding's share.
    scores = np.where(live, scores, -np.inf)
    scores -= np.log(np.exp(scores).sum(1, keepdims=True))
    np.testing.assert_allclose(mine[live], scores[live], atol=1e-5, rtol=1e-5)
    # Hypotheses that go on elsewhere take their own state, memory and attention along.
    again = served.decode(served.read([data.sources[row] for row in rows]))
    again.advance(np.full(20, translator.END), rows)
    turned = rows[::-1].copy()
    first = np.array([target[0] for target in data.targets])
    np.testing.assert_array_equal(again.advance(first[turned], turned), steps[1][turned])


@pytest.mark.parametrize("width", [1, 4])
def test_no_answer_depends_on_the_batch(outcome: Outcome, width: int, file_of_words: Path) -> None:
    served = Translator.load(outcome.best)
    texts = [pair.source for pair in pairs.read(file_of_words / "test.tsv")] + ["", "xyz", "ab" * 20]
    together = served.translate(texts, width=width)
    for size in (1, 7):
        for one, other in zip(served.translate(texts, width=width, batch_size=size), together, strict=True):
            assert one[:5] == other[:5]
            np.testing.assert_array_equal(one.attention, other.attention)


def test_ours_and_torchs_layers_are_the_same_network(file_of_words: Path) -> None:
    config = config_of(file_of_words)
    parts = translation.read(config)
    sides = [
        translator.Side.learn(units, texts, size=300, min_count=1, lowercase=False)
        for units, texts in (
            ("characters", [pair.source for pair in parts.train]),
            ("words", [text for pair in parts.train for text in pair.targets]),
        )
    ]
    share = translation.share_of(translation.numbered(parts.dev[:30], *sides), np.arange(30))
    results = []
    for layers in ("unspool", "torch"):
        torch.manual_seed(0)
        network = translation.Network(
            dataclasses.replace(config, layers=layers), *(len(side.table) for side in sides)
        )
        found = translation.loss(config, network, share, training.Noise(1, 1, 0, 30, 30))
        found.total.backward()
        results.append({name: p.grad for name, p in network.named_parameters()} | {"": found.total})
    for name, ours in results[0].items():
        torch.testing.assert_close(ours, results[1][name], atol=2e-4, rtol=1e-4)


def test_a_resumed_run_ends_with_the_bits_of_one_that_was_not_stopped(
    file_of_words: Path, tmp_path: Path
) -> None:
    config = config_of(file_of_words, hidden_size=8, layer_dropout=0.2, train=file_of_words / "dev.tsv")
    short = dataclasses.replace(OPTIONS, epochs=1, decay="none")
    translation.train(config, short, tmp_path / "twice")
    translation.train(config, dataclasses.replace(short, epochs=2, resume=True), tmp_path / "twice")
    translation.train(config, dataclasses.replace(short, epochs=2), tmp_path / "once")
    twice, once = (tmp_path / name / "last" / "model.safetensors" for name in ("twice", "once"))
    assert twice.read_bytes() == once.read_bytes()


def test_subwords_are_learned_from_the_training_part_and_words_that_are_unknown_are_copied(
    tmp_path: Path,
) -> None:
    draw = random.Random(2)
    lines = [
        " ".join(draw.choice(["rot", "grün", "blau"]) for _ in range(draw.randint(1, 4))) for _ in range(300)
    ]
    (tmp_path / "a").write_text("\n".join(lines))
    (tmp_path / "b").write_text("\n".join(line.upper() for line in lines))
    base = translation.Config(
        train=tmp_path / "a", train_target=tmp_path / "b", hidden_size=24, embedding_size=16, subwords=300,
        input_dropout=0.0, layer_dropout=0.0,
    )  # fmt: skip
    options = dataclasses.replace(OPTIONS, epochs=12, learning_rate=0.02)
    found = translation.train(base, options, tmp_path / "subwords")
    assert found is not None
    assert found.measured.as_json["metric"] == "bleu"
    assert "tok:13a" in found.measured.as_json["signature"]
    served = Translator.load(found.best)
    assert served.translate(["rot grün"])[0].text == "ROT GRÜN"
    assert served.source.join(served.source.cut("Straße, 100 %!")) == "Straße, 100 %!"

    (tmp_path / "b").write_text("\n".join(line.replace("blau", draw.choice("xyzuvw") * 3) for line in lines))
    words = dataclasses.replace(base, source_units="words", target_units="words", min_count=60)
    found = translation.train(words, options, tmp_path / "words")
    assert found is not None
    served = Translator.load(found.best)
    assert "xxx" not in served.target.table.tokens
    assert served.translate(["rot blau grün"])[0].text == "rot blau grün"


def test_what_cannot_be_trained_on_is_said(file_of_words: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="train_target"):
        translation.Config(train_target=tmp_path / "b")
    with pytest.raises(ConfigError, match="attention"):
        translation.Config(attention="dot")  # type: ignore[arg-type]
    (tmp_path / "one.tsv").write_text("".join(f"{chr(97 + n)}b\tx x\n" for n in range(20)))
    with pytest.raises(InputError, match="1 different words"):
        translation.train(config_of(file_of_words, train=tmp_path / "one.tsv"), OPTIONS, tmp_path / "run")


def test_a_folder_that_does_not_hold_a_translator_is_refused(outcome: Outcome, tmp_path: Path) -> None:
    from unspool import files

    parts = files.read_folder(outcome.best)
    files.write_folder(tmp_path / "model", {**parts, translator.TARGET: parts["vocab.json"]})
    with pytest.raises(ModelFileError):
        Translator.load(tmp_path / "model")
    with pytest.raises(InputError, match="list of texts"):
        Translator.load(outcome.best).translate("shab")
