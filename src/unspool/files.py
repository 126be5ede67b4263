"""What unspool leaves on disk: folders that are either whole or not there, and the text in them.

A folder (a model, a checkpoint) is written beside its place, flushed to the disk, sealed by a list of
digests, and only then renamed into place.  The list, `SHA256SUMS`, is written last and has the form
that `sha256sum -c` checks; reading verifies every file against it, so a flipped bit or a missing end
anywhere in the folder is found.  While a folder `last` is replaced, `.last.new` is the one to come and
`.last.old` the one to go: at every moment at least one of the three is complete, and reading and
`recover` find it.

Not for: what the files mean.  This room knows no configuration, no vocabulary and no network; it
imports neither torch nor anything of unspool but the errors.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from unspool.errors import ConfigError, InputError, ModelFileError

MARKER = "SHA256SUMS"
WEIGHTS = "model.safetensors"
HEADER_LIMIT_BYTES = 1 << 20

# A name that stays inside its folder on every system: no separator, no leading dot, no drive.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_COUNT_LINE = re.compile(r"# (\d{1,6}) files")
_DIGEST_LINE = re.compile(r"([0-9a-f]{64})  (" + _NAME.pattern + ")")


def write_folder(path: str | os.PathLike[str], parts: Mapping[str, bytes]) -> None:
    """Write a folder so that it is either whole or not there, replacing the one before.

    The files go into `.NAME.new` beside the folder, each flushed to the disk, the list of digests last;
    then the old folder is renamed to `.NAME.old`, the new one takes its place, and the old one is removed.

    Args:
        path: the folder.  One that exists is replaced only if unspool wrote it (it holds `SHA256SUMS`).
        parts: what each file holds, by its plain name.

    Raises:
        InputError: a name is not plain, or is the marker's own.
        ModelFileError: the folder is not one of ours, or the disk refuses.  The folder that was
            there is then still there, whole.
    """
    for name in parts:
        if not _NAME.fullmatch(name) or name == MARKER:
            raise InputError(
                f"{name!r} cannot name a file of a model folder.\n"
                f"  Fix: letters, digits, '.', '_' and '-', a letter or digit first, and not {MARKER}."
            )
    path = _absolute(path)
    new, old = _siblings(path)
    try:
        _refuse_foreign(path)
        recover(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        new.mkdir()
        try:
            lines = [f"# {len(parts)} files"]
            for name, data in sorted(parts.items()):
                _write_through(new / name, data)
                lines.append(f"{hashlib.sha256(data).hexdigest()}  {name}")
            _sync_folder(new)
            _write_through(new / MARKER, ("\n".join(lines) + "\n").encode())
            _sync_folder(new)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        if path.exists():
            path.rename(old)
        new.rename(path)
        _sync_folder(path.parent)
        _remove(old)
    except OSError as error:
        raise ModelFileError(
            f"cannot write the folder {path}.\n"
            f"  Received: {error}\n"
            "  Fix: free space or give a folder that may be written; what was there before is untouched."
        ) from error


def read_folder(path: str | os.PathLike[str]) -> dict[str, bytes]:
    """Read every file of a folder that `write_folder` wrote, and verify it.

    No name is followed out of the folder: a symbolic link inside it is refused.  If the folder is
    absent because a replacement was cut short, the complete one beside it is read.  A folder that is
    replaced while it is read is read again.

    Returns:
        What each file holds, by name, without the list of digests.

    Raises:
        ModelFileError: no such folder; a file is missing, cut short or altered.
    """
    path = _absolute(path)
    for _ in range(30):  # a writer that never rests can be faster than a reader on a busy machine
        before = _identity(path)
        try:
            return _read_whole_or_sibling(path)
        except ModelFileError as error:
            failure = error
        if _identity(path) == before:
            break
    raise failure


def recover(path: str | os.PathLike[str]) -> None:
    """Put right what a killed writer left of a folder or file, and remove its temporaries.

    If the folder itself is absent, the complete one beside it takes its place.  To be called once
    before the first write of a run; does nothing where nothing is left over.
    """
    path = _absolute(path)
    new, old = _siblings(path)
    if not os.path.lexists(path):
        for candidate in (new, old):
            try:
                _read_whole(candidate)
            except ModelFileError:
                continue
            candidate.rename(path)
            _sync_folder(path.parent)
            break
    _remove(new)
    _remove(old)


def remove(path: str | os.PathLike[str]) -> None:
    """Remove a folder or file that this room wrote, and its temporaries; absent ones are fine."""
    path = _absolute(path)
    for each in (path, *_siblings(path)):
        _remove(each)


def digest(path: str | os.PathLike[str]) -> str:
    """Return the hash of a model: the SHA-256 of its weights file, in hexadecimal.

    Raises:
        ModelFileError: the folder is damaged, or holds no `model.safetensors`.
    """
    parts = read_folder(path)
    return hashlib.sha256(part(parts, WEIGHTS, path)).hexdigest()


def part(parts: Mapping[str, bytes], name: str, where: str | os.PathLike[str]) -> bytes:
    """Return one file of a folder that was read, or say that the folder lacks it.

    Raises:
        ModelFileError: it is not among the parts.
    """
    if name not in parts:
        raise ModelFileError(
            f"{os.fspath(where)} holds no {name}.\n"
            f"  Received: {', '.join(sorted(parts)) or 'no file at all'}\n"
            "  Fix: give a folder that unspool wrote, such as RUN/best."
        )
    return parts[name]


def write_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Write one file so that it holds either all of the new bytes or all of the old ones.

    Raises:
        OSError: the disk refuses.
    """
    path = _absolute(path)
    new, _ = _siblings(path)
    _remove(new)
    _write_through(new, data)
    new.replace(path)
    _sync_folder(path.parent)


