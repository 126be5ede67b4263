"""Which word, or which input, moved an answer: integrated gradients by the kernels' own backward pass.

T time steps   B batch   E embedding size   H hidden size   D directions   C classes
"""

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unspool import crf
from unspool.errors import InputError
from unspool.introspect.inputs import of_module
from unspool.introspect.recording import words_of
from unspool.introspect.stack import check_step, read_texts
from unspool.introspect.tables import Shown
from unspool.kernels.contract import Trace
from unspool.language import LanguageModel
from unspool.model import Floats, Ints, Model, mean_zoneout, side_by_side, softmax
from unspool.parser import Parser
from unspool.tagger import Tagger
from unspool.translator import Translator
from unspool.vocabulary import PAD, UNKNOWN


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Contributions(Shown):
    """How far each word moved the answer, in units of the margin between the label and its best rival."""

    words: tuple[str, ...]
    values: Floats  # (T,)  positive: towards the label
    label: str
    rival: str
    score: float  # the label's probability
    margin: float  # logit of the label minus logit of the rival
    margin_without: float  # the same for a text of as many blank words
    gap: float  # margin - margin_without - sum of values: what the integration missed

    def title(self) -> str:
        return (
            f"{self.label} {self.score:.3f}: margin {self.margin:.3g} over {self.rival}, "
            f"{self.margin_without:.3g} without words, gap {self.gap:.1g}"
        )

    def columns(self) -> dict[str, Any]:
        """word, contribution."""
        return {"word": list(self.words), "contribution": self.values}


def contributions(
    model: Any,
    x: Any,
    *,
    steps: int | None = None,
    target: Any = None,
    at: int | None = None,
    lengths: Any = None,
) -> Any:
    """Attribute an answer to what was read, by integrated gradients.

        contributions(model, "a quietly moving film")     a `Model`: `Contributions` of its words
        contributions(model, "the cat sat on the m")      a `LanguageModel`: of its units, to what comes next
        contributions(model, "Time flies .", at=1)        a `Tagger`: of its words, to the label of one
        contributions(network, x, target=2)               a torch model or layer: `InputContributions`

    Of a torch model the path runs straight from zeros to x, or where x is of whole numbers from vectors of
    zero to what the model's embeddings say of them; each of its points is a forward and a backward pass of
    the batch, in eval mode.  The path is cut finer where the output changes, until the gap is 1e-4 of that
    change, or `steps` points are spent.

    Args:
        model: a `Model`, a `LanguageModel`, a `Tagger`, a layer, or a torch model with layers of unspool.nn
            in it.
        x: the text; or what the model takes, of several things as a tuple the first is explained.
        steps: points on the path.  None: 128 for a `Model`, at most 1,024 for a torch model.
        target: which of the outputs; or a function of what the model returns, to (B,).  None: each sample's
            largest.  Not for a `Model`, whose margin between the label and its rival is explained; for a
            language model the unit, as a text, whose margin over the likeliest other one is, for a tagger the
            label by name.
        at: the step, where the model answers at every step.  None: of a language model the last, of a tagger
            the word whose label is the least certain.
        lengths: goes to the model's forward by this name.

    Raises:
        InputError: the text has no words, steps is below 1, or an argument does not fit.

    Source: Sundararajan, Taly & Yan 2017.
    """
    if steps is not None and steps < 1:
        raise InputError(f"steps should be 1 or more.\n  Received: {steps}.")
    if isinstance(model, LanguageModel):
        if lengths is not None:
            raise InputError("a text has its own length.\n  Received: lengths.\n  Fix: leave them out.")
        return _of_next(model, x, 128 if steps is None else steps, target, -1 if at is None else at)
    if isinstance(model, Tagger):
        if lengths is not None:
            raise InputError("a text has its own length.\n  Received: lengths.\n  Fix: leave them out.")
        return _of_label(model, x, 128 if steps is None else steps, target, at)
    if isinstance(model, Parser | Translator):
        raise InputError(
            f"there is no one margin to explain.\n  Received: a {type(model).__name__}.\n"
            "  Fix: look at the scores of a parser's arcs, and at a translator's attention (unspool inspect)."
        )
    if not isinstance(model, Model):
        return of_module(model, x, 1024 if steps is None else steps, target, at, lengths)
    for name, given in (("target", target), ("at", at), ("lengths", lengths)):
        if given is not None:
            raise InputError(
                f"a Model's own margin is explained, at the end of the text.\n  Received: {name}.\n"
                f"  Fix: leave it out."
            )
    return _of_text(model, x, 128 if steps is None else steps)


