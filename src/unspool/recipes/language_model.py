"""Language modelling: what comes next, a character, a byte, a subword or a word at a time.

    unit → embedding → recurrent layers, forward → scores of the next unit

One direction alone: the reverse one would have read what is to be guessed.  The text is cut into columns that
are read side by side, a window of steps at a time; each column's state is carried from window to window and
gradients stop at the window's edge (truncated backpropagation through time, Williams and Peng 1990).
Regularised as in AWD-LSTM (Merity, Keskar and Socher 2018), every part of which can be set to 0.  Held
against: validation loss 1.47 nats a character on tiny Shakespeare (nanoGPT's small Transformer), and 1.16 on
War and Peace for an LSTM of 512 units (Karpathy, Johnson and Fei-Fei 2015).

    T steps of a window   B columns   V vocabulary   H hidden size   L layers
"""

import dataclasses
import math
import os
import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from unspool import __version__, files, language, training
from unspool import model as serving
from unspool.data import texts
from unspool.errors import ConfigError, DataError
from unspool.kernels.contract import Cell
from unspool.recipes import layers, outcome, products, rules
from unspool.subwords import Subwords
from unspool.vocabulary import Vocabulary

_CARRIED = "carried.safetensors"


@dataclasses.dataclass(frozen=True)
class Config(rules.Data):
    """What is trained on, and what is trained."""

    data: str = "python-source"
    """A text: python-source, tiny-shakespeare, war-and-peace, or of rotten-tomatoes or imdb the texts.  Not
    used where train is given."""

    train: Path | None = None
    """Your own text to learn from, in UTF-8."""

    dev: Path | None = None
    """Your own text to choose the best epoch by; without it the last tenth of train."""

    test: Path | None = None
    """Your own text to report on; without it the dev text's figure is reported."""

    text_column: str | None = None
    """Your files are tables (TSV, CSV, JSONL): the column whose texts are read, a line each, cut into words
    as classifiers cut them."""

    units: Literal["characters", "bytes", "subwords", "words"] = "characters"
    """What is guessed: the next character, byte, subword or word (a line's end is a word)."""

    subwords: int = 6000
    """How many subwords, learned from the training part alone."""

    min_count: int = 1
    """How often a unit must occur in the training text to be known; not of subwords."""

    cell: Literal["lstm", "gru", "rnn_tanh"] = "lstm"
    """The recurrent cell."""

    bidirectional: bool = False
    """Refused: the reverse direction has read what is to be guessed."""

    hidden_size: int = 256
    """Units of each layer."""

    num_layers: int = 1
    """Layers on top of each other."""

    embedding_size: int = 64
    """Numbers a unit."""

    tied: bool = False
    """Whether the scores' weights are the embedding; needs embedding_size = hidden_size."""

    adaptive_softmax: int = 0
    """Units, the most frequent, that are scored in full; the rest in clusters, cheaper the rarer; 0: all."""

    window: int = 100
    """Steps of a window, over which gradients flow back."""

    embedding_dropout: float = 0.0
    """Share of the vocabulary's vectors dropped whole, the same ones throughout a window."""

    input_dropout: float = 0.0
    """Share of the embedding's numbers dropped, the same ones at every step."""

    layer_dropout: float = 0.2
    """Share of units dropped between layers and before the scores, the same ones at every step."""

    weight_dropout: float = 0.0
    """Share of the recurrent weights dropped, the same ones at every step (DropConnect)."""

    recurrent_dropout: float = 0.0
    """Share of units dropped where h enters the recurrent weights, the same ones at every step."""

    activation: float = 0.0
    """Weight of the squared size of the top layer's dropped-out outputs in the loss (AR)."""

    slowness: float = 0.0
    """Weight of the squared step from one output to the next in the loss (TAR)."""

    layers: Literal["unspool", "torch"] = "unspool"
    """Whose recurrent layers train: ours or torch.nn's, to compare their speed."""

    def __post_init__(self) -> None:
        if self.bidirectional:
            raise ConfigError(
                "a language model cannot be bidirectional.\n"
                "  Received: bidirectional True.\n"
                "  Fix: leave it out.  The reverse direction begins at the end: it has read the very unit\n"
                "  that is to be guessed, and the loss would fall to 0 with nothing learned."
            )
        own_layers = self.layers == "unspool"
        fitting = not self.tied or self.embedding_size == self.hidden_size
        rules.check(
            self,
            rules.data(self, texts.NAMES),
            ("text_column", "given only with train", self.train is not None or self.text_column is None),
            rules.one_of(self, "units", language.UNITS),
            rules.one_of(self, "cell", ("lstm", "gru", "rnn_tanh")),
            rules.one_of(self, "layers", layers.WHOSE),
            ("tied", "embedding_size = hidden_size", fitting),
            ("tied", "false with adaptive_softmax", not (self.tied and self.adaptive_softmax)),
            ("subwords", "300 or more: 256 of them are the bytes", self.subwords >= 300),
            ("adaptive_softmax", "0 or more", self.adaptive_softmax >= 0),
            ("recurrent_dropout", "0 with layers torch", own_layers or not self.recurrent_dropout),
            rules.positive(self, "hidden_size", "num_layers", "embedding_size", "min_count", "window"),
            ("activation", "0 or more", 0 <= self.activation < math.inf),
            ("slowness", "0 or more", 0 <= self.slowness < math.inf),
            rules.shares(
                self,
                "embedding_dropout",
                "input_dropout",
                "layer_dropout",
                "weight_dropout",
                "recurrent_dropout",
            ),
        )


