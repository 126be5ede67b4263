"""Translation: one sequence turned into another, such as German into English, or letters into phonemes.

    source units → embedding → layers in both directions ─┐ memory
    target units → embedding → layers, forward → attention ┴→ readout → scores of the next unit

An encoder and a decoder with attention.  Without input feeding and coverage no step of the decoder waits for
the attention of the one before, so a whole target runs through the layers in one call and looks in one
product.  Held against: word error 31 % on CMUdict without stress; BLEU 35 for German to English and 33 for
English to German on Multi30k, test of 2016.

    T target steps   S source steps   B pairs   E embedding size   H hidden size   V target units
"""

import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unspool import __version__, attention, files, training, translator
from unspool import model as serving
from unspool.data import batches, pairs
from unspool.kernels.contract import Cell
from unspool.metrics import Bleu, WordErrors
from unspool.recipes import layers, outcome, products, rules
from unspool.translator import END, Side


@dataclasses.dataclass(frozen=True)
class Config(rules.Data):
    """What is trained on, and what is trained."""

    data: str = "cmudict"
    """A benchmark: cmudict, multi30k-de-en or multi30k-en-de.  Not used where train is given."""

    train: Path | None = None
    """Your own training file: the source side, or lines of source, tab, target."""

    train_target: Path | None = None
    """The target side of train, line by line."""

    dev_target: Path | None = None
    """The target side of dev."""

    test_target: Path | None = None
    """The target side of test."""

    skip_bad: bool = False
    """Leave pairs out that are not what they should be, and say how many; else the first is an error."""

    source_units: Literal["auto", "subwords", "words", "characters"] = "auto"
    """What a source is cut into; auto: as the benchmark says, subwords for your own files."""

    target_units: Literal["auto", "subwords", "words", "characters"] = "auto"
    """What a target is cut into; auto as for the source."""

    metric: Literal["auto", "bleu", "word-error"] = "auto"
    """How it is scored; auto: as the benchmark says, bleu for your own files."""

    subwords: int = 6000
    """How many subwords of each side, learned from the training part alone."""

    min_count: int = 1
    """How often a word or character must occur in the training part to be known."""

    lowercase: bool = False
    """Whether both sides become small letters; BLEU is then one of small letters, and says so."""

    cell: Literal["lstm", "gru", "rnn_tanh"] = "lstm"
    """The recurrent cell."""

    hidden_size: int = 256
    """Units of each layer and direction."""

    num_layers: int = 1
    """Layers on top of each other, in the encoder and in the decoder."""

    embedding_size: int = 128
    """Numbers a unit, and of the readout."""

    attention: Literal["general", "additive"] = "general"
    """How a place's score is computed."""

    coverage: bool = False
    """Whether the score knows how much attention a place has had; slower."""

    input_feeding: bool = False
    """Whether the decoder reads the readout of the step before; slower."""

    tied: bool = False
    """Whether the scores' weights are the target's embedding."""

    input_dropout: float = 0.2
    """Share of each embedding's numbers dropped, the same ones at every step."""

    layer_dropout: float = 0.3
    """Share of units dropped after each layer, and of the readout's, the same ones at every step."""

    label_smoothing: float = 0.1
    """Share of the probability that the loss spreads over all units (Szegedy et al. 2016)."""

    beam: int = 5
    """Hypotheses that go on at a time when the test part is measured."""

    layers: Literal["unspool", "torch"] = "unspool"
    """Whose recurrent layers train: ours, or torch.nn's on packed sequences, to compare their speed."""

    def __post_init__(self) -> None:
        rules.check(
            self,
            rules.data(self, pairs.BENCHMARKS),
            *(
                (f"{part}_target", f"given only with {part}", getattr(self, part) is not None)
                for part in ("train", "dev", "test")
                if getattr(self, f"{part}_target") is not None
            ),
            rules.one_of(self, "source_units", ("auto", *translator.UNITS)),
            rules.one_of(self, "target_units", ("auto", *translator.UNITS)),
            rules.one_of(self, "metric", ("auto", *translator.METRICS)),
            ("subwords", "300 or more: 256 of them are the bytes", self.subwords >= 300),
            rules.one_of(self, "cell", ("lstm", "gru", "rnn_tanh")),
            rules.one_of(self, "attention", attention.KINDS),
            rules.one_of(self, "layers", layers.WHOSE),
            rules.positive(self, "hidden_size", "num_layers", "embedding_size", "min_count", "beam"),
            rules.shares(self, "input_dropout", "layer_dropout", "label_smoothing"),
        )

    @property
    def resolved(self) -> tuple[str, str, str]:
        """Source units, target units and metric, with every auto decided."""
        own = self.train is not None
        known = pairs.BENCHMARKS[self.data]
        auto = ("subwords", "subwords", "bleu") if own else (*known.units, known.metric)
        given = (self.source_units, self.target_units, self.metric)
        source, target, metric = (a if g == "auto" else g for g, a in zip(given, auto, strict=True))
        return source, target, metric


