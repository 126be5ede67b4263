"""What a file says is what comes out; what is wrong with it is said with file and line."""

import bz2
import csv
import gzip
import lzma
import os
import re
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unspool.data.readers import (
    Example,
    Splits,
    check_training,
    imdb,
    mr,
    read,
    rotten_tomatoes,
    sst2,
    subj,
)
from unspool.data.sources import SOURCES, check
from unspool.errors import DataError, InputError

TSV = "text\tlabel\na fine film\tgood\na dull one\tbad\n"
EXAMPLES = [Example("a fine film", "good"), Example("a dull one", "bad")]


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return path


def refusal(path: Path, **options) -> str:
    with pytest.raises(DataError) as caught:
        read(path, **options)
    said = str(caught.value)
    assert "\n  Fix: " in said
    return said


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", TSV),
        ("a.TSV", TSV),
        ("a.tsv", TSV.removesuffix("\n")),
        ("a.tsv", TSV.replace("\n", "\r\n")),
        ("a.tsv", "label\ttext\r\ngood\ta fine film\r\nbad\ta dull one\r\n"),
        ("a.tsv", "\ufeff" + TSV),
        ("a.tsv", "\n" + TSV + "\n\n"),
        ("a.tsv", "label\tsource\ttext\ngood\tx\ta fine film\nbad\t\ta dull one\n"),
        ("a.tsv", " text\t label \na fine film\t good \na dull one\tbad\n"),
        ("a.csv", "text,label\na fine film,good\n\na dull one,bad\n"),
        ("a.csv", '\ufefflabel,text\r\n"good","a fine film"\r\nbad,a dull one'),
        (
            "a.jsonl",
            '{"text": "a fine film", "label": "good"}\n\n{"label": "bad", "n": 1, "text": "a dull one"}',
        ),
        ("a.tsv.gz", gzip.compress(TSV.encode())),
        ("a.tsv.bz2", bz2.compress(TSV.encode())),
        ("a.tsv.xz", lzma.compress(TSV.encode())),
        ("a.csv.gz", gzip.compress(TSV.replace("\t", ",").encode())),
    ],
)
def test_the_same_examples_in_every_format(tmp_path, name: str, content: str | bytes) -> None:
    assert read(written(tmp_path, name, content)) == EXAMPLES


def test_columns_may_have_other_names(tmp_path) -> None:
    tsv = written(tmp_path, "a.tsv", "sentence\tclass\na fine film\tgood\na dull one\tbad\n")
    jsonl = written(
        tmp_path, "a.jsonl", '{"s": "a fine film", "c": "good"}\n{"s": "a dull one", "c": "bad"}\n'
    )
    assert read(tsv, text_column="sentence", label_column="class") == EXAMPLES
    assert read(jsonl, text_column="s", label_column="c") == EXAMPLES


def test_lines_end_at_line_feeds_alone(tmp_path) -> None:
    text = "one\x85two\u2028three\x0bfour\x0cfive\x1csix"
    assert read(written(tmp_path, "a.tsv", f"text\tlabel\n{text}\tx\n")) == [Example(text, "x")]
    assert read(written(tmp_path, "a.csv", f"text,label\n{text},x\n")) == [Example(text, "x")]
    assert read(written(tmp_path, "a.jsonl", '{"text": "one\u2028two\x85", "label": "x"}\n')) == [
        Example("one\u2028two\x85", "x")
    ]


def test_quotes_mean_something_in_csv_only(tmp_path) -> None:
    csv_file = written(tmp_path, "a.csv", 'text,label\n"so ""fine"", isn\'t it?\nyes",x\n')
    tsv_file = written(tmp_path, "a.tsv", 'text\tlabel\n"so\tx\n')
    assert read(csv_file) == [Example('so "fine", isn\'t it?\nyes', "x")]
    assert read(tsv_file) == [Example('"so', "x")]


