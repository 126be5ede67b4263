"""Parallel files: what is wrong with one is said with the line's number."""

from pathlib import Path

import pytest

from unspool.data import pairs
from unspool.errors import DataError


def written(folder: Path, **sides: bytes) -> list[Path]:
    for name, data in sides.items():
        (folder / name).write_bytes(data)
    return [folder / name for name in sides]


def test_two_sides_and_one_file_are_the_same_pairs(tmp_path: Path) -> None:
    a, b, both = written(
        tmp_path, a=b"\xef\xbb\xbfein  Hund\r\nzwei\n", b=b"a dog\ntwo", both=b"ein Hund\ta dog\nzwei\ttwo\n"
    )
    right = [pairs.Pair("ein Hund", ("a dog",)), pairs.Pair("zwei", ("two",))]
    assert pairs.read(a, b) == right
    assert pairs.read(both) == right


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        (b"x\ny\nz\n", b"x\ny\n", r"a:3: this line has no partner"),
        (b"x\n", b"x\ny\n", r"b:2: this line has no partner"),
        (b"x\n\xe4\n", b"x\ny\n", r"a:2: the line is not UTF-8 \(byte 0xe4 at 1\)"),
        (b"x\ny\n", b"x\n \n", r"b:2: the line is empty"),
        (b"x\n\n", b"x\n\n", r"a:2: the line is empty"),
        (b"", b"", r"there is no pair"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, a: bytes, b: bytes, said: str) -> None:
    with pytest.raises(DataError, match=said):
        pairs.read(*written(tmp_path, a=a, b=b))


def test_a_line_without_a_tab_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a:2: 1 columns where two are needed"):
        pairs.read(*written(tmp_path, a=b"x\ty\nz\n"))


def test_bad_pairs_can_be_left_out_and_are_told_of(tmp_path: Path) -> None:
    left_out: list[DataError] = []
    found = pairs.read(*written(tmp_path, a=b"x\n\xff\n\nw\n", b=b"1\n2\n3\n4\n"), on_bad=left_out.append)
    assert [pair.source for pair in found] == ["x", "w"]
    assert [str(error).split(":")[1] for error in left_out] == ["2", "3"]


def test_a_word_is_held_out_with_all_its_pronunciations() -> None:
    lines = [
        "a AH0",
        "a(2) EY1",
        "the DH AH0 # article",
        "the(2) DH IY0",
        "% P ER0",
        *(f"w{n} W" for n in range(30)),
    ]
    found = pairs.pronunciations(lines)
    assert found[0] == pairs.Pair("a", ("AH", "EY"))
    assert found[1] == pairs.Pair("the", ("DH AH", "DH IY"))
    assert len(found) == 32
    kept, out = pairs.hold_out(found)
    assert len(out) == 3
    assert not {p.source for p in kept} & {p.source for p in out}
    assert pairs.hold_out(found) == (kept, out)
