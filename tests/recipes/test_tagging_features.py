"""Other columns that a tagger reads of each word: learned, served, shown, and refused where missing."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from unspool import Tagger, introspect, tagger
from unspool.data import conll
from unspool.errors import ConfigError, DataError, InputError
from unspool.page.answers import Answers
from unspool.page.opened import Opened
from unspool.recipes import reader, tagging
from unspool.recipes.outcome import Outcome

SMALL = {
    "hidden_size": 24,
    "word_size": 8,
    "letter_size": 4,
    "letter_hidden_size": 4,
    "feature_size": 6,
    "min_count": 1,
    "input_dropout": 0.1,
    "layer_dropout": 0.1,
}


def sentence(draw: random.Random) -> list[tuple[str, str, str]]:
    """Words that say nothing; a label is whether this word's column and the next one's are the same."""
    columns = [draw.choice(("p", "q/r")) for _ in range(draw.randint(2, 9))]
    after = [*columns[1:], "end"]
    return [
        (draw.choice(("go", "so", "no")), column, "SAME" if column == then else "OTHER")
        for column, then in zip(columns, after, strict=True)
    ]


@pytest.fixture(scope="module")
def files_of_columns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("columns")
    draw = random.Random(1)
    for name, count in (("train", 300), ("dev", 30), ("test", 40)):
        blocks = ["".join(f"{' '.join(line)}\n" for line in sentence(draw)) for _ in range(count)]
        (folder / f"{name}.txt").write_text("\n".join(blocks))
    return folder


def trained(folder: Path, output: Path, features: str, epochs: int) -> Outcome:
    parts = {name: folder / f"{name}.txt" for name in ("train", "dev", "test")}
    config = tagging.Config(features=features, **parts, **SMALL)  # type: ignore[arg-type]
    options = tagging.Options(epochs=epochs, batch_size=8, learning_rate=0.02, warmup_steps=0, quiet=True)
    found = tagging.train(config, options, output)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def outcome(files_of_columns: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return trained(files_of_columns, tmp_path_factory.mktemp("runs") / "with", "2", 5)


def test_what_stands_in_the_column_alone_tells_the_label(
    outcome: Outcome, files_of_columns: Path, tmp_path: Path
) -> None:
    assert outcome.measured.value > 0.95
    assert outcome.commands[0] == 'unspool predict {best} "Time/COLUMN2 flies/COLUMN2 ./COLUMN2"'
    assert trained(files_of_columns, tmp_path / "without", "", 1).measured.value < 0.8
    written = conll.read(outcome.folder / "predictions-test.conll", features=("2",))
    assert [s.columns for s in written] == [
        s.columns for s in conll.read(files_of_columns / "test.txt", features=("2",))
    ]


def test_with_and_without_torch_the_scores_are_the_same_alone_and_together(
    outcome: Outcome, files_of_columns: Path
) -> None:
    served = Tagger.load(outcome.best)
    given = [s.given for s in conll.read(files_of_columns / "test.txt", features=("2",))]
    given += [[], [("go", "never seen")]]
    encoded = served.encode(given)
    config = tagging.Config(train=files_of_columns / "train.txt", features="2", **SMALL)  # type: ignore[arg-type]
    words = reader.Words(served.tables, served._tensors["vectors.weight"])
    network = tagging.Network(config, words, len(served.description.labels))
    network.load_state_dict({name: torch.from_numpy(np.array(a)) for name, a in served._tensors.items()})
    network.eval()
    with torch.no_grad():
        emissions, _ = network(reader.Given(*(torch.from_numpy(part) for part in encoded)), None)
    live = np.arange(encoded.words.shape[1])[:, None] < encoded.lengths
    together = served.emissions(encoded)
    np.testing.assert_allclose(together[live], emissions.numpy()[live], atol=1e-5, rtol=1e-5)
    decided = served.decode(emissions.numpy(), encoded.lengths)
    assert (decided[live] == served.decode(together, encoded.lengths)[live]).all()
    for b, one in enumerate(given):
        alone = served.emissions(served.encode([one]))
        assert alone.tobytes() == np.ascontiguousarray(together[: len(one), b : b + 1]).tobytes()
    assert served.predict(given) == served.predict(given, batch_size=1)


def test_a_value_that_training_lacked_is_read_as_the_unknown_one(outcome: Outcome) -> None:
    served = Tagger.load(outcome.best)
    assert served.tables.features is not None
    assert set(served.tables.features.tokens[2:]) == {"2=p", "2=q/r"}
    scored = [served.emissions(served.encode([[("go", value)]])) for value in ("x", "y", "p")]
    assert scored[0].tobytes() == scored[1].tobytes() != scored[2].tobytes()


def test_shares_of_a_batch_are_padded_as_the_whole_batch(outcome: Outcome, files_of_columns: Path) -> None:
    found = conll.read(files_of_columns / "test.txt", features=("2",))[:5]
    tables = Tagger.load(outcome.best).tables
    whole = reader.encode(found, tables, 12)
    part = reader.encode(found[2:3], tables, 12)
    assert whole.features.shape == (5, 12, 1)
    assert torch.equal(part.features, whole.features[2:3])
    assert (whole.features[:, :, 0] != 0).sum(1).tolist() == [len(s.words) for s in found]


def test_a_word_without_its_column_is_refused_by_the_columns_name(outcome: Outcome, tmp_path: Path) -> None:
    served = Tagger.load(outcome.best)
    for wrong in ([["go"]], [[("go",)]], [[("go", "p", "p")]], [[("go", 2)]]):
        with pytest.raises(InputError, match="of each word column 2 is read too"):
            served.predict(wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="list of sentences"):
        served.predict("go/p")
    for text in ("go/p so", "go/"):
        for ask in (served.cut, lambda text: introspect.record(served, text)):
            with pytest.raises(InputError, match=r"column 2 is read too, and '(so|go/)' has none"):
                ask(text)
    page = Answers({"it": Opened("it", served, None, "")}, {}, [], tmp_path)
    with pytest.raises(InputError, match=r"column 2 is read too, and 'go' has none"):
        page.ask("sentence", {"text": "go so"})
    told = page.ask("sentence", {"text": "go/p 1/2/p no/p"})
    assert told["words"] == ["go", "1/2", "no"]
    assert told["prediction"]["labels"] == ["SAME", "SAME", "OTHER"]


def test_what_is_seen_of_a_text_is_seen_of_its_columns_too(outcome: Outcome) -> None:
    served = Tagger.load(outcome.best)
    recording = introspect.record(served, "go/p no/p")
    assert recording.words == ("go", "no")
    other = introspect.record(served, "go/p no/x")
    assert recording.hidden().tobytes() != other.hidden().tobytes()
    x = served.embed(served.encode([served.cut("go/p no/p")]))
    traces = served.traced(x, np.array([2]))
    assert traces[0].hidden.tobytes() == recording.traces[0].hidden.tobytes()
    moved = introspect.contributions(served, "go/p no/p so/x", at=0)
    assert (moved.words, moved.label) == (("go", "no", "so"), "SAME")
    assert introspect.right_context(served, "go/p no/p").words == ("go", "no")


def test_a_file_without_the_column_is_refused_with_the_lines_number(
    files_of_columns: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("go p SAME\nno SAME\n")
    with pytest.raises(DataError, match=r"a.txt:2: there is nothing in column 2 before the label"):
        conll.read(tmp_path / "a.txt", features=("2",))
    assert conll.read(tmp_path / "a.txt", labelled=False, features=("2",))[0].columns == (("p",), ("SAME",))
    (tmp_path / "a.conllu").write_text(
        "1\tgo\tgo\tVERB\t_\t_\t0\troot\t_\t_\n2\tup\tup\t_\t_\t_\t1\tx\t_\t_\n"
    )
    for name, line in (("upos", 2), ("xpos", 1)):
        with pytest.raises(DataError, match=f"a.conllu:{line}: there is nothing in column {name}"):
            conll.read(tmp_path / "a.conllu", column="deprel", features=(name,))
    (found,) = conll.read(tmp_path / "a.conllu", column="deprel", features=("feats", "lemma"))
    assert found.given == [("go", "_", "go"), ("up", "_", "up")]  # _ says there: none
    for path, features in (("a.conllu", "2"), ("a.txt", "upos")):
        with pytest.raises(DataError, match="column"):
            conll.read(tmp_path / path, features=(features,))
    told: list[DataError] = []
    assert conll.read(files_of_columns / "dev.txt", features=("2",), on_bad=told.append)
    assert told == []


@pytest.mark.parametrize(
    ("own", "features"),
    [
        ("a.conllu", "xpos,upos"),
        ("a.conllu", "2"),
        ("a.conllu", "form"),
        ("a.conllu", "feats,feats"),
        ("a.tsv", "1"),
        ("a.tsv", "02"),
        ("a.tsv", "2,"),
        ("a.tsv", "upos"),
    ],
)
def test_columns_that_cannot_be_read_are_refused(own: str, features: str) -> None:
    with pytest.raises(ConfigError, match="option features"):
        tagging.Config(train=Path(own), features=features)
    with pytest.raises(ConfigError, match="option data"):
        tagging.Config(data="ptb", features=features)


def test_a_tagger_without_other_columns_is_written_as_before_they_were_read(outcome: Outcome) -> None:
    d = Tagger.load(outcome.best).description
    written = d.as_config()
    assert (written["features"], written["feature_size"]) == (["2"], 6)
    old = {name: value for name, value in written.items() if "feature" not in name}
    assert tagger.Description.from_config(old).as_config() == old
    for wrong in ({"features": ["2"]}, {"feature_size": 6}, {"features": ["2", "2"], "feature_size": 6}):
        with pytest.raises(ConfigError, match="features should be different names"):
            tagger.Description.from_config({**old, **wrong})