@dataclasses.dataclass(frozen=True)
class Options(training.Options):
    """How it is trained: the loop's options, with this task's defaults."""

    epochs: int = 10
    """Most passes over the training data."""

    batch_size: int = 64
    """Examples in a batch, over all processes together."""

    learning_rate: float = 2e-3
    """Step size of AdamW, after the warm-up."""

    warmup_steps: int = 200
    """Steps over which the learning rate rises from 0 on a straight line; 0: none."""

    decay: Literal["none", "linear"] = "linear"
    """Whether the learning rate falls on a straight line to 0 over all epochs."""

    patience: int = 0
    """Epochs without a better dev score after which training stops; 0: never."""


# ---- data


def read(config: Config, *, quiet: bool = False) -> pairs.Parts:
    """Read the three parts: a benchmark's, or those of the user's own files.

    Raises:
        DataError, SourceError: a file is not what it should be, or cannot be had.
    """
    if config.train is None:
        return pairs.benchmark(config.data, data_dir=config.data_dir, quiet=quiet)
    parts = []
    for path, target in (
        (config.train, config.train_target),
        (config.dev, config.dev_target),
        (config.test, config.test_target),
    ):
        parts.append(
            [] if path is None else pairs.read_told(path, target, skip_bad=config.skip_bad, quiet=quiet)
        )
    if config.dev is None:
        parts[0], parts[1] = pairs.hold_out(parts[0])
    return pairs.Parts(*parts)


class Data(NamedTuple):
    """Pairs as numbers, one target each."""

    sources: list[NDArray[np.int64]]  # each ends with the end
    targets: list[NDArray[np.int64]]  # each ends with the end
    sizes: NDArray[np.int64]  # (N,) what batches are sorted by: the source's length, then the target's


def numbered(part: Sequence[pairs.Pair], source: Side, target: Side) -> Data:
    """Turn pairs into numbers; a source with several targets becomes several pairs."""
    found = [
        (np.append(source.encode(pair.source), END), np.append(target.encode(text), END))
        for pair in part
        for text in pair.targets
    ]
    most = max((len(t) for _, t in found), default=0) + 1
    sizes = np.array([len(s) * most + len(t) for s, t in found], np.int64)
    return Data([s for s, _ in found], [t for _, t in found], sizes)


class Share(NamedTuple):
    """What one process reads of a batch."""

    sources: Tensor  # (B, S)
    source_lengths: Tensor  # (B,)
    read: Tensor  # (B, T) what the decoder reads: the end, then the target
    follow: Tensor  # (B, T) what is to follow: the target, then the end
    target_lengths: Tensor  # (B,)


def share_of(data: Data, rows: NDArray[np.int64]) -> Share:
    """Pairs padded to the longest of them; no mask depends on how far."""
    sources, source_lengths = translator.padded([data.sources[row] for row in rows])
    follow, target_lengths = translator.padded([data.targets[row] for row in rows])
    read = np.full_like(follow, END)
    read[:, 1:] = follow[:, :-1]
    return Share(
        *(torch.from_numpy(part) for part in (sources, source_lengths, read, follow, target_lengths))
    )


# ---- model


