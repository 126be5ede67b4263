"""Folders that are whole or not there, and the formats in them: damage, hostility, kills."""

import hashlib
import json
import os
import resource
import shutil
import struct
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from unspool import files
from unspool.errors import ConfigError, InputError, ModelFileError

PARTS = {"config.json": b'{"a": 1}\n', "model.safetensors": bytes(range(40)), "vocab.json": b""}
KILLS = Path(__file__).parent / "training_kills.py"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "best"
    files.write_folder(path, PARTS)
    return path


def sealed(path: Path, entries: dict[str, bytes]) -> None:
    """Write a marker that vouches for these entries, whatever their names."""
    lines = [f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in entries.items()]
    (path / files.MARKER).write_text(f"# {len(entries)} files\n" + "".join(lines))


# Whole folders


def test_a_folder_reads_as_it_was_written(folder: Path) -> None:
    assert files.read_folder(folder) == PARTS
    assert sorted(path.name for path in folder.iterdir()) == sorted([*PARTS, files.MARKER])
    assert [path.name for path in folder.parent.iterdir()] == ["best"]
    assert files.digest(folder) == hashlib.sha256(PARTS["model.safetensors"]).hexdigest()


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no sha256sum here")
def test_sha256sum_checks_the_marker(folder: Path) -> None:
    command = ["sha256sum", "--check", "--strict", files.MARKER]
    assert subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 0
    (folder / "vocab.json").write_bytes(b" ")
    assert subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 1


def test_replacing_leaves_nothing_of_the_old_folder(folder: Path) -> None:
    files.write_folder(folder, {"config.json": b"{}"})
    assert files.read_folder(folder) == {"config.json": b"{}"}
    assert sorted(path.name for path in folder.iterdir()) == [files.MARKER, "config.json"]


def test_parents_are_made_and_relative_paths_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files.write_folder("runs/one/best", PARTS)
    assert files.read_folder(tmp_path / "runs" / "one" / "best") == PARTS
    monkeypatch.chdir("runs/one/best")
    assert files.read_folder(".") == PARTS
    assert files.read_folder("../best") == PARTS


def test_every_flipped_bit_is_found(folder: Path) -> None:
    flips = 0
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for bit in range(8 * len(whole)):
            damaged = bytearray(whole)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            with pytest.raises(ModelFileError, match="Fix: "):
                files.read_folder(folder)
            flips += 1
        path.write_bytes(whole)
    assert flips == 8 * sum(path.stat().st_size for path in folder.iterdir())
    assert files.read_folder(folder) == PARTS


