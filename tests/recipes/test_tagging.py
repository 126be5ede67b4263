"""The tagging recipe: trained for real on sentences made here, and served without torch."""

import dataclasses
import itertools
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from unspool import Tagger, crf, files, sentences, tagger
from unspool.data import batches, conll
from unspool.errors import ConfigError, DataError, InputError, ModelFileError
from unspool.recipes import reader, tagging
from unspool.recipes.outcome import Outcome, note_test

SMALL = {
    "hidden_size": 24,
    "word_size": 16,
    "letter_size": 8,
    "letter_hidden_size": 8,
    "min_count": 1,
    "input_dropout": 0.1,
    "layer_dropout": 0.1,
}

LONG = ("Rome", "Rome" * 12, "by" * 7, "Grace", "Marino" * 4)


def sentence(draw: random.Random) -> list[tuple[str, str]]:
    """Names of people and places; a place of two words follows "in", a person "by"."""
    people, places = ["Ada", "Alan", "Grace"], ["New York", "Rome", "San Marino"]
    words: list[tuple[str, str]] = []
    for _ in range(draw.randint(1, 3)):
        words += [(draw.choice(["seen", "made", "found"]), "O")]
        if draw.random() < 0.5:
            words += [("by", "O"), (draw.choice(people), "B-PER")]
        else:
            first, *rest = draw.choice(places).split()
            words += [("in", "O"), (first, "B-LOC"), *[(word, "I-LOC") for word in rest]]
    return words