class Attention(nn.Module):
    """What `attention.look` needs, to be learned."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        h, additive = config.hidden_size, config.attention == "additive"
        self.keys = nn.Parameter(nn.init.xavier_uniform_(torch.empty(h, 2 * h)))
        self.query = nn.Parameter(nn.init.xavier_uniform_(torch.empty(h, h))) if additive else None
        self.energy = (
            nn.Parameter(nn.init.uniform_(torch.empty(h), -(h**-0.5), h**-0.5)) if additive else None
        )
        self.coverage = nn.Parameter(torch.zeros(h if additive else 1)) if config.coverage else None

    @property
    def weights(self) -> attention.Weights:
        """The same as `attention.look` takes it."""
        return attention.Weights(self.keys, self.query, self.energy, self.coverage)


class Network(nn.Module):
    """The network in torch; `unspool.Translator` runs the same one from the saved file."""

    def __init__(self, config: Config, sources: int, targets: int) -> None:
        """Build the network with its initial weights: embeddings at N(0, 0.1), layers orthogonal."""
        super().__init__()
        self.config = config
        e, h = config.embedding_size, config.hidden_size
        self.source, self.target = nn.Embedding(sources, e), nn.Embedding(targets, e)
        build = functools.partial(layers.build, config.cell, whose=config.layers)
        self.encoder = nn.ModuleList(
            build(e if k == 0 else 2 * h, h, bidirectional=True) for k in range(config.num_layers)
        )
        first = 2 * e if config.input_feeding else e
        self.decoder = nn.ModuleList(build(first if k == 0 else h, h) for k in range(config.num_layers))
        for module in (*self.encoder, *self.decoder):
            layers.initialise(module, config.cell)
        states = 2 if Cell(config.cell).has_cell_state else 1
        self.bridge = nn.Linear(2 * h, config.num_layers * states * h)
        self.attention = Attention(config)
        self.readout = nn.Linear(3 * h, e)
        self.scores = nn.Linear(e, targets)
        nn.init.zeros_(self.scores.bias)
        for table in (self.source, self.target):
            nn.init.normal_(table.weight, std=0.1)
        if config.tied:
            self.scores.weight = self.target.weight

    def forward(
        self, given: Share, noise: training.Noise | None = None, smoothing: float = 0.0
    ) -> products.Guessed:
        """Guess every target unit of a share, given those before it.

        Args:
            given: the pairs as numbers.
            noise: where dropout masks come from; None: nothing is dropped.
            smoothing: of labels.

        Returns:
            The cross-entropy of the real target steps, summed, and how many were guessed right.
        """
        return products.guess(
            self.read(given, noise), self.scores.weight, self.scores.bias, real_units(given), smoothing
        )

    def read(self, given: Share, noise: training.Noise | None = None) -> Tensor:
        """Read a share: (N, E) the readouts of the real target steps alone, pair after pair."""
        memory, states = self._encode(given, noise)
        embedded = self._drop(self.target(given.read.T), noise, self.config.input_dropout)
        masks = [self._mask(noise, self.config.hidden_size) for _ in self.decoder]
        readout_mask = self._mask(noise, self.config.embedding_size)
        if not self.config.input_feeding and not self.config.coverage:
            read, _, _ = self._decode(embedded, states, memory, masks, readout_mask, None)
        else:
            read = self._step_by_step(embedded, states, memory, masks, readout_mask)
        real = torch.arange(read.size(0), device=read.device) < given.target_lengths.to(read.device)[:, None]
        return read.transpose(0, 1)[real]

    def _encode(self, given: Share, noise: training.Noise | None) -> tuple[attention.Memory, list[Any]]:
        config = self.config
        x = self._drop(self.source(given.sources.T), noise, config.input_dropout)
        for layer in self.encoder:
            x, final = layers.read(layer, x, given.source_lengths)
            x = self._drop(x, noise, config.layer_dropout)
        first = torch.tanh(self.bridge(torch.cat([final[0], final[1]], 1)))
        parts = [part[None].contiguous() for part in torch.split(first, config.hidden_size, 1)]
        states: list[Any] = list(parts)
        if Cell(config.cell).has_cell_state:
            states = [(parts[2 * k], parts[2 * k + 1]) for k in range(config.num_layers)]
        real = torch.arange(len(x), device=x.device)[:, None] < given.source_lengths.to(x.device)
        return attention.Memory(x, products.linear(x, self.attention.keys), real), states

    def _decode(
        self,
        x: Tensor,
        states: list[Any],
        memory: attention.Memory,
        masks: list[Tensor | None],
        readout_mask: Tensor | None,
        covered: Tensor | None,
    ) -> tuple[Tensor, list[Any], Tensor]:
        """Run T steps of the decoder: (T, B, E) readouts, the states after, (T, B, S) attention."""
        after = []
        for layer, state, mask in zip(self.decoder, states, masks, strict=True):
            x, final = layer(x, state)
            after.append(final)
            x = x if mask is None else x * mask
        context, looked = attention.look(x, memory, self.attention.weights, covered)
        both = torch.cat([context, x], 2)
        read = torch.tanh(products.linear(both, self.readout.weight, self.readout.bias))
        return (read if readout_mask is None else read * readout_mask), after, looked

    def _step_by_step(
        self,
        embedded: Tensor,
        states: list[Any],
        memory: attention.Memory,
        masks: list[Tensor | None],
        readout_mask: Tensor | None,
    ) -> Tensor:
        """The same where a step waits for the one before: its readout, its attention, or both."""
        config = self.config
        steps, batch, _ = embedded.shape
        read = embedded.new_zeros(1, batch, config.embedding_size)
        covered = embedded.new_zeros(batch, len(memory.places)) if config.coverage else None
        found = []
        for t in range(steps):
            x = embedded[t : t + 1]
            if config.input_feeding:
                x = torch.cat([x, read], 2)
            read, states, looked = self._decode(x, states, memory, masks, readout_mask, covered)
            covered = None if covered is None else covered + looked[0]
            found.append(read)
        return torch.cat(found)

    def _mask(self, noise: training.Noise | None, size: int) -> Tensor | None:
        share = self.config.layer_dropout
        return noise.keep(share, size) if noise is not None and share else None

    def _drop(self, x: Tensor, noise: training.Noise | None, share: float) -> Tensor:
        return x * noise.keep(share, x.size(2)) if noise is not None and share else x


# ---- loss and score


def real_units(share: Share) -> Tensor:
    """(N,) the target units in the order of `Network.read`'s readouts."""
    real = torch.arange(share.follow.size(1), device=share.follow.device) < share.target_lengths[:, None]
    return share.follow[real]


