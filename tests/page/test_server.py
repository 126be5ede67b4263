"""The page's server on a real socket: who may ask, what is refused before it is read, what no name opens."""

import concurrent.futures
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("starlette")
import uvicorn

from unspool.errors import ConfigError
from unspool.page import server
from unspool.page.answers import Answers

SECRET = "what-nobody-may-read"
TOKEN = "abcdefgh12345678"


class Reply(NamedTuple):
    status: int
    headers: str
    body: bytes


class Running(NamedTuple):
    port: int

    def send(self, raw: bytes, *, wait: float = 20) -> Reply:
        """One request as these bytes; what came back until the server closed."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=wait) as line:
            line.sendall(raw)
            got = b""
            while part := line.recv(1 << 16):
                got += part
        head, _, body = got.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 "), got[:100]
        return Reply(int(head[9:12]), head.decode("latin-1").lower(), body)

    def ask(self, target: str = "/", method: str = "GET", body: bytes = b"", **headers: str | None) -> Reply:
        said = {"host": f"127.0.0.1:{self.port}", "connection": "close"}
        said |= {"content-type": "application/json", "content-length": str(len(body))} if body else {}
        said |= {name.replace("_", "-"): value for name, value in headers.items()}  # type: ignore[misc]
        lines = "".join(f"{name}: {value}\r\n" for name, value in said.items() if value is not None)
        return self.send(f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + body)

    def question(self, name: str, **given: Any) -> Reply:
        return self.ask(f"/api/{name}", "POST", json.dumps(given).encode())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small page, and beside it what it must not give away."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "secret.txt").write_text(SECRET)
    static = folder / "static"
    (static / "assets").mkdir(parents=True)
    (static / "index.html").write_text("<!doctype html><title>page</title>")
    (static / "assets" / "index-1a2b.js").write_text("export {}")
    (static / "leak.txt").symlink_to(folder / "secret.txt")
    return static


def _started(page: server.Page) -> Iterator[Running]:
    taken = server.listen("127.0.0.1", 0)
    port = taken.getsockname()[1]
    up, made = threading.Event(), []

    class Noted(server._Server):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            made.append(self)

    kept, server._Server = server._Server, Noted  # type: ignore[misc]
    try:
        thread = threading.Thread(target=server.serve, args=(page, taken, up.set), daemon=True)
        thread.start()
        assert up.wait(30)
    finally:
        server._Server = kept  # type: ignore[misc]
    yield Running(port)
    assert isinstance(made[0], uvicorn.Server)
    made[0].should_exit = True
    thread.join(15)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    return Answers({}, {}, [], tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def running(built: Path, answers: Answers) -> Iterator[Running]:
    yield from _started(server.Page(answers, static=built))


@pytest.fixture(scope="module")
def guarded(built: Path, answers: Answers) -> Iterator[Running]:
    yield from _started(server.Page(answers, "0.0.0.0", TOKEN, built))


def test_the_page_its_files_and_its_questions_are_served(running: Running) -> None:
    page = running.ask("/")
    assert (page.status, page.body) == (200, b"<!doctype html><title>page</title>")
    assert "script-src 'self'; style-src 'self';" in page.headers
    assert "default-src 'none'" in page.headers
    assert "nosniff" in page.headers
    script = running.ask("/assets/index-1a2b.js")
    assert script.status == 200
    assert "text/javascript" in script.headers
    assert "immutable" in script.headers
    assert running.ask("/", "HEAD").body == b""
    told = json.loads(running.question("sentence", text="not bad").body)
    assert told["words"] == ["not", "bad"]
    described = json.loads(running.ask("/openapi.json").body)
    assert "/api/sentence" in described["paths"]
    assert running.ask("/api/things", "POST", host=f"localhost:{running.port}").status == 200


def attacks() -> list[str]:
    """Names that are to open what lies outside, in every spelling that a server was ever fooled by."""
    ups = [
        "..",
        "%2e%2e",
        "%2E%2e",
        ".%2e",
        "..%00",
        "%252e%252e",
        "..;",
        "%c0%ae%c0%ae",
        "%u002e%u002e",
        "....",
        "..%ff",
        " ..",
        "%20..",
        "assets/..",
        "./..",
        "%EF%BC%8E%EF%BC%8E",
    ]
    slashes = ["/", "%2f", "\\", "%5c", "//", "%252f", "/./", "%c0%af", "%e2%88%95"]
    ends = ["secret.txt", "static/../secret.txt", "server.py"]
    found = [f"/{up}{slash}{end}" for up, slash, end in itertools.product(ups, slashes, ends)]
    found += [f"/{'../' * n}etc/passwd" for n in range(1, 20)]
    found += [f"/{'%2e%2e%2f' * n}etc%2fpasswd" for n in range(1, 20)]
    found += [
        "/leak.txt",
        "//etc/passwd",
        "/etc/passwd",
        "/%2fetc%2fpasswd",
        "/C:/windows/win.ini",
        "/file:///etc/passwd",
        "/.git/config",
        "/%00",
        "/index.html%00.js",
        "/index.html/",
        "/INDEX.HTML",
        "/assets",
        "/assets/",
        "/assets/.",
        "/static/index.html",
        "/con",
        "/nul.txt",
        "/index.html::$DATA",
        "/~root",
        "/proc/self/environ",
        "/%0d%0aX:1",
        "/?file=../secret.txt/x",
        "/api/../secret.txt",
        "/api/..%2f..%2fsecret.txt",
        "/api/__class__",
        "/api/_log",
        "/api/ask",
        "/api/questions",
        "/api/",
        "/openapi.json/../secret.txt",
    ]
    return found


def test_five_hundred_names_open_nothing(running: Running) -> None:
    names = attacks()
    assert len(names) >= 500
    for name in names:
        told = running.ask(name)
        if name.startswith("/?"):
            assert told.body == b"<!doctype html><title>page</title>"
            continue
        assert told.status in (400, 404, 405), name
        assert SECRET.encode() not in told.body, name
        assert b"root:" not in told.body, name
        assert b"import" not in told.body, name
    for which in ("../../secret.txt", "/etc/passwd", "example-../x", "example-lstm/../..", "\x00"):
        for name in ("sentence", "model", "step"):
            given = {"which": which} | ({} if name == "model" else {"text": "good"})
            assert running.question(name, **given).status == 400
        assert running.question("training", run=which).status == 400


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:{port}",
        "127.0.0.1",
        "127.0.0.1:1",
        "",
        "localhost.evil.example:{port}",
        "a@127.0.0.1:{port}",
        "127.0.0.1:{port}/x",
        "[::1",
        "0.0.0.0:{port}",
        "127.0.0.1:{port}, evil",
    ],
)
def test_another_host_is_refused(running: Running, host: str) -> None:
    for target, method in (("/", "GET"), ("/api/things", "POST")):
        told = running.ask(target, method, host=host.format(port=running.port))
        assert told.status == 403
        assert b"another name" in told.body


def test_no_host_or_two_are_refused(running: Running) -> None:
    ours = f"host: 127.0.0.1:{running.port}\r\n"
    for lines in ("", ours + "host: evil.example\r\n"):
        told = running.send(f"GET / HTTP/1.1\r\n{lines}connection: close\r\n\r\n".encode())
        assert told.status in (400, 403)


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "https://127.0.0.1:{port}",
        "http://127.0.0.1:1",
        "http://localhost:{port}",
        "file://",
    ],
)
def test_another_origin_is_refused(running: Running, origin: str) -> None:
    assert running.ask("/api/things", "POST", origin=origin.format(port=running.port)).status == 403
    assert running.ask("/api/things", "POST", origin=f"http://127.0.0.1:{running.port}").status == 200
    assert running.ask("/api/things", "POST", sec_fetch_site="cross-site").status == 403


def test_a_token_is_asked_for_where_others_can_reach_it(guarded: Running) -> None:
    assert guarded.ask("/").status == 403
    assert guarded.ask("/api/things", "POST").status == 403
    assert guarded.ask("/?token=wrong").status == 403
    told = guarded.ask("/?token=wrong", accept="text/html,*/*;q=0.8")  # somebody who opens it in a browser
    assert told.status == 403
    assert b"<p>the token is missing or wrong.</p>" in told.body
    assert "default-src 'none'" in told.headers
    told = guarded.ask(f"/?token={TOKEN}")
    assert told.status == 303
    assert "httponly" in told.headers
    assert "samesite=strict" in told.headers
    assert guarded.ask("/", cookie=f"unspool-token={TOKEN}").status == 200
    assert guarded.ask("/api/things", "POST", authorization=f"Bearer {TOKEN}").status == 200
    assert (
        guarded.ask("/", host=f"evil.example:{guarded.port}", cookie=f"unspool-token={TOKEN}").status == 403
    )
    assert guarded.ask("/", host=f"192.0.2.7:{guarded.port}", cookie=f"unspool-token={TOKEN}").status == 200


def test_a_body_over_the_limit_is_refused_before_it_is_read(running: Running) -> None:
    for path, most in (("sentence", server.MOST_BODY), ("open", server.MOST_OPEN_BODY)):
        kind = "application/json" if path == "sentence" else "multipart/form-data; boundary=x"
        # Not a byte of the body is sent: the answer cannot have waited for it.
        told = running.ask(
            f"/api/{path}", "POST", content_type=kind, content_length=str(most + 1), expect=None
        )
        assert told.status == 413
        assert b"too large" in told.body
    # Without a length, what has come is counted.
    head = (
        f"POST /api/sentence HTTP/1.1\r\nhost: 127.0.0.1:{running.port}\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    chunk = b"10000\r\n" + b"a" * 0x10000 + b"\r\n"
    with socket.create_connection(("127.0.0.1", running.port), timeout=20) as line:
        line.sendall(head.encode())
        sent = 0
        try:
            while sent < 4 * server.MOST_BODY:
                line.sendall(chunk)
                sent += 0x10000
            answer = line.recv(4096)
        except (BrokenPipeError, ConnectionResetError):
            answer = b"HTTP/1.1 413"
    assert b" 413" in answer[:12]


def test_slow_connections_are_closed_and_do_not_stand_in_the_way(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "SECONDS_TO_SEND", 1.5)
    slow = [socket.create_connection(("127.0.0.1", running.port), timeout=20) for _ in range(50)]
    for k, line in enumerate(slow):
        line.sendall(b"GET / HT" if k % 2 else b"POST /api/things HTTP/1.1\r\n")
    assert running.ask("/").status == 200
    for line in slow:
        assert line.recv(100) == b""  # closed without an answer: there was no question
        line.close()
    told = running.ask("/api/things", "POST", content_length="10")
    assert told.status == 408


def test_a_slow_question_keeps_its_turn_until_it_ends(
    answers: Answers, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "SECONDS_TO_ANSWER", 1.5)
    begun, go_on = [], threading.Event()

    def slow(name: str, given: Any) -> dict[str, Any]:
        begun.append(name)
        go_on.wait(60)
        return {}

    monkeypatch.setattr(answers, "ask", slow)
    for running in _started(server.Page(answers, static=built)):
        try:
            with concurrent.futures.ThreadPoolExecutor(server.AT_ONCE) as pool:
                asked = [pool.submit(running.question, "things") for _ in range(server.AT_ONCE)]
            for one in asked:
                assert one.result().status == 503
                assert b"the answer takes too long" in one.result().body
            told = running.question("things")  # those that nobody waits for any more still run
            assert told.status == 503
            assert b"before this one take too long" in told.body
            assert len(begun) == server.AT_ONCE
        finally:
            go_on.set()
        assert running.question("things").status == 200


def test_the_clock_of_an_answer_begins_with_its_turn(
    answers: Answers, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "SECONDS_TO_ANSWER", 3.0)

    def slow(name: str, given: Any) -> dict[str, Any]:
        time.sleep(2)
        return {}

    monkeypatch.setattr(answers, "ask", slow)
    for running in _started(server.Page(answers, static=built)):
        with concurrent.futures.ThreadPoolExecutor(2 * server.AT_ONCE) as pool:
            asked = [pool.submit(running.question, "things") for _ in range(2 * server.AT_ONCE)]
        assert [one.result().status for one in asked] == [200] * len(asked)  # the last after four seconds


def test_what_is_no_question_is_said_in_words(running: Running) -> None:
    for body in (
        b"{",
        b"[]",
        b"\xff",
        b'{"text": 5}',
        b'{"text": "\\ud800"}',
        b'{"text": NaN}',
        b"[" * 100_000,
    ):
        told = running.ask("/api/sentence", "POST", body)
        assert told.status == 400
        assert json.loads(told.body)["error"]
    assert running.ask("/api/sentence", "GET").status == 405
    assert running.ask("/", "POST", b"{}").status == 405
    assert (
        running.ask("/api/things", "POST", b"a=1", content_type="application/x-www-form-urlencoded").status
        == 415
    )
    assert running.ask("/api/open", "POST", b"{}").status == 415
    assert (
        running.ask("/api/open", "POST", b"nothing", content_type="multipart/form-data; boundary=x").status
        == 400
    )
    for garbage in (
        b"GET\r\n\r\n",
        b"\x16\x03\x01\x02\x00\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost:" + b"a" * 70_000,
    ):
        assert running.send(garbage + b"\r\n\r\n").status in (400, 403)


def test_text_with_a_script_in_it_comes_back_as_text(running: Running) -> None:
    told = running.question("sentence", text="<script>alert(1)</script>")
    assert told.status == 200
    assert "application/json" in told.headers
    assert "nosniff" in told.headers
    assert "<script>alert(1)</script>" in "".join(json.loads(told.body)["words"])


def test_dropped_files_are_opened_by_their_bytes_alone(running: Running) -> None:
    def form(**files: bytes) -> bytes:
        parts = (
            f'--x\r\ncontent-disposition: form-data; name="f"; filename="{name}"\r\n\r\n'.encode()
            + data
            + b"\r\n"
            for name, data in files.items()
        )
        return b"".join(parts) + b"--x--\r\n"

    kind = "multipart/form-data; boundary=x"
    for files in ({"../../evil.py": b"x"}, {"config.json": b"{}", "vocab.json": b"{}"}, {"a": b""}, {}):
        told = running.ask("/api/open", "POST", form(**files), content_type=kind)
        assert told.status == 400
        assert "Fix:" in json.loads(told.body)["error"]
        assert b"/tmp" not in told.body


def test_without_a_built_page_it_is_said_how_to_build_it(answers: Answers, tmp_path: Path) -> None:
    for running in _started(server.Page(answers, static=tmp_path)):
        told = running.ask("/")
        assert told.status == 503
        assert b"make page" in told.body
        assert running.ask("/api/things", "POST").status == 200


def test_a_port_in_use_is_said_in_words() -> None:
    taken = server.listen("127.0.0.1", 0)
    port = taken.getsockname()[1]
    with taken, pytest.raises(ConfigError, match=f"port {port} is in use(.|\n)*--port 0"):
        server.listen("127.0.0.1", port)
    with pytest.raises(ConfigError, match="cannot be listened to"):
        server.listen("no.such.host.invalid", 0)


def see(*given: str, cache: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "unspool", "see", *given],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "UNSPOOL_CACHE": str(cache)},
    )


def test_the_verb_serves_until_it_is_interrupted(tmp_path: Path) -> None:
    begun = see("--port", "0", "--no-browser", cache=tmp_path)
    assert begun.stdout is not None
    address = begun.stdout.readline().strip()
    assert address.startswith("http://127.0.0.1:")
    running = Running(int(address.rstrip("/").rsplit(":", 1)[1]))
    assert running.question("things").status == 200
    held = socket.create_connection(("127.0.0.1", running.port))  # a browser that keeps its connection
    begun.send_signal(signal.SIGINT)
    started = time.monotonic()
    _, said = begun.communicate(timeout=60)
    assert begun.returncode == 0, said
    assert "Traceback" not in said
    assert time.monotonic() - started < 30
    held.close()


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        (["--host", "0.0.0.0"], 2, "open to everybody"),
        (["--host", "0.0.0.0", "--token", "short"], 2, "hard to guess"),
        (["no/such/run"], 1, "nothing to look at"),
        (["--json", "--given", "{"], 2, "no JSON"),
        (["--json", "--question", "secrets"], 1, "no question"),
        (["--json", "--question", "sentence", "--given", '{"text": ""}'], 1, "no words"),
    ],
)
def test_the_verb_refuses_in_words(tmp_path: Path, given: list[str], code: int, said: str) -> None:
    ran = see(*given, cache=tmp_path)
    out, told = ran.communicate(timeout=60)
    assert (ran.returncode, out) == (code, "")
    assert said in told


def test_the_questions_are_answered_on_the_command_line_too(tmp_path: Path, running: Running) -> None:
    ran = see("--json", "--question", "paths", "--given", '{"scale": 1.5}', cache=tmp_path)
    told = json.loads(ran.communicate(timeout=60)[0])
    assert told == json.loads(running.question("paths", scale=1.5).body)
    assert told["cells"]["rnn"]["verdict"] == "explodes"
