"""The parsing recipe: trained for real on sentences made here, and served without torch."""

import dataclasses
import itertools
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from unspool import Model, Parser, Tagger, parser, trees
from unspool import sentences as reading
from unspool.data import conll, dependencies
from unspool.errors import ConfigError, DataError, InputError, ModelFileError
from unspool.recipes import parsing, reader
from unspool.recipes.outcome import Outcome
from unspool.trees import Tree

SMALL = {
    "hidden_size": 24,
    "num_layers": 2,
    "word_size": 16,
    "letter_size": 8,
    "letter_hidden_size": 8,
    "arc_size": 24,
    "relation_size": 16,
    "min_count": 1,
    "word_dropout": 0.05,
    "input_dropout": 0.1,
    "layer_dropout": 0.1,
    "recurrent_dropout": 0.1,
    "score_dropout": 0.1,
}


def sentence(draw: random.Random) -> list[tuple[str, str, int, str]]:
    """Who sees whom: the verb is the root, and an adjective belongs to the noun after it."""
    words: list[tuple[str, str, int, str]] = []

    def noun(relation: str) -> int:
        at = len(words)
        described = draw.random() < 0.5
        words.append((draw.choice(["the", "a"]), "DET", at + 2 + described, "det"))
        if described:
            words.append((draw.choice(["old", "red", "small"]), "ADJ", at + 3, "amod"))
        words.append((draw.choice(["cat", "dog", "hippopotamus"]), "NOUN", -1, relation))
        return len(words) - 1

    nouns = [noun("nsubj")]
    words.append((draw.choice(["sees", "likes", "hears"]), "VERB", 0, "root"))
    verb = len(words)
    if draw.random() < 0.7:
        nouns.append(noun("obj"))
    for at in nouns:
        words[at] = (*words[at][:2], verb, words[at][3])
    return words


def as_conllu(words: list[tuple[str, str, int, str]]) -> str:
    lines = [
        f"{at}\t{word}\t_\t{tag}\t_\t_\t{head}\t{kind}\t_\t_"
        for at, (word, tag, head, kind) in enumerate(words, 1)
    ]
    return "\n".join(["# made here", *lines, "", ""])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trees")
    draw = random.Random(1)
    for name, count in (("train", 200), ("dev", 20), ("test", 20)):
        (folder / f"{name}.conllu").write_text("".join(as_conllu(sentence(draw)) for _ in range(count)))
    return folder


