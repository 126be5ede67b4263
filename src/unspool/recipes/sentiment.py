"""Sentiment: which of a few labels a sentence carries; any classification of short texts.

    words → embedding → one or more recurrent layers, one or two directions → pooling → classes

What a bidirectional layer buys is seen by training the same task with --no-bidirectional, and what gates buy
with --cell rnn_tanh.  Held against: 83.5 (SST-2) and 75.9 (MR) for a convolution without pretrained
vectors, and 87.5 (SST-2) for a BiLSTM with 300-d vectors and phrase labels (Kim 2014; Tai et al. 2015).

    T time steps   B batch   E embedding size   H hidden size   D directions   C classes
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from unspool import __version__, files, training
from unspool import model as serving
from unspool.data import batches, readers
from unspool.data import vectors as pretrained
from unspool.data.benchmarks import NAMES as BENCHMARKS
from unspool.data.benchmarks import benchmark
from unspool.errors import DataError
from unspool.kernels.contract import Cell
from unspool.metrics import Accuracy, accuracy
from unspool.recipes import layers, outcome, pretraining, rules
from unspool.vocabulary import PAD, UNKNOWN, Vocabulary, words


@dataclasses.dataclass(frozen=True)
class Config(pretraining.Config):
    """What is trained on, and what is trained."""

    data: str = "rotten-tomatoes"
    """A benchmark: rotten-tomatoes, mr, subj, sst2 or imdb.  Not used where train is given."""

    train: Path | None = None
    """Your own training file: TSV, CSV or JSONL with the columns text and label."""

    text_column: str = "text"
    """The column of your files that holds the text."""

    label_column: str = "label"
    """The column of your files that holds the label."""

    fold: int = 0
    """Which tenth of mr or subj is the test part, 0 to 9."""

    cell: Literal["lstm", "gru", "rnn_tanh", "rnn_relu"] = "lstm"
    """The recurrent cell."""

    bidirectional: bool = True
    """Whether each layer reads in both directions."""

    hidden_size: int = 48
    """Units of each layer and direction."""

    num_layers: int = 1
    """Layers on top of each other."""

    embedding_size: int = 200
    """Numbers a word; with pretrained vectors their size holds."""

    pooling: Literal["max", "mean", "mean-max", "last"] = "max"
    """What becomes of the steps: the largest value of each unit, their mean, both, or the last state."""

    init_from: Path | None = None
    """A language model of words to begin from: its words, weights, cell and sizes hold, one direction."""

    vector_words: int = 40_000
    """How many of the most frequent words of the vectors are known besides those of the training texts."""

    vector_scale: float = 0.3
    """What the vectors are multiplied by."""

    min_count: int = 2
    """How often a word must occur in the training texts to be known."""

    max_length: int = 400
    """Words after which a text is cut."""

    word_dropout: float = 0.2
    """Share of words replaced by the unknown word."""

    embedding_dropout: float = 0.4
    """Share of the embedding's numbers dropped, the same ones for all words of a text."""

    layer_dropout: float = 0.3
    """Share of units dropped between layers, the same ones at every step."""

    recurrent_dropout: float = 0.0
    """Share of units dropped where h enters the recurrent weights, the same ones at every step."""

    output_dropout: float = 0.5
    """Share of the pooled vector dropped before the classes."""

    label_smoothing: float = 0.0
    """How much of each label's certainty is spread over the others."""

    layers: Literal["unspool", "torch"] = "unspool"
    """Whose recurrent layers train: ours, or torch.nn's on packed sequences, to compare their speed."""

    def __post_init__(self) -> None:
        own_layers = self.layers == "unspool"
        rules.check(
            self,
            rules.data(self, BENCHMARKS),
            ("fold", "0 to 9", 0 <= self.fold <= 9),
            rules.one_of(self, "cell", layers.CELLS),
            rules.one_of(self, "pooling", serving.POOLINGS),
            rules.one_of(self, "layers", layers.WHOSE),
            ("recurrent_dropout", "0 with layers torch", own_layers or not self.recurrent_dropout),
            self.beginnings(),
            ("vector_words", "0 or more", self.vector_words >= 0),
            ("vector_scale", "above 0", self.vector_scale > 0),
            ("label_smoothing", "0 to 1", 0 <= self.label_smoothing <= 1),
            rules.positive(self, "hidden_size", "num_layers", "embedding_size", "min_count", "max_length"),
            rules.shares(
                self,
                "word_dropout",
                "embedding_dropout",
                "layer_dropout",
                "recurrent_dropout",
                "output_dropout",
            ),
        )


