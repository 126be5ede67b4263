"""`unspool see`: what the local page is started with, and its questions answered for programs."""

import json
import sys
import webbrowser
from pathlib import Path
from typing import Any

from unspool import files
from unspool.data.sources import cache_folder
from unspool.errors import ConfigError, InputError, MissingExtra
from unspool.page.answers import Answers
from unspool.page.opened import Found, of_folder, of_path

_HERE = ("127.0.0.1", "localhost", "::1")


def answers_on(path: Path | None) -> Answers:
    """Open what is to be looked at; without a path the examples, trained on first use."""
    found = Found({}, {}, []) if path is None else of_path(path)
    for said in found.left_out:
        print(said, file=sys.stderr)
    return Answers(found.models, found.runs, [], cache_folder())


def answer(answers: Answers, question: str, given: str) -> dict[str, Any]:
    """Answer one question, its arguments as a JSON object; `openapi` describes all questions."""
    if question == "openapi":
        return answers.openapi()
    try:
        arguments = json.loads(given)
    except ValueError as error:
        raise ConfigError(
            f"--given is no JSON.\n  Received: {given:.100}\n"
            f'  Fix: a JSON object, such as \'{{"text": "not bad"}}\'; {error}.'
        ) from None
    if not isinstance(arguments, dict):
        raise ConfigError(f"--given should be a JSON object.\n  Received: {given:.100}.")
    return answers.ask(question, arguments)


def write_views(path: Path, folder: Path, text: str) -> None:
    """Write the Sentence and Paths views of a model's reading of a text as one file."""
    from unspool.page import saved

    if path.suffix != ".html":
        raise ConfigError(
            f"the views are written as a page.\n  Received: {path}.\n  Fix: a name that ends in .html."
        )
    page = saved.html(of_folder(folder), text)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_file(path, page.encode())
    except OSError as error:
        raise InputError(f"{path} cannot be written.\n  Received: {error.strerror or error}.") from error


def serve(answers: Answers, host: str, port: int, token: str | None, browser: bool) -> None:
    """Serve the page until Ctrl-C."""
    if host not in _HERE and not token:
        raise ConfigError(
            f"the page would be open to everybody who can reach {host}.\n"
            f"  Fix: give a --token of 16 characters or more too, or leave --host out."
        )
    if token is not None and (len(token) < 16 or not token.isascii() or not token.isalnum()):
        raise ConfigError(
            "a token should be hard to guess.\n"
            f"  Received: {len(token)} characters.\n  Fix: 16 letters and digits or more."
        )
    try:
        from unspool.page import server
    except ModuleNotFoundError as error:
        raise MissingExtra("the page", error.name or "starlette", "see") from error
    taken = server.listen(host, port)
    named = f"[{host}]" if ":" in host else host
    address = f"http://{named}:{taken.getsockname()[1]}/" + (f"?token={token}" if token else "")

    def started() -> None:
        print(address, flush=True)
        print("Ctrl-C ends it.", file=sys.stderr)
        if not (server.STATIC / "index.html").is_file():
            print(
                "The page itself was not built with this copy: in a checkout, make page. "
                "Its questions are answered.",
                file=sys.stderr,
            )
        elif browser:
            webbrowser.open(address)

    server.serve(server.Page(answers, host, token), taken, started)
