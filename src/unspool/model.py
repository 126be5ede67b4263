"""A trained network without torch: the file it is served from, and its answers from NumPy alone.

A model folder holds `config.json` (numbers and enumerations only), `model.safetensors` (torch's keys),
`vocab.json`, a `README.md` for people, and the digests of all of them.  The network is

    words → embedding → layers (each one or two directions) → pooling over the real steps → classes

Knows no training, no torch and no drawing; what happens inside a run is recorded by `introspect`.

    T time steps   B batch   E embedding size   H hidden size   D directions   C classes
"""

import dataclasses
import math
import os
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from unspool import files
from unspool.errors import ConfigError, InputError, KernelsError, ModelFileError
from unspool.kernels import choose, load
from unspool.kernels.checks import check_precision
from unspool.kernels.contract import Cell, Kernels, State, Trace, Weights
from unspool.stack import Parameters
from unspool.vocabulary import PAD, Vocabulary, words

if TYPE_CHECKING:
    from unspool.stream import Stream

FORMAT = "unspool-model"
FORMAT_VERSION = 1
OPTIONS_VERSION = 2  # of a network whose layers have more than the plain cell
CONFIG = "config.json"
VOCABULARY = "vocab.json"
CARD = "README.md"
POOLINGS = ("max", "mean", "mean-max", "last")

_SUFFIXES = ("_l0", "_l0_reverse")  # of a direction each
_CONFIG_FIELDS = {"format", "format_version", "unspool_version", "network", "tensor_sha256"}
# So that a hostile file cannot ask for a list of tensors that fills the memory.
_MOST = {
    "embedding_size": 1_000_000,
    "hidden_size": 1_000_000,
    "num_layers": 1_000,
    "max_length": 1_000_000_000,
}

D = TypeVar("D")
M = TypeVar("M")
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


class Described:
    """A description, a frozen dataclass, that config.json holds."""

    def as_config(self) -> dict[str, Any]:
        """The description as it stands in config.json."""
        return as_config(self)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Check and build what `as_config` wrote.

        Raises:
            ConfigError: a field is absent, unknown, of another type, or out of range.
        """
        return described(cls, config)


@dataclasses.dataclass(frozen=True)
class Description(Described):
    """What a network is, apart from its numbers.

    Raises:
        ConfigError: a field is out of its range.
    """

    task: str
    labels: tuple[str, ...]
    cell: Cell
    embedding_size: int
    hidden_size: int
    num_layers: int
    bidirectional: bool
    pooling: str
    max_length: int  # words; longer texts are read up to here
    # What the layers have beyond the plain cell; the file names what they have, and nothing else of it.
    proj_size: int = 0  # P; 0: no projection
    layer_norm: bool = False
    peephole: bool = False
    cell_clip: float = 0.0  # bounds the cell state; 0: nothing is bounded
    zoneout_hidden: float = 0.0  # the share of h, and of c, that is kept from the step before
    zoneout_cell: float = 0.0

    def __post_init__(self) -> None:
        if not re.fullmatch("[a-z][a-z0-9_-]*", self.task):
            raise ConfigError(f"task should be a plain name.\n  Received: {self.task!r:.60}.")
        in_range(self, _MOST, {"pooling": POOLINGS})
        self._check_options()
        sound = all(map(printable, self.labels)) and len(set(self.labels)) == len(self.labels)
        if not sound or len(self.labels) < 2:
            raise ConfigError(
                f"labels should be two or more different names.\n  Received: {list(self.labels)!r:.200}."
            )

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def pooled_size(self) -> int:
        """How wide the pooled vector is that the classes are read from."""
        return self.output_size * self.directions * (2 if self.pooling == "mean-max" else 1)

    @property
    def output_size(self) -> int:
        """How wide a hidden state is: P with a projection, else H."""
        return self.proj_size or self.hidden_size

    @property
    def options(self) -> tuple[str, ...]:
        """What the layers have beyond the plain cell, by the fields' names."""
        return tuple(name for name in _OPTIONS if getattr(self, name))

    def _check_options(self) -> None:
        for name in self.options:
            if name in _OF_LSTM and not self.cell.has_cell_state:
                raise ConfigError(f"{name} belongs to an lstm.\n  Received: {name} of a {self.cell.value}.")
        if not 0 <= self.proj_size < self.hidden_size:
            raise ConfigError(
                f"proj_size should be below hidden_size = {self.hidden_size}, or 0.\n"
                f"  Received: {self.proj_size!r:.60}."
            )
        if not isinstance(self.cell_clip, float) or not 0 <= self.cell_clip < math.inf:
            raise ConfigError(
                f"cell_clip should be a finite number above 0, or 0.\n  Received: {self.cell_clip!r:.60}."
            )
        for name in ("zoneout_hidden", "zoneout_cell"):
            if not isinstance(getattr(self, name), float) or not 0 <= getattr(self, name) < 1:
                raise ConfigError(
                    f"{name} should lie between 0 and below 1.\n  Received: {getattr(self, name)!r:.60}."
                )


