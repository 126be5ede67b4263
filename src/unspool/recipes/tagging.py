"""Tagging: a label for every word, such as its part of speech, or whether it begins or ends a name.

    word embedding + letters read in both directions → recurrent layers in both directions → CRF

Both contexts are there for a word's label: "the *back* door", "come *back*".  Labels that mark spans are
learned as BIOES, whatever scheme the files use.  Held against: UPOS on UD English EWT 94.4 % (UDPipe 1.2)
and 95.4 % (Stanza 1.0, raw text, with vectors); F1 94.46 on CoNLL-2000 (Huang, Xu and Yu 2015).

    T steps (words)   B sentences   N different words   S letters of a word   K labels   H hidden size
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

from unspool import __version__, crf, files, tagger, training
from unspool import model as serving
from unspool.data import batches, conll, schemes, tagged
from unspool.data import vectors as pretrained
from unspool.data.conll import Sentence
from unspool.errors import DataError
from unspool.kernels.contract import Cell
from unspool.metrics import Accuracy, SpanScore
from unspool.recipes import layers, outcome, pretraining, rules
from unspool.sentences import stretches
from unspool.vocabulary import PAD, UNKNOWN, Vocabulary


@dataclasses.dataclass(frozen=True)
class Config(pretraining.Config):
    """What is trained on, and what is trained."""

    data: str = "turkish-web"
    """A benchmark: turkish-web, turkish-wiki, ewt, conll2000 or wnut17.  Not used where train is given."""

    train: Path | None = None
    """Your own training file: CoNLL-U (.conllu), or columns with a blank line between sentences."""

    column: str = "upos"
    """Which column of CoNLL-U holds the labels: upos, xpos, feats, ….  Other files: the last."""

    skip_bad: bool = False
    """Leave sentences out that are not what they should be, and say how many; else the first is an error."""

    init_from: Path | None = None
    """A language model of words to begin from: its words, cell and sizes hold; its first layer is what reads
    forward in the first one here."""

    cell: Literal["lstm", "gru", "rnn_tanh"] = "lstm"
    """The recurrent cell."""

    hidden_size: int = 200
    """Units of each layer and direction."""

    num_layers: int = 1
    """Layers on top of each other."""

    word_size: int = 100
    """Numbers a word; with pretrained vectors their size holds."""

    letter_size: int = 32
    """Numbers a letter."""

    letter_hidden_size: int = 64
    """Units of each direction that reads a word's letters."""

    vector_words: int = 40_000
    """How many of the most frequent words of the vectors are known besides those of the training text."""

    min_count: int = 2
    """How often a word must occur in the training text to be known."""

    word_dropout: float = 0.15
    """Share of words replaced by the unknown word; their letters stay."""

    input_dropout: float = 0.4
    """Share of each word's numbers dropped, the same ones for all words of a sentence."""

    layer_dropout: float = 0.4
    """Share of units dropped between layers and before the labels, the same ones at every step."""

    recurrent_dropout: float = 0.0
    """Share of units dropped where h enters the recurrent weights, the same ones at every step."""

    layers: Literal["unspool", "torch"] = "unspool"
    """Whose recurrent layers train: ours, or torch.nn's on packed sequences, to compare their speed."""

    def __post_init__(self) -> None:
        own_layers = self.layers == "unspool"
        rules.check(
            self,
            rules.data(self, tagged.BENCHMARKS),
            self.beginnings(),
            rules.one_of(self, "column", conll.COLUMNS[2:]),
            rules.one_of(self, "cell", ("lstm", "gru", "rnn_tanh")),
            rules.one_of(self, "layers", layers.WHOSE),
            ("recurrent_dropout", "0 with layers torch", own_layers or not self.recurrent_dropout),
            ("vector_words", "0 or more", self.vector_words >= 0),
            rules.positive(
                self,
                "hidden_size",
                "num_layers",
                "word_size",
                "letter_size",
                "letter_hidden_size",
                "min_count",
            ),
            rules.shares(self, "word_dropout", "input_dropout", "layer_dropout", "recurrent_dropout"),
        )

    @property
    def format(self) -> conll.Format:
        """The format of the files."""
        return tagged.BENCHMARKS[self.data].format if self.train is None else conll.format_of(self.train)