@dataclasses.dataclass(frozen=True)
class Options(training.Options):
    """How it is trained: the loop's options, with this task's defaults."""

    epochs: int = 5
    """Most passes over the training data."""

    batch_size: int = 32
    """Columns that the text is cut into, read side by side."""

    learning_rate: float = 3e-3
    """Step size of AdamW, after the warm-up."""

    warmup_steps: int = 100
    """Steps over which the learning rate rises from 0 on a straight line; 0: none."""

    decay: Literal["none", "linear"] = "linear"
    """Whether the learning rate falls on a straight line to 0 over all epochs."""

    patience: int = 0
    """Epochs without a better dev score after which training stops; 0: never."""


# ---- data


def read(config: Config, *, quiet: bool = False) -> texts.Parts:
    """Read the three parts: a benchmark's, or those of the user's own files.

    Raises:
        DataError, SourceError: a file is not what it should be, or cannot be had.
    """
    if config.train is None:
        return texts.benchmark(config.data, data_dir=config.data_dir, quiet=quiet)

    def part(path: Path) -> str:
        return texts.read(path) if config.text_column is None else texts.table(path, config.text_column)

    train = part(config.train)
    if config.dev is None:
        train, dev, _ = texts.by_position(train, 0.9, 0.1)
    else:
        dev = part(config.dev)
    return texts.Parts(train, dev, "" if config.test is None else part(config.test))


def columns(numbers: NDArray[np.int64], count: int, window: int) -> list[NDArray[np.int64]]:
    """Cut a text into columns, and those into windows: for each window where each column's begins.

    Raises:
        DataError: the text is too short.
    """
    length = (len(numbers) - 1) // count
    if length < 1:
        raise DataError(
            f"the training text is too short for {count} columns.\n  Received: {len(numbers)} units.\n"
            f"  Fix: a longer text, or a smaller batch_size."
        )
    first = np.arange(count) * length
    return [first + step for step in range(0, length, window)]


class Share(NamedTuple):
    """A window."""

    read: Tensor  # (T, B)
    follow: Tensor  # (T, B) the unit after each
    begins: bool  # whether the columns begin with it, so that no state is carried into it


def share_of(numbers: NDArray[np.int64], starts: NDArray[np.int64], window: int, length: int) -> Share:
    """The window of each column that begins at `starts`; the last one of a column is shorter."""
    steps = min(window, length - int(starts[0]))
    at = starts + np.arange(steps)[:, None]
    return Share(torch.from_numpy(numbers[at]), torch.from_numpy(numbers[at + 1]), int(starts[0]) == 0)


class Units(NamedTuple):
    """What a text is cut into, and the table of those that are known."""

    kind: str
    known: Vocabulary
    merges: Vocabulary  # of subwords; else none
    subwords: Subwords | None

    @classmethod
    def learn(cls, config: Config, text: str) -> "Units":
        """Learn the units of a training text, the most frequent first."""
        if config.units != "subwords":
            cut = language.units_of(text, config.units)
            known = Vocabulary.build([cut], min_count=config.min_count, lowercase=False)
            return cls(config.units, known, language.NO_MERGES, None)
        found = Subwords.learn(text.splitlines(keepends=True), config.subwords)
        seen = Vocabulary.build([found.cut(text)], lowercase=False).tokens
        known = Vocabulary((*seen, *sorted(set(found.pieces()) - set(seen))), lowercase=False)
        return cls(config.units, known, found.as_table(), found)

    def numbers(self, text: str) -> NDArray[np.int64]:
        """A text as numbers."""
        return self.known.encode(language.units_of(text, self.kind, self.subwords))


# ---- model


