"""The command line: train, eval, predict, inspect, data, info.

stdout carries data alone; progress, warnings and errors go to stderr.  Exit codes: 0 done; 1 the run failed;
2 wrong usage; 3 a check did not hold; 130 and 143 after Ctrl-C and SIGTERM, once last/ is saved.

Holds no task's knowledge: verbs hand over to a recipe, a model, or a source.
"""

import dataclasses
import json
import os
import platform
import shutil
import sys
import time
import tomllib
import traceback
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import cyclopts
from cyclopts import App, Parameter

import unspool
from unspool import files, introspect
from unspool.data import readers, sources
from unspool.errors import ConfigError, DataError, InputError, ModelFileError, UnspoolError
from unspool.kernels import choose
from unspool.kernels.contract import Cell
from unspool.metrics import Accuracy
from unspool.model import Model

FAILED, USAGE, CHECK, INTERRUPTED = 1, 2, 3, 130

app = App(
    name="unspool",
    help="Recurrent networks, fast and in plain sight.",
    version=unspool.__version__,
    version_flags=["--version"],
    help_format="plaintext",
    result_action="return_value",
)
_train = App(name="train", help="Train a recipe on a benchmark or on your own files.")
_data = App(name="data", help="List, fetch and check the data that recipes train on.")
app.command(_train)
app.command(_data)

Folder = Annotated[Path, Parameter(name="MODEL", show_default=False)]
Quiet = Annotated[bool, Parameter(name=["--quiet", "-q"], negative="")]
Json = Annotated[bool, Parameter(name="--json", negative="")]
Output = Annotated[Path | None, Parameter(name=["--output", "-o"])]