@dataclasses.dataclass(frozen=True)
class Options(training.Options):
    """How it is trained: the loop's options, with this task's defaults."""

    epochs: int = 20
    """Most passes over the training data."""

    batch_size: int = 32
    """Examples in a batch, over all processes together."""

    learning_rate: float = 2e-3
    """Step size of AdamW, after the warm-up."""

    warmup_steps: int = 100
    """Steps over which the learning rate rises from 0 on a straight line; 0: none."""

    decay: Literal["none", "linear"] = "linear"
    """Whether the learning rate falls on a straight line to 0 over all epochs."""

    clip: float = 5.0
    """Longest gradient (2-norm over all parameters) that is not scaled down; 0: no clipping."""

    patience: int = 0
    """Epochs without a better dev score after which training stops; 0: never."""


# ---- data


class Labels(NamedTuple):
    """How a training file's labels are learned, and handed out again."""

    names: tuple[str, ...]  # as they are learned: BIOES where they mark spans
    scheme: Literal["none", "iob1", "iob2", "bioes"]  # of the file

    def learned(self, sentence: Sentence) -> list[str]:
        """A sentence's labels as they are learned."""
        if self.scheme == "none":
            return list(sentence.labels)
        return schemes.labels_of(schemes.spans(sentence.labels), len(sentence.labels), "bioes")


class Data(NamedTuple):
    """A part of the sentences."""

    sentences: list[Sentence]
    lengths: NDArray[np.int64]  # (N,)
    labels: list[NDArray[np.int64]]  # one row a sentence


def read(config: Config, *, quiet: bool = False) -> tagged.Parts:
    """Read the three parts: a benchmark's, or those of the user's own files.

    Raises:
        DataError, SourceError: a file is not what it should be, or cannot be had.
    """
    if config.train is None:
        return tagged.benchmark(config.data, column=config.column, data_dir=config.data_dir, quiet=quiet)
    parts = [
        [] if path is None else _read_own(path, config, quiet)
        for path in (config.train, config.dev, config.test)
    ]
    if config.dev is None:
        parts[0], parts[1] = tagged.hold_out(parts[0])
    return tagged.Parts(*parts)


def _read_own(path: Path, config: Config, quiet: bool) -> list[Sentence]:
    left_out: list[DataError] = []
    found = conll.read(path, column=config.column, on_bad=left_out.append if config.skip_bad else None)
    if left_out and not quiet:
        print(f"{path}: {len(left_out)} sentences left out; the first: {left_out[0]}", file=sys.stderr)
    return found


def label_set(train: Sequence[Sentence], where: str) -> Labels:
    """The labels that occur, and what they are."""
    seen = [sentence.labels for sentence in train]
    if not schemes.marks_spans(label for labels in seen for label in labels):
        return Labels(tuple(sorted({label for labels in seen for label in labels})), "none")
    kinds = sorted({span.kind for labels in seen for span in schemes.spans(labels)})
    names = (schemes.OUTSIDE, *(f"{prefix}-{kind}" for kind in kinds for prefix in "BIES"))
    return Labels(names, schemes.scheme_of(seen, where))


def numbered(sentences: list[Sentence], labels: Labels) -> Data:
    """Turn labels into numbers; one that training did not see is -1: nothing can be won from it."""
    place = {name: number for number, name in enumerate(labels.names)}
    return Data(
        sentences,
        np.array([len(sentence.words) for sentence in sentences], np.int64),
        [np.array([place.get(name, -1) for name in labels.learned(s)], np.int64) for s in sentences],
    )


def build_vocabulary(
    config: Config, train: Sequence[Sentence], *, quiet: bool = False
) -> tuple[Vocabulary, Vocabulary, NDArray[np.float32] | None]:
    """The words and letters that the tagger will know, and the vectors that some words start from."""
    letters = Vocabulary.build([list(word) for sentence in train for word in sentence.words], lowercase=False)
    words, table = pretrained.vocabulary(
        [[word.lower() for word in sentence.words] for sentence in train],
        config.min_count,
        config.vectors,
        config.vector_words,
        data_dir=config.data_dir,
        quiet=quiet,
    )
    return words, letters, table


# ---- model


