"""The local page's server: answers over HTTP, to this machine alone unless a host and a token are given.

Whoever asks must name this server (Host: a rebound name is refused), come from its own page (Origin) and,
where it listens to others, know the token.  Bodies are refused by their length before they are read.  The
page's files are read once, when the server starts, into a table: a name that is not in it opens nothing.
"""

import asyncio
import contextlib
import hmac
import ipaddress
import json
import mimetypes
import socket
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import anyio.to_thread
import uvicorn
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from unspool.errors import ConfigError, InputError, UnspoolError
from unspool.page.answers import Answers
from unspool.page.opened import MOST_OPENED_BYTES

STATIC = Path(__file__).parent / "static"
MOST_BODY = 2 * 2**20  # bytes of a question
MOST_OPEN_BODY = MOST_OPENED_BYTES + 2**16  # of the files that are dropped, with what stands between them
SECONDS_TO_SEND = 20.0  # for a request's head, and again for its body
SECONDS_TO_ANSWER = 120.0  # from when a question has its turn; and so long it waits for one
AT_ONCE = 2  # questions answered at a time; the others wait
MOST_WAITING = 64
COOKIE = "unspool-token"

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "x-frame-options": "DENY",
}
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="color-scheme" content="light dark">
<title>unspool see</title>
<h1>{title}</h1>
{body}
</html>
"""
_NOT_BUILT = """<p>The page that draws was not built with this copy of unspool. In a checkout build it once,
with node 20.19 or later, and start <code>unspool see</code> again:</p>
<pre>make page</pre>
<p>The same data without the page: <code>unspool see MODEL --json</code>, and the questions in
<a href="openapi.json">openapi.json</a>.</p>"""


class _Refusal(Exception):
    """A request that is not answered, with the reason."""

    def __init__(self, status: int, reason: str, fix: str) -> None:
        super().__init__(f"{reason}\n  Fix: {fix}")
        self.status = status


class _File(NamedTuple):
    data: bytes
    kind: str
    kept: bool  # its name changes with what it holds


class Page:
    """The application.

    Args:
        answers: what is looked at.
        host: where it listens; other names than the loopback's and this one are refused.
        token: what others than this machine must know; None: nothing.
        static: the built page.
    """

    def __init__(
        self, answers: Answers, host: str = "127.0.0.1", token: str | None = None, static: Path = STATIC
    ) -> None:
        self._answers = answers
        self._host = host
        self._token = token
        self._files = _table(static)
        self._turns = anyio.CapacityLimiter(AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            return
        headers = Headers(scope=scope)
        try:
            self._check_who_asks(scope, headers)
            response = self._with_cookie(scope, headers) or await self._answer(scope, headers, receive)
        except _Refusal as refused:
            response = _refused(refused, headers)
            if refused.status in (408, 413):  # the rest of the body is not waited for
                response.headers["connection"] = "close"
        except ClientDisconnect:
            return
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        await response(scope, receive, send)

    def _check_who_asks(self, scope: Scope, headers: Headers) -> None:
        port = scope["server"][1] if scope.get("server") else None
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._is_ours(hosts[0], port):
            raise _Refusal(403, "this server goes by another name.", "open the address that it printed.")
        for origin in headers.getlist("origin"):
            parts = urlsplit(origin)
            if parts.scheme != "http" or parts.path or not self._is_ours(parts.netloc, port):
                raise _Refusal(403, "another site asks.", "open the address that the server printed.")
            if parts.netloc.lower() != hosts[0].lower():
                raise _Refusal(403, "another site asks.", "open the address that the server printed.")
        if headers.get("sec-fetch-site", "same-origin") in ("cross-site", "same-site") and (
            scope["method"] != "GET" or headers.get("sec-fetch-mode") != "navigate"
        ):
            raise _Refusal(403, "another site asks.", "open the address that the server printed.")
        if self._token is not None and not self._knows_token(scope, headers):
            raise _Refusal(403, "the token is missing or wrong.", "open the address with ?token=… once.")

    def _is_ours(self, netloc: str, port: int | None) -> bool:
        try:
            parts = urlsplit(f"//{netloc}")
            name, given = (parts.hostname or "").lower(), parts.port
        except ValueError:
            return False
        if parts.username is not None or parts.path or (given or 80) != port:
            return False
        if name in ("127.0.0.1", "localhost", "::1", self._host.lower()):
            return True
        if self._host not in ("0.0.0.0", "::"):
            return False
        with contextlib.suppress(ValueError):
            return bool(ipaddress.ip_address(name))  # an address cannot be rebound, a name could
        return name in (socket.gethostname().lower(), socket.getfqdn().lower())

    def _knows_token(self, scope: Scope, headers: Headers) -> bool:
        assert self._token is not None
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [])
        given += [Request(scope).cookies.get(COOKIE, "")]
        given += [headers.get("authorization", "").removeprefix("Bearer ")]
        want = self._token.encode()
        return any(hmac.compare_digest(one.encode(), want) for one in given)

    def _with_cookie(self, scope: Scope, headers: Headers) -> Response | None:
        """The token moves from the address into a cookie that no script reads."""
        if self._token is None or scope["path"] != "/" or b"token=" not in scope["query_string"]:
            return None
        response = RedirectResponse("./", 303)
        response.set_cookie(COOKIE, self._token, httponly=True, samesite="strict", path="/")
        return response

    async def _answer(self, scope: Scope, headers: Headers, receive: Receive) -> Response:
        path, method = scope["path"], scope["method"]
        if path.startswith("/api/"):
            name = path.removeprefix("/api/")
            if name != "open" and name not in self._answers.questions:
                raise _Refusal(404, "there is no such question.", "see openapi.json for those there are.")
            if method != "POST":
                raise _Refusal(405, "questions are asked by POST.", "send a JSON object.")
            return (
                await self._open(scope, headers, receive)
                if name == "open"
                else (await self._ask(name, headers, receive))
            )
        if method not in ("GET", "HEAD"):
            raise _Refusal(405, "here is only something to read.", "use GET.")
        if path == "/openapi.json":
            return _json(self._answers.openapi())
        found = self._files.get(path)
        if found is None:
            if path in ("/", "/index.html") and not self._files:
                told = _PAGE.format(title="The page is not built", body=_NOT_BUILT)
                return Response(told, 503, media_type="text/html")
            raise _Refusal(404, "there is nothing under this name.", "open / instead.")
        kept = "public, max-age=31536000, immutable" if found.kept else "no-cache"
        data = b"" if method == "HEAD" else found.data
        length = {"content-length": str(len(found.data))}
        return Response(data, headers={"cache-control": kept, **length}, media_type=found.kind)

    async def _ask(self, name: str, headers: Headers, receive: Receive) -> Response:
        if headers.get("content-type", "application/json").split(";")[0].strip() != "application/json":
            raise _Refusal(415, "a question is JSON.", "send content-type: application/json.")
        body = await _body(headers, receive, MOST_BODY)

        def work() -> bytes:
            return _bytes(self._answers.ask(name, _object(body)))

        return await self._in_turn(work)

    async def _open(self, scope: Scope, headers: Headers, receive: Receive) -> Response:
        if not headers.get("content-type", "").startswith("multipart/form-data"):
            raise _Refusal(415, "files come as a form.", "send multipart/form-data, one part a file.")
        body = await _body(headers, receive, MOST_OPEN_BODY)

        async def again() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        parts: dict[str, bytes] = {}
        try:
            async with Request(scope, again).form(max_files=16, max_fields=0) as form:
                for _, file in form.multi_items():
                    if not isinstance(file, str):
                        parts[Path(file.filename or "file").name or "file"] = await file.read()
        except Exception as error:  # whatever the parser makes of bytes that are no form
            raise _Refusal(400, "the form cannot be read.", "drop the files again.") from error
        return await self._in_turn(lambda: _bytes(self._answers.open(parts)))

    async def _in_turn(self, work: Callable[[], bytes]) -> Response:
        """Answer in a thread, two at a time; a turn lasts until its thread ends, waited for or not."""
        if self._turns.statistics().tasks_waiting >= MOST_WAITING:
            raise _Refusal(503, "too many questions at once.", "ask again in a moment.")
        turn = object()
        try:
            with anyio.fail_after(SECONDS_TO_ANSWER):
                await self._turns.acquire_on_behalf_of(turn)
        except TimeoutError:
            raise _Refusal(503, "the questions before this one take too long.", "ask again later.") from None

        def over(ended: "asyncio.Task[bytes]") -> None:
            self._turns.release_on_behalf_of(turn)
            _ = ended.cancelled() or ended.exception()  # nobody may be there any more to be told

        running = asyncio.create_task(anyio.to_thread.run_sync(work, abandon_on_cancel=True))
        running.add_done_callback(over)
        done, _ = await asyncio.wait({running}, timeout=SECONDS_TO_ANSWER)
        if not done:
            raise _Refusal(503, "the answer takes too long.", "ask about a shorter text.")
        try:
            told = running.result()
        except (UnspoolError, OSError) as error:
            return _json({"error": str(error)}, 400)
        except MemoryError:
            return _json({"error": "there is not enough memory.\n  Fix: ask about a shorter text."}, 400)
        return Response(told, media_type="application/json")


async def _body(headers: Headers, receive: Receive, most: int) -> bytes:
    """Read a body of at most so many bytes, in good time; a longer one is refused before it is read."""
    said = headers.get("content-length", "")
    fix = f"{most:,} bytes at the most; open larger models with `unspool see PATH`."
    if said.isdecimal() and int(said) > most:
        raise _Refusal(413, "the body is too large.", fix)
    body = bytearray()

    async def rest() -> None:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            body.extend(message.get("body", b""))
            if len(body) > most:
                raise _Refusal(413, "the body is too large.", fix)
            if not message.get("more_body", False):
                return

    try:
        await asyncio.wait_for(rest(), SECONDS_TO_SEND)
    except TimeoutError:
        raise _Refusal(408, "the body does not come.", "send it faster.") from None
    return bytes(body)


def _object(body: bytes) -> Mapping[str, Any]:
    try:
        given = json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise InputError(f"the question is no JSON.\n  Received: {error!s:.100}.") from None
    if not isinstance(given, dict):
        raise InputError(f"a question is a JSON object.\n  Received: {type(given).__name__}.\n  Fix: {{}}.")
    return given


def _bytes(answer: Mapping[str, Any]) -> bytes:
    return json.dumps(answer, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()


def _json(answer: Mapping[str, Any], status: int = 200) -> Response:
    return Response(_bytes(answer), status, media_type="application/json")


def _refused(refused: _Refusal, headers: Headers) -> Response:
    """The reason: for whoever opens an address in a browser as a page, else as JSON."""
    if "text/html" not in headers.get("accept", ""):
        return _json({"error": str(refused)}, refused.status)
    reason, _, fix = str(refused).partition("\n  ")
    return Response(
        _PAGE.format(
            title=f"{refused.status}: not answered", body=f"<p>{escape(reason)}</p><p>{escape(fix)}</p>"
        ),
        refused.status,
        media_type="text/html",
    )


def _table(static: Path) -> dict[str, _File]:
    """The page's files by their addresses; empty where it is not built."""
    if not (static / "index.html").is_file():
        return {}
    found = {}
    for path in sorted(static.rglob("*")):
        if path.is_file() and not path.is_symlink():
            name = path.relative_to(static).as_posix()
            kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
            kind = {".js": "text/javascript", ".woff2": "font/woff2"}.get(path.suffix, kind)
            found[f"/{name}"] = _File(path.read_bytes(), kind, name.startswith("assets/"))
    found["/"] = found["/index.html"]
    return found


