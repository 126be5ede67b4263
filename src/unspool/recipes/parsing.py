"""Parsing: the head of every word, and how it is related to it: the dependency tree of a sentence.

    words + letters (+ pretrained vectors) → layers in both directions → arcs, relations → one tree

Deep biaffine attention (Dozat and Manning 2017): every word is scored as the head of every other, and the
best tree with one root is taken.  Held against: UD English EWT, gold tokens, UAS 84.4 and LAS 81.1 with
predicted tags (UDPipe 1.2); from raw text 86.2 and 83.6 (Stanza 1.0, with vectors).  Here no tags are read;
they can be learned beside the tree.

    T steps (words)   B sentences   K relations   G tags   A, R sizes of arcs, relations   H hidden size
"""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from unspool import __version__, files, parser, training, trees
from unspool.data import batches, dependencies, tagged
from unspool.data.conll import Sentence
from unspool.errors import DataError
from unspool.kernels.contract import Cell
from unspool.metrics import ArcScore
from unspool.recipes import layers, outcome, products, reader, rules
from unspool.sentences import Tables
from unspool.trees import Tree

_WORDS = 128  # whose relations are scored at a time
_BENCHMARKS = tuple(name for name, found in tagged.BENCHMARKS.items() if found.format == "conllu")


@dataclasses.dataclass(frozen=True)
class Config(rules.Data):
    """What is trained on, and what is trained."""

    data: str = "turkish-web"
    """A benchmark: turkish-web, turkish-wiki or ewt.  Not used where train is given."""

    train: Path | None = None
    """Your own training file: CoNLL-U, in a file that ends in .conllu, possibly compressed."""

    tags: Literal["none", "upos", "xpos"] = "none"
    """Whether tags are learned beside the tree, and which."""

    skip_bad: bool = False
    """Leave sentences out that are not what they should be, and say how many; else the first is an error."""

    max_length: int = 200
    """Words of the longest sentence that is trained on; longer ones are left out, and counted."""

    cell: Literal["lstm", "gru", "rnn_tanh"] = "lstm"
    """The recurrent cell."""

    hidden_size: int = 256
    """Units of each layer and direction."""

    num_layers: int = 3
    """Layers on top of each other."""

    word_size: int = 100
    """Numbers a word that are learned."""

    letter_size: int = 32
    """Numbers a letter."""

    letter_hidden_size: int = 64
    """Units of each direction that reads a word's letters."""

    arc_size: int = 256
    """Numbers that a word, and a head, has when arcs are scored."""

    relation_size: int = 100
    """Numbers that a word, and a head, has when relations are scored."""

    vectors: str | None = None
    """Pretrained word vectors, read beside the learned ones and left as they are: glove-50d, or a file in
    GloVe's text format."""

    vector_words: int = 400_000
    """How many of the most frequent words of the vectors are known besides those of the training text."""

    min_count: int = 2
    """How often a word must occur in the training text to be known."""

    word_dropout: float = 0.2
    """Share of words replaced by the unknown word; their letters and pretrained vectors stay."""

    input_dropout: float = 0.33
    """Share of each word's numbers dropped, the same ones for all words of a sentence."""

    layer_dropout: float = 0.33
    """Share of units dropped between layers and after each, the same ones at every step."""

    recurrent_dropout: float = 0.2
    """Share of units dropped where h enters the recurrent weights, the same ones at every step."""

    score_dropout: float = 0.33
    """Share of numbers dropped before arcs and relations are scored, the same ones for a whole sentence."""

    layers: Literal["unspool", "torch"] = "unspool"
    """Whose recurrent layers train: ours, or torch.nn's on packed sequences, to compare their speed."""

    def __post_init__(self) -> None:
        own_layers = self.layers == "unspool"
        rules.check(
            self,
            rules.data(self, _BENCHMARKS),
            rules.one_of(self, "tags", parser.TAG_COLUMNS),
            rules.one_of(self, "cell", ("lstm", "gru", "rnn_tanh")),
            rules.one_of(self, "layers", layers.WHOSE),
            ("recurrent_dropout", "0 with layers torch", own_layers or not self.recurrent_dropout),
            ("vector_words", "0 or more", self.vector_words >= 0),
            rules.positive(
                self,
                "max_length",
                "hidden_size",
                "num_layers",
                "word_size",
                "letter_size",
                "letter_hidden_size",
                "arc_size",
                "relation_size",
                "min_count",
            ),
            rules.shares(
                self, "word_dropout", "input_dropout", "layer_dropout", "recurrent_dropout", "score_dropout"
            ),
        )


