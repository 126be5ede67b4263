"""Sequential digits: an image of a handwritten digit read row by row, or pixel by pixel.

    row by row       8 steps of 8 pixels     the past is a few steps long
    pixel by pixel   64 steps of 1 pixel     what was seen first is 64 steps old when the class is asked for

The 1,797 images of 8 by 8 that scikit-learn ships; the small kin of pixel-by-pixel MNIST (784 steps).

Source: Le, Jaitly & Hinton 2015, for MNIST; the images: Alpaydin & Kaynak 1998, UCI Machine Learning
Repository.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unspool.errors import MissingExtra
from unspool.lab import EXPERIMENTS, Options, chosen, trials
from unspool.lab.result import Claim, Published, Result
from unspool.lab.trials import CELLS, Batch, Settings, Trial

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEST = 397  # images held out, others with each seed
NOTES = (
    "1,400 images to train on and 397 to test, split anew with each seed; 64 units, Adam (row by row 3e-3,",
    "pixel by pixel 5e-3), batches of 32, gradients clipped at 1, forget- and update-gate bias 1 (pixel by",
    "pixel: drawn as log(uniform(1, 63))); 30 and 60 passes over the training images, and no choice among",
    "passes.  Departs from MNIST's protocol: these images are 8 by 8, and 1,400 instead of 60,000; no figure",
    "for recurrent networks on them was found.",
)


@functools.cache
def images() -> tuple[Any, Any]:
    """(1797, 8, 8) grey values from 0 to 1, and the digits.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        if error.name != "sklearn":
            raise
        raise MissingExtra("sequential-digits", "scikit-learn", "lab") from error
    digits = load_digits()
    return (digits.images / 16).astype(np.float32), digits.target.astype(np.int64)


@dataclasses.dataclass(frozen=True)
class Digits:
    """The task in one of its two forms, with the split of one seed."""

    seed: int
    pixels: bool  # one pixel a step, else one row
    budget: int

    @property
    def settings(self) -> Settings:
        return Settings(
            input_size=1 if self.pixels else 8,
            outputs=10,
            hidden_size=64,
            batch=32,
            learning_rate=5e-3 if self.pixels else 3e-3,
            budget=self.budget,
            check_every=2800,
            keep_up_to=64 if self.pixels else None,
        )

    def part(self, rows: Any) -> Batch:
        """Some images as sequences, in the order of the split."""
        grey, digits = images()
        rows = np.random.default_rng([self.seed, 8]).permutation(len(digits))[rows]
        x = np.ascontiguousarray(grey[rows].reshape(len(rows), *((64, 1) if self.pixels else (8, 8))))
        return Batch(torch.from_numpy(x).transpose(0, 1).contiguous(), torch.from_numpy(digits[rows]))

    def draw(self, chance: np.random.Generator, count: int) -> Batch:
        return self.part(TEST + chance.integers(0, len(images()[1]) - TEST, count))

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(output, batch.wanted)

    def measure(self, answer: Callable[[Batch], Tensor], chance: np.random.Generator) -> dict[str, float]:
        batch = self.part(np.arange(TEST))
        return {"accuracy": float((answer(batch).argmax(-1) == batch.wanted).float().mean())}

    def solved(self, figures: dict[str, float]) -> bool:
        return False


def run(options: Options) -> Result:
    """Train RNN, LSTM and GRU, five seeds each, in both forms."""
    seeds, _ = chosen(options, seeds=1 if options.quick else 5, steps=None)
    images()  # before a worker finds that they are missing
    forms = {"row by row": False} if options.quick else {"row by row": False, "pixel by pixel": True}
    done = {}
    for form, pixels in forms.items():
        passes = 10 if options.quick else 60 if pixels else 30
        jobs = [(Digits(seed, pixels, passes * 1400), cell, seed) for cell in CELLS for seed in range(seeds)]
        done[form] = trials.run(f"sequential-digits, {form}", jobs, options)
    claims = [
        Claim(
            f"{form}: LSTM {trials.median(trials.of('lstm', each), 'accuracy'):.1%} right (median)",
            trials.median(trials.of("lstm", each), "accuracy") >= (0.8 if options.quick else 0.9),
        )
        for form, each in done.items()
    ]
    published = [
        Published(
            f"LSTM, {form}",
            f"{trials.median(trials.of('lstm', each), 'accuracy'):.1%}",
            "96.07 % to 98.5 %, of MNIST" if form == "pixel by pixel" else "–",
            "a public re-run; h-detach 2019: other images" if form == "pixel by pixel" else "none found",
        )
        for form, each in done.items()
    ]
    return Result(
        name="sequential-digits",
        title=EXPERIMENTS["sequential-digits"],
        tables=tuple(trials.table(each, ["accuracy"], form) for form, each in done.items()),
        claims=tuple(claims),
        published=tuple(published),
        notes=NOTES,
        figures={form: trials.data(each) for form, each in done.items()},
        draw=functools.partial(_draw, done),
    )


def _draw(done: dict[str, list[Trial]], figure: "Figure") -> None:
    drawn = figure.subplots(1, len(done), sharey=True, squeeze=False)[0]
    for axes, (form, each) in zip(drawn, done.items(), strict=True):
        trials.curves(axes, each, "accuracy")
        axes.set_title(form)