def test_every_cut_file_is_found(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for length in range(len(whole)):
            path.write_bytes(whole[:length])
            with pytest.raises(ModelFileError):
                files.read_folder(folder)
        path.write_bytes(whole)
    assert files.read_folder(folder) == PARTS


def test_bytes_after_the_end_are_found(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for more in (b"\0", b"\n", b"more", whole.splitlines(keepends=True)[-1] if whole else b" "):
            path.write_bytes(whole + more)
            with pytest.raises(ModelFileError, match="is damaged"):
                files.read_folder(folder)
        path.write_bytes(whole)


def test_damage_is_named(folder: Path) -> None:
    (folder / "config.json").write_bytes(b'{"a": 2}\n')
    expected, found = (hashlib.sha256(data).hexdigest() for data in (PARTS["config.json"], b'{"a": 2}\n'))
    with pytest.raises(ModelFileError, match=rf"config\.json is damaged.*\n.*{expected}, found {found}"):
        files.read_folder(folder)
    with pytest.raises(ModelFileError, match="config"):
        files.digest(folder)


@pytest.mark.parametrize("name", [*PARTS, files.MARKER])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ModelFileError, match=name):
        files.read_folder(folder)


def test_what_the_marker_does_not_list_is_not_read(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    assert files.read_folder(folder) == PARTS


def test_an_absent_folder_suggests_the_one_inside(tmp_path: Path) -> None:
    files.write_folder(tmp_path / "run" / "best", PARTS)
    for missing in (tmp_path / "run", tmp_path / "nowhere"):
        with pytest.raises(ModelFileError, match=str(missing)) as caught:
            files.read_folder(missing)
        assert (str(tmp_path / "run" / "best") in str(caught.value)) == (missing.name == "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelFileError, match="Not a directory"):
        files.read_folder(tmp_path / "file")


# Hostile names


NAMES = [
    "../secret", "../../secret", "/etc/hostname", "..", ".", "", "a/b", "a//b", "./a", "a\\b", "..\\secret",
    "C:\\secret", "C:secret", "\\\\host\\share", "a\0b", "a b", " a", "a\tb", ".hidden", "-rf", "~", "~root",
    "é", "a\r", "con:", "a" * 201, "%2e%2e%2fsecret", "$HOME", "file:///etc/hostname", "http://host/a",
    "sub/../../secret", "best/../../secret", "*", "?", "a|b", "a;b", "a\nb", "\u202e", "//", "a/",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_no_name_leads_out_of_the_folder(folder: Path, name: str) -> None:
    (folder.parent / "secret").write_bytes(b"secret")
    with pytest.raises(InputError, match="cannot name a file"):
        files.write_folder(folder, {**PARTS, name: b"secret"})
    assert files.read_folder(folder) == PARTS
    sealed(folder, {**PARTS, name: b"secret"})
    opened: list[str] = []
    with audited(opened), pytest.raises(ModelFileError):
        files.read_folder(folder)
    assert opened == [str(folder), files.MARKER]


def test_the_marker_is_no_name_for_a_part(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=files.MARKER):
        files.write_folder(tmp_path / "best", {files.MARKER: b""})


@pytest.mark.parametrize("name", ["vocab.json", files.MARKER])
def test_links_pipes_and_folders_inside_are_refused(folder: Path, name: str) -> None:
    path = folder / name
    outside = folder.parent / "outside"
    path.rename(outside)
    path.symlink_to(outside)
    with pytest.raises(ModelFileError, match=name):
        files.read_folder(folder)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ModelFileError, match="not a regular file"):
        files.read_folder(folder)
    path.unlink()
    path.mkdir()
    with pytest.raises(ModelFileError, match="not a regular file"):
        files.read_folder(folder)


def test_a_listed_file_may_not_be_named_twice(folder: Path) -> None:
    text = (folder / files.MARKER).read_text().replace("# 3", "# 4")
    (folder / files.MARKER).write_text(text + text.splitlines()[-1] + "\n")
    with pytest.raises(ModelFileError, match="is damaged"):
        files.read_folder(folder)


LISTENERS: list[list[str]] = []


def _listen(event: str, args: tuple[Any, ...]) -> None:
    if event == "open" and LISTENERS and isinstance(args[0], str):
        LISTENERS[-1].append(args[0])


sys.addaudithook(_listen)


class audited:
    """Collect the names that are opened inside."""

    def __init__(self, opened: list[str]) -> None:
        self.opened = opened

    def __enter__(self) -> None:
        LISTENERS.append(self.opened)

    def __exit__(self, *_: object) -> None:
        LISTENERS.pop()


# Writing where it must not, or cannot


def test_a_foreign_folder_is_not_replaced(tmp_path: Path) -> None:
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter").write_text("years of work")
    link = tmp_path / "link"
    link.symlink_to(foreign)
    for path in (foreign, link, foreign / "chapter"):
        with pytest.raises(ModelFileError, match="not a folder that unspool wrote"):
            files.write_folder(path, PARTS)
    assert (foreign / "chapter").read_text() == "years of work"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "thesis"]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "best").mkdir()
    files.write_folder(tmp_path / "best", PARTS)
    assert files.read_folder(tmp_path / "best") == PARTS


@contextmanager
def small_disk() -> Iterator[None]:
    """No file may grow beyond 4096 bytes; for the write alone, since it binds this process's own log too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_refuses_leaves_the_old_folder(folder: Path) -> None:
    with small_disk(), pytest.raises(ModelFileError, match=r"cannot write the folder .*\n.*File too large"):
        files.write_folder(folder, {**PARTS, "large": bytes(5000)})
    assert files.read_folder(folder) == PARTS
    assert [path.name for path in folder.parent.iterdir()] == ["best"]


def test_a_disk_that_refuses_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    files.write_file(path, b"old")
    with small_disk(), pytest.raises(OSError, match="File too large"):
        files.write_file(path, bytes(5000))
    assert path.read_bytes() == b"old"


def test_write_file_replaces(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    (tmp_path / ".config.toml.new").write_bytes(b"left by a killed run")
    files.write_file(path, b"one")
    with path.open("rb") as reader:
        files.write_file(path, b"two")
        assert reader.read() == b"one", "the old file was written into"
    assert path.read_bytes() == b"two"
    assert [each.name for each in tmp_path.iterdir()] == ["config.toml"]


def test_the_order_survives_a_power_loss(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is flushed before the marker, all before the renames, the renames before removal."""
    steps: list[str] = []
    fsync, rename, rmtree = os.fsync, Path.rename, shutil.rmtree

    def flushed(descriptor: int) -> None:
        steps.append(f"flush {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    def renamed(self: Path, target: Path) -> Path:
        steps.append(f"rename {self.name} {target.name}")
        return rename(self, target)

    def removed(path: Path, **options: bool) -> None:
        steps.append(f"remove {path.name}")
        rmtree(path, **options)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc to name descriptors")
    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "rename", renamed)
    monkeypatch.setattr(shutil, "rmtree", removed)
    files.write_folder(folder, PARTS)
    assert steps == [
        "flush config.json", "flush model.safetensors", "flush vocab.json", "flush .best.new",
        f"flush {files.MARKER}", "flush .best.new",
        "rename best .best.old", "rename .best.new best", f"flush {folder.parent.name}",
        "remove .best.old",
    ]  # fmt: skip


# Kills


@pytest.mark.parametrize("how", [["events"], ["moments", "5"]], ids=lambda how: how[0])
def test_a_killed_writer_leaves_a_whole_folder(tmp_path: Path, how: list[str]) -> None:
    command = [sys.executable, str(KILLS), how[0], str(tmp_path / "last"), *how[1:]]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout.split()[0]) >= 20