@dataclasses.dataclass(frozen=True)
class Options(training.Options):
    """How it is trained: the loop's options, with this task's defaults."""

    epochs: int = 15
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


class Names(NamedTuple):
    """What relations and tags are called."""

    relations: tuple[str, ...]
    root: str  # the relation that the root's word has, and no other; "": not one alone
    tags: tuple[str, ...]


class Data(NamedTuple):
    """A part of the sentences; a name that training did not see is -1."""

    sentences: list[Sentence]
    trees: list[Tree]
    lengths: NDArray[np.int64]  # (N,)
    rows: list[NDArray[np.int64]]  # of each sentence (3, n): heads, relations, tags


def read(config: Config, *, quiet: bool = False) -> tagged.Parts:
    """Read the three parts: a benchmark's, or those of the user's own files.

    Raises:
        DataError, SourceError: a file is not what it should be, or cannot be had.
    """
    if config.train is None:
        return tagged.benchmark(config.data, column="deprel", data_dir=config.data_dir, quiet=quiet)
    parts = [
        [] if path is None else dependencies.read(path, skip_bad=config.skip_bad, quiet=quiet)
        for path in (config.train, config.dev, config.test)
    ]
    if config.dev is None:
        parts[0], parts[1] = tagged.hold_out(parts[0])
    return tagged.Parts(*parts)


def short_enough(config: Config, train: list[Sentence], *, quiet: bool = False) -> list[Sentence]:
    """The sentences that are trained on: scores of arcs grow with the square of a sentence's length.

    Raises:
        DataError: none is short enough.
    """
    kept = [sentence for sentence in train if len(sentence.words) <= config.max_length]
    if not kept:
        raise DataError(
            f"every training sentence is longer than {config.max_length} words.\n"
            f"  Fix: a larger --max-length, or shorter sentences."
        )
    if len(kept) < len(train) and not quiet:
        print(
            f"{len(train) - len(kept)} sentences of more than {config.max_length} words are not trained on "
            f"(--max-length)",
            file=sys.stderr,
        )
    return kept


def names_of(config: Config, train: Sequence[Sentence]) -> Names:
    """The relations and tags that occur, and the relation of the root if it has one to itself."""
    found = [dependencies.tree_of(sentence) for sentence in train]
    pairs = {(head == 0, kind) for tree in found for head, kind in zip(*tree[:2], strict=True)}
    of_root = [kind for root, kind in pairs if root]
    alone = len(of_root) == 1 and (False, of_root[0]) not in pairs
    tags: set[str] = set()
    if config.tags != "none":
        tags = {tag for sentence in train for tag in dependencies.tags_of(sentence, config.tags)}
    return Names(tuple(sorted({kind for _, kind in pairs})), of_root[0] if alone else "", tuple(sorted(tags)))


def numbered(config: Config, sentences: list[Sentence], names: Names) -> Data:
    """Turn relations and tags into numbers; one that training did not see is -1."""
    relations, tags = ({name: at for at, name in enumerate(part)} for part in (names.relations, names.tags))
    found = [dependencies.tree_of(sentence) for sentence in sentences]
    rows = []
    for sentence, tree in zip(sentences, found, strict=True):
        words = dependencies.tags_of(sentence, config.tags) if names.tags else ("",) * len(tree.heads)
        kinds = [relations.get(name, -1) for name in tree.relations]
        rows.append(np.array([tree.heads, kinds, [tags.get(tag, -1) for tag in words]], np.int64))
    return Data(sentences, found, np.array([len(tree.heads) for tree in found], np.int64), rows)


# ---- model


class Scores(NamedTuple):
    """What the network says of a share's sentences; scores of heads past a sentence's end are -inf."""

    arcs: Tensor  # (B, T, T + 1)
    heads: Tensor  # (B, T) those that were given, or the best
    relations: Tensor  # (B, T, K) of each word to its head
    tags: Tensor  # (B, T, G)