@dataclasses.dataclass(frozen=True)
class Options(training.Options):
    """How it is trained: the loop's options, with this task's defaults."""

    epochs: int = 6
    """Most passes over the training data."""

    learning_rate: float = 2e-3
    """Step size of AdamW, after the warm-up."""

    warmup_steps: int = 100
    """Steps over which the learning rate rises from 0 on a straight line; 0: none."""

    decay: Literal["none", "linear"] = "linear"
    """Whether the learning rate falls on a straight line to 0 over all epochs."""

    patience: int = 0
    """Epochs without a better dev score after which training stops; 0: never."""


# ---- data


class Data(NamedTuple):
    """A part of the examples as numbers."""

    sequences: list[NDArray[np.int64]]
    lengths: NDArray[np.int64]  # (N,)
    labels: NDArray[np.int64]  # (N,)
    cut: int  # texts longer than max_length


def read(config: Config, *, quiet: bool = False) -> readers.Splits:
    """Read the three parts: a benchmark's, or those of the user's own files.

    Raises:
        DataError, SourceError: a file is not what it should be, or cannot be had.
    """
    if config.train is None:
        return benchmark(config.data, fold=config.fold, data_dir=config.data_dir, quiet=quiet)
    columns = {"text_column": config.text_column, "label_column": config.label_column}
    train = readers.read(config.train, **columns)
    readers.check_training(train, str(config.train))
    known = {example.label for example in train}
    dev = None if config.dev is None else readers.read(config.dev, **columns, labels=known)
    if dev is None:
        train, dev = readers.hold_out(train)
        _check_held_out(config.train, train, dev)
    test = [] if config.test is None else readers.read(config.test, **columns, labels=known)
    return readers.Splits(train, dev, test)


def _check_held_out(path: Path, train: list[readers.Example], dev: list[readers.Example]) -> None:
    """Refuse a file too small for a tenth of it to be held out."""
    unseen = sorted({example.label for example in dev} - {example.label for example in train})
    if dev and not unseen:
        readers.check_training(train, f"{path} without the tenth held out for dev")
        return
    fault = f"the label {unseen[0]!r:.60} stands in that tenth alone" if unseen else "there is nothing in it"
    raise DataError(
        f"{path}: a tenth cannot be held out for dev: {fault}.\n"
        f"  Received: {len(train) + len(dev):,} examples.\n"
        f"  Fix: give more examples, or a dev file with --dev."
    )


def encode(
    examples: Sequence[readers.Example],
    vocabulary: Vocabulary,
    labels: Sequence[str],
    max_length: int,
) -> Data:
    """Turn examples into numbers, long texts cut."""
    place = {label: i for i, label in enumerate(labels)}
    split = [words(example.text, lowercase=vocabulary.lowercase) for example in examples]
    sequences = [vocabulary.encode(text[:max_length]) for text in split]
    return Data(
        sequences,
        np.array([len(s) for s in sequences], np.int64),
        np.array([place[example.label] for example in examples], np.int64),
        sum(len(text) > max_length for text in split),
    )


def build_vocabulary(
    config: Config, train: Sequence[readers.Example], *, quiet: bool = False
) -> tuple[Vocabulary, NDArray[np.float32] | None]:
    """The words that the model will know, and the vectors that some of them start from."""
    return pretrained.vocabulary(
        [words(example.text) for example in train],
        config.min_count,
        config.vectors,
        config.vector_words,
        data_dir=config.data_dir,
        quiet=quiet,
    )