_OPTIONS = tuple(
    field.name for field in dataclasses.fields(Description) if field.default is not dataclasses.MISSING
)
_OF_LSTM = ("proj_size", "peephole", "cell_clip", "zoneout_cell")


class Encoded(NamedTuple):
    """Texts as numbers, padded to the longest."""

    tokens: Ints  # (B, T), PAD past each length
    lengths: Ints  # (B,)


class Model:
    """A trained network, served with NumPy and the kernels alone.

        model = unspool.Model.load("runs/demo/best")
        model.predict(["a quietly moving film"])
        # [{"text": "a quietly moving film", "label": "fresh", "score": 0.96}]

    Weights are packed once, on loading.  A model holds no state between calls, so several threads may
    share one.
    """

    def __init__(
        self,
        description: Description,
        vocabulary: Vocabulary,
        tensors: Mapping[str, NDArray[Any]],
        *,
        kernels: str = "auto",
        precision: str = "float32",
    ) -> None:
        """Build a model from its parts; `load` builds one from a folder.

        Args:
            description, vocabulary: what the network is and which words it knows.
            tensors: every parameter by torch's key, as `shapes` lists them.
            kernels: "auto", "native" or "reference".
            precision: "float32", "bfloat16" (weights and inputs of the layers' products rounded) or "int8"
                (recurrent weights rounded; not for rnn_relu).

        Raises:
            InputError: a tensor is absent, too many, of another shape or dtype.
        """
        expected = shapes(description, len(vocabulary))
        check_tensors(expected, tensors)
        self.description = description
        self.vocabulary = vocabulary
        self.tensors = tensors
        self.embedding: Floats = tensors["embedding.weight"]
        self.class_weights: Floats = tensors["classifier.weight"]  # (C, pooled)
        self.class_bias: Floats = tensors["classifier.bias"]  # (C,)
        self.kernels: Kernels = choose("float32") if kernels == "auto" else load(kernels)
        self.weights = [
            layer_weights(description.cell, description.directions, tensors, f"layers.{k}.")
            for k in range(description.num_layers)
        ]
        self.precision = precision
        self.zoneout = (description.zoneout_hidden, description.zoneout_cell)
        self.layers = [
            self.kernels.prepare(
                description.cell, weights, cell_clip=description.cell_clip or None, precision=precision
            )
            for weights in self.weights
        ]

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str], *, kernels: str = "auto", precision: str = "float32"
    ) -> "Model":
        """Load a model folder, such as RUN/best; every byte of it is verified.

        The file stays float32; `precision`, see `Model`, is what it runs in.

        Raises:
            InputError: the network does not run in this precision.
            ModelFileError: the folder is absent, incomplete, damaged, or of another format version.
        """

        def build(description: Description, tables: list[Vocabulary], tensors: Mapping[str, Any]) -> "Model":
            return cls(description, tables[0], tensors, kernels=kernels, precision=precision)

        return read_model(
            folder,
            Description.from_config,
            (VOCABULARY,),
            build,
            check=lambda d: check_precision(precision, d.cell, d.options),
        )

    def __repr__(self) -> str:
        d = self.description
        reading = "two directions" if d.bidirectional else "one direction"
        return (
            f"Model({d.task}: {len(self.vocabulary)} words × {d.embedding_size}, {d.num_layers} × "
            f"{d.cell.value} of {d.hidden_size}{''.join(f', {name}' for name in d.options)}, {reading}, "
            f"{d.pooling} pooling, "
            f"{'/'.join(d.labels)}, kernels={self.kernels.describe()}"
            f"{'' if self.precision == 'float32' else f', {self.precision}'})"
        )

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Turn texts into padded word numbers, each text cut at `max_length` words.

        Raises:
            InputError: not a list of texts.
        """
        _check_texts(texts)
        known = [
            self.vocabulary.encode(
                words(text, lowercase=self.vocabulary.lowercase)[: self.description.max_length]
            )
            for text in texts
        ]
        lengths = np.array([len(ids) for ids in known], np.int64)
        tokens = np.full((len(known), int(lengths.max(initial=0))), PAD, np.int64)
        for row, ids in zip(tokens, known, strict=True):
            row[: len(ids)] = ids
        return Encoded(tokens, lengths)

    def embed(self, tokens: Ints) -> Floats:
        """Look words up: (B, T) numbers to (T, B, E), the form that layers read."""
        return np.ascontiguousarray(self.embedding[tokens.T])

    def run(self, x: Floats, lengths: Ints) -> Floats:
        """Run all layers over (T, B, E): the top layer's hidden states (T, B, D, H)."""
        shares = mean_zoneout(self, x)
        for prepared in self.layers:
            hidden, _ = self.kernels.infer(prepared, x, lengths=lengths, zoneout=shares)
            x = side_by_side(hidden)
        return hidden  # type: ignore[no-any-return]

    def stream(self, rows: int = 1) -> "Stream":
        """Make a running state of `rows` streams through the layers; they read word vectors, (rows, E).

        Raises:
            InputError: the layers read in both directions, or rows is below 1.
            KernelsError: the model does not run the native kernels.
        """
        if self.kernels is not load("native"):
            raise KernelsError(
                "A stream runs the native kernels alone.\n"
                f"  Received: a model on {self.kernels.describe()}.\n"
                f'  Fix: Model.load(folder, kernels="native").'
            )
        from unspool.stream import Stream  # here: it loads the engine, which this module can do without

        return Stream(self.layers, rows, zoneout=self.zoneout)

    def traced(self, x: Floats, lengths: Ints) -> list[Trace]:
        """Run all layers over (T, B, E) and keep every layer's trace."""
        return traced(self.kernels, self.layers, x, lengths, mean_zoneout(self, x))

    def read_out(self, hidden: Floats, lengths: Ints) -> Floats:
        """Pool (T, B, D, H) over the real steps and score the classes: (B, C) logits."""
        pooled = pool(hidden, lengths, self.description.pooling)
        # Not a matrix product: BLAS orders its sums by the size of the batch.
        return (pooled[:, None] * self.class_weights).sum(2) + self.class_bias  # type: ignore[no-any-return]

    def logits(self, encoded: Encoded) -> Floats:
        """Score the classes of encoded texts: (B, C)."""
        return self.read_out(self.run(self.embed(encoded.tokens), encoded.lengths), encoded.lengths)

    def predict(self, inputs: Sequence[str], *, batch_size: int = 64) -> list[dict[str, Any]]:
        """Label texts.

        Args:
            inputs: raw texts.
            batch_size: how many run together; no answer depends on it.

        Returns:
            One {"text", "label", "score"} a text, in the order given; score is the label's
            probability.  A text without a word has label and score None.

        Raises:
            InputError: not a list of texts, or a batch_size below 1.
        """
        _check_texts(inputs)
        if batch_size < 1:
            raise InputError(f"batch_size should be 1 or more.\n  Received: {batch_size}.")
        answers: list[dict[str, Any]] = []
        for at in range(0, len(inputs), batch_size):
            texts = list(inputs[at : at + batch_size])
            encoded = self.encode(texts)
            probabilities = softmax(self.logits(encoded))
            for text, length, row in zip(texts, encoded.lengths, probabilities, strict=True):
                best = int(row.argmax())
                label = self.description.labels[best] if length else None
                answers.append({"text": text, "label": label, "score": float(row[best]) if length else None})
        return answers