def _of_text(model: Model, text: str, steps: int) -> Contributions:
    """Attribute a model's answer to the words of the text.

        value_t = sum over e of x_te * mean over k of dM/dx_te at (k - 1/2)/steps * x

    M is the margin: the label's logit minus its best rival's.  The path runs straight from word
    vectors of zero to the text's own; all its points are one batch, so this is one forward and one
    backward pass.  The values add up to the change of M along the path, but for `gap`.  It shrinks as
    1/steps², or as 1/steps where the slope jumps: under max pooling, when a unit's maximum moves to
    another word, and in relu cells.  There Gauss's points do no better than these.
    """
    encoded = model.encode([text])
    tokens = words_of(model, text)
    x = model.embed(encoded.tokens)  # (T, 1, E)
    logits = model.logits(encoded)[0]
    order = np.argsort(-logits, kind="stable")
    best, rival = int(order[0]), int(order[1])
    towards = np.zeros(len(logits), np.float32)
    towards[best], towards[rival] = 1, -1

    along = (np.arange(steps, dtype=np.float32) + 0.5) / np.float32(steps)
    path = np.ascontiguousarray(x * along[None, :, None])  # (T, steps, E)
    lengths = np.full(steps, x.shape[0], np.int64)
    slope = _margin_gradient(model, path, lengths, towards).mean(1)  # (T, E)
    values = (x[:, 0] * slope).sum(1)

    blank = model.read_out(model.run(np.zeros_like(x), encoded.lengths), encoded.lengths)[0]
    margin, without = float(logits @ towards), float(blank @ towards)
    labels = model.description.labels
    return Contributions(
        words=tokens,
        values=values,
        label=labels[best],
        rival=labels[rival],
        score=float(softmax(logits[None])[0, best]),
        margin=margin,
        margin_without=without,
        gap=margin - without - float(values.sum()),
    )


_AT_ONCE = 16  # points of the path in a batch: texts may be long


def _of_next(model: LanguageModel, text: str, steps: int, target: Any, at: int) -> Contributions:
    """Attribute what a language model expects after one unit to the units up to it.

        M = ln p(unit) - ln p(rival)        after step `at`; the path is that of `_of_text`

    Raises:
        InputError: no text, no such step, or a target that the model does not know.
    """
    shown = words_of(model, text)
    at = check_step(at, len(shown))
    numbers = model.encode([text]).tokens[:, : at + 1]
    x = model.embed(numbers)  # (T, 1, E)

    def logs_of(inputs: Floats) -> Floats:
        traces = model.traced(inputs, np.array([at + 1]))
        return model.read_out(traces[-1].hidden[at, :, 0])[0]  # type: ignore[no-any-return]

    logs = logs_of(x)
    allowed = logs.astype(np.float64)
    allowed[[PAD, UNKNOWN]] = -np.inf
    best = int(allowed.argmax()) if target is None else _number(model, target)
    allowed[best] = -np.inf
    rival = int(allowed.argmax())

    slope = np.zeros_like(x[:, 0], np.float64)
    along = (np.arange(steps, dtype=np.float32) + 0.5) / np.float32(steps)
    for start in range(0, steps, _AT_ONCE):
        part = along[start : start + _AT_ONCE]
        path = np.ascontiguousarray(x * part[None, :, None])
        lengths = np.full(len(part), at + 1, np.int64)
        traces = model.traced(path, lengths)
        top = np.ascontiguousarray(traces[-1].hidden[at, :, 0])
        d_output = np.zeros_like(side_by_side(traces[-1].hidden))
        d_output[at] = model.read_out_gradient(top, best) - model.read_out_gradient(top, rival)
        slope += _down(model, path, traces, d_output, lengths).sum(1)
    values = (x[:, 0] * slope / steps).sum(1)

    margin, blank = float(logs[best] - logs[rival]), logs_of(np.zeros_like(x))
    without = float(blank[best] - blank[rival])
    units = model.vocabulary.tokens
    return Contributions(
        words=shown[: at + 1],
        values=values,
        label=model.join([units[best]]),
        rival=model.join([units[rival]]),
        score=float(np.exp(logs[best])),
        margin=margin,
        margin_without=without,
        gap=margin - without - float(values.sum()),
    )