def pack(tensors: Mapping[str, NDArray[Any]]) -> bytes:
    """Write arrays in the safetensors format; the same arrays give the same bytes."""
    return bytes(safetensors.numpy.save({name: np.asarray(a, order="C") for name, a in tensors.items()}))


def unpack(data: bytes, where: str, digests: Mapping[str, str] | None = None) -> dict[str, NDArray[Any]]:
    """Read arrays in the safetensors format.

    Args:
        data: the whole file.
        where: the file's name, for messages.
        digests: the SHA-256 that each tensor must have, as `tensor_digests` gives them.  None: the
            bytes are already vouched for, as those of `read_folder` are.

    Returns:
        New arrays, which may be written to.

    Raises:
        ModelFileError: malformed, a header beyond 1 MiB, or a tensor that is missing or altered.
    """
    header_bytes = int.from_bytes(data[:8], "little")
    if len(data) < 8 or header_bytes > HEADER_LIMIT_BYTES:
        raise ModelFileError(
            f"{where} is not a safetensors file that unspool serves.\n"
            f"  Received: {len(data)} bytes that announce a header of {header_bytes} bytes; "
            f"at most {HEADER_LIMIT_BYTES} are taken.\n"
            "  Fix: copy the file again from where it was written."
        )
    # safetensors checks the offsets and sizes, but takes the last of two entries of one name.
    parse_json(data[8 : 8 + header_bytes], f"the header of {where}")
    try:
        tensors = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ModelFileError(
            f"{where} is not a sound safetensors file.\n"
            f"  Received: {error}\n"
            "  Fix: copy the file again from where it was written."
        ) from error
    if digests is not None:
        found = tensor_digests(tensors)
        for name in sorted(found.keys() | digests.keys()):
            if found.get(name) != digests.get(name):
                raise ModelFileError(
                    f"{where}: the tensor {name!r} is not the one that was saved.\n"
                    f"  Expected SHA-256 {digests.get(name, '(no such tensor)')}, "
                    f"found {found.get(name, '(no such tensor)')}\n"
                    "  Fix: copy the folder again from where it was written."
                )
    return tensors


_ABOUT = "about"  # the tensor that holds, as JSON, what is no number
_SEAL = "sha256"  # the tensor that holds the digest of all others


def seal(what: str, version: int, tensors: Mapping[str, NDArray[Any]], about: Mapping[str, Any]) -> bytes:
    """Pack tensors, and what is no number, into one safetensors file that holds its own digest.

    Args:
        what: what the file is, such as "recording".
        version: of its format.
        tensors, about: what `unseal` will give back.
    """
    described = {"format": f"unspool-{what}", "version": version, **about}
    whole = {**tensors, _ABOUT: np.frombuffer(json.dumps(described).encode(), np.uint8)}
    return pack({**whole, _SEAL: _digest(whole)})