def test_json_labels_of_other_kinds_become_strings(tmp_path) -> None:
    lines = [f'{{"text": "a", "label": {label}}}\n' for label in ('"x"', "3", "-1", "true", "false")]
    examples = read(written(tmp_path, "a.jsonl", "".join(lines)))
    assert [example.label for example in examples] == ["x", "3", "-1", "true", "false"]


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl"])
def test_a_very_long_text_is_accepted(tmp_path, name: str) -> None:
    text = "word " * 100_000
    content = {
        "a.tsv": f"text\tlabel\n{text}\tx\n",
        "a.csv": f"text,label\n{text},x\n",
        "a.jsonl": f'{{"text": "{text}", "label": "x"}}\n',
    }
    limit = csv.field_size_limit()
    assert read(written(tmp_path, name, content[name])) == [Example(text, "x")]
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.tsv", "", "a.tsv: the file is empty"),
        ("a.tsv.gz", gzip.compress(b""), "a.tsv.gz: the file is empty"),
        ("a.tsv", "text\tlabel\n", "a.tsv: the file holds no examples"),
        ("a.tsv", "\n\n", "a.tsv: the file holds no examples"),
        ("a.jsonl", "\ufeff", "a.jsonl: the file holds no examples"),
        ("a.txt", TSV, "a.txt: what kind of file"),
        ("a.gz", TSV, "a.gz: what kind of file"),
        (
            "a.tsv",
            "a fine film\tgood\na dull one\tbad\n",
            "a.tsv:1: the header names the column 'text' nowhere",
        ),
        ("a.tsv", "text\tclass\na\tb\n", "a.tsv:1: the header names the column 'label' nowhere"),
        ("a.csv", "\ntext,label,text\na,b,c\n", "a.csv:2: the header names the column 'text' twice"),
        ("a.tsv", TSV + "three\tmore\tcolumns\n", "a.tsv:4: the line has 3 columns, the header 2"),
        ("a.tsv", TSV + "one\n" + TSV, "a.tsv:4: the line has 1 columns, the header 2"),
        ("a.csv", 'text,label\n"a\nb",x\na,b,x\n', "a.csv:4: the line has 3 columns, the header 2"),
        ("a.csv", 'text,label\nx,y\n"a,b\nc,d\n', "a.csv:3: the line is not CSV"),
        ("a.csv", 'text,label\n"a"b,c\n', "a.csv:2: the line is not CSV"),
        ("a.csv", "text,label\rx,y\r", "a.csv:1: the line is not CSV"),
        ("a.tsv", TSV + "\tbad\n", "a.tsv:4: the text is empty"),
        ("a.tsv", TSV + " \u3000\x85\tbad\n", "a.tsv:4: the text is empty"),
        ("a.csv", "text,label\na,\n", "a.csv:2: the label is empty"),
        ("a.jsonl", '{"text": "a", "label": " "}', "a.jsonl:1: the label is empty"),
        ("a.tsv", TSV.encode() + b"caf\xe9\tgood\n", "a.tsv:4: the line is not utf-8"),
        ("a.tsv", TSV.encode() + b"caf\xe9", "byte 0xe9, the line's byte 4"),
        ("a.tsv", TSV.encode("utf-16"), "a.tsv:1: the file is UTF-16"),
        ("a.tsv", TSV + "a\0b\tgood\n", "a.tsv:4: there is a NUL byte"),
        ("a.jsonl", '{"text": "a", "label": "x"}\n[1]\n', "a.jsonl:2: the line is not a JSON object"),
        ("a.jsonl", '\n{"text": "a"\n', "a.jsonl:2: the line is not JSON"),
        ("a.jsonl", "[" * 100_000, "a.jsonl:1: the line is not JSON"),
        ("a.jsonl", '{"text": "a"}', "a.jsonl:1: the object has no 'label'"),
        ("a.jsonl", '{"label": "a"}', "a.jsonl:1: the object has no 'text'"),
        ("a.jsonl", '{"text": 3, "label": "x"}', "a.jsonl:1: 'text' is not a string"),
        ("a.jsonl", '{"text": "a", "label": 1.0}', "a.jsonl:1: 'label' is not a label"),
        ("a.jsonl", '{"text": "a", "label": null}', "a.jsonl:1: 'label' is not a label"),
        ("a.jsonl", '{"text": "a\\u0000", "label": "x"}', "a.jsonl:1: an escape stands for no character"),
        ("a.jsonl", '{"text": "a", "label": "\\ud800"}', "a.jsonl:1: an escape stands for no character"),
        ("a.tsv.gz", TSV, "a.tsv.gz: the file is damaged or not packed"),
        ("a.tsv.gz", gzip.compress(TSV.encode())[:-4], "a.tsv.gz: the file is damaged"),
        ("a.tsv.gz", gzip.compress(TSV.encode())[:10] + b"\xff" * 20, "a.tsv.gz: the file is damaged"),
        ("a.tsv.xz", lzma.compress(TSV.encode())[:-4], "a.tsv.xz: the file is damaged"),
        ("a.tsv.bz2", bz2.compress(TSV.encode())[:-4], "a.tsv.bz2: the file is damaged"),
        ("a.tsv.xz", TSV, "a.tsv.xz: the file is damaged"),
        ("a.tsv.bz2", TSV, "a.tsv.bz2: the file is damaged"),
    ],
)
def test_a_bad_file_is_refused(tmp_path, name: str, content: str | bytes, said: str) -> None:
    assert said in refusal(written(tmp_path, name, content))


