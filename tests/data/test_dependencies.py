"""Trees read from CoNLL-U, refused with the line's number, and written with nothing else changed."""

from pathlib import Path

import pytest

from unspool.data import conll, dependencies
from unspool.errors import DataError
from unspool.trees import Tree

LINES = """# sent_id = 1
# text = didn't go
1-2\tdidn't\t_\t_\t_\t_\t_\t_\t_\tSpaceAfter=Yes
1\tdid\tdo\tAUX\tVBD\tMood=Ind\t3\taux\t3:aux\t_
2\tn't\tnot\tPART\tRB\t_\t3\tadvmod\t3:advmod\t_
2.1\tnow\t_\t_\t_\t_\t_\t_\t3:advmod\t_
3\tgo\tgo\tVERB\tVB\tVerbForm=Inf\t0\troot\t0:root\tX=1

"""


def test_a_tree_is_read_and_another_written_in_its_two_columns_alone(tmp_path: Path) -> None:
    (tmp_path / "a.conllu").write_text(LINES)
    (sentence,) = dependencies.read(tmp_path / "a.conllu")
    tree = dependencies.tree_of(sentence)
    assert tree == Tree((3, 3, 0), ("aux", "advmod", "root"))
    assert dependencies.with_tree(sentence, tree) == LINES
    other = dependencies.with_tree(sentence, Tree((0, 1, 1), ("root", "x", "y"), ("A", "B", "C")))
    expected = LINES
    for old, new in (
        ("AUX\tVBD\tMood=Ind\t3\taux", "A\tVBD\tMood=Ind\t0\troot"),
        ("PART\tRB\t_\t3\tadvmod", "B\tRB\t_\t1\tx"),
        ("VERB\tVB\tVerbForm=Inf\t0\troot", "C\tVB\tVerbForm=Inf\t1\ty"),
    ):
        assert expected.count(old) == 1
        expected = expected.replace(old, new)
    assert other == expected
    assert dependencies.tags_of(sentence, "xpos") == ("VBD", "RB", "VB")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("3\tadvmod\t3:", "0\tadvmod\t3:", r"a\.conllu:7: there is a second root; the first is in line 5"),
        ("0\troot\t0:", "1\troot\t0:", r"a\.conllu:4: heads go in a cycle.*\n  Received: '1 → 3 → 1'"),
        ("0\troot\t0:", "3\troot\t0:", r"a\.conllu:7: heads go in a cycle.*\n  Received: '3 → 3'"),
        ("3\taux\t3:", "4\taux\t3:", r"a\.conllu:4: the head is no word of the sentence"),
        (
            "3\taux\t3:",
            "_\taux\t3:",
            r"a\.conllu:4: the head is no word of the sentence.*\n.*\n.* 0, the root, to 3",
        ),
        ("3\taux\t3:", "-1\taux\t3:", r"a\.conllu:4: the head is no word"),
        ("3\taux\t3:", "²\taux\t3:", r"a\.conllu:4: the head is no word"),
    ],
)
def test_what_is_no_tree_is_refused_with_its_line_or_left_out(
    old: str, new: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.conllu"
    assert LINES.count(old) == 1
    path.write_text(LINES.replace(old, new) + LINES)
    with pytest.raises(DataError, match=said) as caught:
        dependencies.read(path)
    assert "--skip-bad" in str(caught.value)
    assert len(dependencies.read(path, skip_bad=True)) == 1
    assert "1 sentences left out; the first: " in capsys.readouterr().err


def test_a_file_of_bad_sentences_alone_or_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.conllu").write_text(LINES.replace("0\troot", "1\troot"))
    with pytest.raises(DataError, match=r"no sentence is left of it"):
        dependencies.read(tmp_path / "a.conllu", skip_bad=True, quiet=True)
    (tmp_path / "a.tsv").write_text("x\ty\n")
    with pytest.raises(DataError, match=r"ends in \.conllu"):
        dependencies.read(tmp_path / "a.tsv")


def test_words_alone_become_lines() -> None:
    sentence = dependencies.as_sentence(["Time", "flies"])
    text = dependencies.with_tree(sentence, Tree((2, 0), ("nsubj", "root")))
    (again,) = conll.sentences(text.encode().splitlines(True), "x", "conllu", column="deprel")
    assert dependencies.tree_of(again) == Tree((2, 0), ("nsubj", "root"))