def test_a_whole_new_folder_goes_before_the_old_one(folder: Path) -> None:
    new, old = folder.with_name(".best.new"), folder.with_name(".best.old")
    files.write_folder(new, {"config.json": b"new"})
    folder.rename(old)
    assert files.read_folder(folder) == {"config.json": b"new"}
    (new / files.MARKER).unlink()
    assert files.read_folder(folder) == PARTS
    files.recover(folder)
    assert files.read_folder(folder) == PARTS
    assert [path.name for path in folder.parent.iterdir()] == ["best"]


def test_recover_removes_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / ".best.new").mkdir()
    (tmp_path / ".best.new" / "config.json").write_bytes(b"{}")
    files.recover(tmp_path / "best")
    assert list(tmp_path.iterdir()) == []


def test_damage_is_not_hidden_by_an_older_folder(folder: Path) -> None:
    shutil.copytree(folder, folder.with_name(".best.old"))
    (folder / "config.json").write_bytes(b"damaged")
    with pytest.raises(ModelFileError, match="is damaged"):
        files.read_folder(folder)


def test_remove_takes_the_temporaries_too(folder: Path) -> None:
    shutil.copytree(folder, folder.with_name(".best.new"))
    (folder.parent / "other").write_text("")
    files.remove(folder)
    files.remove(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["other"]


# Tensors


TENSORS: dict[str, Any] = {
    "weight": np.arange(12, dtype=np.float32).reshape(3, 4).T,
    "step": np.array(3.5, np.float32),
    "none": np.zeros((0, 5), np.float64),
    "ids": np.arange(-3, 3),
    "mask": np.array([True, False]),
}


def test_tensors_come_back_as_they_were() -> None:
    data = files.pack(TENSORS)
    assert data == files.pack(dict(reversed(TENSORS.items())))
    for found in (files.unpack(data, "here", files.tensor_digests(TENSORS)), safetensors.numpy.load(data)):
        assert found.keys() == TENSORS.keys()
        for name, array in TENSORS.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array, strict=True)
    assert files.unpack(files.pack({}), "here") == {}