class Network(reader.Reader):
    """The network in torch; `unspool.Parser` runs the same one from the saved file."""

    def __init__(self, config: Config, words: reader.Words, names: Names) -> None:
        """Build the network with its initial weights; what multiplies a word with a head starts at 0."""
        super().__init__(config, words)
        width = 2 * config.hidden_size
        self.root = nn.Parameter(0.1 * torch.randn(width))
        for name, size in parser.SIDES:
            layer = nn.Linear(width, getattr(config, size))
            nn.init.orthogonal_(layer.weight)
            nn.init.zeros_(layer.bias)
            setattr(self, name, layer)
        self.arcs = nn.Parameter(torch.zeros(config.arc_size + 1, config.arc_size))
        wide = config.relation_size + 1
        self.relations = nn.Parameter(torch.zeros(len(names.relations), wide, wide))
        self.tag_scores = nn.Linear(width, len(names.tags)) if names.tags else None

    def forward(
        self, given: reader.Given, heads: Tensor | None, noise: training.Noise | None = None
    ) -> Scores:
        """Score a share's arcs, its relations to these heads, and its tags.

        Args:
            given: the sentences as numbers.
            heads: (B, T) 0 the root, else from 1; any number past a length.  None: to the best heads, of
                trees with one root.
            noise: where dropout masks come from; None: nothing is dropped.
        """
        states = self.read(given, noise).transpose(0, 1).contiguous()  # (B, T, 2·H)
        batch, steps, width = states.shape
        with_root = torch.cat([self.root.expand(batch, 1, width), states], 1)
        views = {
            name: self._view(name, with_root if "head" in name else states, noise) for name, _ in parser.SIDES
        }
        arcs = products.linear(_with_one(views["arc_word"]), self.arcs.T) @ views["arc_head"].transpose(1, 2)
        past = torch.arange(steps + 1, device=arcs.device) > given.lengths.to(arcs.device)[:, None]
        arcs = arcs.masked_fill(past[:, None], -torch.inf)
        if heads is None:
            heads = _best_heads(arcs, given.lengths)
        rows = torch.arange(batch, device=arcs.device)[:, None]
        chosen = _with_one(views["relation_head"])[rows, heads]  # (B, T, R + 1)
        relations = self._to_heads(_with_one(views["relation_word"]), chosen)
        tags = states.new_zeros(batch, steps, 0) if self.tag_scores is None else self.tag_scores(states)
        return Scores(arcs, heads, relations, tags)

    def _to_heads(self, words: Tensor, heads: Tensor) -> Tensor:
        """Score each word's relations to its head, (B, T, R + 1) both: (B, T, K)."""
        kinds, _, wide = self.relations.shape
        weight = self.relations.transpose(1, 2).reshape(-1, wide)
        # What a word asks of all kinds is K times as large as the word: some at a time stay in the cache.
        parts = zip(*(torch.split(x.flatten(0, 1), _WORDS) for x in (words, heads)), strict=True)
        scores = [
            (products.linear(word, weight).view(-1, kinds, wide) * head[:, None]).sum(2)
            for word, head in parts
        ]
        return torch.cat(scores).view(*words.shape[:2], kinds)

    def _view(self, name: str, states: Tensor, noise: training.Noise | None) -> Tensor:
        """A layer on the words' states, as one side of a product reads them."""
        layer = getattr(self, name)
        x = F.leaky_relu(products.linear(states, layer.weight, layer.bias), parser.LEAK)
        p = self.config.score_dropout
        return x if noise is None or not p else x * noise.keep(p, x.size(2))[:, None]


def _best_heads(arcs: Tensor, lengths: Tensor) -> Tensor:
    """The heads of the best trees, 0 past each length: (B, T)."""
    heads = np.zeros(arcs.shape[:2], np.int64)
    for row, scores, n in zip(heads, arcs.detach().cpu().numpy(), lengths.tolist(), strict=True):
        row[:n] = trees.best(scores[:n, : n + 1])
    return torch.from_numpy(heads).to(arcs.device)


def _with_one(x: Tensor) -> Tensor:
    return F.pad(x, (0, 1), value=1.0)


# ---- loss and score


class Share(NamedTuple):
    """What one process reads of a batch."""

    given: reader.Given
    heads: Tensor  # (B, T); -1 past each length
    relations: Tensor  # (B, T); -1 there, and where training did not see the relation
    tags: Tensor  # (B, T) likewise