def test_a_refusal_shows_no_more_than_an_excerpt(tmp_path) -> None:
    said = refusal(written(tmp_path, "a.tsv", TSV + "word " * 100_000 + "\n"))
    assert len(said) < 500
    assert "word word" in said


def test_a_missing_file_and_a_folder_are_refused(tmp_path) -> None:
    (tmp_path / "b.tsv").mkdir()
    assert "a.tsv: the file cannot be read.\n  Received: No such file" in refusal(tmp_path / "a.tsv")
    assert "b.tsv: the file cannot be read" in refusal(tmp_path / "b.tsv")


def test_a_label_that_may_not_occur_is_refused(tmp_path) -> None:
    path = written(tmp_path, "a.tsv", TSV)
    assert read(path, labels=["good", "bad"]) == EXAMPLES
    said = refusal(path, labels=["good", "poor"])
    assert "a.tsv:3: this label is unknown.\n  Received: 'bad'\n  Fix: use one of: good, poor." in said


def test_training_needs_two_labels() -> None:
    check_training(EXAMPLES)
    with pytest.raises(DataError, match=r"my\.tsv: every example has the same label.*\n.*1 examples.*'good'"):
        check_training(EXAMPLES[:1], "my.tsv")
    with pytest.raises(DataError, match="no examples to train on"):
        check_training([])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1).filter(
                lambda text: not text.isspace()
            ),
            st.sampled_from(["x", "y, z", '"q"']),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_what_the_csv_module_writes_is_read_back(tmp_path, rows) -> None:
    path = tmp_path / "a.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    assert read(path) == [Example(*row) for row in rows]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.binary(max_size=60), st.sampled_from([".tsv", ".csv", ".jsonl", ".tsv.gz", ".csv.bz2", ".jsonl.xz"])
)
def test_any_bytes_are_read_or_refused(tmp_path, content: bytes, suffix: str) -> None:
    head = b"" if "jsonl" in suffix else b"text,label\n" if "csv" in suffix else b"text\tlabel\n"
    path = written(tmp_path, "a" + suffix, head + content)
    said = str(path)
    try:
        assert read(path)
    except DataError as error:
        said = str(error)
    assert said.startswith(str(path))


def sentences(parts: Splits) -> list[set[str]]:
    """Return the sentences of each part as they are compared: letters and digits in small letters."""
    return [{re.sub(r"[\W_]", "", example.text.lower()) for example in part} for part in parts]


def assert_apart(parts: Splits) -> None:
    train, dev, test = sentences(parts)
    assert not train & dev
    assert not train & test
    assert not dev & test


def small_tomatoes(folder: Path, rows: list[tuple[str, str, str]]) -> Path:
    path = folder / "rotten.csv.bz2"
    with bz2.open(path, "wt", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["category", "text", "movie_name", "has_plot_and_reviews"])
        writer.writerows([*row, "True"] for row in rows)
    return path


def test_rotten_tomatoes_parts_films_not_sentences(tmp_path) -> None:
    rows = [
        ("fresh" if i % 3 else "rotten", f"Remark {i}\nof  {i // 7}.", f"film_{i // 7}") for i in range(7000)
    ]
    rows += [("plot", "Someone goes somewhere.", "film_1"), ("fresh", " \n", "film_2")]
    parts = rotten_tomatoes(small_tomatoes(tmp_path, rows))
    assert_apart(parts)
    films = [{example.group for example in part} for part in parts]
    assert sum(map(len, films)) == len(set.union(*films)) == 1000
    assert sum(map(len, parts)) == 7000
    assert [len(part) / 7000 for part in parts] == pytest.approx([0.8, 0.1, 0.1], abs=0.03)
    assert {example.label for part in parts for example in part} == {"fresh", "rotten"}
    assert Example("Remark 15 of 2.", "rotten", "film_2") in [*parts.train, *parts.dev, *parts.test]