class Network(nn.Module):
    """The network in torch; `unspool.LanguageModel` runs the same one from the saved file."""

    def __init__(self, config: Config, vocabulary_size: int) -> None:
        """Build the network with its initial weights: torch's, but the forget gate's bias at 1."""
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(vocabulary_size, config.embedding_size)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.layers = nn.ModuleList(
            layers.build(
                config.cell,
                config.embedding_size if k == 0 else config.hidden_size,
                config.hidden_size,
                whose=config.layers,
            )
            for k in range(config.num_layers)
        )
        for layer in self.layers:
            layers.open_forget_gates(layer, config.cell)
        self.scores: nn.Module
        if config.adaptive_softmax:
            rarer = language.clusters(config.adaptive_softmax, vocabulary_size)
            self.scores = nn.AdaptiveLogSoftmaxWithLoss(
                config.hidden_size, vocabulary_size, [first for first, _ in rarer], head_bias=True
            )
        else:
            self.scores = nn.Linear(config.hidden_size, vocabulary_size)
            nn.init.zeros_(self.scores.bias)
            if config.tied:
                self.scores.weight = self.embedding.weight

    def forward(
        self, read: Tensor, follow: Tensor, states: list[Any] | None, noise: training.Noise | None = None
    ) -> tuple[Tensor, list[Any], Tensor, Tensor]:
        """Read a window and guess what follows each of its units.

        Args:
            read: (T, B) unit numbers.
            follow: (T, B) the unit after each.
            states: each layer's state before it.  None: zeros.
            noise: where dropout masks come from; None: nothing is dropped.

        Returns:
            The nats of what follows, summed; the states after it without a graph; and the top layer's
            outputs (T, B, H) with units dropped, and without.
        """
        config = self.config
        table = self.embedding.weight
        if noise is not None and config.embedding_dropout:
            table = table * noise.shared(config.embedding_dropout, len(table), 1)
        dropped = noise is not None and config.input_dropout > 0
        if dropped or config.layers == "torch":
            x = F.embedding(read, table)
            if noise is not None and dropped:
                x = x * noise.keep(config.input_dropout, x.size(2))
        else:
            x = read  # our first layer looks the rows up itself
        after = []
        raw = x
        for k, layer in enumerate(self.layers):
            state = None if states is None else states[k]
            raw, state = self._run(layer, x, state, noise, table if x is read else None)
            after.append(tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach())
            x = raw
            if noise is not None and config.layer_dropout:
                x = x * noise.keep(config.layer_dropout, x.size(2))
        outputs, right = x.flatten(0, 1), follow.flatten()
        if isinstance(self.scores, nn.Linear):
            nats = products.guess(outputs, self.scores.weight, self.scores.bias, right).nats
        else:
            nats = -self.scores(outputs, right).output.sum()
        return nats, after, x, raw

    def _run(
        self, layer: nn.Module, x: Tensor, state: Any, noise: training.Noise | None, table: Tensor | None
    ) -> tuple[Tensor, Any]:
        config = self.config
        options: dict[str, Any] = {} if table is None else {"table": table}
        if noise is not None and config.recurrent_dropout:
            mask = noise.keep(config.recurrent_dropout, 1, config.hidden_size)
            options["recurrent_mask"] = mask.transpose(0, 1)
        if noise is None or not config.weight_dropout:
            return layer(x, state, **options)  # type: ignore[no-any-return]
        weight: Any = layer.weight_hh_l0
        dropped = {"weight_hh_l0": weight * noise.shared(config.weight_dropout, *weight.shape)}
        return torch.func.functional_call(layer, dropped, (x, state), options)  # type: ignore[no-any-return]


class Carried:
    """The state of each column between one window and the next."""

    def __init__(self) -> None:
        self.states: list[Any] | None = None

    def after(self, states: list[Any]) -> None:
        """Keep the states; not where one is not finite: the next window then begins anew."""
        flat = [part for s in states for part in (s if isinstance(s, tuple) else (s,))]
        self.states = states if all(bool(part.isfinite().all()) for part in flat) else None

    def to_bytes(self) -> bytes:
        """The states as last/ keeps them."""
        found: dict[str, NDArray[Any]] = {}
        for k, state in enumerate(self.states or []):
            for name, part in zip(
                ("hidden", "cell"), state if isinstance(state, tuple) else (state,), strict=False
            ):
                found[f"{k}.{name}"] = part.cpu().numpy()
        return files.pack(found)

    def from_file(self, path: Path) -> None:
        """Take over what `to_bytes` wrote, where it is there."""
        if not path.is_file():
            return
        found = files.unpack(path.read_bytes(), str(path))
        layers = sorted({int(name.split(".")[0]) for name in found})
        parts = [
            tuple(torch.from_numpy(found[f"{k}.{n}"]) for n in ("hidden", "cell") if f"{k}.{n}" in found)
            for k in layers
        ]
        self.states = [part if len(part) == 2 else part[0] for part in parts] or None


# ---- loss and score


