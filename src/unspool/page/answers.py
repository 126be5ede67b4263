"""What the page shows: for each question of its views, numbers from `introspect`, as JSON has them.

One table of questions, with their arguments and limits, from which the server, the OpenAPI description and
the command line's --json read.  Nothing is drawn, and nothing of HTTP is known.

    T words   H hidden size
"""

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unspool import introspect
from unspool.data import pairs
from unspool.errors import InputError
from unspool.introspect import Recording
from unspool.introspect.stack import Reader as Network
from unspool.kernels.contract import Cell, Gate, Weights
from unspool.language import LanguageModel
from unspool.model import Model
from unspool.page import example, runs, structures
from unspool.page import paths as small
from unspool.page.opened import MOST_OPENED_BYTES, Opened, of_folder, of_parts
from unspool.page.quantities import CELL_NAMES, largest, panels_of, what_ran
from unspool.parser import Parser
from unspool.sentences import word_of
from unspool.tagger import Tagger
from unspool.translator import Translator
from unspool.vocabulary import Vocabulary, words

MOST_WORDS = 10_000
MOST_CHARACTERS = 200_000
_CONTRIBUTION_STEPS = 64
_MOST_ATTRIBUTED = 400  # words
_MOST_SEARCHED = 2_000  # texts
MOST_NUMBERS = 8_000_000  # of an answer, or of one file: some 80 MB
_KINDS = {
    Model: "classifier",
    LanguageModel: "language model",
    Tagger: "tagger",
    Parser: "parser",
    Translator: "translator",
}
_MOST_OF = {Parser: 400, Translator: 200}  # words, units: the rest grows with their square


class Argument(NamedTuple):
    """One argument of a question."""

    kind: type
    default: Any
    says: str
    low: float | None = None
    high: float | None = None


class Question(NamedTuple):
    """One question: what answers it, and with which arguments."""

    answer: Callable[..., dict[str, Any]]
    says: str
    arguments: Mapping[str, Argument]