# ---- model


class Network(nn.Module):
    """The network in torch; `unspool.Model` runs the same one from the saved file."""

    def __init__(
        self,
        config: Config,
        vocabulary_size: int,
        classes: int,
        vectors: NDArray[np.float32] | None = None,
    ) -> None:
        """Build the network with its initial weights.

        Recurrent weights start orthogonal, input weights by Glorot, biases at 0 but the forget gate's at 1
        (Jozefowicz et al. 2015); words at N(0, 0.1), or at their pretrained vector.
        """
        super().__init__()
        self.config = config
        size = config.embedding_size if vectors is None else vectors.shape[1]
        self.embedding = nn.Embedding(vocabulary_size, size, padding_idx=PAD)
        nn.init.normal_(self.embedding.weight, std=0.1)
        with torch.no_grad():
            self.embedding.weight[PAD] = 0
            if vectors is not None:
                table = torch.from_numpy(vectors) * config.vector_scale
                has_one = table.any(1)
                self.embedding.weight[has_one] = table[has_one]
        directions = 2 if config.bidirectional else 1
        self.layers = nn.ModuleList(
            layers.build(
                config.cell,
                size if k == 0 else config.hidden_size * directions,
                config.hidden_size,
                bidirectional=config.bidirectional,
                whose=config.layers,
            )
            for k in range(config.num_layers)
        )
        for layer in self.layers:
            layers.initialise(layer, config.cell)
        pooled = config.hidden_size * directions * (2 if config.pooling == "mean-max" else 1)
        self.classifier = nn.Linear(pooled, classes)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, tokens: Tensor, lengths: Tensor, noise: training.Noise | None = None) -> Tensor:
        """Score the classes.

        Args:
            tokens: (B, T) word numbers.
            lengths: (B,) real words of each text.
            noise: where dropout masks come from; None: nothing is dropped.

        Returns:
            (B, C) logits.
        """
        config = self.config
        if noise is not None and config.word_dropout:
            dropped = noise.keep(config.word_dropout, tokens.size(1)) == 0
            tokens = torch.where(dropped & (tokens != PAD), UNKNOWN, tokens)
        x = self.embedding(tokens.T)  # (T, B, E)
        if noise is not None and config.embedding_dropout:
            x = x * noise.keep(config.embedding_dropout, x.size(2))
        directions = 2 if config.bidirectional else 1
        x = layers.read_all(self.layers, x, lengths, config, noise, directions=directions)
        pooled = pool(x, lengths, config.pooling, config.hidden_size)
        if noise is not None and config.output_dropout:
            pooled = pooled * noise.keep(config.output_dropout, pooled.size(1))
        logits: Tensor = self.classifier(pooled)
        return logits


def pool(x: Tensor, lengths: Tensor, pooling: str, hidden_size: int) -> Tensor:
    """Reduce (T, B, D·H) over the real steps; the torch half of `unspool.model.pool`."""
    steps, batch, width = x.shape
    if steps == 0:
        return x.new_zeros(batch, 2 * width if pooling == "mean-max" else width)
    lengths = lengths.to(x.device)
    some = (lengths > 0).unsqueeze(1)
    parts = []
    if pooling in ("mean", "mean-max"):
        parts.append(x.sum(0) / lengths.clamp(min=1).unsqueeze(1))
    if pooling in ("max", "mean-max"):
        past = torch.arange(steps, device=x.device).unsqueeze(1) >= lengths
        most = x.masked_fill(past.unsqueeze(2), -torch.inf).amax(0)
        parts.append(torch.where(some, most, 0.0))
    if pooling == "last":
        last = x[(lengths - 1).clamp(min=0), torch.arange(batch, device=x.device)]
        parts.append(torch.where(some, torch.cat([last[:, :hidden_size], x[0, :, hidden_size:]], 1), 0.0))
    return torch.cat(parts, 1)