def test_rotten_tomatoes_keeps_films_that_share_a_sentence_together(tmp_path) -> None:
    # A chain: films 0 and 1 share a sentence, 1 and 2 share another, and so on, from its end to be harder.
    rows = [("fresh", f"Shared by {i} and its neighbour!", f"film_{i + 1:02}") for i in range(60)]
    rows += [("fresh", f"shared by {i}, and its neighbour", f"film_{i:02}") for i in reversed(range(60))]
    rows += [("rotten", f"Only of {i}", f"film_{i:02}") for i in range(61)]
    rows += [("rotten", f"Alone {i}", f"other_{i}") for i in range(60)]
    parts = rotten_tomatoes(small_tomatoes(tmp_path, rows))
    assert_apart(parts)
    assert sum(map(len, parts)) == 60 + 61 + 60  # each shared sentence once
    homes = {
        number for number, part in enumerate(parts) for example in part if example.group.startswith("film_")
    }
    assert len(homes) == 1
    assert all(part for part in parts)


def test_rotten_tomatoes_does_not_depend_on_the_order_of_the_rows(tmp_path) -> None:
    rows = [("fresh", f"Remark {i}", f"film_{i // 5}") for i in range(500)]
    there = rotten_tomatoes(small_tomatoes(tmp_path, rows))
    back = rotten_tomatoes(small_tomatoes(tmp_path, rows[::-1]))
    assert [set(part) for part in there] == [set(part) for part in back]


def test_rotten_tomatoes_refuses_another_file(tmp_path) -> None:
    with pytest.raises(DataError, match=r"rotten\.csv\.bz2:2: the category is none of"):
        rotten_tomatoes(small_tomatoes(tmp_path, [("mouldy", "Remark", "film")]))
    with pytest.raises(DataError, match=r"a\.csv:1: the header names the column 'category' nowhere"):
        rotten_tomatoes(written(tmp_path, "a.csv", "text,label\na,b\n"))


def polarity(folder: Path) -> Path:
    lines = [f"{i % 2} sentence {i} \u2013 caf\u00e9 . \n" for i in range(500)]
    lines += ["1 Sentence 7 - caf\u00e9 ! \n", "0 sentence 8 \u2013 caf\u00e9\n", "0 sentence 8 caf\u00e9\n"]
    return written(folder, "mr.gz", gzip.compress("".join(lines).encode("cp1252")))


@pytest.mark.parametrize("reader", [mr, subj])
def test_ten_folds_share_nothing_and_cover_everything(tmp_path, reader) -> None:
    path = polarity(tmp_path)
    seen: Counter[str] = Counter()
    for fold in range(10):
        parts = reader(path, seed=5, fold=fold)
        assert_apart(parts)
        assert sum(map(len, parts)) == 503
        assert [len(part) for part in parts] == pytest.approx([407, 45, 50], abs=4)
        assert parts == reader(path, seed=5, fold=fold)
        seen.update(example.text for example in parts.test)
    assert seen.total() == 503
    assert set(seen.values()) == {1}
    assert reader(path, seed=6).test != reader(path, seed=5).test


def test_polarity_lines_are_cp1252_with_named_labels(tmp_path) -> None:
    path = written(tmp_path, "a.gz", gzip.compress(b"0 d\xe9j\xe0 vu \x97 again \n1 fine"))
    examples = sorted(chain(*mr(path, seed=0)))
    assert examples == [Example("déjà vu — again", "negative"), Example("fine", "positive")]
    assert {example.label for example in chain(*subj(path, seed=0))} == {"subjective", "objective"}


@pytest.mark.parametrize("line", ["2 fine", "fine", "1 ", "1\tfine"])
def test_polarity_lines_of_another_form_are_refused(tmp_path, line: str) -> None:
    with pytest.raises(DataError, match=r"a\.gz:2: the line is not 0 or 1"):
        mr(written(tmp_path, "a.gz", gzip.compress(f"0 dull\n{line}\n".encode())), seed=0)