class Answers:
    """What is open, and the answers about it.

    Args:
        models: what is looked at, by an identifier; the first one is shown first.
        runs: folders with a metrics.jsonl, by an identifier.
        corpus: texts that patterns are searched in.
        cache: where the examples are kept.
    """

    def __init__(
        self,
        models: Mapping[str, Opened],
        runs: Mapping[str, Path],
        corpus: Sequence[str],
        cache: Path,
    ) -> None:
        self._open = dict(models)
        self._runs = dict(runs)
        self._corpus = list(corpus) or example.corpus()
        self._cache = cache
        self._opening = threading.Lock()
        self._dropped: dict[str, Opened] = {}
        self._drops = 0
        which = Argument(str, "", "what is looked at; empty: what was opened first")
        text = Argument(str, "", f"what is read, {MOST_WORDS:,} words at the most")
        layer = Argument(int, -1, "the layer from 0; -1 the top one", -1000, 1000)
        direction = Argument(int, 0, "0 forward, 1 reverse", 0, 1)
        quantity = Argument(str, "", "a letter: i f g o c h, r u n h, h; empty: the first")
        self.questions: dict[str, Question] = {
            "things": Question(self.things, "what there is to look at", {}),
            "model": Question(self.model, "layers, sizes, costs of a step, the card", {"which": which}),
            "sentence": Question(
                self.sentence,
                "the prediction, and one gate or state for all words and units",
                {
                    "which": which,
                    "text": text,
                    "layer": layer,
                    "quantity": quantity,
                    "against": Argument(str, "", "a text to compare with, word by word"),
                },
            ),
            "contributions": Question(
                self.contributions, "how far each word moved the answer", {"which": which, "text": text}
            ),
            "search": Question(
                self.search,
                "where else a unit does the same",
                {
                    "which": which,
                    "text": text,
                    "layer": layer,
                    "direction": direction,
                    "quantity": quantity,
                    "unit": Argument(int, 0, "the unit", 0, 1_000_000),
                    "first": Argument(int, 0, "the first word selected", 0, MOST_WORDS),
                    "last": Argument(int, 0, "the last word selected", 0, MOST_WORDS),
                    "corpus": Argument(str, "", "texts to search in, one a line; empty: the page's own"),
                },
            ),
            "step": Question(
                self.step,
                "one step taken apart",
                {
                    "which": which,
                    "text": text,
                    "at": Argument(int, 0, "the step", 0, MOST_WORDS),
                    "layer": layer,
                    "direction": direction,
                },
            ),
            "paths": Question(
                self.paths,
                "how the last step's gradient reaches back, in a small RNN, LSTM and GRU",
                {
                    "scale": Argument(float, 0.9, "singular values of the recurrent weights", 0.0, 3.0),
                    "keep": Argument(float, 1.0, "bias of the forget and the update gate", -6.0, 10.0),
                    "steps": Argument(int, 40, "how many steps are read", 2, 200),
                    "clip": Argument(float, 1.0, "the norm that gradients are clipped to", 1e-3, 1e3),
                    "relu": Argument(bool, True, "a ReLU in the vanilla RNN, else tanh"),
                    "seed": Argument(int, 0, "what weights and inputs follow from", 0, 10_000),
                },
            ),
            "reach": Question(
                self.reach,
                "the gradient of one word's state at all words, in the model itself",
                {
                    "which": which,
                    "text": text,
                    "at": Argument(int, -1, "the word; -1 the last", -1, MOST_WORDS),
                    "layer": layer,
                    "direction": direction,
                },
            ),
            "training": Question(
                self.training,
                "losses, scores and what was measured of a run, as it stands now",
                {
                    "run": Argument(str, "", "a run; empty: the first"),
                    "other": Argument(str, "", "a second run to compare with"),
                    "after": Argument(int, 0, "bytes of its log already read: `next` of an answer", 0, 2**53),
                    "other_after": Argument(int, 0, "the same of the second run", 0, 2**53),
                },
            ),
        }

    def ask(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Answer a question, its arguments checked.

        Raises:
            InputError: no such question or argument, or a value out of its range.
            ModelFileError: an example cannot be read.
        """
        if name not in self.questions:
            raise InputError(
                f"there is no question {name!r:.60}.\n  Fix: one of {', '.join(self.questions)}."
            )
        question = self.questions[name]
        unknown = sorted(set(given) - set(question.arguments))
        if unknown:
            raise InputError(
                f"{name} takes no {', '.join(unknown):.100}.\n"
                f"  Fix: {', '.join(question.arguments) or 'nothing'}."
            )
        values = {key: _checked(key, a, given.get(key, a.default)) for key, a in question.arguments.items()}
        answer: dict[str, Any] = plain(question.answer(**values))
        return answer

    # ---- what is open

    def things(self) -> dict[str, Any]:
        """All that can be chosen."""
        now = (
            self._open | self._dropped
        )  # in one go, though others open things; not behind a training example
        named = {key: opened.title for key, opened in now.items()}
        for cell in (Cell.LSTM, Cell.GRU, Cell.RNN_TANH):
            named.setdefault(key := f"example-{cell.value}", _example_title(key))
        runs = {key: path.name for key, path in self._runs.items()}
        runs |= {key: title for key, title in named.items() if key.startswith("example-")}
        return {
            "things": [{"id": key, "title": title} for key, title in named.items()],
            "runs": [{"id": key, "title": title} for key, title in runs.items()],
            "text": example.TEXT,
            "limits": {"words": MOST_WORDS, "bytes": MOST_OPENED_BYTES},
        }

    def open(self, parts: Mapping[str, bytes]) -> dict[str, Any]:
        """Open the files of a model folder, or one recording, that were dropped on the page.

        Raises:
            ModelFileError: they are neither, or damaged.
        """
        opened = of_parts(parts)
        with self._opening:
            for key in list(self._dropped)[:-3]:
                del self._dropped[key]  # so that a page that is left open does not fill the memory
            self._drops += 1
            while (which := f"dropped-{self._drops}") in self._open:  # a model's own name
                self._drops += 1
            self._dropped[which] = opened
        fault = opened.fault
        named = {} if fault is None else {"fault": fault.title(), "shows": opened.place_of(fault)}
        return {"which": which, "title": opened.title, **named}

    def _opened(self, which: str) -> Opened:
        key = which or next(iter(self._open), f"example-{Cell.LSTM.value}")
        with self._opening:
            if key in self._dropped:
                return self._dropped[key]
            if key not in self._open:
                self._open[key] = of_folder(self._example(key) / "best", _example_title(key))
            return self._open[key]

    def _example(self, key: str) -> Path:
        cells = {f"example-{cell.value}": cell for cell in (Cell.LSTM, Cell.GRU, Cell.RNN_TANH)}
        if key not in cells:
            raise InputError(
                f"nothing is open under {key!r:.60}.\n  Fix: choose from the list, or open it again."
            )
        return example.folder(cells[key], self._cache)

    def _network(self, which: str) -> Network:
        network = self._opened(which).network
        if network is None:
            raise InputError(
                "a recording holds gates and states, but no weights.\n"
                "  Fix: choose a model; of a recording Sentence and Model show what it has."
            )
        return network

    def _recording(self, which: str, text: str) -> Recording:
        opened = self._opened(which)
        if opened.recording is not None:
            return opened.recording
        recording: Recording = introspect.record(opened.network, _as_read(opened.network, text))
        return recording

    # ---- the views

    def model(self, which: str) -> dict[str, Any]:
        """Layers, sizes, costs."""
        opened = self._opened(which)
        if opened.recording is not None:
            r = opened.recording
            named = {} if opened.fault is None else {"fault": str(opened.fault)}
            return {
                "kind": "recording",
                "title": opened.title,
                "where": opened.where,
                "what": what_ran(r),
                "words": len(r.words),
                **named,
            }
        network = opened.network
        assert network is not None
        d = network.description
        layers = [_layer(d.cell, k, weights) for k, weights in enumerate(network.weights)]
        decoder = [
            _layer(d.cell, k, weights) for k, weights in enumerate(getattr(network, "decoder_weights", []))
        ]
        return {
            "kind": _KINDS[type(network)],
            "title": opened.title,
            "where": opened.where,
            "card": opened.card,
            "repr": repr(network),
            "task": getattr(d, "task", "language-model"),
            "labels": getattr(d, "relations", getattr(d, "labels", None)),
            "cell": CELL_NAMES[d.cell],
            "pooling": getattr(d, "pooling", None),
            "vocabulary": len(_table(network)),
            "embedding_size": layers[0]["input_size"],
            "max_length": getattr(d, "max_length", None),
            "kernels": network.kernels.describe(),
            "parameters": opened.parameters,
            "bytes": 4 * opened.parameters,
            "layers": layers,
            **({"decoder": decoder} if decoder else {}),
        }

    def sentence(self, which: str, text: str, layer: int, quantity: str, against: str) -> dict[str, Any]:
        """The prediction and one heat map for each direction."""
        network = self._opened(which).network
        texts = [text, against] if against.strip() and network is not None else [text]
        read = [self._recording(which, one) for one in texts]
        heats = [_heat(one, layer, quantity) for one in read]
        answer, maps = heats[0], [heat["maps"] for heat in heats]
        if len(heats) == 2 and len(read[0].words) == len(read[1].words):
            answer["differences"] = [np.subtract(a, b) for a, b in zip(*maps, strict=True)]
            maps.append(answer["differences"])
        numbers = sum(values.size for of in maps for values in of)
        if numbers > MOST_NUMBERS:
            units = sum(values.shape[1] for values in maps[0])
            fitting = MOST_NUMBERS // (units * (1 if len(texts) == 1 else 3))
            raise InputError(
                f"the text is too long for so many units.\n  Received: {numbers:,} values of a gate.\n"
                f"  Fix: {MOST_NUMBERS:,} at the most: a text of {fitting:,} words"
                f"{'' if len(texts) == 1 else ', and another of as many'}."
            )
        for heat, one in zip(heats, [_as_read(network, one) for one in texts], strict=True):
            heat |= {"prediction": None} if network is None else _answered(network, one)
        if isinstance(network, Model):  # which reads no more than its longest text
            answer["left_out"] = len(words(text)) - len(read[0].words)
        if isinstance(network, LanguageModel):
            answer["surprisal"] = [None, *network.surprisal(text).tolist()]
        if len(heats) == 2:
            answer["against"] = heats[1]
            answer["changed"] = [
                k
                for k, pair in enumerate(zip(read[0].words, read[1].words, strict=False))
                if pair[0] != pair[1]
            ]
        return answer

    def contributions(self, which: str, text: str) -> dict[str, Any]:
        """How far each word moved the answer."""
        network = self._network(which)
        text = _as_read(network, text)
        words = len(introspect.record(network, text).words)
        if words > _MOST_ATTRIBUTED:
            raise InputError(
                f"contributions are measured of {_MOST_ATTRIBUTED} words at the most.\n"
                f"  Received: {words:,} words.\n  Fix: a shorter text; its gates are shown all the same."
            )
        c = introspect.contributions(network, text, steps=_CONTRIBUTION_STEPS)
        return {
            "words": c.words,
            "values": c.values,
            "label": c.label,
            "rival": c.rival,
            "score": c.score,
            "margin": c.margin,
            "margin_without": c.margin_without,
            "gap": c.gap,
        }

    def search(
        self,
        which: str,
        text: str,
        layer: int,
        direction: int,
        quantity: str,
        unit: int,
        first: int,
        last: int,
        corpus: str,
    ) -> dict[str, Any]:
        """Where else a unit stays as far from zero as over the words selected."""
        network = self._network(which)
        recording = self._recording(which, text)
        first, last = min(first, last), max(first, last)
        if last >= len(recording.words):
            raise InputError(f"there is no word {last}.\n  Fix: 0 to {len(recording.words) - 1}.")

        def take(of: Recording) -> Any:
            panels = panels_of(of, layer, direction)
            return panels[_letter(panels, quantity)].values

        values = take(recording)
        if not 0 <= unit < values.shape[1]:
            raise InputError(f"there is no unit {unit}.\n  Fix: 0 to {values.shape[1] - 1}.")
        chosen = values[first : last + 1, unit]
        above = bool(chosen.mean() >= values[:, unit].mean())
        bound = float(chosen.min() if above else chosen.max())
        texts = [line for line in corpus.splitlines() if line.strip()] if corpus.strip() else self._corpus
        if len(texts) > _MOST_SEARCHED:
            raise InputError(
                f"there are too many texts to search in.\n  Received: {len(texts):,} texts.\n"
                f"  Fix: {_MOST_SEARCHED:,} at the most, one a line."
            )
        texts = [_as_read(network, line) for line in texts]
        found = introspect.stretches(
            network, texts, take, unit, bound, above=above, shortest=last - first + 1, most=50
        )
        return {"bound": bound, "above": above, "texts": len(texts), "found": [f._asdict() for f in found]}

    def step(self, which: str, text: str, at: int, layer: int, direction: int) -> dict[str, Any]:
        """One step taken apart."""
        network = self._network(which)
        text = _as_read(network, text)
        s = introspect.one_step(network, text, at=at, layer=layer, direction=direction)
        return {
            "cell": s.cell_kind.value,
            "words": s.words,
            "at": s.at,
            "gates": {
                gate.value: {
                    "from_input": s.from_input[g],
                    "from_hidden": s.from_hidden[g],
                    "bias": s.bias[g],
                    "preactivation": s.preactivation[g],
                    "value": s.gates[g],
                }
                for g, gate in enumerate(s.cell_kind.gates)
            },
            "x": s.x,
            "h_prev": s.h_prev,
            "c_prev": s.c_prev,
            "cell_state": s.cell,
            "hidden": s.hidden,
            **_products(s),
        }

    def paths(self, **sliders: Any) -> dict[str, Any]:
        """Three small layers."""
        return small.paths(**sliders)

    def reach(self, which: str, text: str, at: int, layer: int, direction: int) -> dict[str, Any]:
        """The gradient of one word's top state, at all words."""
        network = self._network(which)
        text = _as_read(network, text)
        recording = introspect.record(network, text)
        units = recording.hidden().shape[1]
        d_output = np.zeros(recording.directions * units, np.float32)
        d_output[direction * units : (direction + 1) * units] = 1
        flow = introspect.gradient_flow(
            network, text, at=at, level=layer, direction=direction, d_output=d_output
        )
        return {
            "words": recording.words,
            "at": flow.at,
            "hidden": flow.hidden,
            "cell": flow.cell,
            "cell_path": flow.cell_path,
        }

    def training(self, run: str, other: str, after: int, other_after: int) -> dict[str, Any]:
        """One run, and a second one beside it."""
        first = run or next(iter(self._runs), f"example-{Cell.LSTM.value}")
        asked = [(key, read) for key, read in ((first, after), (other, other_after)) if key]
        with self._opening:
            places = {key: self._runs[key] if key in self._runs else self._example(key) for key, _ in asked}
        return {"runs": [{"id": key, **runs.read(places[key], read)} for key, read in asked]}

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI description of all questions."""
        kinds = {str: "string", int: "integer", float: "number", bool: "boolean"}
        described = {}
        for name, question in self.questions.items():
            properties = {}
            for key, a in question.arguments.items():
                entry = {"type": kinds[a.kind], "default": a.default, "description": a.says}
                entry |= {} if a.low is None else {"minimum": a.low, "maximum": a.high}
                properties[key] = entry
            schema = {"type": "object", "additionalProperties": False, "properties": properties}
            described[f"/api/{name}"] = {
                "post": {
                    "summary": question.says,
                    "operationId": name,
                    "requestBody": {"content": {"application/json": {"schema": schema}}},
                    "responses": {
                        "200": {"description": "the numbers"},
                        "400": {"description": "an argument does not fit; the reason is in `error`"},
                    },
                }
            }
        return {"openapi": "3.1.0", "info": {"title": "unspool see", "version": "1"}, "paths": described}


def _products(s: introspect.Step) -> dict[str, Any]:
    """What the cell makes of its gates, with the numbers of this step."""
    gates = dict(zip(s.cell_kind.gates, s.gates, strict=True))
    if s.cell_kind is Cell.LSTM:
        assert s.cell is not None
        assert s.c_prev is not None
        return {
            "kept": gates[Gate.FORGET] * s.c_prev,
            "written": gates[Gate.INPUT] * gates[Gate.CANDIDATE],
            "shown": np.tanh(s.cell),
        }
    if s.cell_kind is Cell.GRU:
        update = gates[Gate.UPDATE]
        return {"kept": update * s.h_prev, "written": (1 - update) * gates[Gate.CANDIDATE]}
    return {}


def _heat(recording: Recording, layer: int, quantity: str) -> dict[str, Any]:
    """One quantity of one layer, for each direction: (T, H) values and what they are."""
    directions = [panels_of(recording, layer, d) for d in range(recording.directions)]
    k = _letter(directions[0], quantity)
    chosen = [panels[k] for panels in directions]
    quantities = [panel.quantity._asdict() | {"signed": panel.signed} for panel in directions[0]]
    limit = max(largest(panel.values) for panel in chosen)
    return {
        "words": recording.words,
        "known": recording.known,
        "layers": len(recording.traces),
        "quantities": quantities,
        "quantity": quantities[k],
        "range": [-limit, limit] if chosen[0].signed else [0.0, 1.0],
        "maps": [panel.values for panel in chosen],
        "means": [panel.means for panel in chosen],
    }


def _letter(panels: Sequence[Any], letter: str) -> int:
    letters = [panel.quantity.letter for panel in panels]
    if letter and letter not in letters:
        raise InputError(f"there is no {letter!r:.20} here.\n  Fix: one of {', '.join(letters)}.")
    return letters.index(letter) if letter else 0


def _example_title(key: str) -> str:
    return f"example: {CELL_NAMES[Cell(key.removeprefix('example-'))]}"


def _layer(cell: Cell, k: int, weights: Sequence[Weights]) -> dict[str, Any]:
    """Sizes and costs of one layer, its directions' weights given."""
    gates, (rows, width), directions = cell.gates, weights[0].input.shape, len(weights)
    hidden, shown = rows // len(gates), weights[0].recurrent.shape[1]  # fewer are shown by a projection
    products = rows * (width + shown) + (hidden * shown if weights[0].projection is not None else 0)
    return {
        "layer": k,
        "input_size": width,
        "hidden_size": hidden,
        "directions": directions,
        "gates": [gate.value for gate in gates],
        "parameters_per_gate": hidden * (width + shown + 1),
        "parameters": sum(array.size for one in weights for array in one if array is not None),
        "multiplications_a_step": directions * products,
        "state_bytes": 4 * directions * (shown + hidden if cell.has_cell_state else shown),
    }


def _table(network: Network) -> Vocabulary:
    """The units that a text's are looked up in."""
    if isinstance(network, Translator):
        return network.source.table
    return network.tables.words if isinstance(network, Parser) else network.vocabulary


def _answered(network: Network, text: str) -> dict[str, Any]:
    """The prediction, and of a parser the tree, of a translator the output with its attention."""
    if isinstance(network, Parser):
        tree = structures.parsed(network, text)
        root = tree["words"][tree["heads"].index(0)]
        says = "is the root; how sure the least certain arc is"
        told = {"text": text, "label": root, "score": min(tree["shares"]), "says": says}
        return {"prediction": told, "tree": tree}
    if isinstance(network, Translator):
        made = structures.translated(network, text)
        says = f"log-probability {made['log_probability']:.4f}; score, by the unit, {made['score']:.4f}"
        return {"prediction": {"text": text, "label": made["text"], "says": says}, "translation": made}
    return {"prediction": _prediction(network, text)}


def _prediction(network: Model | LanguageModel | Tagger, text: str) -> dict[str, Any]:
    """The answer to a text: a class, or of a language model what most likely follows."""
    if isinstance(network, Model):
        return network.predict([text])[0]
    if isinstance(network, Tagger):
        split = network.cut(text)
        (labels,) = network.predict([split])
        at, score = introspect.uncertain(network, text), 1.0
        if len(network.description.labels) > 1:  # an only label is certain
            score = introspect.contributions(network, text, steps=1, at=at).score
        return {
            "text": text,
            "label": f"{word_of(split[at])}: {labels[at]}",
            "score": score,
            "labels": labels,
        }
    logs, _ = network.run(network.encode([text]).tokens[0])
    likeliest = int(logs[-1].argmax())
    word = network.vocabulary.tokens[likeliest]
    if network.subwords is not None:
        word = network.subwords.decode([word])
    return {"text": text, "label": word, "score": float(np.exp(logs[-1, likeliest]))}


def _as_read(network: Network | None, text: str) -> str:
    """A text as the network is to read it, if it is not too long to be shown; InputError."""
    if network is None:
        return text
    if isinstance(network, Translator):
        text = pairs.tidy(text)
    count = len(text) if len(text) > MOST_CHARACTERS or not text else len(_cut(network, text))
    most = _MOST_OF.get(type(network), MOST_WORDS)
    if count > most:
        raise InputError(
            f"the text is too long to be shown.\n  Received: {count:,} units, {len(text):,} characters.\n"
            f"  Fix: {most:,} words, or units of a language model or translator, and {MOST_CHARACTERS:,} "
            f"characters at the most."
        )
    return text


def _cut(network: Network, text: str) -> list[str]:
    if isinstance(network, Translator):
        return network.source.cut(text)
    return network.cut(text) if isinstance(network, LanguageModel) else text.split()


def _checked(name: str, argument: Argument, value: Any) -> Any:
    """A value in its argument's type and range; InputError."""
    kinds = (int, float) if argument.kind is float else (argument.kind,)
    sound = isinstance(value, kinds) and (argument.kind is bool or not isinstance(value, bool))
    if sound and argument.low is not None and argument.high is not None:
        sound = math.isfinite(value) and argument.low <= value <= argument.high
    if sound and isinstance(value, str):
        sound = not any("\ud800" <= character <= "\udfff" for character in value)
    if not sound:
        span = "" if argument.low is None else f" from {argument.low:g} to {argument.high:g}"
        raise InputError(
            f"{name} does not fit.\n  Received: {value!r:.60}.\n"
            f"  Fix: {argument.says}; {argument.kind.__name__}{span}."
        )
    return value


def plain(value: Any) -> Any:
    """Arrays as lists, and what is no number as None: what strict JSON can hold."""
    if isinstance(value, np.ndarray):
        if np.isfinite(value).all():
            # The shortest digits of a float32, not the tail that float64 would show.
            return _short(value).tolist()
        return [plain(part) for part in value] if value.ndim else plain(float(value))
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    return value


def _short(array: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Seven significant digits."""
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        scale = np.where(array == 0, 1.0, 10.0 ** (6 - np.floor(np.log10(np.abs(array.astype(np.float64))))))
        shorter = np.rint(array.astype(np.float64) * scale) / scale
    return np.where(np.isfinite(shorter), shorter, array.astype(np.float64))
