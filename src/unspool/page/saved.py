"""The Sentence and Paths views as one file that needs no server: the built page with its answers in it."""

import base64
import contextlib
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from unspool.errors import ConfigError, InputError
from unspool.language import LanguageModel
from unspool.page.answers import MOST_NUMBERS, Answers
from unspool.page.opened import Opened

STATIC = Path(__file__).parent / "static"
_SCALES = [k / 10 for k in range(21)]
_KEEPS = [float(k) for k in range(-3, 10, 2)]  # with 1, what the page begins with
_USUAL = {"steps": 40, "clip": 1.0, "relu": True, "seed": 0}
_MOST_REACHED = 100  # words whose reach is kept
_POLICY = (
    "default-src 'none'; script-src {scripts}; style-src {styles}; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'"
)


def html(opened: Opened, text: str, static: Path = STATIC) -> str:
    """Write the page with what it says of one text.

    Args:
        opened: the model.
        text: what it reads.
        static: the built page.

    Raises:
        ConfigError: the page is not built.
        InputError: a text without words, or one that is too long.
    """
    index = static / "index.html"
    if not index.is_file():
        raise ConfigError("the page is not built, so it cannot be written into a file.\n  Fix: make page.")
    page = index.read_text(encoding="utf-8")
    kept = json.dumps(_kept(opened, text), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    # A script would run before the page below it is there: all of them go to its end.
    scripts = [
        (static / name).read_text(encoding="utf-8") for name in re.findall(r'src="\./(.*?\.js)"', page)
    ]
    styles = [
        (static / name).read_text(encoding="utf-8") for name in re.findall(r'href="\./(.*?\.css)"', page)
    ]
    page = re.sub(r"\s*<(?:script[^>]*></script|link[^>]*)>", "", page)
    style = "".join(f"<style>{text}</style>" for text in styles)
    scripts = [script.replace("</script", "<\\/script").replace("<!--", "<\\!--") for script in scripts]
    body = f'<script type="application/json" id="kept">{kept}</script>'
    body += "".join(f'<script type="module">{script}</script>' for script in scripts)
    policy = _POLICY.format(scripts=_digests(scripts), styles=_digests(styles))
    head = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    before, _, after = page.partition("</head>")
    middle, _, end = after.partition("</body>")
    return f"{before}{head}{style}</head>{middle}{body}</body>{end}"


def _digests(texts: list[str]) -> str:
    """What a policy lets run: these texts, to the byte, and no others."""
    made = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts)
    return " ".join(f"'sha256-{one}'" for one in made) or "'none'"


def _kept(opened: Opened, text: str) -> dict[str, Any]:
    answers = Answers({"kept": opened}, {}, [], Path())
    first = answers.ask("sentence", {"which": "kept", "text": text})
    words, maps = len(first["words"]), len(first["maps"])
    values = maps * words * len(first["maps"][0][0]) * len(first["quantities"])
    numbers = first["layers"] * (values + 3 * maps * words * min(words, _MOST_REACHED))
    if numbers > MOST_NUMBERS:
        raise InputError(
            f"the text is too long to be kept in one file, with all gates of all layers.\n"
            f"  Received: {numbers:,} numbers.\n"
            f"  Fix: {MOST_NUMBERS:,} at the most: a text of {MOST_NUMBERS * words // numbers:,} words; "
            f"unspool see shows more."
        )
    sentences = []
    for layer in reversed(range(first["layers"])):  # the top one first: it is what the page asks for
        for quantity in first["quantities"]:
            given = {"layer": layer, "quantity": quantity["letter"]}
            sentences.append([given, answers.ask("sentence", {"which": "kept", "text": text, **given})])
    reach = [
        [given, answers.ask("reach", {"which": "kept", "text": text, **given})]
        for given in (
            {"layer": layer, "at": at, "direction": d}
            for layer in reversed(range(first["layers"]))
            for at in reversed(range(max(0, words - _MOST_REACHED), words))
            for d in range(maps)
        )
    ]
    kept: dict[str, Any] = {
        "things": [
            [{}, {"things": [{"id": "kept", "title": opened.title}], "runs": [], "text": text, "limits": {}}]
        ],
        "model": [[{}, answers.ask("model", {"which": "kept"})]],
        "sentence": sentences,
        "reach": reach,
        "paths": [
            [given, answers.ask("paths", given)]
            for given in ({"scale": scale, "keep": keep, **_USUAL} for scale in _SCALES for keep in _KEEPS)
        ],
        "grid": {
            "scale": {"low": _SCALES[0], "high": _SCALES[-1], "step": _SCALES[1] - _SCALES[0]},
            "keep": {"low": _KEEPS[0], "high": _KEEPS[-1], "step": _KEEPS[1] - _KEEPS[0]},
        },
    }
    kept["contributions"] = []
    if not isinstance(opened.network, LanguageModel):  # of one the page shows how hard each unit was to guess
        with contextlib.suppress(InputError):  # none of so long a text: the page leaves them out
            asked = answers.ask("contributions", {"which": "kept", "text": text})
            kept["contributions"] = [[{}, asked]]
    return kept