def test_tensor_digests_are_those_of_the_bytes_in_the_file() -> None:
    data = files.pack(TENSORS)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    start = 8 + int.from_bytes(data[:8], "little")
    for name, sha256 in files.tensor_digests(TENSORS).items():
        first, stop = header[name]["data_offsets"]
        assert hashlib.sha256(data[start + first : start + stop]).hexdigest() == sha256


def test_the_altered_tensor_is_named() -> None:
    digests = files.tensor_digests(TENSORS)
    altered = {**TENSORS, "ids": TENSORS["ids"] + 1}
    with pytest.raises(ModelFileError, match="'ids' is not the one that was saved"):
        files.unpack(files.pack(altered), "here", digests)
    with pytest.raises(ModelFileError, match=r"'ids' .*\n.*found \(no such tensor\)"):
        files.unpack(files.pack({k: v for k, v in TENSORS.items() if k != "ids"}), "here", digests)
    with pytest.raises(ModelFileError, match=r"'extra' .*\n.*Expected SHA-256 \(no such tensor\)"):
        files.unpack(files.pack({**TENSORS, "extra": TENSORS["ids"]}), "here", digests)


def raw(header: object, data: bytes = b"", announced: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if announced is None else announced) + text + data


def entry(shape: list[Any], first: Any, stop: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, stop]}


ONE = entry([1], 0, 4)
HOSTILE = {
    "empty": b"",
    "seven bytes": bytes(7),
    "no header": raw(b"", b"", 0),
    "header longer than the file": raw({"a": ONE}, b"1234", 5000),
    "header of 2^60 bytes": raw({"a": ONE}, b"1234", 1 << 60),
    "header of 2^64-1 bytes": raw({"a": ONE}, b"1234", (1 << 64) - 1),
    "header over 1 MiB": raw(json.dumps({"a": ONE}).encode().ljust((1 << 20) + 1), b"1234"),
    "a million tensors": raw({f"t{i}": entry([0], 0, 0) for i in range(20000)}),
    "deep": raw(b'{"a":' * 50000 + b"1" + b"}" * 50000),
    "deep list": raw(b"[" * 100000),
    "not JSON": raw(b"{'a': 1}"),
    "a list": raw([ONE]),
    "not UTF-8": raw(b'{"\xff": 1}'),
    "NaN": raw(b'{"a": NaN}'),
    "text after it": raw(json.dumps({"a": ONE}).encode() + b"\0", b"1234"),
    "same entry twice": raw(
        b'{"a":' + json.dumps(ONE).encode() + b',"a":' + json.dumps(ONE).encode() + b"}", b"1234"
    ),
    "name twice": raw(
        b'{"a":' + json.dumps(ONE).encode() + b',"a":' + json.dumps(entry([1], 4, 8)).encode() + b"}",
        b"12345678",
    ),
    "key twice in an entry": raw(
        b'{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"1234"
    ),
    "overlap": raw({"a": entry([2], 0, 8), "b": entry([1], 4, 8)}, b"12345678"),
    "same bytes": raw({"a": ONE, "b": ONE}, b"1234"),
    "hole": raw({"a": ONE, "b": entry([1], 8, 12)}, bytes(12)),
    "hole in front": raw({"a": entry([1], 4, 8)}, bytes(8)),
    "bytes after it": raw({"a": ONE}, b"12345"),
    "bytes missing": raw({"a": ONE}, b"123"),
    "negative offset": raw({"a": entry([1], -4, 0)}, b"1234"),
    "swapped offsets": raw({"a": entry([1], 4, 0)}, b"1234"),
    "offset beyond": raw({"a": entry([1], 0, 1 << 40)}, b"1234"),
    "offset of 2^64": raw({"a": entry([1], 0, 1 << 64)}, b"1234"),
    "fractional offset": raw({"a": entry([1], 0, 4.5)}, b"1234"),
    "negative size": raw({"a": entry([-1], 0, 4)}, b"1234"),
    "product wraps to 4": raw({"a": entry([4194305, 4194305, 211106198978564], 0, 16)}, bytes(16)),
    "size of 2^63": raw({"a": entry([1 << 63], 0, 4)}, b"1234"),
    "size of 2^64": raw({"a": entry([1 << 64], 0, 4)}, b"1234"),
    "shape disagrees": raw({"a": entry([2], 0, 4)}, b"1234"),
    "zero size with bytes": raw({"a": entry([0], 0, 4)}, b"1234"),
    "unknown type": raw({"a": entry([1], 0, 4, "F31")}, b"1234"),
    "type without NumPy": raw({"a": entry([2], 0, 4, "BF16")}, b"1234"),
    "half a byte": raw({"a": entry([2], 0, 1, "F4")}, b"1"),
    "type is a number": raw({"a": entry([1], 0, 4, 5)}, b"1234"),
    "no type": raw({"a": {"shape": [1], "data_offsets": [0, 4]}}, b"1234"),
    "no shape": raw({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, b"1234"),
    "no offsets": raw({"a": {"dtype": "F32", "shape": [1]}}, b"1234"),
    "three offsets": raw({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 2, 4]}}, b"1234"),
    "entry is null": raw({"a": None}),
    "metadata is a number": raw({"__metadata__": 5}),
    "metadata holds a number": raw({"__metadata__": {"a": 5}}),
    "a pickle": b"\x80\x04\x95" + bytes(40),
    "a zip": b"PK\x03\x04" + bytes(40),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_tensors_are_refused(case: str) -> None:
    with pytest.raises(ModelFileError, match=r"x\.safetensors"):
        files.unpack(HOSTILE[case], "x.safetensors")