@app.command(name="eval")
def evaluate(
    model: Annotated[Path, Parameter(name="MODEL")],
    *,
    data: Path | None = None,
    text_column: str = "text",
    label_column: str = "label",
    minimum: Annotated[float | None, Parameter(name="--min")] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Measure a model's accuracy on labelled texts.

    unspool eval runs/demo/best
    unspool eval runs/demo/best --data my.tsv --json --min 0.8

    Parameters
    ----------
    model
        A model folder, such as RUN/best.
    data
        A TSV, CSV or JSONL file of texts and labels.  Without it: what the run was tested on.
    text_column
        The column that holds the text.
    label_column
        The column that holds the label.
    minimum
        Exit with 3 if the accuracy is lower, 0 to 1.
    json
        Print one JSON object.
    quiet
        Print no progress.
    """
    if minimum is not None and not 0 <= minimum <= 1:
        raise ConfigError(f"--min should lie between 0 and 1.\n  Received: {minimum}.")
    loaded = Model.load(model)
    labels = loaded.description.labels
    if data is not None:
        examples = readers.read(data, text_column=text_column, label_column=label_column, labels=labels)
    else:
        examples = _own_test(model, quiet)
    answers = loaded.predict([example.text for example in examples])
    measured = Accuracy.of([answer["label"] for answer in answers], [e.label for e in examples])
    if json:
        _print_json(
            {
                "metric": "accuracy",
                "value": measured.value,
                "interval": [measured.low, measured.high],
                "examples": measured.examples,
                "model_sha256": files.digest(model),
            }
        )
    else:
        print(_in_words(measured))
    if minimum is not None and measured.value < minimum:
        _say(f"the accuracy {measured.value:.4f} is below the minimum {minimum:g}")
        return CHECK
    return 0


@app.command
def predict(
    model: Annotated[Path, Parameter(name="MODEL")],
    /,
    *texts: str,
    quiet: Quiet = False,
) -> int:
    """Label texts: one JSON line a text.

    unspool predict runs/demo/best "a quietly moving film"
    unspool predict runs/demo/best < lines.txt

    Parameters
    ----------
    model
        A model folder, such as RUN/best.
    texts
        The texts.  Without any, each line of stdin is one.
    quiet
        Print no progress.
    """
    loaded = Model.load(model)
    if not texts and sys.stdin.isatty() and not quiet:
        _say("reading texts from the keyboard, one a line; end with Ctrl-D")
    for batch in _batched(texts or _lines_of_stdin(), 1 if not texts and sys.stdin.isatty() else 64):
        for answer in loaded.predict(batch):
            _print_json(answer)
        sys.stdout.flush()
    return 0


@app.command
def inspect(
    model: Annotated[Path, Parameter(name="MODEL")],
    text: Annotated[str, Parameter(name="TEXT")],
    *,
    output: Output = None,
    json: Json = False,
    no_color: Annotated[bool, Parameter(name="--no-color", negative="")] = False,
    quiet: Quiet = False,
) -> int:
    """See what a model's gates did with a text, and which words moved the answer.

    unspool inspect runs/demo/best "The movie was terribly exciting!"
    unspool inspect runs/demo/best "Not bad at all." -o gates.html

    Parameters
    ----------
    model
        A model folder, such as RUN/best.
    text
        What it is to read.
    output
        Also write FILE.html (a page), FILE.png (a picture) or FILE.safetensors (the numbers).
    json
        Print the contributions and the mean gates as one JSON object, and no heat map.
    no_color
        Print shades instead of colours; also when NO_COLOR is set or stdout is no terminal.
    quiet
        Do not say which file was written.
    """
    from unspool.page import sentence

    if output is not None and output.suffix not in (".html", ".png", ".safetensors"):
        raise ConfigError(
            f"what to write cannot be told from the name {output}.\n"
            f"  Fix: end it in .html, .png or .safetensors."
        )
    loaded = Model.load(model)
    recording = introspect.record(loaded, text)
    moved = introspect.contributions(loaded, text)
    if json:
        _print_json(_inspection(recording, moved))
    else:
        colour = sys.stdout.isatty() and not no_color and not os.environ.get("NO_COLOR")
        width = shutil.get_terminal_size((80, 24)).columns
        print(sentence.terminal(recording, moved, colour=colour, width=width))
    if output is not None:
        _write_inspection(output, recording, moved)
        if not quiet:
            _say(f"written: {output}")
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
            _print_json(
                {**dataclasses.asdict(source), "state": standing.state, "path": _text(standing.path)}
            )
        else:
            print(f"{source.name:<16} {standing.state:<12} {source.title}")
            print(f"{'':<16} {source.licence}; {source.use}; {source.origin}")
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
        print(sources.fetch(name, data_dir=data_dir, quiet=quiet))
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
            _print_json({"name": name, "state": standing.state, "path": _text(standing.path)})
        else:
            print(f"{name:<16} {standing.state:<12} {standing.path or ''}".rstrip())
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
    from unspool.kernels import native

    found: dict[str, Any] = {
        "unspool": unspool.__version__,
        "kernels": choose("float32").describe(),
        "threads": native.threads(),
        "instruction sets": ", ".join(native.instruction_sets()),
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
        _print_json(found)
    else:
        for name, value in found.items():
            print(f"{name:<17} {value if value is not None else 'not installed'}")
    return 0


def _add_recipes() -> None:
    """Register `train`'s verbs; only when asked for, since recipes import torch."""
    from unspool.recipes import load

    recipe = load("sentiment")
    Config, Options = recipe.Config, recipe.Options

    @_train.command
    def sentiment(
        *,
        config: Annotated[Config, Parameter(name="*", group="Model and data")] = Config(),  # type: ignore[valid-type]
        options: Annotated[Options, Parameter(name="*", group="How it is trained")] = Options(),  # type: ignore[valid-type]
        output: Output = None,
        json: Json = False,
        dry_run: Annotated[bool, Parameter(name="--dry-run", negative="")] = False,
    ) -> int:
        """Train a classifier of sentences.

        unspool train sentiment -o runs/demo
        unspool train sentiment --train my.tsv --dev dev.tsv --cell gru -o runs/mine

        Parameters
        ----------
        output
            The run folder; without it runs/sentiment and the time.
        json
            Print the outcome as one JSON object.
        dry_run
            Read the data, print the resolved options, and stop.
        """
        folder = output or Path("runs") / time.strftime("sentiment-%Y-%m-%d-%H%M%S")
        if dry_run:
            recipe.read(config, quiet=options.quiet)
            print(files.toml_text(recipe.resolved(config, options)), end="")
            return 0
        outcome = recipe.train(config, options, folder)
        if outcome is None:
            return 0
        measured: Accuracy = outcome.measured
        if json:
            _print_json(
                {
                    "folder": str(outcome.folder),
                    "dev_accuracy": outcome.dev_accuracy,
                    "part": outcome.part,
                    "metric": "accuracy",
                    "value": measured.value,
                    "interval": [measured.low, measured.high],
                    "examples": measured.examples,
                }
            )
        else:
            print(f"{outcome.part} {_in_words(measured)}")
        if not options.quiet:
            best = outcome.best
            _say("next:")
            _say(f'  unspool predict {best} "a quietly moving film"')
            _say(f'  unspool inspect {best} "The movie was terribly exciting!" -o gates.html')
            _say(f"  unspool eval {best} --json")
        return 0


def main() -> None:
    """Run the command line and exit."""
    sys.exit(_run(sys.argv[1:]))


def _run(tokens: list[str]) -> int:
    verbose = bool(os.environ.get("UNSPOOL_DEBUG"))
    if tokens[:1] == ["-v"] or tokens[:1] == ["--verbose"]:
        verbose, tokens = True, tokens[1:]
    try:
        if tokens[:1] == ["train"]:
            _add_recipes()
            tokens = _with_config_file(tokens)
        code: Any = app(tokens, exit_on_error=False, print_error=False)
        return code if isinstance(code, int) else 0
    except cyclopts.CycloptsError as error:
        _say(f"error: {error}")
        _say(f"  unspool {' '.join(tokens[:1])} --help shows what there is.".replace("  --", " --"))
        return USAGE
    except UnspoolError as error:
        if verbose:
            traceback.print_exc()
        _say(f"error: {error}")
        return USAGE if isinstance(error, ConfigError) else FAILED
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # Who read stdout has left; Python would complain once more when it closes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _with_config_file(tokens: list[str]) -> list[str]:
    """Put the options of `--config FILE` before the others; those on the command line win."""
    kept: list[str] = []
    path: str | None = None
    rest = iter(tokens)
    for token in rest:
        if token == "--config":
            path = next(rest, None)
            if path is None:
                raise ConfigError("--config needs a file.\n  Fix: --config RUN/config.toml.")
        elif token.startswith("--config="):
            path = token.removeprefix("--config=")
        else:
            kept.append(token)
    if path is None:
        return tokens
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read as a configuration.\n  Received: {error}\n"
            f"  Fix: give a TOML file such as RUN/config.toml."
        ) from error
    given = {token.split("=")[0] for token in kept}
    added: list[str] = []
    for section, entries in content.items():
        if not isinstance(entries, dict):
            raise ConfigError(
                f"{path}: {section} stands outside a section.\n  Fix: put it under [sentiment] or [training]."
            )
        if section == "run":
            continue
        for key, value in entries.items():
            flag = "--" + key.replace("_", "-")
            if given & {flag, f"--no-{flag[2:]}"}:
                continue
            if isinstance(value, bool):
                added.append(flag if value else f"--no-{flag[2:]}")
            else:
                added.append(f"{flag}={value}")
    return [*kept[:2], *added, *kept[2:]]