def config_of(folder: Path, **more: object) -> parsing.Config:
    paths = {name: folder / f"{name}.conllu" for name in ("train", "dev", "test")}
    return parsing.Config(**{**paths, **SMALL, **more})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def outcome(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    options = parsing.Options(epochs=5, batch_size=8, learning_rate=0.01, warmup_steps=5, quiet=True)
    found = parsing.train(config_of(made, tags="upos"), options, tmp_path_factory.mktemp("runs") / "a")
    assert found is not None
    return found


def test_it_learns_trees_and_tags_and_writes_them_back(outcome: Outcome, made: Path) -> None:
    assert outcome.part == "test"
    assert outcome.measured.value > 0.95
    served = Parser.load(outcome.best)
    assert served.description.root == "root"
    assert served.predict([["the", "old", "cat", "sees", "a", "dog"]]) == [
        Tree(
            (3, 3, 4, 0, 6, 4),
            ("det", "amod", "nsubj", "root", "det", "obj"),
            ("DET", "ADJ", "NOUN", "VERB", "DET", "NOUN"),
        )
    ]
    written = dependencies.read(outcome.folder / "predictions-test.conllu")
    gold = dependencies.read(made / "test.conllu")
    assert [s.words for s in written] == [s.words for s in gold]
    assert all(s.lines[0] == "# made here" for s in written)
    assert f"| test | {outcome.measured.value:.4f} (UAS" in (outcome.best / "README.md").read_text()


def network_of(served: Parser, config: parsing.Config) -> parsing.Network:
    d = served.description
    vectors = np.zeros((len(served.tables.vectors), d.vector_size), np.float32)
    names = parsing.Names(d.relations, d.root, d.tags)
    network = parsing.Network(config, reader.Words(served.tables, vectors), names)
    network.load_state_dict({name: torch.from_numpy(np.array(a)) for name, a in served._tensors.items()})
    return network.eval()


def test_with_and_without_torch_scores_and_decisions_are_the_same(outcome: Outcome, made: Path) -> None:
    served = Parser.load(outcome.best)
    network = network_of(served, config_of(made))
    sentences = [*dependencies.read(made / "test.conllu"), dependencies.as_sentence(["unseen", "x" * 300])]
    given = reader.encode(sentences, served.tables, 0)
    with torch.no_grad():
        found = network(given, None)
    scored = served.scored(served.encode([s.words for s in sentences]))
    for b, (one, s) in enumerate(zip(scored, sentences, strict=True)):
        n = len(s.words)
        np.testing.assert_allclose(one.arcs, found.arcs[b, :n, : n + 1], atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(one.tags, found.tags[b, :n], atol=1e-5, rtol=1e-5)
        assert torch.isinf(found.arcs[b, :, n + 1 :]).all()
        heads = trees.best(found.arcs[b, :n, : n + 1].numpy())
        assert served.decide([one])[0].heads == tuple(heads)
        np.testing.assert_allclose(
            served.relations([one], [heads])[0], found.relations[b, :n], atol=1e-5, rtol=1e-5
        )


def test_the_products_are_the_papers(outcome: Outcome) -> None:
    served = Parser.load(outcome.best)
    (one,) = served.scored(served.encode([["the", "cat", "sees"]]))
    kinds = served._tensors["relations"].astype(np.float64)
    for heads in ((2, 3, 0), (0, 1, 2)):
        expected = [
            [one.words[d].astype(np.float64) @ kind @ one.heads[head] for kind in kinds]
            for d, head in enumerate(heads)
        ]
        np.testing.assert_allclose(served.relations([one], [np.array(heads)])[0], expected, atol=1e-4)


def test_ours_and_torchs_layers_are_the_same_network(made: Path) -> None:
    config = config_of(made, recurrent_dropout=0.0)
    sentences = dependencies.read(made / "dev.conllu")
    names = parsing.names_of(config, sentences)
    words = reader.known(config, sentences)
    data = parsing.numbered(config, sentences, names)
    share = parsing.share_of(data, np.arange(len(sentences)), words.tables)
    results = []
    for whose in ("unspool", "torch"):
        torch.manual_seed(0)
        network = parsing.Network(dataclasses.replace(config, layers=whose), words, names)
        for weight in (network.arcs, network.relations):  # they start at 0, which would hide the others
            torch.nn.init.normal_(weight, std=0.3)
        total = parsing.cross_entropy(network(share.given, share.heads.clamp(min=0)), share)
        total.backward()
        results.append({name: p.grad for name, p in network.named_parameters()} | {"": total})
    for name, ours in results[0].items():
        theirs = results[1][name]
        assert (ours is None) == (theirs is None) == (name == "vectors.weight"), name
        if ours is not None:
            torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3, msg=name)


def test_trees_do_not_depend_on_what_is_parsed_with_them(outcome: Outcome, made: Path) -> None:
    served = Parser.load(outcome.best)
    sentences = [s.words for s in conll.read(made / "test.conllu")]
    together = served.scored(served.encode(sentences))
    for words, scored in zip(sentences, together, strict=True):
        (alone,) = served.scored(served.encode([words]))
        assert all(a.tobytes() == b.tobytes() for a, b in zip(alone, scored, strict=True))
    assert served.predict(sentences) == served.predict(sentences, batch_size=1)
    assert served.predict([]) == []
    assert served.predict([[], ["cat"], []]) == [
        Tree((), ()),
        Tree((0,), ("root",), ("NOUN",)),
        Tree((), ()),
    ]


def test_a_sentence_of_five_thousand_words_has_a_tree(outcome: Outcome) -> None:
    served = Parser.load(outcome.best)
    draw = random.Random(3)
    words: list[str] = []
    while len(words) < 5000:
        words += [word for word, *_ in sentence(draw)]
    long, short = served.predict([words[:5000], ["the", "cat", "sees"]])
    assert trees.fault(np.array(long.heads)) is None
    assert short.heads == (2, 3, 0)


def test_words_are_spelled_beside_words_of_like_length(outcome: Outcome) -> None:
    draw = np.random.default_rng(0)
    for lengths in ([], [0], [3, 1, 0], [300, 7, 6, 0], *(draw.integers(0, 40, n) for n in range(1, 60))):
        lengths = np.sort(np.array(lengths, np.int64))[::-1]
        found = list(reading.stretches(lengths))
        assert [at for words, _ in found for at in range(words.start, words.stop)] == list(
            range(len(lengths))
        )
        for words, longest in found:
            assert longest == lengths[words].max()
            assert longest <= 6 or 2 * lengths[words].min() >= longest
    encoded = Parser.load(outcome.best).encode([["a", "hippopotamus"], ["", "cat"]])
    assert encoded.letter_lengths.tolist() == [12, 3, 1, 0]
    assert encoded.spelled.tolist() == [[2, 0], [3, 1]]


def test_batches_hold_few_enough_words() -> None:
    lengths = np.array([3, 5000, 0, 40, 5000, 41])
    found = [rows.tolist() for rows in parser.batched(lengths, 64)]
    assert sorted(itertools.chain.from_iterable(found)) == list(range(6))
    assert all(len(rows) * lengths[rows].max() <= 16_384 for rows in found)
    assert [len(rows) for rows in parser.batched(np.full(10, 2), 4)] == [4, 4, 2]


def test_the_roots_relation_is_the_roots_alone(outcome: Outcome) -> None:
    d = Parser.load(outcome.best).description
    scores = np.zeros((3, len(d.relations)), np.float32)
    scores[:, d.relations.index("root")] = 9
    scores[:, d.relations.index("obj")] = 1
    kinds = parser.best_relations(scores, np.array([2, 0, 2]), d)
    assert [d.relations[k] for k in kinds] == ["obj", "root", "obj"]
    shared = dataclasses.replace(d, root="")
    assert [d.relations[k] for k in parser.best_relations(scores, np.array([2, 0, 2]), shared)] == [
        "root"
    ] * 3


def test_a_relation_of_the_root_that_others_have_too_is_no_root_of_its_own(made: Path) -> None:
    text = (made / "dev.conllu").read_text()
    lines = conll.sentences(
        text.replace("\tdet\t", "\troot\t").encode().splitlines(True), "x", "conllu", column="deprel"
    )
    names = parsing.names_of(config_of(made), list(lines))
    assert names.root == ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": "conll2000"}, "option data"),
        ({"cell": "elman"}, "option cell"),
        ({"dev": Path("x")}, "option dev"),
        ({"tags": "feats"}, "option tags"),
        ({"arc_size": 0}, "option arc_size"),
        ({"max_length": 0}, "option max_length"),
        ({"score_dropout": 1.0}, "option score_dropout"),
        ({"layers": "torch"}, "option recurrent_dropout"),
    ],
)
def test_options_out_of_their_range_are_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parsing.Config(**change)  # type: ignore[arg-type]


