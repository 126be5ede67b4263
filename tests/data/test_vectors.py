"""Pretrained vectors land in the right rows, and a bad file says which line is bad."""

import gzip
import sys

import numpy as np
import pytest

from unspool.data.sources import SOURCES, check
from unspool.data.vectors import GLOVE_50D, frequent_words, glove_text, indexed, vectors
from unspool.errors import DataError, MissingExtra

GLOVE = b"the 0.5 -1 2e-1\ngood 1 2 3\n. . . 7 8 9\n\xc2\x85 4 4 4\nclich\xc3\xa9 6 5 4\ngood 9 9 9\n"


def written(tmp_path, content: bytes, name: str = "vectors.txt"):
    path = tmp_path / name
    path.write_bytes(content)
    return path


def test_every_token_gets_its_own_vector(tmp_path) -> None:
    path = written(tmp_path, GLOVE)
    table, found = vectors(path, ["<pad>", "<unk>", "cliché", "good", "nowhere", "the"])
    assert found.tolist() == [False, False, True, True, False, True]
    assert table.dtype == np.float32
    expected = [[0, 0, 0], [0, 0, 0], [6, 5, 4], [1, 2, 3], [0, 0, 0], np.float32([0.5, -1, 0.2])]
    np.testing.assert_array_equal(table, np.array(expected, dtype=np.float32))


def test_the_frequent_words_are_the_first(tmp_path) -> None:
    path = written(tmp_path, GLOVE)
    assert frequent_words(path, 2) == ["the", "good"]
    assert frequent_words(path, 0) == []
    assert len(frequent_words(path, 100)) == 6
    assert frequent_words(written(tmp_path, b"2 3\nof 1 2 3\nto 1 2 3\n"), 1) == ["of"]
    with pytest.raises(DataError, match=r"vectors\.txt:2: the word is not UTF-8"):
        frequent_words(written(tmp_path, b"of 1 2 3\n\xff 1 2 3\n"), 2)


def test_no_token_found_still_has_a_width(tmp_path) -> None:
    table, found = vectors(str(written(tmp_path, GLOVE)), ["<pad>", "<unk>"])
    assert table.shape == (2, 3)
    assert not found.any()


def test_words_may_hold_spaces_and_odd_signs(tmp_path) -> None:
    matrix, rows = glove_text(written(tmp_path, GLOVE), {". . .", "\x85"})
    assert matrix[rows[". . ."]].tolist() == [7, 8, 9]
    assert matrix[rows["\x85"]].tolist() == [4, 4, 4]


@pytest.mark.parametrize("end", [b"\n", b" \n", b"\r\n"])
def test_a_word2vec_header_and_its_line_ends(tmp_path, end: bytes) -> None:
    lines = [b"2 3", b"good 1 2 3", b"bad 4 5 6"]
    matrix, rows = glove_text(written(tmp_path, b"".join(line + end for line in lines)), {"bad"})
    assert matrix.tolist() == [[4, 5, 6]]
    assert rows == {"bad": 0}


def test_a_compressed_file(tmp_path) -> None:
    matrix, _ = glove_text(written(tmp_path, gzip.compress(GLOVE), "vectors.txt.gz"), {"good"})
    assert matrix.tolist() == [[1, 2, 3]]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"the 1 2 3\ngood 1 2\n", "vectors.txt:2: the line is not a word and 3 numbers"),
        (b"the 1 2 3\nfilm 1 2 3 4\n", "vectors.txt:2: the line is not a word and 3 numbers"),
        (b"the 1 2 3\n\ngood 1 2 3\n", "vectors.txt:2: the line is not a word and 3 numbers"),
        (b"the\n", "vectors.txt:1: the line is not a word"),
        (b"the 1 2 3\ngood 1 x 3\n", "vectors.txt:2: what follows the word is not all numbers"),
        (b"the 1 2 3\ngood 1 nan 3\n", "vectors.txt:2: a number is not finite"),
        (b"good 1 2 1e300\n", "vectors.txt:1: a number is not finite"),
        (b"3 2\nthe 1 2\ngood 1 2\n", "cut off"),
        (b"1 2\nthe 1 2\ngood 1 2\n", "cut off"),
        (b"", "cut off"),
        (b"PK\x03\x04\x00\x00\n", "vectors.txt:1: "),
    ],
)
def test_a_bad_file_is_refused(tmp_path, content: bytes, said: str) -> None:
    with pytest.raises(DataError, match="Fix: ") as caught:
        glove_text(written(tmp_path, content), {"good"})
    assert said in str(caught.value)


def test_a_damaged_archive_is_refused(tmp_path) -> None:
    with pytest.raises(DataError, match=r"vectors\.txt\.gz: the file is damaged"):
        glove_text(written(tmp_path, gzip.compress(GLOVE * 100)[:-9], "vectors.txt.gz"), {"good"})


def test_a_missing_file_is_refused(tmp_path) -> None:
    with pytest.raises(DataError, match="No such file"):
        vectors(tmp_path / "none.txt", ["<pad>"])


def test_without_pyarrow_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"unspool\[vectors\]"):
        vectors(GLOVE_50D, ["<pad>"])
    with pytest.raises(MissingExtra, match=r"unspool\[vectors\]"):
        frequent_words(GLOVE_50D, 10)


def test_a_matrix_with_an_index(tmp_path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    np.save(tmp_path / "numbers.npy", np.arange(15, dtype=np.float32).reshape(5, 3))
    parquet.write_table(
        pyarrow.table({"index": ["the", "of", "good", "film", "cliché"]}), tmp_path / "words.parquet"
    )
    matrix, rows = indexed(tmp_path / "numbers.npy", tmp_path / "words.parquet", {"cliché", "of", "none"})
    assert {word: matrix[row].tolist() for word, row in rows.items()} == {
        "of": [3, 4, 5],
        "cliché": [12, 13, 14],
    }
    matrix, rows = indexed(tmp_path / "numbers.npy", tmp_path / "words.parquet", set())
    assert matrix.shape == (0, 3)


def test_the_50d_source() -> None:
    pytest.importorskip("pyarrow")
    absent = [name for name in SOURCES if name.startswith(GLOVE_50D) and check(name).path is None]
    if absent:
        pytest.skip(f"not in the cache or the data folder: {', '.join(absent)}")
    table, found = vectors(GLOVE_50D, ["<pad>", "good", "film", "nosuchwordanywhere", "the"], quiet=True)
    assert found.tolist() == [False, True, True, False, True]
    assert table.shape == (5, 50)
    np.testing.assert_allclose(table[4, :3], [0.418, 0.24968, -0.41242])
    assert not table[3].any()
    assert frequent_words(GLOVE_50D, 3, quiet=True) == ["the", ",", "."]