def unseal(
    what: str, version: int, path: str | os.PathLike[str]
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read a file that `seal` packed: its tensors and its description.

    Raises:
        ModelFileError: absent, of something else, of another version, or damaged.
    """
    where = os.fspath(path)
    try:
        tensors = unpack(Path(path).read_bytes(), where)
        if not {_ABOUT, _SEAL} <= set(tensors):
            raise ValueError("a safetensors file of something else")
        if not np.array_equal(tensors.pop(_SEAL), _digest(tensors)):
            raise ValueError("other bytes than were saved")
        about = parse_json(tensors.pop(_ABOUT).tobytes(), f"the description in {where}")
        if about.get("format") != f"unspool-{what}" or about.get("version") != version:
            raise ValueError(f"format {about.get('format')!r:.60}, version {about.get('version')!r:.40}")
    except (OSError, ValueError) as error:
        raise not_a(what, where, error) from error
    return tensors, about


def not_a(what: str, where: str | os.PathLike[str], error: Exception) -> ModelFileError:
    """The refusal of a file that is not, or not soundly, what `seal` wrote."""
    return ModelFileError(
        f"{os.fspath(where)} is not a {what}.\n  Received: {error!s:.300}\n"
        f"  Fix: give a file that unspool saved as a {what}."
    )


def _digest(tensors: Mapping[str, NDArray[Any]]) -> NDArray[np.uint8]:
    """The SHA-256 of all tensors' own: (32,) bytes."""
    each = json.dumps(tensor_digests(tensors), sort_keys=True)
    return np.frombuffer(hashlib.sha256(each.encode()).digest(), np.uint8)


def tensor_digests(tensors: Mapping[str, NDArray[Any]]) -> dict[str, str]:
    """Return each tensor's SHA-256 over its values as they lie in the file, in hexadecimal."""
    return {
        name: hashlib.sha256(np.asarray(array, order="C").data).hexdigest()
        for name, array in sorted(tensors.items())
    }


def json_text(value: Mapping[str, Any]) -> bytes:
    """Write an object as indented UTF-8 JSON, ready to be a part of a folder.

    Raises:
        InputError: it holds a NaN, an infinity, or something that JSON has no word for.
    """
    try:
        return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise InputError(
            f"this object cannot be written as JSON.\n  Received: {error}\n"
            "  Fix: finite numbers, strings, booleans, None, lists and dicts only."
        ) from error


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """Read a JSON object strictly: UTF-8, no repeated key, no NaN.

    Args:
        data: the whole file.
        where: the file's name, for messages.

    Raises:
        ModelFileError: anything else than one such object.
    """
    try:
        value = json.loads(data.decode(), object_pairs_hook=_unrepeated, parse_constant=_refuse_constant)
        if not isinstance(value, dict):
            raise ValueError(f"a {type(value).__name__}, not an object")
    except (ValueError, RecursionError) as error:
        raise ModelFileError(
            f"{where} is not a JSON object.\n"
            f"  Received: {error}\n"
            "  Fix: copy the file again from where it was written."
        ) from error
    return value


def toml_text(config: Mapping[str, object]) -> str:
    """Write a configuration as TOML: plain values first, then one level of sections.

    Args:
        config: strings, booleans, numbers, paths, and lists of these; a mapping becomes a section.
            An entry that is None is left out, for TOML has no word for it.

    Raises:
        ConfigError: a value that TOML cannot hold.
    """
    plain = {key: value for key, value in config.items() if not isinstance(value, Mapping)}
    sections = {key: value for key, value in config.items() if isinstance(value, Mapping)}
    blocks = [_toml_lines("", plain)]
    for name, section in sections.items():
        blocks.append([f"[{_toml_key(name)}]", *_toml_lines(f"{name}.", section)])
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def _toml_lines(prefix: str, entries: Mapping[Any, object]) -> list[str]:
    return [
        f"{_toml_key(key)} = {_toml_value(f'{prefix}{key}', value)}"
        for key, value in entries.items()
        if value is not None
    ]


def _toml_key(key: object) -> str:
    return str(key) if re.fullmatch(r"[A-Za-z0-9_-]+", str(key)) else _toml_value("a key", str(key))


def _toml_value(where: str, value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str | os.PathLike):
        text = os.fspath(value)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"{where} holds text that is not Unicode.\n  Received: {value!r}\n  Fix: give it in UTF-8."
            ) from error
        # JSON's escapes are TOML's, but for DEL, which JSON leaves bare.
        return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(where, item) for item in value) + "]"
    raise ConfigError(
        f"{where} cannot be written to config.toml.\n"
        f"  Received: {type(value).__name__} {value!r}\n"
        "  Fix: a string, boolean, number, path, or a list of these."
    )


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _absolute(path: str | os.PathLike[str]) -> Path:
    absolute = Path(path).absolute()
    # The siblings are named after the last part, which "runs/last/.." does not show.
    return absolute.resolve() if absolute.name == ".." else absolute