def _own_test(model: Path, quiet: bool) -> list[readers.Example]:
    """The examples that the run of this model folder was measured on."""
    path = model.absolute().parent / "config.toml"
    if not path.is_file():
        raise DataError(
            f"what {model} was tested on is not known here: there is no {path}.\n"
            f"  Fix: say what to measure on with --data FILE."
        )
    from unspool.recipes import load

    recipe = load("sentiment")
    splits = recipe.read(recipe.config_of(path), quiet=quiet)
    return list(splits.test or splits.dev)


def _inspection(recording: introspect.Recording, moved: introspect.Contributions) -> dict[str, Any]:
    """The numbers behind the heat map, as JSON has them."""
    directions = ("forward", "reverse")[: recording.directions]
    means: dict[str, Any] = {}
    for d, name in enumerate(directions):
        means[name] = {
            gate.value: _rounded(recording.gate(gate, direction=d).mean(1)) for gate in recording.cell.gates
        }
        if recording.cell is Cell.LSTM:
            means[name]["cell state size"] = _rounded(abs(recording.cell_state(direction=d)).mean(1))
    return {
        "words": list(recording.words),
        "known": list(recording.known),
        "label": moved.label,
        "score": moved.score,
        "rival": moved.rival,
        "margin": moved.margin,
        "contributions": _rounded(moved.values),
        "mean gates": means,
    }


def _write_inspection(
    output: Path, recording: introspect.Recording, moved: introspect.Contributions
) -> None:
    from unspool.page import sentence

    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        if output.suffix == ".safetensors":
            recording.save(output)
        elif output.suffix == ".html":
            files.write_file(output, sentence.html(recording, moved).encode())
        else:
            sentence.figure(recording, moved).savefig(output, dpi=150)
    except OSError as error:
        raise InputError(f"{output} cannot be written.\n  Received: {error.strerror or error}.") from error


def _lines_of_stdin() -> Iterator[str]:
    for number, line in enumerate(sys.stdin.buffer, start=1):
        try:
            yield line.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise DataError(
                f"stdin:{number}: the line is not UTF-8.\n  Received: byte 0x{line[error.start]:02x}.\n"
                f"  Fix: iconv -f cp1252 -t utf-8, for instance."
            ) from None


def _batched(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _in_words(measured: Accuracy) -> str:
    return (
        f"accuracy {measured.value:.1%} (95 % interval {measured.low:.1%} to {measured.high:.1%}, "
        f"{measured.examples:,} texts)"
    )


def _rounded(values: Iterable[Any]) -> list[float]:
    return [round(float(value), 6) for value in values]


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, ensure_ascii=False))


def _say(line: str) -> None:
    print(line, file=sys.stderr)