def test_a_bad_tree_stops_before_anything_is_written_or_is_left_out(made: Path, tmp_path: Path) -> None:
    good = (made / "train.conllu").read_text()
    (tmp_path / "train.conllu").write_text(
        good + good[: good.index("\n\n") + 2].replace("\t0\troot", "\t1\troot")
    )
    config = parsing.Config(train=tmp_path / "train.conllu", **SMALL)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"train\.conllu:\d+: heads go in a cycle"):
        parsing.train(config, parsing.Options(quiet=True), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    parts = parsing.read(dataclasses.replace(config, skip_bad=True), quiet=True)
    assert len(parts.train) + len(parts.dev) == 200


def test_sentences_too_long_to_train_on_are_counted_and_names_seen_only_in_test_cost_their_words(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (made / "test.conllu").read_text()
    (tmp_path / "test.conllu").write_text(text.replace("\tnsubj\t", "\tnew\t"))
    config = config_of(made, test=tmp_path / "test.conllu", max_length=6)
    options = parsing.Options(epochs=4, batch_size=8, learning_rate=0.01, warmup_steps=5)
    found = parsing.train(config, options, tmp_path / "run")
    said = capsys.readouterr().err
    assert "sentences of more than 6 words are not trained on" in said
    assert found is not None
    assert found.measured.uas > 0.8
    share = text.count("\tnsubj\t") / found.measured.words
    assert 0.5 < found.measured.value <= 1 - share
    with pytest.raises(DataError, match="longer than 1 words"):
        parsing.train(dataclasses.replace(config, max_length=1), options, tmp_path / "other")


def test_a_folder_of_another_task_or_a_damaged_one_is_refused(outcome: Outcome, tmp_path: Path) -> None:
    for other in (Model, Tagger):
        with pytest.raises(ModelFileError, match="does not describe a network"):
            other.load(outcome.best)
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in outcome.best.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / reading.LETTERS).unlink()
    with pytest.raises(ModelFileError):
        Parser.load(copy)


def test_descriptions_out_of_their_range_are_refused(outcome: Outcome) -> None:
    d = Parser.load(outcome.best).description
    assert parser.Description.from_config(d.as_config()) == d
    for change, said in (
        ({"arc_size": 0}, "arc_size"),
        ({"vector_size": -1}, "vector_size"),
        ({"root": "nothing"}, "root"),
        ({"tags": ()}, "tags"),
        ({"tag_column": "none"}, "tags"),
        ({"relations": ("a", "a"), "root": ""}, "relations"),
        ({"task": "tagging"}, "task"),
    ):
        with pytest.raises(ConfigError, match=said):
            dataclasses.replace(d, **change)  # type: ignore[arg-type]


def test_what_is_no_list_of_sentences_is_refused(outcome: Outcome) -> None:
    served = Parser.load(outcome.best)
    for wrong in ("cat", ["cat"], [[1]]):
        with pytest.raises(InputError, match="list of sentences"):
            served.predict(wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="batch_size"):
        served.predict([["cat"]], batch_size=0)


def test_vectors_are_read_beside_the_words_and_stay_as_they_are(made: Path, tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_text("cat 1 2 3\nsees 0 1 0\nmoon 4 5 6\n")
    options = parsing.Options(epochs=1, batch_size=16, quiet=True)
    found = parsing.train(config_of(made, vectors=str(tmp_path / "v.txt")), options, tmp_path / "run")
    assert found is not None
    served = Parser.load(found.best)
    assert set(served.tables.vectors.tokens[2:]) == {"cat", "sees", "moon"}
    assert not served.tables.words.known(["moon"])[0]
    at = served.tables.vectors.encode(["moon", "cat", "dog"])
    assert served._tensors["vectors.weight"][at].tolist() == [[4, 5, 6], [1, 2, 3], [0, 0, 0]]


def test_shares_of_a_batch_are_padded_as_the_whole_batch(made: Path) -> None:
    config = config_of(made, tags="upos")
    sentences = dependencies.read(made / "train.conllu")
    names = parsing.names_of(config, sentences)
    tables = reader.known(config, sentences).tables
    data = parsing.numbered(config, sentences, names)
    rows = np.argsort(data.lengths)[40:56]
    steps = int(data.lengths[rows].max())
    whole = parsing.share_of(data, rows, tables, steps)
    for first, stop in ((0, 5), (5, 16), (3, 3)):
        part = parsing.share_of(data, rows[first:stop], tables, steps)
        assert torch.equal(part.given.words, whole.given.words[first:stop])
        for name in ("heads", "relations", "tags"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[first:stop])