def task_of(folder: str | os.PathLike[str]) -> str:
    """Say what a model folder is for, such as "sentiment"; "" where its config.json does not say.

    Verifies nothing: whoever loads the folder does.
    """
    try:
        config = files.parse_json((Path(folder) / CONFIG).read_bytes(), CONFIG)
        return str(config["network"]["task"])
    except (OSError, ModelFileError, KeyError, TypeError):
        return ""


def described(cls: type[D], config: Mapping[str, Any]) -> D:
    """Build a frozen dataclass of plain fields, a `Cell` and tuples of names from what a config.json holds.

    Raises:
        ConfigError: a field is absent, unknown, of another type, or out of range.
    """
    fields = typing.get_type_hints(cls)
    known: Any = cls
    optional = {field.name for field in dataclasses.fields(known) if field.default is not dataclasses.MISSING}
    if not set(fields) - optional <= set(config) <= set(fields):
        raise ConfigError(
            f"the network's description has other fields than it should.\n"
            f"  Received: {', '.join(sorted(config)):.300}.\n  Expected: {', '.join(sorted(fields))}."
        )
    values: dict[str, Any] = {}
    for name, value in config.items():
        kind = fields[name]
        wanted: Any = str if kind is Cell else list if typing.get_origin(kind) is tuple else kind
        if type(value) is not wanted:
            raise ConfigError(f"{name} should be of type {wanted.__name__}.\n  Received: {value!r:.200}.")
        if kind is Cell and value not in [cell.value for cell in Cell]:
            raise ConfigError(
                f"{name} should be one of {', '.join(cell.value for cell in Cell)}.\n"
                f"  Received: {value!r:.60}."
            )
        values[name] = Cell(value) if kind is Cell else tuple(value) if wanted is list else value
    return cls(**values)