def loss(
    config: Config, carried: Carried, network: nn.Module, share: Share, noise: training.Noise
) -> training.Loss:
    """Cross-entropy of the next unit, summed; with AR and TAR as shares of its mean."""
    states = None if share.begins else carried.states
    total, after, dropped, raw = network(share.read, share.follow, states, noise)
    carried.after(after)
    count = share.follow.numel()
    if config.activation:
        total = total + count * config.activation * dropped.square().mean()
    if config.slowness and len(raw) > 1:
        total = total + count * config.slowness * (raw[1:] - raw[:-1]).square().mean()
    return training.Loss(total, count, tokens=count, places=count)


def score(numbers: NDArray[np.int64], network: nn.Module) -> training.Score:
    """Nats a unit over the whole dev text, read in one piece."""
    device = next(network.parameters()).device
    states, total = None, 0.0
    units = torch.from_numpy(numbers).to(device)
    for at in range(0, len(units) - 1, 2000):
        follow = units[at + 1 : at + 2001]
        nats, states, _, _ = network(units[at : at + len(follow), None], follow[:, None], states)
        total += float(nats)
    nats = total / (len(units) - 1)
    return training.Score(nats, nats)


# ---- the run

NEXT = (
    'unspool generate {best} "The " --length 300 --temperature 0.7',
    "unspool eval {best} --data FILE.txt",
)


def train(config: Config, options: training.Options, output: Path) -> outcome.Outcome | None:
    """Train, keep the best epoch by the dev part, and measure it once on the test part.

    The test part is read by `unspool.LanguageModel`, without torch, from the folder that will be served.

    Raises:
        DataError, SourceError, ConfigError, TrainingError: see there.
        SystemExit: after Ctrl-C or SIGTERM, once last/ is saved.
    """
    _refuse_processes()
    parts = options.brief(read(config, quiet=options.quiet), each=10 * config.window)
    units = Units.learn(config, parts.train)
    numbers, dev, test = map(units.numbers, parts)
    if len(dev) < 2:
        raise DataError(f"{config.where}: the dev part is too short.\n  Fix: give a longer text with --dev.")
    starts = columns(numbers, options.batch_size, config.window)
    length = (len(numbers) - 1) // options.batch_size
    description = language.Description(
        task=language.TASK,
        units=config.units,
        cell=Cell(config.cell),
        embedding_size=config.embedding_size,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        adaptive_softmax=config.adaptive_softmax,
    )
    language.shapes(description, len(units.known))  # refuses what an adaptive softmax cannot be
    with training.seeded(options.seed):
        network = Network(config, len(units.known))
    if not options.quiet:
        print(
            f"{config.where}: {len(numbers):,} {config.units} to train on, {len(dev):,} dev, "
            f"{len(test):,} test; "
            f"{len(units.known):,} known; {options.batch_size} columns, {len(starts)} windows of "
            f"{config.window} steps",
            file=sys.stderr,
        )
    carried = Carried()
    if options.resume:
        carried.from_file(output / "last" / _CARRIED)
    task = training.Task(
        batches=lambda epoch: starts,
        share=lambda positions, first, stop: share_of(numbers, positions, config.window, length),
        loss=lambda network, share, noise: loss(config, carried, network, share, noise),
        score=lambda network: score(dev, network),
        folder=lambda network, dev_score: {
            **outcome.folder(
                training.weights(network),
                description,
                {serving.VOCABULARY: units.known, language.MERGES: units.merges},
                card(description, config, options, dev_score),
            ),
            **({} if dev_score is not None else {_CARRIED: carried.to_bytes()}),
        },
        metric="nats",
        kernels=layers.described(config.layers),
        higher_is_better=False,
    )
    result = training.run(network, task, options, output, options.resolved(language.TASK, config))
    best, dev_nats = result.best("loss")
    served = language.LanguageModel.load(best)
    part, text = ("test", parts.test) if parts.test else ("dev", parts.dev)
    found = served.likelihood(text)
    if part == "test":
        outcome.note_test(best, f"{found.per_unit:.4f}")
    return outcome.Outcome(result.folder, best, "nats", dev_nats, part, found, NEXT)


def _refuse_processes() -> None:
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError(
            "a language model is trained by one process, which carries each column's state along.\n"
            f"  Received: {os.environ['WORLD_SIZE']} processes.\n  Fix: launch one."
        )


def card(
    description: language.Description, config: Config, options: training.Options, dev: training.Score | None
) -> str:
    """The model card: what was trained on what, how well it does, and how it is loaded."""
    return f"""---
library_name: unspool
pipeline_tag: text-generation
---

# Language model of {config.trained_on}, by {description.units}

{description.num_layers} × {description.cell.value} of {description.hidden_size} units, forward; trained on
{config.trained_on} with seed {options.seed} by unspool {__version__}.

| part | nats a unit |
|---|---|
| dev (chose the epoch) | {"not measured" if dev is None else f"{dev.metric:.4f}"} |

    import unspool
    model = unspool.LanguageModel.load("this folder")
    print(model.generate("The ", 300, temperature=0.7))

What it writes looks like its text and means nothing.
"""