def _number(model: LanguageModel, target: Any) -> int:
    """The number of a unit given as a text; of a subword with or without the space that begins a word."""
    known = {model.join([unit]): number for number, unit in enumerate(model.vocabulary.tokens) if number > 1}
    for text in (target, f" {target}"):
        if text in known:
            return known[text]
    raise InputError(
        f"the model knows no unit {target!r:.60}.\n  Received: {len(known):,} {model.description.units}.\n"
        f"  Fix: one of them, such as {next(iter(known), '')!r:.40}."
    )


def uncertain(model: Tagger, text: str) -> int:
    """The place of the word whose likeliest label is the least likely.

    Raises:
        InputError: the text has no words.
    """
    words_of(model, text)  # there must be one
    encoded = model.encode([model.cut(text)])
    return int(crf.marginals(model.emissions(encoded), encoded.lengths, model.chain).max(2)[:, 0].argmin())


def _of_label(model: Tagger, text: str, steps: int, target: Any, at: int | None) -> Contributions:
    """Attribute the label of one word to all words of the sentence.

        M = ln p(label) - ln p(rival)       of the word at `at`; the path is that of `_of_text`

    The labels of the other words are summed over, so that the CRF has its part in it: dM by an emission is
    its probability where the word has the label, less that where it has the rival.

    Raises:
        InputError: no words, no such step, or a label that the tagger does not know, or its only one.
    """
    shown = words_of(model, text)
    at = uncertain(model, text) if at is None else check_step(at, len(shown))
    names = model.description.labels
    if len(names) < 2 or (target is not None and target not in names):
        raise InputError(
            f"the tagger knows no {'two labels' if target is None else f'label {target!r:.60}'}.\n"
            f"  Received: {len(names)} labels.\n  Fix: one of two or more, here {', '.join(names):.200}."
        )
    encoded = model.encode([model.cut(text)])
    lengths, x = encoded.lengths, model.embed(encoded)  # (T, 1, E)
    emissions = model.read_out(model.run(x, lengths))
    likely = crf.marginals(emissions, lengths, model.chain)[at, 0].astype(np.float64)
    best = int(model.decode(emissions, lengths)[at, 0]) if target is None else names.index(target)
    score = float(likely[best])
    likely[best] = -1
    rival = int(likely.argmax())

    def held(scores: Floats, label: int) -> Floats:
        """The same scores, for the labellings that give the word this label."""
        only = np.full_like(scores[at], -np.inf)
        only[:, label] = scores[at, :, label]
        kept = scores.copy()
        kept[at] = only
        return kept

    def margin_of(scores: Floats) -> float:
        sums = [crf.log_partition(held(scores, label), lengths, model.chain)[0] for label in (best, rival)]
        return float(sums[0] - sums[1])

    slope = np.zeros_like(x[:, 0], np.float64)
    along = (np.arange(steps, dtype=np.float32) + 0.5) / np.float32(steps)
    for start in range(0, steps, _AT_ONCE):
        part = along[start : start + _AT_ONCE]
        path = np.ascontiguousarray(x * part[None, :, None])
        many = np.full(len(part), len(shown), np.int64)
        traces = model.traced(path, many)
        scores = model.read_out(traces[-1].hidden)
        towards, away = (
            crf.marginals(held(scores, label), many, model.chain).astype(np.float32)
            for label in (best, rival)
        )
        slope += _down(model, path, traces, (towards - away) @ model.label_weights, many).sum(1)
    values = (x[:, 0] * slope / steps).sum(1)

    margin = margin_of(emissions)
    without = margin_of(model.read_out(model.run(np.zeros_like(x), lengths)))
    return Contributions(
        words=shown,
        values=values,
        label=names[best],
        rival=names[rival],
        score=score,
        margin=margin,
        margin_without=without,
        gap=margin - without - float(values.sum()),
    )


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class RightContext(Shown):
    """How far what follows a word changed the reading of it, as a share of its state's size."""

    words: tuple[str, ...]
    forward: Floats  # (T,) the forward direction's state in the top layer; 0 where one layer reads forward
    reverse: Floats | None  # (T,) the reverse direction's; None where there is none

    def title(self) -> str:
        return str(self).partition("\n")[0]

    def columns(self) -> dict[str, Any]:
        """word, forward, and where there is one, reverse."""
        both = {} if self.reverse is None else {"reverse": self.reverse}
        return {"word": list(self.words), "forward": self.forward, **both}

    def __str__(self) -> str:
        if self.reverse is None:
            return "one direction: no word was read with what follows it"
        told = "  ".join(f"{word} {share:.0%}" for word, share in zip(self.words, self.reverse, strict=True))
        return f"what follows changed the reverse reading by: {told}\nthe forward reading by: {self._most()}"

    def _most(self) -> str:
        most = float(self.forward.max(initial=0.0))
        return "nothing, to the bit" if most == 0 else f"{most:.0%} at the most, through the layers below"


