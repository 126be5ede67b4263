"""The command line: train, eval, predict, generate, inspect, export, convert, lab, bench, see, data, info.

stdout carries data alone; progress, warnings and errors go to stderr.  Exit codes: 0 done; 1 the run failed;
2 wrong usage; 3 a check did not hold; 130 and 143 after Ctrl-C and SIGTERM, once last/ is saved.

Holds no task's knowledge: verbs hand over to a recipe, a model, or a source.  Only `train` imports torch.
"""

import dataclasses
import os
import platform
import shutil
import sys
import traceback
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import cyclopts
from cyclopts import App, Parameter, validators

import unspool
from unspool import files, introspect
from unspool.cli import classifier, configuration, language, parsing, streams, tagging, train, translation
from unspool.cli.arguments import Beam, Folder, Json, Output, Quiet
from unspool.data import readers, sources
from unspool.errors import ConfigError, TrainingError, UnspoolError
from unspool.kernels.contract import Cell
from unspool.language import TASK as LANGUAGE_MODEL
from unspool.language import LanguageModel
from unspool.metrics import Accuracy
from unspool.model import Model, task_of
from unspool.parser import TASK as PARSING
from unspool.tagger import TASK as TAGGING
from unspool.tagger import Tagger
from unspool.translator import TASK as TRANSLATION

FAILED, USAGE, CHECK, INTERRUPTED = 1, 2, 3, 130


app = App(
    name="unspool",
    help="Recurrent networks, fast and in plain sight.",
    help_epilogue="With -v, or UNSPOOL_DEBUG=1 in the environment, errors come with a traceback.",
    version=unspool.__version__,
    version_flags=["--version"],
    help_format="plaintext",
    result_action="return_value",
    suppress_keyboard_interrupt=False,
    # That a flag is not set, or a file not named, goes without saying.
    default_parameter=Parameter(
        show_default=lambda value: None if value is None or value is False else str(value)
    ),
)
_data = App(name="data", help="List, fetch and check the data that recipes train on.")
app.command(train.app)
app.command(_data)


