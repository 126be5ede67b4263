"""Files of sentences: read, refused with line and remedy, and written again with nothing else changed."""

from pathlib import Path

import pytest

from unspool.data import conll
from unspool.errors import DataError

CONLLU = """\
# sent_id = 1
# text = Don't go.
1-2\tDon't\t_\t_\t_\t_\t_\t_\t_\t_
1\tDo\tdo\tAUX\tVB\tMood=Imp\t3\taux\t_\t_
2\tn't\tnot\tPART\tRB\t_\t3\tadvmod\t_\t_
2.1\t_\t_\t_\t_\t_\t_\t_\t_\t_
3\tgo\tgo\tVERB\tVB\t_\t0\troot\t_\tSpaceAfter=No
4\t.\t.\tPUNCT\t.\t_\t3\tpunct\t_\t_

1\tYes\tyes\tINTJ\tUH\t_\t0\troot\t_\t_

"""


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_conllu_is_read_and_all_but_the_column_is_kept(tmp_path: Path) -> None:
    first, second = conll.read(write(tmp_path / "a.conllu", CONLLU))
    assert first.words == ("Do", "n't", "go", ".")
    assert first.labels == ("AUX", "PART", "VERB", "PUNCT")
    assert (first.number, second.number) == (1, 10)
    again = conll.with_labels(first, first.labels, "conllu") + conll.with_labels(second, ["INTJ"], "conllu")
    assert again == CONLLU
    changed = conll.with_labels(first, ["A", "B", "C", "D"], "conllu")
    assert (
        changed
        == CONLLU.partition("\n\n")[0]
        .replace("\tAUX\t", "\tA\t")
        .replace("\tPART\t", "\tB\t")
        .replace("\tVERB\t", "\tC\t")
        .replace("\tPUNCT\t", "\tD\t")
        + "\n\n"
    )


def test_another_column_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.conllu", CONLLU)
    assert conll.read(path, column="xpos")[0].labels == ("VB", "RB", "VB", ".")
    assert conll.read(path, column="feats")[0].labels[0] == "Mood=Imp"
    with pytest.raises(DataError, match="no column 'tag'"):
        conll.read(path, column="tag")


@pytest.mark.parametrize("between", ["\n", "\r\n", "\t\n", "  \n\n\n"])
def test_columns_are_read_whatever_parts_the_sentences(tmp_path: Path, between: str) -> None:
    text = "-DOCSTART- -X- O\n\nEU NNP B-ORG\nrejects VBZ O\n" + between + "Peter NNP B-PER\n"
    found = conll.read(write(tmp_path / "a.txt", text))
    assert [s.words for s in found] == [("EU", "rejects"), ("Peter",)]
    assert [s.labels for s in found] == [("B-ORG", "O"), ("B-PER",)]
    assert conll.with_labels(found[1], ["O"], "columns") == "Peter NNP B-PER O\n\n"


def test_words_may_hold_spaces_where_tabs_part_the_columns(tmp_path: Path) -> None:
    (found,) = conll.read(write(tmp_path / "a.tsv", "New York\tLOC\n"))
    assert (found.words, found.labels) == (("New York",), ("LOC",))


def test_without_labels_words_alone_will_do() -> None:
    lines = [b"Time\n", b"flies\n", b"\n", b".\n"]
    found = list(conll.sentences(lines, "stdin", "columns", labelled=False))
    assert [s.words for s in found] == [("Time", "flies"), (".",)]
    assert conll.with_labels(found[0], ["N", "V"], "columns") == "Time\tN\nflies\tV\n\n"


def test_a_byte_order_mark_and_strange_line_ends_are_part_of_no_word(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfa\xc2\x85b O\r\n")
    assert conll.read(path)[0].words == ("a\x85b",)


BAD = {
    "three columns": ("1\ta\tb\n", "a.conllu:1: there are 3 columns"),
    "numbers that jump": (CONLLU.replace("\n3\tgo", "\n5\tgo"), "a.conllu:7: the word's number is not 3"),
    "an empty word": (CONLLU.replace("\tgo\tgo", "\t\tgo"), "a.conllu:7: the word is empty"),
    "no label": (CONLLU.replace("VERB", ""), "a.conllu:7: the label is empty"),
    "no sentence": ("# nothing\n", "there is no sentence"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, what: str) -> None:
    text, said = BAD[what]
    with pytest.raises(DataError, match=said) as caught:
        conll.read(write(tmp_path / "a.conllu", text))
    assert "Fix:" in str(caught.value)


def test_a_line_that_is_no_utf8_or_endless_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"good O\nd\xe9j\xe0 O\n")
    with pytest.raises(DataError, match=r"a\.txt:2: the line is not UTF-8"):
        conll.read(path)
    path.write_bytes(b"a" * 1_000_001)
    with pytest.raises(DataError, match="longer than 1,000,000 bytes"):
        conll.read(path)


def test_bad_sentences_can_be_left_out_and_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one O\n\ntwo\n\nthr\xe9e O\nx O\n\nfour O\n")
    told: list[DataError] = []
    found = conll.read(path, on_bad=told.append)
    assert [s.words for s in found] == [("one",), ("four",)]
    assert [str(error).split(".\n")[0] for error in told] == [
        f"{path}:3: there is no label",
        f"{path}:5: the line is not UTF-8",
    ]