def loss(config: Config, network: nn.Module, share: Share, noise: training.Noise) -> training.Loss:
    """Cross-entropy of the target units, summed."""
    total = network(share, noise, config.label_smoothing).nats
    units = int(share.target_lengths.sum())
    read = int(share.source_lengths.sum()) + units
    return training.Loss(total, units, tokens=read, places=share.sources.numel() + share.follow.numel())


def score(data: Data, network: nn.Module) -> training.Score:
    """The share of target units guessed right, given those before them; and nats a unit."""
    device = next(network.parameters()).device
    right, total, count = 0, 0.0, 0
    for rows in batches.bucketed(data.sizes, 128, seed=None):
        share = Share(*(part.to(device) for part in share_of(data, rows)))
        found = network(share)
        right += int(found.right)
        total += float(found.nats)
        count += int(share.target_lengths.sum())
    return training.Score(right / max(count, 1), total / max(count, 1))


# ---- the run


def train(config: Config, options: training.Options, output: Path) -> outcome.Outcome | None:
    """Train, keep the best epoch by the dev part, and measure it once on the test part.

    The test part is read by `unspool.Translator`, without torch, from the folder that will be served.

    Args:
        config: what.
        options: how.
        output: the run folder; gets best/, last/, config.toml, metrics.jsonl, and the test part's outputs.

    Raises:
        DataError, SourceError, ConfigError, TrainingError: see there.
        SystemExit: after Ctrl-C or SIGTERM, once last/ is saved.
    """
    quiet = options.quiet or not training.first_rank()
    parts = options.brief(read(config, quiet=quiet))
    source_units, target_units, metric = config.resolved
    learn = functools.partial(
        Side.learn, size=config.subwords, min_count=config.min_count, lowercase=config.lowercase
    )
    source = learn(source_units, [pair.source for pair in parts.train])
    target = learn(target_units, [text for pair in parts.train for text in pair.targets])
    learned, dev = numbered(parts.train, source, target), numbered(parts.dev, source, target)
    with training.seeded(options.seed):
        network = Network(config, len(source.table), len(target.table))
    description = translator.Description(
        task=translator.TASK,
        source_units=source_units,
        target_units=target_units,
        metric=metric,
        cell=Cell(config.cell),
        embedding_size=config.embedding_size,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        attention=config.attention,
        coverage=config.coverage,
        input_feeding=config.input_feeding,
    )
    if not quiet:
        print(
            f"{config.where}: {len(learned.sources):,} pairs to train on, {len(parts.dev):,} dev, "
            f"{len(parts.test):,} test; {len(source.table):,} {source_units} → "
            f"{len(target.table):,} {target_units}",
            file=sys.stderr,
        )
    task = training.Task(
        batches=lambda epoch: batches.bucketed(
            learned.sizes, options.batch_size, seed=options.seed, epoch=epoch
        ),
        share=lambda rows, first, stop: share_of(learned, rows[first:stop]),
        loss=lambda network, share, noise: loss(config, network, share, noise),
        score=lambda network: score(dev, network),
        folder=lambda network, dev_score: outcome.folder(
            training.weights(network),
            description,
            {
                serving.VOCABULARY: source.table,
                translator.TARGET: target.table,
                translator.SOURCE_MERGES: source.merges,
                translator.TARGET_MERGES: target.merges,
            },
            card(description, config, options, dev_score),
        ),
        metric="accuracy",
        kernels=layers.described(config.layers),
    )
    result = training.run(network, task, options, output, options.resolved(translator.TASK, config))
    return _measured(config, parts, result)