def _siblings(path: Path) -> tuple[Path, Path]:
    return path.with_name(f".{path.name}.new"), path.with_name(f".{path.name}.old")


def _refuse_foreign(path: Path) -> None:
    """Refuse to replace what unspool did not write."""
    if not os.path.lexists(path):
        return
    ours = not path.is_symlink() and path.is_dir()
    if not ours or ((path / MARKER).exists() is False and any(path.iterdir())):
        raise ModelFileError(
            f"{path} exists and is not a folder that unspool wrote (it holds no {MARKER}).\n"
            "  Fix: give another path, or remove it yourself."
        )


def _write_through(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_ctime_ns


def _read_whole_or_sibling(path: Path) -> dict[str, bytes]:
    if os.path.lexists(path):
        return _read_whole(path)
    for sibling in _siblings(path):
        with contextlib.suppress(ModelFileError):
            return _read_whole(sibling)
    inner = path / "best"
    raise ModelFileError(
        f"there is no model folder {path}.\n"
        f"  Fix: {f'did you mean {inner}?' if inner.is_dir() else 'give a folder such as RUN/best.'}"
    )


def _read_whole(folder: Path) -> dict[str, bytes]:
    """Read and verify one folder, through one descriptor, so that a rename cannot mix two folders."""
    with _opened(folder) as descriptor:
        if not (folder / MARKER).exists():
            hint = ""
            if (folder / "best" / MARKER).is_file():
                hint = f"\n  Fix: did you mean {folder / 'best'}?"
            raise ModelFileError(
                f"{folder} is not a complete model folder: it holds no {MARKER}, which is written last."
                + (hint or "\n  Fix: give a folder that unspool wrote, such as RUN/best.")
            )
        expected = _parse_marker(_read_inside(folder, descriptor, MARKER), folder)
        parts = {}
        for name, sha256 in expected.items():
            data = _read_inside(folder, descriptor, name)
            found = hashlib.sha256(data).hexdigest()
            if found != sha256:
                raise ModelFileError(
                    f"{folder / name} is damaged: it is not the file that was saved.\n"
                    f"  Expected SHA-256 {sha256}, found {found} over {len(data)} bytes\n"
                    "  Fix: copy the folder again from where it was written, or train again."
                )
            parts[name] = data
        return parts


def _parse_marker(data: bytes, folder: Path) -> dict[str, str]:
    first, *rest = data.decode("latin-1").split("\n")
    counted = _COUNT_LINE.fullmatch(first)
    matches = [_DIGEST_LINE.fullmatch(line) for line in rest[:-1]]
    expected = {match[2]: match[1] for match in matches if match}
    # The count makes a list that was cut at the end of a line as visible as any other damage.
    if not counted or rest[-1:] != [""] or not len(expected) == len(matches) == int(counted[1]):
        raise ModelFileError(
            f"{folder / MARKER} is damaged: it is not a list of digests as unspool writes it.\n"
            f"  Received: {len(data)} bytes, {len(expected)} readable entries\n"
            "  Fix: copy the folder again from where it was written, or train again."
        )
    return expected


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ModelFileError(
            f"{folder} cannot be opened as a model folder.\n"
            f"  Received: {error.strerror}\n"
            "  Fix: give a folder that unspool wrote, such as RUN/best."
        ) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _read_inside(folder: Path, descriptor: int, name: str) -> bytes:
    """Read a regular file of an opened folder; a link, a pipe or a device is refused, not followed."""
    try:
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=descriptor)
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise OSError("not a regular file")
            with open(file, "rb", closefd=False) as stream:
                return stream.read()
        finally:
            os.close(file)
    except OSError as error:
        raise ModelFileError(
            f"{folder / name} cannot be read.\n"
            f"  Received: {error.strerror or error}\n"
            "  Fix: copy the folder again from where it was written, or train again."
        ) from error
