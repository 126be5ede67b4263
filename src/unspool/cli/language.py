"""What the verbs do with a language model: eval, predict.  Without torch, and without a word printed."""

from pathlib import Path
from typing import Any

from unspool.data import texts
from unspool.language import LanguageModel, Likelihood


def evaluate(model: Path, data: Path) -> Likelihood:
    """Say how likely a text file is."""
    return LanguageModel.load(model).likelihood(texts.read(data))


def as_json(found: Likelihood) -> dict[str, Any]:
    """A likelihood for programs; None where there is nothing to guess."""
    known = found.units > 0
    return {
        "metric": "nats",
        "value": found.per_unit if known else None,
        "bits": found.bits_per_unit if known else None,
        "bits_per_character": found.bits_per_character if known else None,
        "perplexity": found.perplexity if known else None,
        "units": found.units,
    }


def in_words(found: Likelihood) -> str:
    """A likelihood for people."""
    return (
        f"{found.per_unit:.4f} nats or {found.bits_per_unit:.4f} bits for each of {found.units:,} units, "
        f"perplexity {found.perplexity:.3f}; {found.bits_per_character:.4f} bits a character"
    )
