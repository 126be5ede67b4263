"""Tagging: a label for every word, such as its part of speech, or whether it begins or ends a name.

    word embedding + pretrained vector + how it is written + other columns + letters read in both directions
        → layers in both directions → CRF

Both contexts are there for a word's label: "the *back* door", "come *back*".  Labels that mark spans are
learned as BIOES, whatever scheme the files use.  Held against: UPOS on UD English EWT 94.4 % (UDPipe 1.2)
and 95.4 % (Stanza 1.0, raw text, with vectors); F1 94.46 on CoNLL-2000 (Huang, Xu and Yu 2015).

    T steps (words)   B sentences   K labels   H hidden size
"""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unspool import __version__, crf, files, tagger, training
from unspool.data import batches, conll, schemes, tagged
from unspool.data.conll import Sentence
from unspool.kernels.contract import Cell
from unspool.metrics import Accuracy, SpanScore
from unspool.recipes import layers, outcome, pretraining, reader, rules
from unspool.recipes.chain import log_likelihood
from unspool.sentences import Tables, written

# What may be taken from the score of standing outside of all spans.
_OUTSIDE = tuple(0.5 * step for step in range(9))


@dataclasses.dataclass(frozen=True)
class Config(pretraining.Config):
    """What is trained on, and what is trained."""

    data: str = "turkish-web"
    """A benchmark: turkish-web, turkish-wiki, ewt, conll2000, conll2000-whole, wnut17 or wnut17-train-dev.
    Not used where train is given."""

    train: Path | None = None
    """Your own training file: CoNLL-U (.conllu), or columns with a blank line between sentences."""

    column: str = "upos"
    """Which column of CoNLL-U holds the labels: upos, xpos, feats, ….  Other files: the last."""

    features: str = ""
    """Other columns that are read of each word, with commas between: of CoNLL-U by name, such as upos,feats;
    of other files by place, 2 the second.  What is tagged later needs them too."""

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
    """Numbers a word that are learned."""

    shape_size: int = 8
    """Numbers for how a word is written: in small letters, capitals, with digits; 0: that is not read."""

    feature_size: int = 32
    """Numbers for what stands in each of the other columns that are read."""

    letter_size: int = 32
    """Numbers a letter."""

    letter_hidden_size: int = 64
    """Units of each direction that reads a word's letters."""

    vectors: str | None = None
    """Pretrained word vectors, read beside the learned ones and left as they are: glove-50d, or a file in
    GloVe's text format."""

    vector_words: int = 400_000
    """How many of the most frequent words of the vectors are known besides those of the training text."""

    min_count: int = 2
    """How often a word must occur in the training text to be known."""

    word_dropout: float = 0.15
    """Share of words replaced by the unknown word; their letters and pretrained vectors stay."""

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
            self._readable(),
            ("vector_words", "0 or more", self.vector_words >= 0),
            ("shape_size", "0 or more", self.shape_size >= 0),
            rules.positive(
                self,
                "hidden_size",
                "num_layers",
                "word_size",
                "feature_size",
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

    @property
    def columns(self) -> tuple[str, ...]:
        """The other columns that are read."""
        return tuple(self.features.split(",")) if self.features else ()

    def _readable(self) -> Iterator[rules.Rule]:
        """The rule of `features`, once the data are known to be there."""
        names, told = self.columns, "places of columns, from 2 on"
        sound = all(map(conll.PLACE.fullmatch, names))
        if self.format == "conllu":
            others = [name for name in conll.COLUMNS[2:] if name != self.column]
            sound, told = set(names) <= set(others), ", ".join(others)
        yield "features", f"{told}; each once, with commas between", sound and len(set(names)) == len(names)


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
        return tagged.benchmark(
            config.data,
            column=config.column,
            features=config.columns,
            data_dir=config.data_dir,
            quiet=quiet,
        )
    parts = [
        []
        if path is None
        else tagged.read(
            path, column=config.column, features=config.columns, skip_bad=config.skip_bad, quiet=quiet
        )
        for path in (config.train, config.dev, config.test)
    ]
    if config.dev is None:
        parts[0], parts[1] = tagged.hold_out(parts[0])
    return tagged.Parts(*parts)


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


# ---- model


class Network(reader.Reader):
    """The network in torch; `unspool.Tagger` runs the same one from the saved file."""

    def __init__(self, config: Config, words: reader.Words, labels: int) -> None:
        """Build the network with its initial weights."""
        super().__init__(config, words, config.shape_size, config.feature_size)
        self.emissions = nn.Linear(2 * config.hidden_size, labels)
        nn.init.zeros_(self.emissions.bias)
        self.transitions = nn.Parameter(torch.zeros(labels, labels))
        self.start = nn.Parameter(torch.zeros(labels))
        self.end = nn.Parameter(torch.zeros(labels))
        # Not learned: `score` chooses it on the dev part.
        self.outside: Tensor
        self.register_buffer("outside", torch.zeros(1))

    @property
    def chain(self) -> crf.Chain:
        """What the CRF knows of its labels."""
        return crf.Chain(self.transitions, self.start, self.end)

    def forward(
        self, given: reader.Given, labels: Tensor | None, noise: training.Noise | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Score the labels of a share's sentences.

        Args:
            given: the sentences as numbers.
            labels: (B, T) whose log-likelihood is wanted too, or None.
            noise: where dropout masks come from; None: nothing is dropped.

        Returns:
            (T, B, K) emissions, and (B,) the log-likelihood of the labels, or None.
        """
        emissions: Tensor = self.emissions(self.read(given, noise))
        if labels is None:
            return emissions, None
        return emissions, log_likelihood(emissions, labels.T, given.lengths, self.chain)


# ---- loss and score


class Share(NamedTuple):
    """What one process reads of a batch."""

    given: reader.Given
    labels: Tensor  # (B, T); 0 past each length


def share_of(data: Data, rows: NDArray[np.int64], tables: Tables, steps: int = 0) -> Share:
    """Sentences as numbers, padded to `steps` words, or to the longest of them."""
    given = reader.encode([data.sentences[row] for row in rows], tables, steps)
    labels = np.zeros(given.words.shape, np.int64)
    for place, row in enumerate(rows):
        labels[place, : data.lengths[row]] = data.labels[row]
    return Share(given, torch.from_numpy(labels))


def loss(network: nn.Module, share: Share, noise: training.Noise) -> training.Loss:
    """The negative log-likelihood, summed over the sentences; its mean is a word's."""
    _, likelihood = network(share.given, share.labels, noise)
    tokens = int(share.given.lengths.sum())
    return training.Loss(-likelihood.sum(), tokens, tokens=tokens, places=share.given.words.numel())


def score(data: Data, labels: Labels, network: nn.Module, tables: Tables) -> training.Score:
    """F1 of spans, or the share of words whose label is right; and the mean loss of a word.

    Likelihood knows nothing of F1: where a tagger meets names that training did not have, it finds too few.
    What is taken from the score of standing outside of all spans is therefore chosen here, the number
    with the best F1, and kept in the network.
    """
    device = next(network.parameters()).device
    total = 0.0
    scored = []
    for rows in batches.bucketed(data.lengths, 128, seed=None):
        share = share_of(data, rows, tables)
        known = bool((share.labels >= 0).all())
        given = reader.Given(*(part.to(device) for part in share.given))
        emissions, likelihood = network(given, share.labels.to(device) if known else None)
        if known:
            total -= float(likelihood.sum())
        scored.append((rows, emissions.cpu().numpy()))
    chain: Any = crf.Chain(*(part.detach().cpu().numpy() for part in network.chain))  # type: ignore[union-attr]
    gold = [labels.learned(sentence) for sentence in data.sentences]
    spans = labels.scheme != "none"
    best, chosen, since = -1.0, 0.0, 0
    for outside in _OUTSIDE if spans else (0.0,):
        decoded = tagger.constrained(chain, labels.names, outside) if spans else chain
        value = measure(gold, decode(data, labels, scored, decoded), spans=spans).value
        since += 1
        if value > best:
            best, chosen, since = value, outside, 0
        elif since == 2:
            break
    network.outside.fill_(chosen)  # type: ignore[operator]
    return training.Score(best, total / max(int(data.lengths.sum()), 1))


def decode(
    data: Data,
    labels: Labels,
    scored: Sequence[tuple[NDArray[np.int64], NDArray[np.float32]]],
    chain: crf.Chain,
) -> list[list[str]]:
    """The best labels of each sentence; `scored` holds the emissions of some rows each."""
    answers: list[list[str]] = [[] for _ in data.sentences]
    for rows, emissions in scored:
        best, _ = crf.viterbi(emissions, data.lengths[rows], chain)
        for b, row in enumerate(rows):
            answers[row] = [labels.names[number] for number in best[: data.lengths[row], b]]
    return answers


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
    words = reader.known(config, parts.train, columns=config.columns, quiet=quiet)
    if begun is not None:
        d = begun.description
        sizes = {"hidden_size": d.hidden_size, "word_size": d.embedding_size}
        config = dataclasses.replace(config, cell=d.cell.value, **sizes)  # type: ignore[arg-type]
        texts = [[word.lower() for word in sentence.words] for sentence in parts.train]
        known = pretraining.vocabulary(begun, texts, config.min_count)
        words = words._replace(tables=words.tables._replace(words=known))
    tables = words.tables
    learned, dev = numbered(parts.train, labels), numbered(parts.dev, labels)
    with training.seeded(options.seed):
        network = Network(config, words, len(labels.names))
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
        word_size=config.word_size,
        vector_size=words.vectors.shape[1],
        shape_size=config.shape_size,
        letter_size=config.letter_size,
        letter_hidden_size=config.letter_hidden_size,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        features=config.columns,
        feature_size=config.feature_size if config.columns else 0,
    )
    if not quiet:
        counts = ", ".join(
            f"{len(part):,} {name}" for name, part in zip(("dev", "test"), parts[1:], strict=True)
        )
        print(
            f"{config.where}: {len(parts.train):,} sentences to train on "
            f"({int(learned.lengths.sum()):,} words), "
            f"{counts}; {len(labels.names)} labels, scheme {labels.scheme}; {len(tables.words):,} words, "
            f"{len(tables.vectors) - 2:,} vectors and {len(tables.letters):,} letters known",
            file=sys.stderr,
        )
    metric = "accuracy" if labels.scheme == "none" else "f1"
    task = training.Task(
        batches=lambda epoch: batches.bucketed(
            learned.lengths, options.batch_size, seed=options.seed, epoch=epoch
        ),
        # Padded as the whole batch is, so that masks are the whole batch's.
        share=lambda rows, first, stop: share_of(
            learned, rows[first:stop], tables, int(learned.lengths[rows].max(initial=0))
        ),
        loss=loss,
        score=lambda network: score(dev, labels, network, tables),
        folder=lambda network, dev_score: outcome.folder(
            training.weights(network),
            description,
            tables.files(),
            card(description, config, options, metric, dev_score),
        ),
        metric=metric,
        kernels=layers.described(config.layers),
        groups=groups,
    )
    result = training.run(network, task, options, output, options.resolved(tagger.TASK, config))
    return _measured(parts, result, metric)


def card(
    description: tagger.Description,
    config: Config,
    options: training.Options,
    metric: str,
    dev: training.Score | None,
) -> str:
    """The model card: what was trained on what, how well it does, and how it is loaded."""
    shown = ", ".join(description.labels[:12]) + (", …" if len(description.labels) > 12 else "")
    other = ""
    learned = config.train is None and config.data == tagged.WHOLE
    of = "learned from too" if learned else "chose the epoch"
    words = '"Time", "flies", "."'
    if config.columns:
        words = ", ".join(f'("{word}"{", …" * len(config.columns)})' for word in ("Time", "flies", "."))
        columns = " and ".join(f"column {name}" for name in config.columns)
        written = "/".join(["word", *(f"<{name}>" for name in config.columns)])
        other = f"It reads {columns} of each word too, which must be given with it; in a text as {written}.\n"
    return f"""---
library_name: unspool
pipeline_tag: token-classification
---

# Tagger: {description.column} of {config.trained_on}

{len(description.labels)} labels ({shown}).
Words and their letters ({config.letter_hidden_size} units a direction), {config.num_layers} × {config.cell}
of {config.hidden_size} units in two directions, CRF; trained on {config.trained_on} with seed {options.seed}
by unspool {__version__}.
{other}
| part | {metric} |
|---|---|
| dev ({of}) | {"not measured" if dev is None else f"{dev.metric:.4f}"} |

    import unspool
    tagger = unspool.Tagger.load("this folder")
    tagger.predict([[{words}]])

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
    answers = served.predict([sentence.given for sentence in sentences])
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
    text = " ".join(written(word, d.features) for word in ("Time", "flies", "."))
    commands = tuple(command.replace("Time flies .", text) for command in NEXT)
    return outcome.Outcome(result.folder, best, metric, dev, part, found, commands)