# ---- loss and score


class Share(NamedTuple):
    """What one process reads of a batch."""

    tokens: Tensor  # (B, T)
    lengths: Tensor  # (B,)
    labels: Tensor  # (B,)


def share_of(data: Data, positions: NDArray[np.int64], first: int, stop: int) -> Share:
    """Rows first to stop of a batch, padded as the whole batch is."""
    batch = batches.collate(data.sequences, data.labels, positions)
    return Share(*(torch.from_numpy(part[first:stop]) for part in batch[:3]))


def loss(config: Config, network: nn.Module, share: Share, noise: training.Noise) -> training.Loss:
    """Cross-entropy, summed over the rows."""
    logits = network(share.tokens, share.lengths, noise)
    total = F.cross_entropy(logits, share.labels, reduction="sum", label_smoothing=config.label_smoothing)
    return training.Loss(
        total, len(share.labels), tokens=int(share.lengths.sum()), places=share.tokens.numel()
    )


def score(data: Data, network: nn.Module) -> training.Score:
    """Accuracy and mean cross-entropy."""
    device = next(network.parameters()).device
    predicted = np.empty(len(data.labels), np.int64)
    total = 0.0
    for positions in batches.bucketed(data.lengths, 256, seed=None):
        share = share_of(data, positions, 0, len(positions))
        logits = network(share.tokens.to(device), share.lengths)
        total += float(F.cross_entropy(logits, share.labels.to(device), reduction="sum"))
        predicted[positions] = logits.argmax(1).cpu().numpy()
    return training.Score(accuracy(predicted, data.labels), total / len(data.labels))


# ---- the run

NEXT = (
    'unspool predict {best} "a quietly moving film"',
    'unspool inspect {best} "The movie was terribly exciting!" -o gates.html',
    "unspool eval {best} --json",
)


def train(config: Config, options: training.Options, output: Path) -> outcome.Outcome | None:
    """Train, keep the best epoch by the dev part, and measure it once on the test part.

    The test part is read by `unspool.Model`, without torch, from the folder that will be served.

    Args:
        config: what.
        options: how.
        output: the run folder; gets best/, last/, config.toml, metrics.jsonl, predictions-test.jsonl.

    Raises:
        DataError, SourceError, ConfigError, TrainingError: see there.
        SystemExit: after Ctrl-C or SIGTERM, once last/ is saved.
    """
    quiet = options.quiet or not training.first_rank()
    splits = options.brief(read(config, quiet=quiet))
    labels = tuple(sorted({example.label for example in splits.train}))
    begun = None if config.init_from is None else pretraining.load(config.init_from)
    if begun is None:
        vocabulary, vectors = build_vocabulary(config, splits.train, quiet=quiet)
    else:
        config, vectors = pretraining.shaped(config, begun), None
        texts = [words(example.text) for example in splits.train]
        vocabulary = pretraining.vocabulary(begun, texts, config.min_count)
    parts = [encode(part, vocabulary, labels, config.max_length) for part in splits]
    with training.seeded(options.seed):
        network = Network(config, len(vocabulary), len(labels), vectors)
    groups: Sequence[training.Group] = ()
    if begun is not None:
        pretraining.fill_words(network.embedding, begun)
        old = [["embedding.weight"]]
        for k, layer in enumerate(network.layers):
            old.insert(0, [f"layers.{k}.{name}" for name in pretraining.fill_layer(layer, begun, k)])
        groups = pretraining.groups(network, old, config.rate_ratio, config.unfreeze)
    description = serving.Description(
        task="sentiment",
        labels=labels,
        cell=Cell(config.cell),
        embedding_size=network.embedding.embedding_dim,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        bidirectional=config.bidirectional,
        pooling=config.pooling,
        max_length=config.max_length,
    )
    if not quiet:
        say_data(config, parts, vocabulary, options.batch_size)

    task = training.Task(
        batches=lambda epoch: batches.bucketed(
            parts[0].lengths, options.batch_size, seed=options.seed, epoch=epoch
        ),
        share=lambda positions, first, stop: share_of(parts[0], positions, first, stop),
        loss=lambda network, share, noise: loss(config, network, share, noise),
        score=lambda network: score(parts[1], network),
        folder=lambda network, dev: folder_parts(network, description, vocabulary, config, options, dev),
        kernels=layers.described(config.layers),
        groups=groups,
    )
    result = training.run(network, task, options, output, options.resolved("sentiment", config))
    return measure(splits, result)