@pytest.fixture(scope="module")
def files_of_names(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("names")
    draw = random.Random(1)
    for name, count in (("train", 150), ("dev", 20), ("test", 20)):
        lines = ["".join(f"{word}\t{label}\n" for word, label in sentence(draw)) + "\n" for _ in range(count)]
        (folder / f"{name}.tsv").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def outcome(files_of_names: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    config = tagging.Config(
        train=files_of_names / "train.tsv",
        dev=files_of_names / "dev.tsv",
        test=files_of_names / "test.tsv",
        **SMALL,
    )
    options = tagging.Options(epochs=4, batch_size=8, learning_rate=0.01, warmup_steps=5, quiet=True)
    found = tagging.train(config, options, tmp_path_factory.mktemp("runs") / "names")
    assert found is not None
    return found


def test_it_learns_names_and_writes_them_back_in_the_files_scheme(
    outcome: Outcome, files_of_names: Path
) -> None:
    assert outcome.metric == "f1"
    assert outcome.measured.value > 0.95
    served = Tagger.load(outcome.best)
    assert served.description.scheme == "iob2"
    assert served.predict([["seen", "in", "New", "York", "by", "Ada"]]) == [
        ["O", "O", "B-LOC", "I-LOC", "O", "B-PER"]
    ]
    written = conll.read(outcome.folder / "predictions-test.conll")
    gold = conll.read(files_of_names / "test.tsv")
    assert [s.words for s in written] == [s.words for s in gold]
    assert f"| test | {outcome.measured.value:.4f} |" in (outcome.best / "README.md").read_text()


def test_with_and_without_torch_the_scores_are_the_same(outcome: Outcome, files_of_names: Path) -> None:
    served = Tagger.load(outcome.best)
    sentences = [s.words for s in conll.read(files_of_names / "test.tsv")] + [(), ("Rome",), LONG]
    d = served.description
    config = tagging.Config(train=files_of_names / "train.tsv", **SMALL)
    network = tagging.Network(
        config, reader.Words(served.tables, served._tensors["vectors.weight"]), len(d.labels)
    )
    network.load_state_dict(
        {name: torch.from_numpy(np.array(array)) for name, array in served._tensors.items()}
    )
    network.eval()
    encoded = served.encode(sentences)
    with torch.no_grad():
        emissions, _ = network(reader.Given(*(torch.from_numpy(part) for part in encoded)), None)
    live = np.arange(encoded.words.shape[1])[:, None] < encoded.lengths
    np.testing.assert_allclose(served.emissions(encoded)[live], emissions.numpy()[live], atol=1e-5, rtol=1e-5)


def test_ours_and_torchs_layers_are_the_same_network(files_of_names: Path) -> None:
    config = tagging.Config(train=files_of_names / "train.tsv", **SMALL)
    sentences = conll.read(files_of_names / "dev.tsv")
    labels = tagging.label_set(sentences, "dev")
    words = reader.known(config, sentences)
    data = tagging.numbered(sentences, labels)
    share = tagging.share_of(data, np.arange(len(sentences)), words.tables)
    results = []
    for layers in ("unspool", "torch"):
        torch.manual_seed(0)
        network = tagging.Network(dataclasses.replace(config, layers=layers), words, len(labels.names))
        _, likelihood = network(share.given, share.labels)
        likelihood.sum().backward()
        results.append({name: p.grad for name, p in network.named_parameters()} | {"": likelihood})
    for name, ours in results[0].items():
        torch.testing.assert_close(ours, results[1][name], atol=2e-4, rtol=1e-4, msg=name)


def test_labels_do_not_depend_on_what_is_tagged_with_them(outcome: Outcome, files_of_names: Path) -> None:
    served = Tagger.load(outcome.best)
    sentences = [s.words for s in conll.read(files_of_names / "test.tsv")] + [LONG]
    together = served.emissions(served.encode(sentences))
    for b, words in enumerate(sentences):
        alone = served.emissions(served.encode([words]))
        assert alone.tobytes() == np.ascontiguousarray(together[: len(words), b : b + 1]).tobytes()
    assert served.predict(sentences) == served.predict(sentences, batch_size=1)
    assert served.predict([]) == []
    assert served.predict([[]]) == [[]]


def test_no_answer_breaks_its_spans(outcome: Outcome) -> None:
    served = Tagger.load(outcome.best)
    rng = np.random.default_rng(0)
    chain = tagger.constrained(served.chain, served.description.labels)
    emissions = rng.normal(scale=9, size=(12, 300, len(served.description.labels))).astype(np.float32)
    best, _ = crf.viterbi(emissions, np.full(300, 12), chain)
    for column in best.T:
        labels = ["", *(served.description.labels[n] for n in column), ""]
        assert all(tagger.schemes.may_follow(a, b) for a, b in itertools.pairwise(labels))


def test_parts_of_speech_are_learned_from_conllu_and_put_back(tmp_path: Path) -> None:
    draw = random.Random(2)
    text = ""
    for _ in range(60):
        words = [
            (draw.choice(["the", "a"]), "DET"),
            (draw.choice(["cat", "dog", "sun"]), "NOUN"),
            ("runs", "VERB"),
        ]
        text += (
            "# a comment\n"
            + "".join(
                f"{at}\t{word}\t_\t{tag}\t_\t_\t0\t_\t_\t_\n" for at, (word, tag) in enumerate(words, start=1)
            )
            + "\n"
        )
    (tmp_path / "train.conllu").write_text(text)
    config = tagging.Config(train=tmp_path / "train.conllu", **SMALL)
    options = tagging.Options(epochs=3, batch_size=8, learning_rate=0.01, warmup_steps=0, quiet=True)
    found = tagging.train(config, options, tmp_path / "run")
    assert found is not None
    assert (found.metric, found.part) == ("accuracy", "dev")
    assert found.measured.value == 1.0
    written = (found.folder / "predictions-dev.conllu").read_text()
    assert written.startswith("# a comment\n1\t")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": "ptb"}, "option data"),
        ({"cell": "elman"}, "option cell"),
        ({"dev": Path("x")}, "option dev"),
        ({"column": "id"}, "option column"),
        ({"hidden_size": 0}, "option hidden_size"),
        ({"shape_size": -1}, "option shape_size"),
        ({"word_dropout": 1.0}, "option word_dropout"),
        ({"layers": "torch", "recurrent_dropout": 0.1}, "option recurrent_dropout"),
    ],
)
def test_options_out_of_their_range_are_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        tagging.Config(**change)  # type: ignore[arg-type]