def _measured(config: Config, parts: pairs.Parts, result: training.Result) -> outcome.Outcome | None:
    """Measure the best epoch on the test part, without torch, and write the outputs beside it.

    Returns None in every process but the first.
    """
    if not training.first_rank():
        return None
    best, dev = result.best("accuracy")
    part, measured_on = ("test", parts.test) if parts.test else ("dev", parts.dev)
    served = translator.Translator.load(best)
    made = served.translate([pair.source for pair in measured_on], width=config.beam)
    texts = [translation.text for translation in made]
    files.write_file(result.folder / f"predictions-{part}.txt", "".join(f"{t}\n" for t in texts).encode())
    measure = Bleu.of if served.description.metric == "bleu" else WordErrors.of
    found = measure(texts, [pair.targets for pair in measured_on], lowercase=config.lowercase)
    if part == "test":
        outcome.note_test(best, found.in_words)
    example = measured_on[0].source.replace('"', "")
    commands = (
        f'unspool predict {{best}} "{example}"',
        f'unspool inspect {{best}} "{example}"',
        "unspool eval {best} --json",
    )
    return outcome.Outcome(result.folder, best, "accuracy", dev, part, found, commands)


def card(
    description: translator.Description,
    config: Config,
    options: training.Options,
    dev: training.Score | None,
) -> str:
    """The model card: what was trained on what, how well it does, and how it is loaded."""
    d = description
    return f"""---
library_name: unspool
pipeline_tag: translation
---

# Translator of {config.trained_on}: {d.source_units} → {d.target_units}

Encoder and decoder of {d.num_layers} × {d.cell.value} of {d.hidden_size} units, {d.attention} attention
{"with" if d.coverage else "without"} coverage, {"with" if d.input_feeding else "without"} input
feeding; trained on {config.trained_on} with seed {options.seed} by unspool {__version__}.

| part | score |
|---|---|
| dev (chose the epoch) | {"not measured" if dev is None else f"{dev.metric:.2%} of units guessed right"} |

    import unspool
    translator = unspool.Translator.load("this folder")
    translator.translate(["a text"])[0].text

It may leave out or invent what no one said, and knows only the kind of text that it was trained on.
"""