def in_range(description: Any, most: Mapping[str, int], allowed: Mapping[str, Sequence[str]]) -> None:
    """Check that sizes of a description lie between 1 and their most, and that names are among those allowed.

    Raises:
        ConfigError: one is not.
    """
    for name, size in most.items():
        value = getattr(description, name)
        if not 1 <= value <= size:
            raise ConfigError(f"{name} should lie between 1 and {size:,}.\n  Received: {value!r:.60}.")
    for name, names in allowed.items():
        value = getattr(description, name)
        if value not in names:
            raise ConfigError(f"{name} should be one of {', '.join(names)}.\n  Received: {value!r:.60}.")


def as_config(description: Any) -> dict[str, Any]:
    """The opposite of `described`: a description as it stands in config.json; what it has not is left out."""
    values = {
        field.name: value
        for field in dataclasses.fields(description)
        if (value := getattr(description, field.name)) != field.default
    }
    return {
        name: value.value if isinstance(value, Cell) else list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
    }


def shapes(description: Description, vocabulary_size: int) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter, by torch's key."""
    d = description
    expected: dict[str, tuple[int, ...]] = {"embedding.weight": (vocabulary_size, d.embedding_size)}
    for k in range(d.num_layers):
        width = d.embedding_size if k == 0 else d.output_size * d.directions
        prefix = f"layers.{k}."
        expected |= layer_shapes(d.cell, d.directions, width, d.hidden_size, prefix, d.output_size)
        expected |= _option_shapes(d, prefix)
    classes = len(d.labels)
    return {**expected, "classifier.weight": (classes, d.pooled_size), "classifier.bias": (classes,)}


def layer_shapes(
    cell: Cell,
    directions: int,
    input_size: int,
    hidden_size: int,
    prefix: str,
    output_size: int | None = None,
) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of a layer, by torch's key behind a prefix; `output_size` is P."""
    rows = len(cell.gates) * hidden_size
    expected: dict[str, tuple[int, ...]] = {}
    for suffix in _SUFFIXES[:directions]:
        expected |= {
            f"{prefix}weight_ih{suffix}": (rows, input_size),
            f"{prefix}weight_hh{suffix}": (rows, output_size or hidden_size),
            f"{prefix}bias_ih{suffix}": (rows,),
            f"{prefix}bias_hh{suffix}": (rows,),
        }
    return expected


def _option_shapes(d: Description, prefix: str) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter that a layer has beyond the plain cell's, by the key of `nn`."""
    rows, hidden = len(d.cell.gates) * d.hidden_size, d.hidden_size
    found: dict[str, tuple[int, ...]] = {}
    if d.proj_size:
        found["weight_hr"] = (d.proj_size, hidden)
    if d.peephole:
        found["peephole"] = (3, hidden)
    if d.layer_norm:
        found |= {"norm_input": (2, rows), "norm_recurrent": (2, rows)}
    if d.layer_norm and d.cell.has_cell_state:
        found["norm_cell"] = (2, hidden)
    return {
        f"{prefix}{name}{suffix}": shape
        for suffix in _SUFFIXES[: d.directions]
        for name, shape in found.items()
    }