class _Timed(H11Protocol):
    """A connection on which a request's head has to come in good time."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._rest()

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._rest()
        elif self._late is None:
            self._late = self.loop.call_later(SECONDS_TO_SEND, self._give_up)

    def _rest(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _give_up(self) -> None:
        self._late = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


def listen(host: str, port: int) -> socket.socket:
    """Take the port; 0 is any free one.

    Raises:
        ConfigError: it is in use, or there is no such host.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        taken = socket.socket(family, kind, protocol)
        try:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(address)
            taken.listen(512)
        except OSError:
            taken.close()
            raise
    except OSError as error:
        used = (
            f"port {port} is in use"
            if error.errno == 98 or "in use" in str(error)
            else (f"{host}, port {port} cannot be listened to")
        )
        raise ConfigError(
            f"{used}.\n  Received: {error.strerror or error}.\n"
            f"  Fix: --port {port + 1 if port else 0}, say, or --port 0 for any free one."
        ) from error
    return taken


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._tell = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._tell()


def serve(page: Page, taken: socket.socket, started: Callable[[], None] = lambda: None) -> None:
    """Answer until Ctrl-C, which ends it at once: nothing is half-written anywhere.

    Args:
        page: the application.
        taken: what `listen` returned; closed in the end.
        started: called once, when connections are accepted.
    """
    config = uvicorn.Config(
        page,
        http=_Timed,
        ws="none",
        lifespan="off",
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=1000,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=2,
        h11_max_incomplete_event_size=32_768,
    )
    try:
        with contextlib.suppress(KeyboardInterrupt):
            _Server(config, started).run([taken])
    finally:
        taken.close()
