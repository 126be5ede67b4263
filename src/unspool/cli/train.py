"""`unspool train RECIPE`: what each is for; the options come from the recipe, when it is asked for."""

import contextlib
import shlex
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from unspool import files, recipes
from unspool.cli import streams
from unspool.cli.arguments import Json, Output

app = App(name="train", help="Train a recipe on a benchmark or on your own files.")
_HELP = {
    "sentiment": """Train a classifier of sentences.

    unspool train sentiment -o runs/demo
    unspool train sentiment --train my.tsv --dev dev.tsv --cell gru -o runs/mine
    unspool train --config runs/mine/config.toml -o runs/again

    --config FILE takes the options from a run's config.toml; those on the command line win.
    """,
    "tagging": """Train a tagger: a label for every word of a sentence.

    unspool train tagging -o runs/tags
    unspool train tagging --train my.conllu --dev dev.conllu --column xpos -o runs/mine
    unspool train tagging --train names.tsv -o runs/names
    unspool train tagging --data conll2000 --features 2 -o runs/chunks

    Files are CoNLL-U (.conllu) or columns: a word and its label a line, a blank line between sentences.
    --features names other columns that are read beside the word; what is tagged later needs them too.
    --config FILE takes the options from a run's config.toml; those on the command line win.
    """,
    "parsing": """Train a dependency parser: the head of every word, and how it is related to it.

    unspool train parsing -o runs/trees
    unspool train parsing --train my.conllu --dev dev.conllu --tags upos -o runs/mine

    Files are CoNLL-U (.conllu).
    --config FILE takes the options from a run's config.toml; those on the command line win.
    """,
    "language-model": """Train a language model: the next character, byte or word.

    unspool train language-model -o runs/lm
    unspool train language-model --train book.txt --hidden-size 512 -o runs/book

    Without --train it learns from the source text of Python's own standard library.
    --config FILE takes the options from a run's config.toml; those on the command line win.
    """,
    "translation": """Train an encoder and decoder: a sequence turned into another.

    unspool train translation -o runs/phonemes
    unspool train translation --train train.de --train-target train.en -o runs/de-en
    unspool train translation --train pairs.tsv --source-units words --target-units words -o runs/mine

    Without --train it learns to pronounce English words.  Files are two sides, line by line, or source, tab,
    target.
    --config FILE takes the options from a run's config.toml; those on the command line win.
    """,
}
RECIPES = {name: App(name=name, help=text) for name, text in _HELP.items()}
for _recipe in RECIPES.values():
    app.command(_recipe)


def load(name: str) -> None:
    """Give `train NAME` its options; only when it is asked for, since they come from the recipe."""
    if RECIPES[name].default_command is not None:
        return
    recipe = recipes.load(name)
    Config, Options = recipe.Config, recipe.Options
    config_options = Parameter(name="*", group="Model and data")
    loop_options = Parameter(
        name="*",
        group="How it is trained",
        negative="",
        short_alias=lambda field, taken: "-q" if field.name == "quiet" else None,
    )

    @RECIPES[name].default
    def train(
        *,
        config: Annotated[Config | None, config_options] = None,  # type: ignore[valid-type]
        options: Annotated[Options | None, loop_options] = None,  # type: ignore[valid-type]
        output: Output = None,
        json: Json = False,
        dry_run: Annotated[bool, Parameter(name="--dry-run", negative="")] = False,
    ) -> int:
        """Train.

        Parameters
        ----------
        output
            The run folder; without it runs/, the task and the time, or with --fast-dev-run none that stays.
        json
            Print the outcome as one JSON object.
        dry_run
            Read the data, print the resolved options, and stop; nothing is written.
        """
        what: Any = config or Config()
        how: Any = options or Options()
        if dry_run:
            recipe.read(what, quiet=how.quiet)
            streams.show(files.toml_text(how.resolved(name, what)).rstrip())
            return 0
        with contextlib.ExitStack() as ends:
            if output is None and how.fast_dev_run:
                output = Path(ends.enter_context(tempfile.TemporaryDirectory())) / "run"
            folder = output or Path("runs") / time.strftime(f"{name}-%Y-%m-%d-%H%M%S")
            outcome = recipe.train(what, how, folder)
        if outcome is None:
            return 0
        if json:
            brief = {"fast_dev_run": True} if how.fast_dev_run else {}
            streams.show_json({**outcome.as_json(), **brief})
        else:
            streams.show(outcome.in_words())
        if how.fast_dev_run:
            if not how.quiet:
                streams.say("everything runs; after two batches the figures mean nothing")
        elif not how.quiet:
            streams.say("next:")
            for command in outcome.next_commands(shlex.quote(str(outcome.best))):
                streams.say(f"  {command}")
        return 0