def config_text(network: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]], version: str) -> bytes:
    """The config.json of a model folder; `network` is what `as_config` gives."""
    return files.json_text(
        {
            "format": FORMAT,
            "format_version": _version_of(network),
            "unspool_version": version,
            "network": dict(network),
            "tensor_sha256": files.tensor_digests(tensors),
        }
    )


def _version_of(network: Any) -> int:
    """The format's version that a network's description is written in."""
    return (
        OPTIONS_VERSION if isinstance(network, Mapping) and set(network) & set(_OPTIONS) else FORMAT_VERSION
    )


def mean_zoneout(model: Any, x: Floats) -> State | None:
    """What the layers of a model keep over (T, B, E): its shares, (T, B, D, …); None where there are none."""
    shares = getattr(model, "zoneout", (0.0, 0.0))
    if not any(shares):
        return None
    d = model.description
    widths = (d.output_size, d.hidden_size if d.cell.has_cell_state else 0)
    return State(
        *(
            np.full((*x.shape[:2], d.directions, width), share, np.float32) if share and width else None
            for share, width in zip(shares, widths, strict=True)
        )
    )


def traced(
    kernels: Kernels, layers: Sequence[Any], x: Floats, lengths: Ints, zoneout: State | None = None
) -> list[Trace]:
    """Run prepared layers over (T, B, E), each over what the one below it gave; every layer's trace."""
    traces = []
    for prepared in layers:
        trace, _ = kernels.forward(prepared, x, lengths=lengths, zoneout=zoneout)
        traces.append(trace)
        x = side_by_side(trace.hidden)
    return traces


def side_by_side(hidden: Floats) -> Floats:
    """Join the directions, as the next layer reads them: (T, B, D, H) to (T, B, D·H), without a copy."""
    steps, batch, directions, size = hidden.shape
    return hidden.reshape(steps, batch, directions * size)


def pool(hidden: Floats, lengths: Ints, pooling: str) -> Floats:
    """Reduce (T, B, D, H) over each sequence's real steps to (B, D·H), or twice that for mean-max.

    max, mean: of each unit over the steps; mean-max: both, side by side, the mean first; last: the
    forward direction's last step beside the reverse direction's, which is the first.  A sequence of no
    steps gives zeros.
    """
    steps, batch = hidden.shape[:2]
    flat = side_by_side(hidden)
    live = (np.arange(steps)[:, None] < lengths)[:, :, None]
    some = (lengths > 0)[:, None]
    parts = []
    if pooling in ("mean", "mean-max"):
        # A step at a time: flat.sum(0) orders its sum by the sizes of batch and padding.
        total = sum(flat, start=np.zeros(flat.shape[1:], np.float32))
        parts.append(total / np.maximum(lengths, 1).astype(np.float32)[:, None])
    if pooling in ("max", "mean-max"):
        most = np.where(live, flat, -np.inf).max(0, initial=-np.inf)
        parts.append(np.where(some, most, 0).astype(np.float32))
    if pooling == "last":
        if steps == 0:
            return np.zeros((batch, flat.shape[2]), np.float32)
        rows = np.arange(batch)
        forward = np.where(some, hidden[np.maximum(lengths - 1, 0), rows, 0], 0)
        parts.append(forward.astype(np.float32))
        if hidden.shape[2] == 2:
            parts.append(hidden[0, :, 1])
    return np.concatenate(parts, 1)


def softmax(logits: Floats) -> Floats:
    """Turn (B, C) logits into probabilities."""
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)  # type: ignore[no-any-return]


def printable(label: str) -> bool:
    """Whether a label is text, not empty, that UTF-8 can hold."""
    try:
        return bool(label.encode())
    except (AttributeError, UnicodeEncodeError):
        return False


def read_config(
    data: bytes, where: str, describe: Callable[[Mapping[str, Any]], D]
) -> tuple[D, Mapping[str, str]]:
    """Read what `config_text` wrote: the network's description, and each tensor's digest.

    Raises:
        ModelFileError: another format, or `describe` refuses the network with a ConfigError.
    """
    config = files.parse_json(data, where)
    version = config.get("format_version")
    wanted = _version_of(config.get("network"))
    if config.get("format") != FORMAT or version != wanted:
        raise ModelFileError(
            f"{where} is of a format that this unspool does not read.\n"
            f"  Received: {config.get('format')!r:.60}, version {version!r:.40}; "
            f"such a network is read of {FORMAT!r}, version {wanted}.\n"
            f"  Fix: install the unspool that wrote it (its version: "
            f"{config.get('unspool_version', 'not stated')!r:.40}), or train again."
        )
    try:
        network, digests = config.get("network"), config.get("tensor_sha256")
        if set(config) != _CONFIG_FIELDS or not isinstance(network, dict) or not isinstance(digests, dict):
            raise ConfigError(
                f"its fields should be {', '.join(sorted(_CONFIG_FIELDS))}; "
                f"of these, network and tensor_sha256 are objects."
            )
        return describe(network), digests
    except ConfigError as error:
        raise ModelFileError(
            f"{where} does not describe a network.\n  Received: {error}\n"
            f"  Fix: copy the folder again from where it was written, or train again."
        ) from error


