"""Time every recipe on our layers and on torch.nn's, in turn, in one run: training steps and prediction.

    python benchmarks/recipes.py [NAME …]         needs UNSPOOL_DATA

A recipe is asked for its network and its task, as the training loop would be given them, once with --layers
unspool and once with --layers torch; all else is the same code, from the same initial weights.  A turn makes
the same steps on the same batches (forward, backward, clipping, AdamW), then predicts the dev part, or as
much of it as a turn has time for, without gradients.

With UNSPOOL_THREADS=1 what counts is processor time, which other work on the machine disturbs little.  What
our layers take of a step is measured in the same turns: the rest is code that both sides share.
"""

import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import unspool.nn
from stamp import in_words, stamp
from unspool import Tagger, files, ops, recipes, training
from unspool.kernels import native

RESULTS = Path(__file__).parent / "results"
STEPS, TURNS = 6, 5
# A recipe, options beside the defaults, how much of dev and test is read, what is wanted of the ratio.
CASES: dict[str, tuple[str, dict[str, Any], int, float]] = {
    "sentiment, MR": ("sentiment", {"data": "mr"}, 10_000, 1.5),
    "tagging, EWT": ("tagging", {"data": "ewt"}, 400, 2.0),
    "parsing, EWT": ("parsing", {"data": "ewt", "recurrent_dropout": 0.0}, 200, 2.0),
    "language-model, tiny Shakespeare": ("language-model", {"data": "tiny-shakespeare"}, 20_000, 1.5),
    "translation, letters → phonemes": ("translation", {}, 1000, 1.5),
    "translation, German → English": (
        "translation",
        {"data": "multi30k-de-en", "lowercase": True, "embedding_size": 256},
        300,
        1.5,
    ),
}


def clock() -> float:
    """Seconds: of the processor where one thread runs, else by the wall."""
    return time.process_time() if native.threads() == 1 else time.perf_counter()


class Caught(Exception):
    """What a recipe handed to the training loop."""

    def __init__(self, model: torch.nn.Module, task: training.Task[Any], options: training.Options) -> None:
        self.model, self.task, self.options = model, task, options


def main() -> None:
    """Time the cases, print a row each, write the table."""
    torch.set_num_threads(native.threads())
    wanted = sys.argv[1:]
    alone = "UNSPOOL_THREADS=1 OMP_NUM_THREADS=1 " if native.threads() == 1 else ""
    about = stamp(alone + "python benchmarks/recipes.py" + "".join(f" {word}" for word in wanted))
    found: dict[str, Any] = {}
    for name, (task, options, most, bar) in CASES.items():
        if wanted and not any(word in name for word in wanted):
            continue
        pair = {whose: caught(task, {**options, "layers": whose}, most) for whose in ("unspool", "torch")}
        found[name] = timed(pair) | {"bar": bar}
        if task == "tagging":
            found[name]["served"] = served(pair["unspool"])
        print(name, json.dumps(found[name]), flush=True)
    table = "\n".join([*lines(about, found), product(), ""])
    print(table)
    if not wanted:
        of = "recipes" if about["threads"] == 1 else f"recipes-{about['threads']}-threads"
        (RESULTS / f"{of}.json").write_text(json.dumps({"about": about, "cases": found}, indent=1) + "\n")
        (RESULTS / f"{of}.md").write_text(table)


def caught(name: str, options: dict[str, Any], most: int) -> Caught:
    """Run a recipe up to the training loop."""
    recipe = recipes.load(name)

    def catch(model: torch.nn.Module, task: Any, own: Any, *_: object) -> None:
        raise Caught(model, task, own)

    real, read = training.run, recipe.read

    def cut(*arguments: Any, **named: Any) -> Any:
        parts = read(*arguments, **named)
        return parts._replace(dev=parts.dev[:most], test=parts.test[:most])

    training.run, recipe.read = catch, cut  # type: ignore[assignment]
    try:
        recipe.train(recipe.Config(**options), recipe.Options(quiet=True), Path("nowhere"))
    except Caught as found:
        return found
    finally:
        training.run, recipe.read = real, read
    raise AssertionError(name)


def timed(pair: dict[str, Caught]) -> dict[str, Any]:
    """Seconds of each turn, in training and in prediction; the first turn warms up."""
    train: dict[str, list[float]] = {whose: [] for whose in pair}
    predict: dict[str, list[float]] = {whose: [] for whose in pair}
    layers: list[float] = []
    same(pair)
    for turn in range(TURNS + 1):
        for whose, found in pair.items():
            steps, inside, scored = one_turn(found)
            if turn:
                train[whose].append(steps / STEPS)
                predict[whose].append(scored)
            if turn and whose == "unspool":
                layers.append(inside / STEPS)
    ratios = {
        kind: {
            **{whose: statistics.median(each) for whose, each in seconds.items()},
            "ratios": sorted(t / o for o, t in zip(seconds["unspool"], seconds["torch"], strict=True)),
        }
        for kind, seconds in (("step", train), ("prediction", predict))
    }
    return {"layers": statistics.median(layers), **ratios}


@contextlib.contextmanager
def timing_layers() -> Iterator[list[float]]:
    """Add up the seconds of each call of our layers in training, and of each of their gradients."""
    seconds: list[float] = []

    def timed(call: Any) -> Any:
        def run(*arguments: Any, **named: Any) -> Any:
            begin = clock()
            found = call(*arguments, **named)
            seconds.append(clock() - begin)
            return found

        return run

    gradients = (ops._Layer, ops.small._Small)
    real, backward = unspool.nn.LSTM.forward, [each.backward for each in gradients]
    unspool.nn.LSTM.forward = timed(real)  # type: ignore[method-assign]
    for each, call in zip(gradients, backward, strict=True):
        each.backward = staticmethod(timed(call))  # type: ignore[method-assign]
    yield seconds
    unspool.nn.LSTM.forward = real  # type: ignore[method-assign]
    for each, call in zip(gradients, backward, strict=True):
        each.backward = staticmethod(call)  # type: ignore[method-assign]