@app.command(name="eval")
def evaluate(
    model: Folder,
    /,
    *,
    data: Path | None = None,
    target: Path | None = None,
    text_column: str = "text",
    label_column: str = "label",
    beam: Beam = 5,
    minimum: Annotated[float | None, Parameter(name="--min")] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Measure a model on labelled texts, or on sentences of labelled words.

    unspool eval runs/demo/best
    unspool eval runs/demo/best --data my.tsv --json --min 0.8
    unspool eval runs/tags/best --data test.conllu
    unspool eval runs/de-en/best --data test.de --target test.en

    Parameters
    ----------
    model
        A model folder, such as RUN/best.
    data
        Texts and labels as TSV, CSV or JSONL, for a tagger CoNLL-U or columns, for a parser CoNLL-U.
        Without it: what the run was measured on.
    target
        For a translator the target side of --data, line by line; without it --data holds both, with a tab.
    text_column
        The column that holds the text.
    label_column
        The column that holds the label.
    beam
        For a translator, how many hypotheses go on at a time; 1 is greedy search.
    minimum
        Exit with 3 if the score is lower, 0 to 1.
    json
        Print one JSON object.
    quiet
        Print no progress.
    """
    if minimum is not None and not 0 <= minimum <= 1:
        raise ConfigError(f"--min should lie between 0 and 1.\n  Received: {minimum}.")
    task = task_of(model)
    if task == LANGUAGE_MODEL:
        if data is None or minimum is not None:
            raise ConfigError(
                "a language model is measured on a text, and no score of it is the better the higher.\n"
                "  Fix: --data FILE.txt, and no --min."
            )
        likelihood = language.evaluate(model, data)
        if json:
            streams.show_json({**likelihood.as_json, "model_sha256": files.digest(model)})
        else:
            streams.show(likelihood.in_words)
        return 0
    if task == TRANSLATION:
        if minimum is not None:
            raise ConfigError(
                "a translator's scores are no shares of right answers.\n  Fix: leave --min out."
            )
        scored = translation.evaluate(model, data, target, beam=beam, quiet=quiet)
        if json:
            streams.show_json({**scored.as_json, "model_sha256": files.digest(model)})
        else:
            streams.show(scored.in_words)
        return 0
    if task == TAGGING:
        found, sha = tagging.evaluate(model, data, quiet=quiet), files.digest(model)
        if json:
            streams.show_json({**found.as_json, "model_sha256": sha})
        else:
            streams.show(found.in_words)
        return _check(tagging.name(found), found.value, minimum)
    if task == PARSING:
        arcs, sha = parsing.evaluate(model, data, quiet=quiet), files.digest(model)
        if json:
            streams.show_json({**arcs.as_json, "model_sha256": sha})
        else:
            streams.show(arcs.in_words)
        return _check("LAS", arcs.value, minimum)
    loaded = Model.load(model)
    labels = loaded.description.labels
    if data is not None:
        examples = readers.read(data, text_column=text_column, label_column=label_column, labels=labels)
    else:
        part, examples = classifier.own_examples(model, labels, quiet)
        if not quiet:
            streams.say(f"measured on the run's own {part} part")
    answers = loaded.predict([example.text for example in examples])
    measured = Accuracy.of([answer["label"] for answer in answers], [e.label for e in examples])
    if json:
        streams.show_json({**measured.as_json, "model_sha256": files.digest(model)})
    else:
        streams.show(measured.in_words)
    return _check("accuracy", measured.value, minimum)


def _check(metric: str, value: float, minimum: float | None) -> int:
    if minimum is not None and value < minimum:
        streams.say(f"the {metric} {value:.4f} is below the minimum {minimum:g}")
        return CHECK
    return 0


@app.command
def predict(
    model: Folder,
    /,
    *texts: str,
    beam: Beam = 5,
    quiet: Quiet = False,
) -> int:
    """Label texts: one JSON line a text.

    A tagger or parser gives the sentences with what it found, as its files have them; a language model says
    how likely each text is; a translator turns each into a line.

    unspool predict runs/demo/best "a quietly moving film"
    unspool predict runs/demo/best < lines.txt
    unspool predict runs/tags/best < plain.conllu > tagged.conllu
    unspool predict runs/de-en/best < text.de > text.en

    Parameters
    ----------
    model
        A model folder, such as RUN/best.
    texts
        The texts; one that begins with a dash goes after `--`.  Without any, each line of stdin is one;
        a tagger or parser reads CoNLL-U (a tagger also columns) there, and here words between spaces; of a
        tagger trained with --features, words such as Time/NN.
    beam
        For a translator, how many hypotheses go on at a time; 1 is greedy search.
    quiet
        Do not say that texts are awaited from the keyboard.
    """
    for text in texts:
        streams.check_argument(text)
    task = task_of(model)
    if task == LANGUAGE_MODEL:
        loaded_language = LanguageModel.load(model)
        for text in texts or streams.lines_of_stdin():
            streams.show_json({"text": text, **loaded_language.likelihood(text).as_json})
        return 0
    if task == TRANSLATION:
        awaited = not texts and sys.stdin.isatty()
        if awaited and not quiet:
            streams.say("reading texts from the keyboard, one a line; end with Ctrl-D")
        for made in translation.predict(model, texts or streams.lines_of_stdin(), 1 if awaited else 64, beam):
            for line in made:
                streams.show(line)
            sys.stdout.flush()
        return 0
    if task in (TAGGING, PARSING):
        verb = tagging.predict if task == TAGGING else parsing.predict
        for text in verb(model, texts, sys.stdin.buffer):
            sys.stdout.write(text)
            sys.stdout.flush()
        return 0
    loaded = Model.load(model)
    if not texts and sys.stdin.isatty() and not quiet:
        streams.say("reading texts from the keyboard, one a line; end with Ctrl-D")
    for batch in streams.batched(
        texts or streams.lines_of_stdin(), 1 if not texts and sys.stdin.isatty() else 64
    ):
        for answer in loaded.predict(batch):
            streams.show_json(answer)
        sys.stdout.flush()
    return 0


@app.command
def generate(
    model: Folder,
    prompt: Annotated[str, Parameter(name="PROMPT")],
    /,
    *,
    length: int = 300,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 1,
) -> int:
    """Go on with a text, as a language model would.

    unspool generate runs/lm/best "def main(" --temperature 0.5

    Parameters
    ----------
    model
        A language model's folder, such as RUN/best.
    prompt
        What stands before; one that begins with a dash goes after `--`.
    length
        How many characters, bytes or words to add.
    temperature
        Below 1 the likely is preferred, above 1 the unlikely; 0 takes the likeliest each time.
    top_k
        Choose among the k likeliest alone.
    top_p
        Choose among the likeliest whose probabilities sum to p.
    seed
        What the choices follow from.
    """
    streams.check_argument(prompt)
    loaded = LanguageModel.load(model)
    made = loaded.generate(prompt, length, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    joint = " " if loaded.description.units == "words" else ""
    streams.show(f"{prompt}{joint}{made}")
    return 0


@app.command
def inspect(
    model: Folder,
    text: Annotated[str, Parameter(name="TEXT")],
    /,
    *,
    output: Output = None,
    html: Annotated[Path | None, Parameter(name="--html")] = None,
    beam: Beam = 5,
    json: Json = False,
    no_color: Annotated[bool, Parameter(name="--no-color", negative="")] = False,
    quiet: Quiet = False,
) -> int:
    """See what a model's gates did with a text, and which words moved the answer.

    unspool inspect runs/demo/best "The movie was terribly exciting!"
    unspool inspect runs/demo/best "Not bad at all." -o gates.html
    unspool inspect runs/de-en/best "Ein Hund rennt." -o attention.html
    unspool inspect runs/lm/best "def main(" -o gates.html
    unspool inspect runs/tags/best "Time flies like an arrow ." -o gates.png
    unspool inspect runs/demo/best "Not bad at all." --html views.html

    Of a language model it is what moved the next unit, and how hard each was to guess; of a tagger what moved
    the least certain label, and how likely each word's are.

    Parameters
    ----------
    model
        A model folder, such as RUN/best.
    text
        What it is to read; one that begins with a dash goes after `--`.  A tagger trained with --features
        reads words such as Time/NN.
    output
        Also write FILE.html (a page), FILE.png (a picture) or FILE.safetensors (the numbers).
    html
        Also write the Sentence and Paths views of `unspool see`, to point and slide at, as one file.
    beam
        For a translator, how many hypotheses go on at a time; 1 is greedy search.
    json
        Print the contributions and the mean gates as one JSON object, and no heat map.
    no_color
        Print shades instead of colours; also when NO_COLOR is set or stdout is no terminal.
    quiet
        Do not say which file was written.
    """
    from unspool.page import sentence

    streams.check_argument(text)
    if output is not None and output.suffix not in (".html", ".png", ".safetensors"):
        raise ConfigError(
            f"what to write cannot be told from the name {output}.\n"
            f"  Fix: end it in .html, .png or .safetensors."
        )
    task = task_of(model)
    if html is not None:
        from unspool.cli.see import write_views

        write_views(html, model, text)
        if not quiet:
            streams.say(f"written: {html}")
    if task == TRANSLATION:
        if output is not None and output.suffix == ".png":
            raise ConfigError("inspect draws no picture of a translator yet.\n  Fix: end it in .html.")
        if json and output is None:
            streams.show_json(translation.inspection(model, text, beam))
        else:
            drawn = translation.picture(model, text, beam, output)
            streams.show(drawn)
            if output is not None and not quiet:
                streams.say(f"written: {output}")
        return 0
    if task == PARSING:
        if output is not None:
            raise ConfigError(
                "inspect draws no such file of a parser.\n"
                "  Fix: --html FILE.html writes a page of it; --json prints all."
            )
        if json:
            streams.show_json(parsing.inspection(model, text))
        else:
            streams.show(parsing.table(model, text))
        return 0
    kinds: dict[str, Any] = {LANGUAGE_MODEL: LanguageModel, TAGGING: Tagger}
    loaded = kinds.get(task, Model).load(model)
    recording = introspect.record(loaded, text)
    at = introspect.uncertain(loaded, text) if isinstance(loaded, Tagger) else None
    moved = introspect.contributions(loaded, text, at=at)
    if isinstance(loaded, Tagger):
        assert at is not None
        details, said = tagging.details(loaded, text, at)
        shown = tagging.as_answer(moved, at)
    elif isinstance(loaded, LanguageModel):
        details, said = language.details(loaded, text, moved)
        shown = language.as_answer(moved)
    else:
        context = introspect.right_context(loaded, text)
        details, said, shown = {"right context": classifier.both_readings(context)}, str(context), moved
    if json:
        streams.show_json({**classifier.inspection(recording, moved), **details})
    else:
        colour = sys.stdout.isatty() and not no_color and not os.environ.get("NO_COLOR")
        width = shutil.get_terminal_size((80, 24)).columns
        streams.show(sentence.terminal(recording, shown, colour=colour, width=width))
        streams.show(f"\n{said}")
    if output is not None:
        classifier.write_inspection(output, recording, shown, loaded, text)
        if not quiet:
            streams.say(f"written: {output}")
    return 0


@app.command
def export(model: Folder, onnx: Annotated[Path, Parameter(name="FILE")], /, *, quiet: Quiet = False) -> int:
    """Write a model as an ONNX file, checked against ONNX Runtime; a mismatch is an error.

    unspool export runs/demo/best model.onnx

    Parameters
    ----------
    model
        A model folder, such as RUN/best.
    onnx
        The file to write, ending in .onnx.
    quiet
        Do not say what was written.
    """
    from unspool.cli import exchange

    said = exchange.export(model, onnx)
    if not quiet:
        streams.say(said)
    return 0


@app.command
def convert(
    source: Annotated[Path, Parameter(name="IN")],
    target: Annotated[Path, Parameter(name="OUT")],
    /,
    *,
    cell: str | None = None,
    quiet: Quiet = False,
) -> int:
    """Turn a file of recurrent layers into another: ONNX, torch's state dict, Keras's weights.

    unspool convert lstm.onnx lstm.safetensors
    unspool convert gru.safetensors gru.onnx --cell gru

    Parameters
    ----------
    source
        .onnx, .safetensors (torch's keys) or .npz (arrays LAYER.NUMBER, as Keras's get_weights() lists them).
    target
        A name that ends in one of these.
    cell
        lstm, gru, rnn_tanh or rnn_relu; ONNX says it itself.
    quiet
        Do not say what was written.
    """
    from unspool.cli import exchange

    said = exchange.convert(source, target, cell)
    if not quiet:
        streams.say(said)
    return 0


@app.command(name="lab")
def run_lab(
    name: Annotated[str, Parameter(name="NAME")],
    /,
    *,
    plot: Path | None = None,
    json: Json = False,
    seeds: int | None = None,
    steps: int | None = None,
    quick: Annotated[bool, Parameter(name="--quick", negative="")] = False,
    workers: int | None = None,
    quiet: Quiet = False,
) -> int:
    """Run an experiment on memory in recurrent networks; exit with 3 if a claim did not hold.

    unspool lab terms
    unspool lab vanishing --plot vanishing.svg
    unspool lab all --quick

    Parameters
    ----------
    name
        terms, vanishing, exploding, one-step, carousel, long-vs-short, both-contexts, adding, copying,
        temporal-order, embedded-reber, long-lag, sequential-digits, or all.
    plot
        Also draw the picture into FILE.svg, FILE.png or FILE.pdf.
    json
        Print one JSON object an experiment.
    seeds
        How many seeds; without it as many as the experiment's protocol says.
    steps
        The length or lag; without it the protocol's.
    quick
        Small sizes and few seeds: shows the fact in seconds, not the published figure.
    workers
        Processes that train side by side; without it one a core.
    quiet
        Print no progress.
    """
    from unspool.cli import lab

    def say(line: str) -> None:
        if not quiet:
            streams.say(line)

    held = True
    for result in lab.run(name, plot=plot, seeds=seeds, steps=steps, quick=quick, workers=workers, say=say):
        held &= result.holds
        if json:
            streams.show_json(result.json())
        else:
            streams.show(result.text() + "\n")
        sys.stdout.flush()
    return 0 if held else CHECK


@app.command(name="bench")
def run_bench(
    *,
    cell: Cell = Cell.LSTM,
    hidden_size: int = 256,
    batch: int = 32,
    steps: int = 64,
    json: Json = False,
) -> int:
    """Measure this machine, and a layer in float32, bfloat16 and int8, with what they cost in accuracy.

    unspool bench
    unspool bench --hidden-size 512 --batch 8

    Parameters
    ----------
    cell
        The recurrent cell.
    hidden_size
        Units, and inputs.
    batch
        Sequences at once.
    steps
        Steps of a sequence.
    json
        Print one JSON object.
    """
    from unspool.cli import bench

    found = bench.measure(cell, hidden_size, batch, steps)
    if json:
        streams.show_json(found)
    else:
        streams.show(bench.text(found))
    return 0


@app.command(name="see")
def run_see(
    path: Annotated[Path | None, Parameter(name="PATH")] = None,
    /,
    *,
    port: Annotated[int, Parameter(validator=validators.Number(gte=0, lte=65535))] = 8420,
    browser: Annotated[bool, Parameter(name="--browser", negative="--no-browser")] = True,
    host: str = "127.0.0.1",
    token: str | None = None,
    json: Json = False,
    question: str = "things",
    given: str = "{}",
) -> int:
    """Open a local page that shows a network at work: a sentence, a step, gradients, training.

    unspool see
    unspool see runs/demo
    unspool see runs/demo/best --json --question sentence --given '{"text": "not bad"}'

    Parameters
    ----------
    path
        A run, a model folder, a folder of runs, a recording, a failure report; else small examples.
    port
        Where to listen; 0 takes any free port.
    browser
        Open the page in the browser.
    host
        Listen to other machines too; needs --token.
    token
        What others must know; it stands in the address that is printed.
    json
        Answer one question as JSON, and start no server.
    question
        Which: things, model, sentence, contributions, search, step, paths, reach, training; openapi tells
        what each takes.
    given
        Its arguments, a JSON object.
    """
    from unspool.cli import see

    answers = see.answers_on(path)
    if json:
        streams.show_json(see.answer(answers, question, given))
    else:
        see.serve(answers, host, port, token, browser)
    return 0


@_data.command(name="list")
def data_list(*, data_dir: Path | None = None, json: Json = False) -> int:
    """List the sources: what they are, and where each would come from.

    unspool data list

    Parameters
    ----------
    data_dir
        The folder with the benchmarks' files; else the variable UNSPOOL_DATA.
    json
        Print one JSON object a source.
    """
    for standing in sources.listing(data_dir=data_dir):
        source = standing.source
        if json:
            streams.show_json(
                {**dataclasses.asdict(source), "state": standing.state, "path": _text(standing.path)}
            )
        else:
            streams.show(f"{source.name:<16} {standing.state:<12} {source.title}")
            streams.show(f"{'':<16} {source.licence}; {source.use}; {source.origin}")
    return 0


@_data.command(name="fetch")
def data_fetch(*names: str, data_dir: Path | None = None, quiet: Quiet = False) -> int:
    """Fetch sources into the cache, and print where each lies.

    unspool data fetch rotten-tomatoes

    Parameters
    ----------
    names
        Sources, as `unspool data list` names them.
    data_dir
        The folder with the benchmarks' files; else the variable UNSPOOL_DATA.
    quiet
        Print no progress.
    """
    if not names:
        raise ConfigError("which source?\n  Fix: unspool data fetch NAME; unspool data list names them.")
    for name in names:
        streams.show(str(sources.fetch(name, data_dir=data_dir, quiet=quiet)))
    return 0


@_data.command(name="check")
def data_check(*names: str, data_dir: Path | None = None, json: Json = False) -> int:
    """Verify the digests of the sources that are here; exit with 3 if one does not hold.

    unspool data check

    Parameters
    ----------
    names
        Sources; without any, all.
    data_dir
        The folder with the benchmarks' files; else the variable UNSPOOL_DATA.
    json
        Print one JSON object a source.
    """
    damaged = False
    for name in names or sources.SOURCES:
        standing = sources.check(name, data_dir=data_dir)
        damaged |= standing.state == "damaged"
        if json:
            streams.show_json({"name": name, "state": standing.state, "path": _text(standing.path)})
        else:
            streams.show(f"{name:<16} {standing.state:<12} {standing.path or ''}".rstrip())
    return CHECK if damaged else 0


@app.command
def info(*, json: Json = False) -> int:
    """Say what runs here: versions, kernel set, threads.  To be pasted into an issue.

    unspool info

    Parameters
    ----------
    json
        Print one JSON object.
    """
    found: dict[str, Any] = {
        **unspool.info(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cache": str(sources.cache_folder()),
    }
    for package in ("numpy", "safetensors", "nanobind-backend", "torch", "accelerate", "matplotlib"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    if json:
        streams.show_json(found)
    else:
        for name, value in found.items():
            said = ", ".join(value) if isinstance(value, list) else value
            streams.show(f"{name:<17} {said if said is not None else 'not installed'}")
    return 0


def main() -> None:
    """Run the command line and exit."""
    sys.exit(_run(sys.argv[1:]))


def _run(tokens: list[str]) -> int:
    verbose, tokens = _verbosity(tokens)
    origin: str | None = None
    try:
        if tokens[:1] == ["train"]:
            tokens, origin = configuration.applied(tokens)
            if tokens[1:2] and tokens[1] in train.RECIPES:
                train.load(tokens[1])
        code: Any = app(tokens, exit_on_error=False, print_error=False)
        # Here, and not when Python ends, so that a full disk or a closed pipe is noticed below.
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except cyclopts.CycloptsError as error:
        streams.say(f"error: {error}")
        if origin is not None:
            streams.say(f"  Options were also read from {origin}.")
        if isinstance(error, cyclopts.UnknownOptionError) and tokens[0] in ("predict", "inspect"):
            streams.say("  A text that begins with a dash goes after -- .")
        streams.say(f"  {' '.join(['unspool', *(error.command_chain or ())])} --help shows what there is.")
        return USAGE
    except UnspoolError as error:
        if verbose:
            traceback.print_exc()
        # All ranks raise it; one says it.
        if not isinstance(error, TrainingError) or os.environ.get("RANK", "0") == "0":
            streams.say(f"error: {error}")
        return USAGE if isinstance(error, ConfigError) else FAILED
    except KeyboardInterrupt:
        streams.say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        streams.drop_stdout()  # who read it has left
        return FAILED
    except OSError as error:
        if verbose:
            traceback.print_exc()
        streams.say(f"error: the system refused.\n  Received: {error}.")
        streams.drop_stdout()
        return FAILED


def _verbosity(tokens: list[str]) -> tuple[bool, list[str]]:
    """Take -v and --verbose, which every verb knows, out of the tokens before `--`."""
    end = tokens.index("--") if "--" in tokens else len(tokens)
    kept = [token for token in tokens[:end] if token not in ("-v", "--verbose")]
    return bool(os.environ.get("UNSPOOL_DEBUG")) or len(kept) < end, [*kept, *tokens[end:]]


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