def test_any_cut_of_a_tensor_file_is_refused() -> None:
    data = files.pack(TENSORS)
    for length in range(len(data)):
        with pytest.raises(ModelFileError):
            files.unpack(data[:length], "here")


# Text


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"3", b"{", b'{"a": 1, "a": 2}', b'{"a": {"b": 1, "b": 1}}', b'{"a": NaN}',
     b'{"a": -Infinity}', b"\xff{}", b'{"a": 1} x', b'{"a":' * 100000, b"\xef\xbb\xbf{}"],
    ids=range(12),
)  # fmt: skip
def test_strict_json(data: bytes) -> None:
    with pytest.raises(ModelFileError, match=r"config\.json is not a JSON object"):
        files.parse_json(data, "config.json")


def test_json_comes_back() -> None:
    value = {"label": ["é", '"', "\n"], "size": 3, "share": 0.1, "none": None}
    assert files.parse_json(files.json_text(value), "here") == value
    for unfit in ({"a": float("nan")}, {"a": object()}):
        with pytest.raises(InputError, match="cannot be written as JSON"):
            files.json_text(unfit)


PLAIN = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"])),
)
VALUES = st.one_of(PLAIN, st.lists(PLAIN, max_size=3))
KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
SECTION = st.dictionaries(KEYS, VALUES, max_size=4)


@given(st.dictionaries(KEYS, st.one_of(VALUES, SECTION), max_size=6))
def test_toml_comes_back(config: dict[str, object]) -> None:
    found = tomllib.loads(files.toml_text(config))
    assert found == config
    assert json.dumps(found, sort_keys=True) == json.dumps(config, sort_keys=True)  # 1 is not 1.0 nor True


def test_toml_of_what_a_recipe_holds() -> None:
    config = {
        "data": Path("/data/a b"),
        "limit": None,
        "model": {"sizes": (1, 2), "none": None},
        "rate": 1e-05,
    }
    text = files.toml_text(config)
    assert text == 'data = "/data/a b"\nrate = 1e-05\n\n[model]\nsizes = [1, 2]\n'


@pytest.mark.parametrize("value", [object(), b"bytes", {"a": 1}, "\ud800", [None]], ids=repr)
def test_toml_names_what_it_cannot_hold(value: object) -> None:
    with pytest.raises(ConfigError, match=r"model\.key .*\n *Received: .*\n *Fix: "):
        files.toml_text({"model": {"key": value}})
