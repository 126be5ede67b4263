"""What the verbs do with a language model: eval, predict, inspect.  Without torch, without a word printed."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from unspool import introspect
from unspool.data import texts
from unspool.language import LanguageModel, Likelihood


def evaluate(model: Path, data: Path) -> Likelihood:
    """Say how likely a text file is."""
    return LanguageModel.load(model).likelihood(texts.read(data))


def details(model: LanguageModel, text: str, moved: introspect.Contributions) -> tuple[dict[str, Any], str]:
    """What an inspection says besides, for programs and for people: how hard each unit was to guess."""
    nats = [float(n) for n in model.surprisal(text)]
    hardest = sorted(np.argsort([-n for n in nats], kind="stable")[:5])
    told = ", ".join(f"{moved.words[t + 1]!r} {nats[t]:.1f}" for t in hardest)
    after = f"expected next: {moved.label!r} {moved.score:.1%}, before {moved.rival!r}"
    return {"surprisal": [None, *(round(n, 6) for n in nats)]}, (
        f"{after}\nhardest to guess, in nats: {told}" if told else after
    )


def as_answer(moved: introspect.Contributions) -> introspect.Contributions:
    """The same for a picture, whose heading is to say what the answer is."""
    return dataclasses.replace(moved, label=f"next {moved.label!r}", rival=repr(moved.rival))