def test_a_file_of_mixed_schemes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("x\tB-A\ny\tI-A\n\nx\tS-A\n\n" * 10)
    config = tagging.Config(train=tmp_path / "a.tsv", **SMALL)
    with pytest.raises(DataError, match="no scheme throughout"):
        tagging.train(config, tagging.Options(quiet=True), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_label_seen_only_in_test_costs_its_words_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("x\tA\ny\tB\n\n" * 30)
    (tmp_path / "t.tsv").write_text("x\tA\ny\tC\n\n")
    config = tagging.Config(train=tmp_path / "a.tsv", test=tmp_path / "t.tsv", **SMALL)
    options = tagging.Options(epochs=3, batch_size=4, learning_rate=0.02, warmup_steps=0, quiet=True)
    found = tagging.train(config, options, tmp_path / "run")
    assert found is not None
    assert found.measured.value == 0.5


def test_a_folder_of_another_task_or_a_damaged_one_is_refused(outcome: Outcome, tmp_path: Path) -> None:
    from unspool import Model

    with pytest.raises(ModelFileError, match="does not describe a network"):
        Model.load(outcome.best)
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in outcome.best.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "letters.json").unlink()
    with pytest.raises(ModelFileError):
        Tagger.load(copy)


def test_what_is_no_list_of_sentences_is_refused(outcome: Outcome) -> None:
    served = Tagger.load(outcome.best)
    for wrong in ("Rome", ["Rome"], [[1]]):
        with pytest.raises(InputError, match="list of sentences"):
            served.predict(wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="batch_size"):
        served.predict([["Rome"]], batch_size=0)


def test_shares_of_a_batch_are_padded_as_the_whole_batch(files_of_names: Path) -> None:
    sentences = conll.read(files_of_names / "train.tsv")
    labels = tagging.label_set(sentences, "train")
    tables = reader.known(tagging.Config(**SMALL), sentences).tables  # type: ignore[arg-type]
    data = tagging.numbered(sentences, labels)
    rows = batches.bucketed(data.lengths, 16, seed=1, epoch=1)[0]
    steps = int(data.lengths[rows].max())
    whole = tagging.share_of(data, rows, tables)
    for first, stop in ((0, 5), (5, 16), (3, 3)):
        part = tagging.share_of(data, rows[first:stop], tables, steps)
        assert torch.equal(part.labels, whole.labels[first:stop])
        for name in ("words", "vectors", "shapes", "lengths"):
            assert torch.equal(getattr(part.given, name), getattr(whole.given, name)[first:stop])


def test_how_a_word_is_written_is_read_where_nothing_else_tells(tmp_path: Path) -> None:
    """No word comes twice, and no letter of the test part stands in training: only capitals say the label."""
    draw = random.Random(4)
    learned, met = (
        ["".join(word) for word in itertools.product(letters, repeat=4)] for letters in ("abcde", "vwxyz")
    )
    for name, words in (("train", draw.sample(learned, 300)), ("test", draw.sample(met, 60))):
        lines = [f"{word.capitalize()}\tA\n" if n % 2 else f"{word}\tB\n" for n, word in enumerate(words)]
        (tmp_path / f"{name}.tsv").write_text("\n".join(lines))
    small = {**SMALL, "min_count": 2}
    for size in (0, 8):
        config = tagging.Config(
            train=tmp_path / "train.tsv", test=tmp_path / "test.tsv", shape_size=size, **small
        )
        options = tagging.Options(epochs=4, batch_size=8, learning_rate=0.02, warmup_steps=0, quiet=True)
        found = tagging.train(config, options, tmp_path / f"run-{size}")
        assert found is not None
        assert (found.measured.value > 0.9) == (size > 0)
        assert Tagger.load(found.best).description.shape_size == size


def test_words_are_sorted_by_how_they_are_written() -> None:
    expected = {
        "none": ["", "...", "漢字"],
        "small": ["cat", "don't", "b2b"],
        "capitals": ["NATO", "U.S."],
        "first": ["Rome", "I", "B2b"],
        "mixed": ["iPhone", "McDonald", "@USAirways"],
        "digits": ["1984", "3.14"],
    }
    for name, words in expected.items():
        assert {sentences.SHAPES[sentences.shape_of(word)] for word in words} == {name}, name


def test_a_tagger_written_before_shapes_were_read_is_refused(outcome: Outcome) -> None:
    written = Tagger.load(outcome.best).description.as_config()
    assert tagger.Description.from_config(written).as_config() == written
    del written["shape_size"]
    with pytest.raises(ConfigError, match=r"other fields.*\n.*\n.*shape_size"):
        tagger.Description.from_config(written)