def same(pair: dict[str, Caught]) -> None:
    """See that both are one network: the same scores of the dev part before any step."""
    with evaluating(pair["unspool"].model), evaluating(pair["torch"].model), torch.no_grad():
        ours, theirs = (found.task.score(found.model) for found in pair.values())
    assert abs(ours.loss - theirs.loss) < 1e-4 * max(abs(theirs.loss), 1), (ours, theirs)


def one_turn(found: Caught) -> tuple[float, float, float]:
    """Seconds of the steps, what our layers took of them, and seconds of the prediction."""
    model, task, options = found.model, found.task, found.options
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    batches = list(task.batches(1))[: STEPS + 1]
    shares = [task.share(rows, 0, len(rows)) for rows in batches]
    model.train()
    begin = 0.0
    with timing_layers() as inside:
        for step, (rows, share) in enumerate(zip(batches, shares, strict=True)):
            if step == 1:
                inside.clear()
                begin = clock()
            noise = training.Noise(1, step, 0, len(rows), len(rows))
            part = task.loss(model, share, noise)
            (part.total / part.count).backward()
            norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
            if norm.item() + 1e-6 > options.clip:
                torch.nn.utils.clip_grads_with_norm_(model.parameters(), options.clip, norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        steps = clock() - begin
    with evaluating(model), torch.no_grad():
        begin = clock()
        task.score(model)
        return steps, sum(inside), clock() - begin


@contextlib.contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Hold a model in eval mode."""
    model.eval()
    yield
    model.train()


def served(found: Caught) -> dict[str, float]:
    """Sentences a second of a tagger without torch, in batches, over EWT's test part."""
    from unspool.data import tagged

    with tempfile.TemporaryDirectory() as folder:
        files.write_folder(Path(folder) / "model", found.task.folder(found.model, None))
        tagger = Tagger.load(Path(folder) / "model")
    words = [sentence.words for sentence in tagged.benchmark("ewt", quiet=True).test]
    tagger.predict(words)
    seconds = []
    for _ in range(5):
        begin = clock()
        tagger.predict(words)
        seconds.append(clock() - begin)
    return {"sentences": len(words), "a_second": len(words) / statistics.median(seconds)}


def product() -> str:
    """A line on the largest product that the recipes make: torch's own, and what they take."""
    from unspool.recipes import products

    x, weight = torch.randn(1000, 256), torch.randn(5411, 256)
    rates = []
    for way in (torch.nn.functional.linear, products.linear):
        seconds = []
        for _ in range(12):
            begin = clock()
            way(x, weight)
            seconds.append(clock() - begin)
        rates.append(2e-9 * x.numel() * len(weight) / statistics.median(seconds))
    return (
        f"The scores of 1,000 words among 5,411, one product: {rates[0]:.0f} GFLOP a second as torch "
        f"multiplies, {rates[1]:.0f} as the recipes do (`unspool.recipes.products`), on both sides."
    )


def lines(about: dict[str, object], found: dict[str, Any]) -> Iterator[str]:
    """The table as Markdown."""
    yield "# How fast the recipes train and predict beside torch's layers\n"
    yield in_words(about) + "\n"
    which = "processor" if about["threads"] == 1 else "wall"
    yield (
        "The same recipe with `--layers unspool` and `--layers torch` (`torch.nn.LSTM`, ragged batches as "
        f"a PackedSequence), medians of {TURNS} turns in alternation after one that warms up, {STEPS} steps "
        f"each,\nby {which} time; in brackets the smallest and the largest ratio of a turn. Prediction is "
        "the dev part, or its beginning, scored without gradients. Recurrent dropout, which torch's layers "
        "do not have, is off on both sides.\nNetworks are untrained: of the parser's trees far more need the "
        "long way than of a trained one's (`parsing.md`).\nWhat is not our layers' is the same code on both "
        "sides; without it the layers alone are as many times as fast as their column says: (torch's step "
        "- ours + our layers) / our layers.\n"
    )
    yield (
        "| recipe | ms a step | of it our layers | torch's step | times as fast | layers alone "
        "| s a prediction | torch's | times as fast | wanted |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for name, row in found.items():
        cells = [name]
        for kind, factor, form in (("step", 1e3, ".1f"), ("prediction", 1, ".3f")):
            one = row[kind]
            ratios = one["ratios"]
            cells += [format(one[whose] * factor, form) for whose in ("unspool", "torch")]
            cells += [f"**{statistics.median(ratios):.2f}** ({ratios[0]:.2f} to {ratios[-1]:.2f})"]
            if kind == "step":
                cells.insert(2, format(row["layers"] * factor, form))
                alone = (one["torch"] - one["unspool"] + row["layers"]) / row["layers"]
                cells.append(format(alone, ".2f"))
        yield f"| {' | '.join([*cells, str(row['bar'])])} |"
    for row in found.values():
        if "served" in row:
            one = row["served"]
            yield (
                f"\nThe tagger without torch: {one['a_second']:,.0f} sentences a second, over the "
                f"{one['sentences']:,} of EWT's test part."
            )
    yield ""


if __name__ == "__main__":
    main()