def share_of(data: Data, rows: NDArray[np.int64], tables: Tables, steps: int = 0) -> Share:
    """Sentences as numbers, padded to `steps` words, or to the longest of them."""
    given = reader.encode([data.sentences[row] for row in rows], tables, steps)
    gold = np.full((3, *given.words.shape), -1, np.int64)
    for place, row in enumerate(rows):
        gold[:, place, : data.lengths[row]] = data.rows[row]
    return Share(given, *map(torch.from_numpy, gold))


def cross_entropy(scores: Scores, share: Share) -> Tensor:
    """The negative log-likelihood of heads, relations and tags, summed over the words."""
    total = scores.arcs.new_zeros(())
    parts = [(scores.arcs, share.heads), (scores.relations, share.relations)]
    if scores.tags.size(2):
        parts.append((scores.tags, share.tags))
    for found, gold in parts:
        flat = found.flatten(0, 1), gold.flatten()
        total = total + F.cross_entropy(*flat, ignore_index=-1, reduction="sum")
    return total


def loss(network: nn.Module, share: Share, noise: training.Noise) -> training.Loss:
    """The cross-entropies, summed over the words; their mean is a word's."""
    scores = network(share.given, share.heads.clamp(min=0), noise)
    words = int(share.given.lengths.sum())
    return training.Loss(cross_entropy(scores, share), words, tokens=words, places=share.given.words.numel())


def parsed(
    data: Data, description: parser.Description, network: nn.Module, tables: Tables
) -> Iterator[tuple[NDArray[np.int64], list[Tree], Share, Scores]]:
    """Parse with the network in torch, a batch at a time, the longest sentences first.

    Yields:
        The places of a batch's sentences, their trees, and what was read and scored.
    """
    device = next(network.parameters()).device
    for rows in parser.batched(data.lengths, 64):
        share = share_of(data, rows, tables)
        given = reader.Given(*(part.to(device) for part in share.given))
        scores = Scores(*(part.cpu() for part in network(given, None)))
        found = []
        for b, n in enumerate(data.lengths[rows]):
            heads = scores.heads[b, :n].numpy()
            kinds = parser.best_relations(scores.relations[b, :n].numpy(), heads, description)
            found.append(Tree(tuple(heads.tolist()), tuple(description.relations[kind] for kind in kinds)))
        yield rows, found, share, scores


def score(data: Data, description: parser.Description, network: nn.Module, tables: Tables) -> training.Score:
    """LAS of the best trees; and the mean loss of a word, of relations to the predicted heads."""
    answers: list[Tree] = [Tree((), ())] * len(data.sentences)
    total = 0.0
    for rows, found, share, scores in parsed(data, description, network, tables):
        total += float(cross_entropy(scores, share))
        for row, tree in zip(rows, found, strict=True):
            answers[row] = tree
    measured = ArcScore.of(answers, data.trees)
    return training.Score(measured.value, total / max(int(data.lengths.sum()), 1))


# ---- the run

NEXT = (
    'unspool predict {best} "Time flies ."',
    'unspool inspect {best} "Time flies ."',
    "unspool eval {best} --json",
)