def say_data(config: Config, parts: Sequence[Data], vocabulary: Vocabulary, batch_size: int) -> None:
    """Say on stderr what is trained on."""
    train, dev, test = parts
    order = batches.bucketed(train.lengths, batch_size, seed=0)
    unknown = sum(int((s == UNKNOWN).sum()) for s in dev.sequences) / max(int(dev.lengths.sum()), 1)
    print(
        f"{config.where}: {len(train.labels):,} texts to train on, "
        f"{len(dev.labels):,} dev, {len(test.labels):,} test; "
        f"{len(vocabulary):,} words known ({unknown:.1%} of dev's are not); "
        f"padding {batches.padding_share(train.lengths, order):.1%}",
        file=sys.stderr,
    )
    for name, part in zip(("train", "dev", "test"), parts, strict=True):
        if part.cut:
            print(f"{part.cut:,} {name} texts are cut at {config.max_length} words", file=sys.stderr)


def folder_parts(
    network: nn.Module,
    description: serving.Description,
    vocabulary: Vocabulary,
    config: Config,
    options: training.Options,
    dev: training.Score | None,
) -> dict[str, bytes]:
    """The files of a model folder."""
    measured = "" if dev is None else f"{dev.metric:.4f}"
    text = card(description, config, options, measured)
    return outcome.folder(training.weights(network), description, {serving.VOCABULARY: vocabulary}, text)


def card(
    description: serving.Description, config: Config, options: training.Options, dev_accuracy: str
) -> str:
    """The model card: what was trained on what, how well it does, and how it is loaded."""
    reading = "two directions" if config.bidirectional else "one direction"
    return f"""---
library_name: unspool
pipeline_tag: text-classification
---

# Sentiment: {" or ".join(description.labels)}

{config.num_layers} × {config.cell} of {config.hidden_size} units, {reading}, {config.pooling} pooling,
trained on {config.trained_on} with seed {options.seed} by unspool {__version__}.

| part | accuracy |
|---|---|
| dev (chose the epoch) | {dev_accuracy or "not measured"} |

    import unspool
    model = unspool.Model.load("this folder")
    model.predict(["a quietly moving film"])

Texts are read up to {description.max_length} words.  It knows the kind of text that it was trained on,
and nothing else.
"""


def measure(splits: readers.Splits, result: training.Result) -> outcome.Outcome | None:
    """Measure the best epoch on the test part, without torch, and write the answers beside it.

    Returns None in every process but the first.

    Raises:
        TrainingError: no epoch had a finite score, so there is nothing to measure.
    """
    if not training.first_rank():
        return None
    best, dev = result.best("accuracy")
    part, examples = ("test", splits.test) if splits.test else ("dev", splits.dev)
    model = serving.Model.load(best)
    answers = model.predict([example.text for example in examples])
    lines = [
        json.dumps({**answer, "gold": example.label}, ensure_ascii=False)
        for answer, example in zip(answers, examples, strict=True)
    ]
    files.write_file(result.folder / f"predictions-{part}.jsonl", ("\n".join(lines) + "\n").encode())
    measured = Accuracy.of([answer["label"] for answer in answers], [e.label for e in examples])
    if part == "test":
        outcome.note_test(best, f"{measured.value:.4f} ({measured.interval_text})")
    return outcome.Outcome(result.folder, best, "accuracy", dev, part, measured, NEXT)