@pytest.mark.parametrize("fold", [-1, 10])
def test_folds_count_from_0_to_9(tmp_path, fold: int) -> None:
    with pytest.raises(InputError, match=f"Received: {fold}"):
        mr(polarity(tmp_path), seed=0, fold=fold)


def test_sst2_keeps_its_parts_and_undoes_treebank_spellings(tmp_path) -> None:
    lines = ["0 dull \\/ slow -lrb- yes -rrb- \\*", "1 fine", "1 good"]
    paths = [
        written(tmp_path, f"{line[0]}{line[2]}.gz", gzip.compress(f"{line}\n".encode())) for line in lines
    ]
    assert sst2(*paths) == Splits(
        [Example("dull / slow ( yes ) *", "negative")],
        [Example("fine", "positive")],
        [Example("good", "positive")],
    )


def test_imdb_parts_and_repairs(tmp_path) -> None:
    rows = [("train", "pos" if i % 2 else "neg", i, f"review {i // 2 * 2}") for i in range(10, 210)]
    rows += [
        ("test", "pos", 1, "a<br /><br />b \x97 c"),
        ("train", "pos", 7, "Good app"),
        ("test", "neg", 7, "Dull"),
    ]
    lines = [f"{split}\t{label}\t9\t{number}\t{text}\n" for split, label, number, text in rows]
    parts = imdb(written(tmp_path, "imdb.tsv.xz", lzma.compress("".join(lines).encode())))
    assert parts.test == [Example("a  b — c", "positive"), Example("Dull", "negative")]
    assert len(parts.train) == 180
    assert len(parts.dev) == 20  # ten reviews that occur twice each
    assert_apart(parts)


def test_imdb_refuses_lines_of_another_form(tmp_path) -> None:
    path = written(tmp_path, "imdb.tsv", "train\tpos\t9\t1\tfine\ntrain\tpos\tfine\n")
    with pytest.raises(DataError, match=r"imdb\.tsv:2: the line is not split, label"):
        imdb(path)


def real(*names: str) -> list[Path]:
    """Return the real files of the sources, or skip: a local source needs UNSPOOL_DATA."""
    if not os.environ.get("UNSPOOL_DATA") and any(SOURCES[name].kind == "local" for name in names):
        pytest.skip("UNSPOOL_DATA does not name a data folder")
    standings = [check(name) for name in names]
    absent = [standing.source.name for standing in standings if standing.path is None]
    if absent:
        pytest.skip(f"neither in the data folder nor in the cache: {', '.join(absent)}")
    return [standing.path for standing in standings if standing.path]


def counted(parts: Splits) -> list[tuple[int, ...]]:
    return [(len(part), *sorted(Counter(example.label for example in part).values())) for part in parts]


def test_the_real_rotten_tomatoes() -> None:
    parts = rotten_tomatoes(*real("rotten-tomatoes"))
    assert counted(parts) == [(10178, 4379, 5799), (1401, 512, 889), (1170, 491, 679)]
    assert_apart(parts)
    films = [{example.group for example in part} for part in parts]
    assert not films[0] & films[1]
    assert not (films[0] | films[1]) & films[2]
    assert all("\n" not in example.text for example in parts.train)


@pytest.mark.parametrize(("reader", "name", "count"), [(mr, "mr", 10662), (subj, "subj", 10000)])
def test_the_real_polarity_sets(reader, name: str, count: int) -> None:
    parts = reader(*real(name), seed=1)
    assert_apart(parts)
    labels = Counter(example.label for part in parts for example in part)
    assert set(labels.values()) == {count // 2}
    assert [len(part) / count for part in parts] == pytest.approx([0.81, 0.09, 0.1], abs=0.001)


def test_the_real_sst2() -> None:
    parts = sst2(*real("sst2-train", "sst2-dev", "sst2-test"))
    assert counted(parts) == [(6920, 3310, 3610), (872, 428, 444), (1821, 909, 912)]
    assert not any("-lrb-" in example.text for example in parts.train)


def test_the_real_imdb() -> None:
    parts = imdb(*real("imdb"))
    assert [len(part) for part in parts] == [22498, 2498, 24996]
    assert not any("<br" in example.text for example in parts.train)
    train, dev, _ = sentences(parts)
    assert not train & dev