def test_what_is_taken_from_the_outside_is_taken_at_every_word(outcome: Outcome) -> None:
    served = Tagger.load(outcome.best)
    labels = served.description.labels
    rng = np.random.default_rng(1)
    emissions = rng.normal(scale=2, size=(9, 50, len(labels))).astype(np.float32)
    lower = emissions - np.float32(1.5) * (np.array(labels) == "O")
    lengths = rng.integers(0, 10, 50)
    plain, taken = (tagger.constrained(served.chain, labels, outside) for outside in (0.0, 1.5))
    expected, _ = crf.viterbi(lower, lengths, plain)
    assert (crf.viterbi(emissions, lengths, taken)[0] == expected).all()
    assert (crf.viterbi(emissions, lengths, plain)[0] != expected).any()


def test_the_dev_score_is_that_of_the_model_served(outcome: Outcome, files_of_names: Path) -> None:
    """With the number that was chosen on the dev part, and with another that would have been."""
    served = Tagger.load(outcome.best)
    sentences = conll.read(files_of_names / "dev.tsv")
    gold = [sentence.labels for sentence in sentences]
    answers = served.predict([sentence.words for sentence in sentences])
    assert tagging.measure(gold, answers, spans=True).value == pytest.approx(outcome.dev)
    many = Tagger(
        served.description, served.tables, {**served._tensors, "outside": np.full(1, 1e6, np.float32)}
    )
    assert all(label != "O" for labels in many.predict([("seen", "by", "Ada")]) for label in labels)


def test_pretrained_vectors_stay_as_they_are_and_reach_words_that_training_lacks(tmp_path: Path) -> None:
    """Spellings say nothing here and no word comes twice: what is known of the test part is its vectors."""
    draw = random.Random(3)
    spellings = ["".join(letters) for letters in itertools.product("ab", repeat=9)]
    words = draw.sample(spellings, 260)
    labels = [draw.choice("AB") for _ in words]
    lines = [f"{word}\t{label}\n" for word, label in zip(words, labels, strict=True)]
    (tmp_path / "train.tsv").write_text("\n".join(lines[:200]))
    (tmp_path / "test.tsv").write_text("\n".join(lines[200:]))
    vectors = [
        f"{word} {'1 0' if label == 'A' else '0 1'}\n" for word, label in zip(words, labels, strict=True)
    ]
    (tmp_path / "v.txt").write_text("".join(vectors))
    config = dataclasses.replace(
        tagging.Config(**SMALL),  # type: ignore[arg-type]
        train=tmp_path / "train.tsv",
        test=tmp_path / "test.tsv",
        vectors=str(tmp_path / "v.txt"),
        min_count=2,
    )
    options = tagging.Options(epochs=4, batch_size=8, learning_rate=0.02, warmup_steps=0, quiet=True)
    found = tagging.train(config, options, tmp_path / "run")
    assert found is not None
    assert found.measured.value > 0.9  # half of them by chance
    served = Tagger.load(found.best)
    assert set(served.tables.vectors.tokens[2:]) == set(words)
    table = served._tensors["vectors.weight"][served.tables.vectors.encode([*words, "abc"])]
    assert table.tolist() == [[1, 0] if label == "A" else [0, 1] for label in labels] + [[0, 0]]


@pytest.mark.parametrize(
    ("data", "of"), [("conll2000", "chose the epoch"), ("conll2000-whole", "learned from too")]
)
def test_a_card_says_whether_its_dev_part_was_learned_from(
    outcome: Outcome, data: str, of: str, tmp_path: Path
) -> None:
    description = Tagger.load(outcome.best).description
    card = tagging.card(description, tagging.Config(data=data), tagging.Options(), "f1", None)
    files.write_folder(tmp_path / "model", {**files.read_folder(outcome.best), "README.md": card.encode()})
    note_test(tmp_path / "model", "0.9460")
    noted = (tmp_path / "model" / "README.md").read_text()
    assert f"\n| dev ({of}) | not measured |\n| test | 0.9460 |\n" in noted