def train(config: Config, options: training.Options, output: Path) -> outcome.Outcome | None:
    """Train, keep the best epoch by the dev part, and measure it once on the test part.

    The test part is read by `unspool.Parser`, without torch, from the folder that will be served.

    Args:
        config: what.
        options: how.
        output: the run folder; gets best/, last/, config.toml, metrics.jsonl, and the test part with the
            predicted trees.

    Raises:
        DataError, SourceError, ConfigError, TrainingError: see there.
        SystemExit: after Ctrl-C or SIGTERM, once last/ is saved.
    """
    quiet = options.quiet or not training.first_rank()
    parts = options.brief(read(config, quiet=quiet))
    parts = parts._replace(train=short_enough(config, parts.train, quiet=quiet))
    names = names_of(config, parts.train)
    words = reader.known(config, parts.train, quiet=quiet)
    tables = words.tables
    learned, dev = (numbered(config, part, names) for part in parts[:2])
    with training.seeded(options.seed):
        network = Network(config, words, names)
    description = description_of(config, words, names)
    if not quiet:
        counts = ", ".join(
            f"{len(part):,} {name}" for name, part in zip(("dev", "test"), parts[1:], strict=True)
        )
        print(
            f"{config.where}: {len(parts.train):,} sentences to train on "
            f"({int(learned.lengths.sum()):,} words), "
            f"{counts}; {len(names.relations)} relations, {len(names.tags)} tags; "
            f"{len(tables.words):,} words and {len(tables.letters):,} letters known, "
            f"{len(tables.vectors) - 2:,} vectors",
            file=sys.stderr,
        )
    task = training.Task(
        batches=lambda epoch: batches.bucketed(
            learned.lengths, options.batch_size, seed=options.seed, epoch=epoch
        ),
        # Padded as the whole batch is, so that masks are the whole batch's.
        share=lambda rows, first, stop: share_of(
            learned, rows[first:stop], tables, int(learned.lengths[rows].max(initial=0))
        ),
        loss=loss,
        score=lambda network: score(dev, description, network, tables),
        folder=lambda network, dev_score: outcome.folder(
            training.weights(network),
            description,
            tables.files(),
            card(description, config, options, dev_score),
        ),
        metric="las",
        kernels=layers.described(config.layers),
    )
    result = training.run(network, task, options, output, options.resolved(parser.TASK, config))
    return _measured(parts, result)


def description_of(config: Config, words: reader.Words, names: Names) -> parser.Description:
    """What the network is, as its folder says it."""
    return parser.Description(
        task=parser.TASK,
        relations=names.relations,
        root=names.root,
        tag_column=config.tags,
        tags=names.tags,
        cell=Cell(config.cell),
        word_size=config.word_size,
        vector_size=words.vectors.shape[1],
        letter_size=config.letter_size,
        letter_hidden_size=config.letter_hidden_size,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        arc_size=config.arc_size,
        relation_size=config.relation_size,
    )


def card(
    description: parser.Description,
    config: Config,
    options: training.Options,
    dev: training.Score | None,
) -> str:
    """The model card: what was trained on what, how well it does, and how it is loaded."""
    vectors = "" if config.vectors is None else f", vectors {Path(config.vectors).name} as they are"
    beside = "" if config.tags == "none" else f"; {len(description.tags)} tags ({config.tags}) beside it"
    return f"""---
library_name: unspool
pipeline_tag: token-classification
---

# Dependency parser of {config.trained_on}

{len(description.relations)} relations{beside}.
Words, their letters ({config.letter_hidden_size} units a direction){vectors}; {config.num_layers} ×
{config.cell} of {config.hidden_size} units in two directions; biaffine scores of arcs ({config.arc_size})
and relations ({config.relation_size}); the best tree with one root.
Trained on {config.trained_on} with seed {options.seed} by unspool {__version__}.

| part | LAS |
|---|---|
| dev (chose the epoch) | {"not measured" if dev is None else f"{dev.metric:.4f}"} |

    import unspool
    parser = unspool.Parser.load("this folder")
    parser.predict([["Time", "flies", "."]])

It knows the language and the kind of text that it was trained on, and nothing else.
"""


def _measured(parts: tagged.Parts, result: training.Result) -> outcome.Outcome | None:
    """Measure the best epoch on the test part, without torch, and write the parsed sentences beside it.

    Returns None in every process but the first.

    Raises:
        TrainingError: no epoch had a finite score, so there is nothing to measure.
    """
    if not training.first_rank():
        return None
    best, dev = result.best("las")
    part, sentences = ("test", parts.test) if parts.test else ("dev", parts.dev)
    served = parser.Parser.load(best)
    answers = served.predict([sentence.words for sentence in sentences])
    column = served.description.tag_column
    text = "".join(
        dependencies.with_tree(sentence, tree, tag_column=column)
        for sentence, tree in zip(sentences, answers, strict=True)
    )
    files.write_file(result.folder / f"predictions-{part}.conllu", text.encode())
    found = ArcScore.of(answers, [dependencies.tree_of(sentence) for sentence in sentences])
    if part == "test":
        outcome.note_test(best, f"{found.value:.4f} (UAS {found.uas:.4f}, CLAS {found.clas:.4f})")
    return outcome.Outcome(result.folder, best, "las", dev, part, found, NEXT)