def read_model(
    folder: str | os.PathLike[str],
    describe: Callable[[Mapping[str, Any]], D],
    tables: Sequence[str] | Callable[[D], Sequence[str]],
    build: Callable[[D, list[Vocabulary], Mapping[str, NDArray[Any]]], M],
    *,
    check: Callable[[D], None] | None = None,
) -> M:
    """Read a model folder of any task; every byte of it is verified.

    Args:
        folder: such as RUN/best.
        describe: makes the network's description of what config.json holds, or refuses with a ConfigError.
        tables: the names of the folder's vocabularies, or what tells them from the description.
        build: makes the model of its description, vocabularies and tensors; an InputError means that the
            folder does not hold what it describes.
        check: refuses, by an InputError that goes to the caller as it is, what was asked of such a network.

    Raises:
        ModelFileError: the folder is absent, incomplete, damaged, of another format version or task.
    """
    parts = files.read_folder(folder)
    where = {name: str(Path(folder) / name) for name in (*parts, CONFIG, files.WEIGHTS)}
    description, digests = read_config(files.part(parts, CONFIG, folder), where[CONFIG], describe)
    names = tables(description) if callable(tables) else tables
    vocabularies = [Vocabulary.from_bytes(files.part(parts, name, folder), where[name]) for name in names]
    tensors = files.unpack(files.part(parts, files.WEIGHTS, folder), where[files.WEIGHTS], digests)
    if check is not None:
        check(description)
    try:
        return build(description, vocabularies, tensors)
    except InputError as error:
        raise ModelFileError(
            f"{where[files.WEIGHTS]} does not hold the network that {CONFIG} and {' and '.join(names)} "
            f"describe.\n"
            f"  Received: {error}\n"
            f"  Fix: copy the folder again from where it was written, or train again."
        ) from error


def _check_texts(texts: Sequence[str]) -> None:
    wrong = [texts] if isinstance(texts, str) else [text for text in texts if not isinstance(text, str)]
    if wrong:
        raise InputError(
            f"the input should be a list of texts.\n"
            f"  Received: {wrong[0]!r:.60}{'' if isinstance(texts, str) else ' among them'}.\n"
            f"  Fix: give a list of str, as in predict([text])."
        )


def layer_weights(
    cell: Cell, directions: int, tensors: Mapping[str, NDArray[Any]], prefix: str
) -> list[Weights]:
    """A layer's weights as the kernels take them, from torch's keys behind a prefix: `layers.0.`."""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return [
        Parameters(*(tensors[f"{prefix}{name}{suffix}"] for name in names))
        .as_weights(cell)
        ._replace(
            projection=tensors.get(f"{prefix}weight_hr{suffix}"),
            **{
                name: tensors.get(f"{prefix}{name}{suffix}")
                for name in ("peephole", "norm_input", "norm_recurrent", "norm_cell")
            },
        )
        for suffix in _SUFFIXES[:directions]
    ]


def check_tensors(expected: Mapping[str, tuple[int, ...]], tensors: Mapping[str, NDArray[Any]]) -> None:
    """Refuse tensors that are not those of the network described: InputError."""
    if set(tensors) != set(expected):
        missing, extra = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
        raise InputError(
            f"the tensors are not those of the network described.\n"
            f"  Missing: {', '.join(missing) or 'none':.300}.  Not known: {', '.join(extra) or 'none':.300}."
        )
    for name, shape in expected.items():
        found = tensors[name]
        if found.shape != shape or found.dtype != np.float32:
            raise InputError(
                f"{name} does not fit the network described.\n"
                f"  Received: {found.shape} of {found.dtype}.  Expected: {shape} of float32."
            )