class Network(nn.Module):
    """The network in torch; `unspool.Tagger` runs the same one from the saved file."""

    def __init__(
        self,
        config: Config,
        words: int,
        letters: int,
        labels: int,
        vectors: NDArray[np.float32] | None = None,
    ) -> None:
        """Build the network with its initial weights: words at N(0, 0.1) or at their pretrained vector."""
        super().__init__()
        self.config = config
        size = config.word_size if vectors is None else vectors.shape[1]
        self.words = nn.Embedding(words, size, padding_idx=PAD)
        nn.init.normal_(self.words.weight, std=0.1)
        with torch.no_grad():
            self.words.weight[PAD] = 0
            if vectors is not None:
                table = torch.from_numpy(vectors)
                has_one = table.any(1)
                self.words.weight[has_one] = table[has_one]
        self.letters = nn.Embedding(letters, config.letter_size, padding_idx=PAD)
        layer = functools.partial(layers.build, config.cell, bidirectional=True, whose=config.layers)
        self.spelling = layer(config.letter_size, config.letter_hidden_size)
        width = size + 2 * config.letter_hidden_size
        self.layers = nn.ModuleList(
            layer(width if k == 0 else 2 * config.hidden_size, config.hidden_size)
            for k in range(config.num_layers)
        )
        for module in (self.spelling, *self.layers):
            layers.initialise(module, config.cell)
        self.emissions = nn.Linear(2 * config.hidden_size, labels)
        nn.init.zeros_(self.emissions.bias)
        self.transitions = nn.Parameter(torch.zeros(labels, labels))
        self.start = nn.Parameter(torch.zeros(labels))
        self.end = nn.Parameter(torch.zeros(labels))

    @property
    def chain(self) -> crf.Chain:
        """What the CRF knows of its labels."""
        return crf.Chain(self.transitions, self.start, self.end)

    def forward(
        self, given: "Share", noise: training.Noise | None = None, *, score: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Score the labels of a share's sentences.

        Args:
            given: the sentences as numbers.
            noise: where dropout masks come from; None: nothing is dropped.
            score: whether the log-likelihood is wanted too.

        Returns:
            (T, B, K) emissions, and (B,) the log-likelihood of the share's labels, or None.
        """
        config = self.config
        words = given.words
        if noise is not None and config.word_dropout:
            dropped = noise.keep(config.word_dropout, words.size(1)) == 0
            words = torch.where(dropped & (words != PAD), UNKNOWN, words)
        x = torch.cat([self.words(words.T), self._spell(given)[given.spelled.T]], 2)  # (T, B, E + 2H)
        if noise is not None and config.input_dropout:
            x = x * noise.keep(config.input_dropout, x.size(2))
        for k, layer in enumerate(self.layers):
            if k and noise is not None and config.layer_dropout:
                x = x * noise.keep(config.layer_dropout, x.size(2))
            mask = None
            if noise is not None and config.recurrent_dropout:
                mask = noise.keep(config.recurrent_dropout, 2, config.hidden_size).transpose(0, 1)
            x, _ = layers.read(layer, x, given.lengths, mask)
        if noise is not None and config.layer_dropout:
            x = x * noise.keep(config.layer_dropout, x.size(2))
        emissions: Tensor = self.emissions(x)
        if not score:
            return emissions, None
        lengths = given.lengths.to(emissions.device)
        gold = crf.score(emissions, given.labels.T, lengths, self.chain)
        return emissions, gold - crf.log_partition(emissions, lengths, self.chain)

    def _spell(self, given: "Share") -> Tensor:
        """The N words by their letters: the last state of each direction, side by side."""
        lengths = given.letter_lengths
        cuts = [(slice(None), given.letters.size(1))]  # for torch's layers, packed: padding costs nothing
        if self.config.layers == "unspool":
            cuts = list(stretches(lengths.cpu().numpy()))
        ends = []
        for words, longest in cuts:
            x = self.letters(given.letters[words, :longest].T)
            ends.append(layers.read(self.spelling, x, lengths[words])[1])
        return torch.cat(ends, 1).transpose(0, 1).flatten(1)


# ---- loss and score


class Share(NamedTuple):
    """What one process reads of a batch."""

    words: Tensor  # (B, T)
    lengths: Tensor  # (B,)
    letters: Tensor  # (N, S)
    letter_lengths: Tensor  # (N,)
    spelled: Tensor  # (B, T)
    labels: Tensor  # (B, T)


def share_of(data: Data, rows: NDArray[np.int64], vocabulary: Vocabulary, letters: Vocabulary) -> Share:
    """Sentences as numbers, padded to the longest of them."""
    encoded = tagger.encode([data.sentences[row].words for row in rows], vocabulary, letters)
    labels = np.zeros(encoded.words.shape, np.int64)
    for place, row in enumerate(rows):
        labels[place, : data.lengths[row]] = data.labels[row]
    return Share(*(torch.from_numpy(part) for part in (*encoded, labels)))


def loss(network: nn.Module, share: Share, noise: training.Noise) -> training.Loss:
    """The negative log-likelihood, summed over the sentences; its mean is a word's."""
    _, likelihood = network(share, noise)
    tokens = int(share.lengths.sum())
    return training.Loss(-likelihood.sum(), tokens, tokens=tokens, places=share.words.numel())


def score(
    data: Data, labels: Labels, network: nn.Module, words: Vocabulary, letters: Vocabulary
) -> training.Score:
    """F1 of spans, or the share of words whose label is right; and the mean loss of a word."""
    device = next(network.parameters()).device
    answers: list[list[str]] = [[] for _ in data.sentences]
    total = 0.0
    chain: Any = crf.Chain(*(part.detach().cpu().numpy() for part in network.chain))  # type: ignore[union-attr]
    decoded = chain if labels.scheme == "none" else tagger.constrained(chain, labels.names)
    for rows in batches.bucketed(data.lengths, 128, seed=None):
        share = share_of(data, rows, words, letters)
        known = bool((share.labels >= 0).all())
        share = Share(*(part.to(device) for part in share))
        emissions, likelihood = network(share, score=known)
        if known:
            total -= float(likelihood.sum())
        best, _ = crf.viterbi(emissions.cpu().numpy(), data.lengths[rows], decoded)
        for b, row in enumerate(rows):
            answers[row] = [labels.names[number] for number in best[: data.lengths[row], b]]
    measured = measure([labels.learned(s) for s in data.sentences], answers, spans=labels.scheme != "none")
    return training.Score(measured.value, total / max(int(data.lengths.sum()), 1))


def measure(
    gold: Sequence[Sequence[str]], answers: Sequence[Sequence[str]], *, spans: bool
) -> SpanScore | Accuracy:
    """Compare labels: spans by F1, others word by word."""
    if spans:
        return SpanScore.of(answers, gold)
    words = [[label for labels in part for label in labels] for part in (answers, gold)]
    return Accuracy.of(words[0], words[1], unit="words")


# ---- the run

NEXT = (
    'unspool predict {best} "Time flies ."',
    'unspool inspect {best} "Time flies ."',
    "unspool eval {best} --json",
)


def train(config: Config, options: training.Options, output: Path) -> outcome.Outcome | None:
    """Train, keep the best epoch by the dev part, and measure it once on the test part.

    The test part is read by `unspool.Tagger`, without torch, from the folder that will be served.

    Args:
        config: what.
        options: how.
        output: the run folder; gets best/, last/, config.toml, metrics.jsonl, and the test part with the
            predicted labels.

    Raises:
        DataError, SourceError, ConfigError, TrainingError: see there.
        SystemExit: after Ctrl-C or SIGTERM, once last/ is saved.
    """
    quiet = options.quiet or not training.first_rank()
    parts = options.brief(read(config, quiet=quiet))
    labels = label_set(parts.train, config.where)
    begun = None if config.init_from is None else pretraining.load(config.init_from)
    words, letters, vectors = build_vocabulary(config, parts.train, quiet=quiet)
    if begun is not None:
        d = begun.description
        sizes = {"hidden_size": d.hidden_size, "word_size": d.embedding_size}
        config = dataclasses.replace(config, cell=d.cell.value, **sizes)  # type: ignore[arg-type]
        texts = [[word.lower() for word in sentence.words] for sentence in parts.train]
        words = pretraining.vocabulary(begun, texts, config.min_count)
    learned, dev = numbered(parts.train, labels), numbered(parts.dev, labels)
    with training.seeded(options.seed):
        network = Network(config, len(words), len(letters), len(labels.names), vectors)
    groups: Sequence[training.Group] = ()
    if begun is not None:
        pretraining.fill_words(network.words, begun)
        first = [f"layers.0.{name}" for name in pretraining.fill_layer(network.layers[0], begun, 0)]
        old = [first, ["words.weight"]]
        groups = pretraining.groups(network, old, config.rate_ratio, config.unfreeze)
    description = tagger.Description(
        task=tagger.TASK,
        labels=labels.names,
        scheme=labels.scheme,
        format=config.format,
        column=config.column if config.format == "conllu" else "label",
        cell=Cell(config.cell),
        word_size=network.words.embedding_dim,
        letter_size=config.letter_size,
        letter_hidden_size=config.letter_hidden_size,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
    )
    if not quiet:
        counts = ", ".join(
            f"{len(part):,} {name}" for name, part in zip(("dev", "test"), parts[1:], strict=True)
        )
        print(
            f"{config.where}: {len(parts.train):,} sentences to train on "
            f"({int(learned.lengths.sum()):,} words), "
            f"{counts}; {len(labels.names)} labels, scheme {labels.scheme}; {len(words):,} words and "
            f"{len(letters):,} letters known",
            file=sys.stderr,
        )
    metric = "accuracy" if labels.scheme == "none" else "f1"
    task = training.Task(
        batches=lambda epoch: batches.bucketed(
            learned.lengths, options.batch_size, seed=options.seed, epoch=epoch
        ),
        share=lambda rows, first, stop: _of_batch(learned, rows, first, stop, words, letters),
        loss=loss,
        score=lambda network: score(dev, labels, network, words, letters),
        folder=lambda network, dev_score: outcome.folder(
            training.weights(network),
            description,
            {serving.VOCABULARY: words, tagger.LETTERS: letters},
            card(description, config, options, metric, dev_score),
        ),
        metric=metric,
        kernels=layers.described(config.layers),
        groups=groups,
    )
    result = training.run(network, task, options, output, options.resolved(tagger.TASK, config))
    return _measured(parts, result, metric)


def _of_batch(
    data: Data, rows: NDArray[np.int64], first: int, stop: int, words: Vocabulary, letters: Vocabulary
) -> Share:
    """Rows first to stop of a batch, padded as the whole batch is, so that masks are the whole batch's."""
    share = share_of(data, rows[first:stop], words, letters)
    missing = int(data.lengths[rows].max(initial=0)) - share.words.shape[1]
    if not missing:
        return share
    pad = torch.nn.functional.pad
    return share._replace(
        words=pad(share.words, (0, missing), value=PAD),
        spelled=pad(share.spelled, (0, missing)),
        labels=pad(share.labels, (0, missing)),
    )


def card(
    description: tagger.Description,
    config: Config,
    options: training.Options,
    metric: str,
    dev: training.Score | None,
) -> str:
    """The model card: what was trained on what, how well it does, and how it is loaded."""
    shown = ", ".join(description.labels[:12]) + (", …" if len(description.labels) > 12 else "")
    return f"""---
library_name: unspool
pipeline_tag: token-classification
---

# Tagger: {description.column} of {config.trained_on}

{len(description.labels)} labels ({shown}).
Words and their letters ({config.letter_hidden_size} units a direction), {config.num_layers} × {config.cell}
of {config.hidden_size} units in two directions, CRF; trained on {config.trained_on} with seed {options.seed}
by unspool {__version__}.

| part | {metric} |
|---|---|
| dev (chose the epoch) | {"not measured" if dev is None else f"{dev.metric:.4f}"} |

    import unspool
    tagger = unspool.Tagger.load("this folder")
    tagger.predict([["Time", "flies", "."]])

It knows the language and the kind of text that it was trained on, and nothing else.
"""


def _measured(parts: tagged.Parts, result: training.Result, metric: str) -> outcome.Outcome | None:
    """Measure the best epoch on the test part, without torch, and write the labelled sentences beside it.

    Returns None in every process but the first.

    Raises:
        TrainingError: no epoch had a finite score, so there is nothing to measure.
    """
    if not training.first_rank():
        return None
    best, dev = result.best(metric)
    part, sentences = ("test", parts.test) if parts.test else ("dev", parts.dev)
    served = tagger.Tagger.load(best)
    answers = served.predict([sentence.words for sentence in sentences])
    d = served.description
    text = "".join(
        conll.with_labels(sentence, labels, "conllu" if d.format == "conllu" else "columns", column=d.column)
        for sentence, labels in zip(sentences, answers, strict=True)
    )
    ending = "conllu" if d.format == "conllu" else "conll"
    files.write_file(result.folder / f"predictions-{part}.{ending}", text.encode())
    found = measure([s.labels for s in sentences], answers, spans=d.scheme != "none")
    if part == "test":
        outcome.note_test(best, f"{found.value:.4f}")
    return outcome.Outcome(result.folder, best, metric, dev, part, found, NEXT)