def right_context(model: Model | Tagger, text: str) -> RightContext:
    """Read each word once with all that follows and once with nothing after it, and compare its state.

        |h_t(whole) - h_t(up to t)| / |h_t(whole)|        in the top layer, each direction apart

    A forward direction has not read what follows, so its state at a word is the same in both; a reverse
    one begins with it.  All the beginnings of the text are one batch.

    Raises:
        InputError: the text has no words.
    """
    tokens = words_of(model, text)
    x, lengths = read_texts(model, [text])  # (T, 1, E)
    count = len(tokens)
    beginnings = np.ascontiguousarray(np.repeat(x, count, 1))
    cut = model.run(beginnings, np.arange(1, count + 1))  # (T, T, D, H): column t ends with word t
    whole = model.run(x, lengths)[:, 0]  # (T, D, H)
    at = np.arange(count)
    apart = np.linalg.norm(whole - cut[at, at], axis=2)
    share = apart / np.maximum(np.linalg.norm(whole, axis=2), np.finfo(np.float32).tiny)
    return RightContext(tokens, share[:, 0], share[:, 1] if share.shape[1] == 2 else None)


def _margin_gradient(model: Model, x: Floats, lengths: Ints, towards: Floats) -> Floats:
    """d(logits · towards)/dx for each of a batch of word-vector sequences: (T, B, E)."""
    traces = model.traced(x, lengths)
    d_pooled = np.broadcast_to(towards @ model.class_weights, (x.shape[1], model.class_weights.shape[1]))
    d_output = _unpool(traces[-1].hidden, lengths, model.description.pooling, d_pooled)
    return _down(model, x, traces, d_output, lengths)


def _down(
    model: Model | LanguageModel | Tagger, x: Floats, traces: list[Trace], d_output: Floats, lengths: Ints
) -> Floats:
    """Take a gradient of the top layer's outputs (T, B, D·H) through all layers down to their input."""
    inputs = [x, *(side_by_side(trace.hidden) for trace in traces[:-1])]
    for prepared, trace, given in zip(
        reversed(model.layers), reversed(traces), reversed(inputs), strict=True
    ):
        d_hidden = d_output.reshape(trace.hidden.shape)
        gradients, _ = model.kernels.backward(
            prepared, given, trace, d_hidden=d_hidden, lengths=lengths, zoneout=mean_zoneout(model, x)
        )
        d_output = gradients.x
    return d_output


def _unpool(hidden: Floats, lengths: Ints, pooling: str, d_pooled: NDArray[Any]) -> Floats:
    """The backward pass of `model.pool`: (B, pooled) to (T, B, D·H)."""
    steps, batch, directions, size = hidden.shape
    flat = side_by_side(hidden)
    width = directions * size
    live = (np.arange(steps)[:, None] < lengths)[:, :, None]
    d_flat = np.zeros_like(flat)
    if pooling in ("mean", "mean-max"):
        d_flat += d_pooled[:, :width] / np.maximum(lengths, 1)[:, None]
    if pooling in ("max", "mean-max"):
        chosen = np.where(live, flat, -np.inf).argmax(0)[None]  # (1, B, D·H)
        picked = np.take_along_axis(d_flat, chosen, 0) + d_pooled[:, -width:]
        np.put_along_axis(d_flat, chosen, picked.astype(np.float32), 0)
    if pooling == "last":
        d_flat[lengths - 1, np.arange(batch), :size] += d_pooled[:, :size]
        if directions == 2:
            d_flat[0, :, size:] += d_pooled[:, size:]
    return np.where(live, d_flat, 0)
