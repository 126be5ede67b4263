"""The loop, run for real on the small task of `training_run`: bits, signals, kills, processes."""

import io
import json
import math
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import training_run
from training_run import CONFIG, Small
from unspool import files, introspect, nn, training
from unspool.errors import ConfigError, InputError, MissingExtra, ModelFileError, TrainingError
from unspool.training import Options

SCRIPT = Path(training_run.__file__)
OPTIONS = Options(epochs=4, learning_rate=0.02, patience=0)
BATCHES = 8  # an epoch of the small task


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in the processes that these runs are compared with."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def train(folder: Path, options: Options = OPTIONS, small: Small | None = None) -> training.Result:
    small = small or Small()
    return training.run(small.model, small.task(), options, folder, CONFIG)


def records(folder: Path) -> list[dict[str, Any]]:
    """Read the log without what a clock wrote into it."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    timed = {"seconds", "tokens_per_second"}
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]


def contents(folder: Path) -> dict[str, Any]:
    """Read all that a run left, without what a clock wrote into it."""
    last, best = files.read_folder(folder / "last"), files.read_folder(folder / "best")
    state = json.loads(last.pop("trainer_state.json"))
    state["tally"].pop("seconds")
    return {"last": last, "best": best, "state": state, "records": records(folder)}


def end_by_signal(folder: Path, small: Small, options: Options = OPTIONS) -> int:
    with pytest.raises(SystemExit) as caught:
        train(folder, options, small)
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What an uninterrupted run of 4 epochs leaves."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(folder, replace(OPTIONS, log_every=1))
    torch.set_num_threads(threads)
    return contents(folder)


LOGGED = replace(OPTIONS, log_every=1)

# Noise and seeds


def test_the_shares_of_a_mask_make_the_mask_of_one_process() -> None:
    def masks(first: int, stop: int) -> list[torch.Tensor]:
        noise = training.Noise(3, 7, first, stop, 10)
        return [noise.keep(0.4, 5, 2), noise.keep(0.25), noise.keep(0.4, 3)]

    whole = masks(0, 10)
    assert [tuple(mask.shape) for mask in whole] == [(10, 5, 2), (10,), (10, 3)]
    for shares in zip(masks(0, 4), masks(4, 4), masks(4, 10), whole, strict=True):
        torch.testing.assert_close(torch.cat(shares[:-1]), shares[-1], rtol=0, atol=0)


def test_a_mask_follows_from_seed_and_step() -> None:
    def mask(seed: int, step: int) -> torch.Tensor:
        return training.Noise(seed, step, 0, 4, 4).keep(0.5, 50)

    torch.manual_seed(5)
    one = mask(1, 2)
    torch.manual_seed(6)
    assert torch.equal(one, mask(1, 2))
    assert not torch.equal(one, mask(1, 3))
    assert not torch.equal(one, mask(2, 2))
    masks = {mask(seed, step).numpy().tobytes() for seed in range(6) for step in range(30)}
    assert len(masks) == 6 * 30
    noise = training.Noise(1, 2, 0, 4, 4)
    assert not torch.equal(noise.keep(0.5, 50), noise.keep(0.5, 50))


def test_a_mask_drops_its_share_and_keeps_the_mean() -> None:
    noise = training.Noise(1, 1, 0, 100, 100)
    mask = noise.keep(0.2, 1000)
    assert mask.unique().tolist() == [0.0, 1.25]
    assert (mask == 0).float().mean().item() == pytest.approx(0.2, abs=0.005)
    assert torch.equal(noise.keep(0, 3), torch.ones(100, 3))
    assert torch.equal(noise.keep(1, 3), torch.zeros(100, 3))
    for p in (-0.1, 1.1, math.nan):
        with pytest.raises(InputError, match="between 0 and 1"):
            noise.keep(p)


def test_seeded_weights_leave_the_generator_alone() -> None:
    before = torch.get_rng_state()
    one, same, other = (training.weights(Small(seed).model) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all((one[name] == same[name]).all() for name in one)
    assert not (one["classes.weight"] == other["classes.weight"]).any()


@pytest.mark.parametrize(
    "bad",
    [{"epochs": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"learning_rate": math.inf}, {"clip": -1.0},
     {"clip": math.nan}, {"weight_decay": -0.1}, {"warmup_steps": -1}, {"decay": "cosine"}, {"patience": -1},
     {"seed": -1}, {"device": "tpu"}, {"log_every": -1}, {"force": True, "resume": True}],
    ids=lambda bad: next(iter(bad)),
)  # fmt: skip
def test_an_option_out_of_range_is_named(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"{next(iter(bad))} .*\n *Received: .*\n *Fix: "):
        Options(**bad)


# The arithmetic


def by_hand(small: Small, options: Options, skip: int = 0, steps: int = BATCHES) -> dict[str, torch.Tensor]:
    """Train one epoch with nothing but torch, leaving out one step."""
    model = small.model
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
    )
    for step, positions in enumerate(small.batches(1)[:steps], start=1):
        if step == skip:
            continue
        tokens, labels = torch.from_numpy(small.tokens[positions]), torch.from_numpy(small.labels[positions])
        rows = len(positions)
        logits = model(tokens, training.Noise(options.seed, step, 0, rows, rows))
        model.zero_grad()
        torch.nn.functional.cross_entropy(logits, labels).backward()
        if options.clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip)
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * min(1, step / max(options.warmup_steps, 1))
            if options.decay == "linear":
                group["lr"] *= 1 - (step - 1) / BATCHES
        optimizer.step()
    return model.state_dict()


@pytest.mark.parametrize(
    "options",
    [
        Options(epochs=1, learning_rate=0.02),
        Options(epochs=1, learning_rate=0.02, clip=0.05),
        Options(epochs=1, learning_rate=0.02, clip=0.0, weight_decay=0.5),
        Options(epochs=1, learning_rate=0.02, seed=9),
        Options(epochs=1, learning_rate=0.02, warmup_steps=5, decay="linear"),
    ],
    ids=["default", "clipped", "decayed", "other masks", "scheduled"],
)
def test_an_epoch_equals_plain_torch(tmp_path: Path, options: Options) -> None:
    small = Small()
    train(tmp_path / "run", options, small)
    for name, expected in by_hand(Small(), options).items():
        torch.testing.assert_close(small.model.state_dict()[name], expected, rtol=1e-4, atol=1e-6)
    default = by_hand(Small(), Options(epochs=1, learning_rate=0.02))
    if options.learning_rate != OPTIONS.learning_rate:
        assert not torch.allclose(default["hidden.weight"], small.model.state_dict()["hidden.weight"])


def test_the_task_is_learnt(tmp_path: Path) -> None:
    result = train(tmp_path / "run", replace(OPTIONS, epochs=20))
    assert result.best_metric is not None
    assert result.best_metric >= 0.9
    assert result.history[-1]["train_loss"] < 0.3 < 0.6 < result.history[0]["train_loss"]


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, whole: dict[str, Any]) -> None:
    torch.rand(3)  # the global generator is not to matter
    train(tmp_path / "run", LOGGED)
    assert contents(tmp_path / "run") == whole
    train(tmp_path / "other", replace(OPTIONS, seed=2))
    assert contents(tmp_path / "other")["last"]["model.safetensors"] != whole["last"]["model.safetensors"]


# The run folder


def test_what_a_run_leaves(tmp_path: Path, whole: dict[str, Any]) -> None:
    folder = tmp_path / "run"
    result = train(folder, LOGGED)
    assert sorted(path.name for path in folder.iterdir()) == ["best", "config.toml", "last", "metrics.jsonl"]
    assert tomllib.loads((folder / "config.toml").read_text()) == CONFIG
    assert sorted(whole["best"]) == ["config.json", "model.safetensors"]
    assert sorted(whole["last"].keys() - whole["best"].keys()) == ["optimizer.safetensors"]
    assert whole["state"]["step"] == result.steps == 4 * BATCHES
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "epoch" not in line] == list(range(1, 4 * BATCHES + 1))
    epochs = [line for line in lines if "epoch" in line]
    assert epochs == result.history
    assert [line["epoch"] for line in epochs] == [1, 2, 3, 4]
    small = Small()
    for line in epochs:
        sizes = [len(batch) for batch in small.batches(line["epoch"])]
        losses = [each["loss"] for each in lines if "epoch" not in each][
            line["step"] - BATCHES : line["step"]
        ]
        weighted = sum(loss * size for loss, size in zip(losses, sizes, strict=True)) / sum(sizes)
        assert line["train_loss"] == pytest.approx(weighted, rel=1e-6)
        assert line["padding"] == pytest.approx((small.tokens == 0).mean())
        assert line["tokens_per_second"] * line["seconds"] > (small.tokens > 0).sum()
    assert all(line["dev_loss"] > 0 and line["gradient_norm"] > 0 for line in epochs)


def test_best_holds_the_best_epoch_and_patience_ends_the_run(tmp_path: Path) -> None:
    small = Small()
    small.scores = [0.5, 0.6, math.nan, 0.6, 0.7]
    result = train(tmp_path / "run", replace(OPTIONS, epochs=9, patience=2), small)
    assert (result.epochs, result.best_epoch, result.best_metric) == (4, 2, 0.6)
    assert [record["best"] for record in result.history] == [True, True, False, False]
    assert result.history[2]["accuracy"] is None
    train(tmp_path / "two", replace(OPTIONS, epochs=2))
    weights = [files.read_folder(tmp_path / place)["model.safetensors"] for place in ("run/best", "two/last")]
    assert weights[0] == weights[1]


def test_a_smaller_metric_can_be_the_better(tmp_path: Path) -> None:
    small = Small()
    small.scores = [3.0, 2.0, 2.5, 4.0]
    task = replace(small.task(), metric="perplexity", higher_is_better=False)
    result = training.run(small.model, task, OPTIONS, tmp_path / "run", CONFIG)
    assert (result.best_epoch, result.best_metric) == (2, 2.0)
    assert result.history[0]["perplexity"] == 3.0


def test_a_run_without_a_finite_score_has_no_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = Small()
    small.scores = [math.nan, math.inf, -math.inf]
    result = train(tmp_path / "run", replace(OPTIONS, epochs=3), small)
    assert (result.best_epoch, result.best_metric) == (0, None)
    assert not (tmp_path / "run" / "best").exists()
    assert "no epoch had a finite accuracy" in capsys.readouterr().err


def test_an_existing_run_is_not_touched(tmp_path: Path, whole: dict[str, Any]) -> None:
    folder = tmp_path / "run"
    train(folder, LOGGED)
    small = Small()
    with pytest.raises(TrainingError, match=r"exists and is not empty\.\n *Fix: .*-o .*--resume .*--force"):
        train(folder, LOGGED, small)
    assert small.calls["loss"] == 0
    assert contents(folder) == whole


def test_force_replaces_the_run_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(folder, LOGGED)
    (folder / "notes.txt").write_text("mine")
    small = Small()
    small.scores = [math.nan]
    train(folder, replace(OPTIONS, epochs=1, force=True), small)
    assert [record["epoch"] for record in records(folder)] == [1]
    assert not (folder / "best").exists(), "the best of another run"
    assert (folder / "notes.txt").read_text() == "mine"


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    train(tmp_path, replace(OPTIONS, epochs=1))
    assert (tmp_path / "best").is_dir()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match=rf"cannot write to the run folder {tmp_path}/file/run"):
        train(tmp_path / "file" / "run")
    with pytest.raises(TrainingError, match="exists and is not empty"):
        train(tmp_path / "file")


def test_what_could_not_be_resumed_is_refused_before_the_first_step(tmp_path: Path) -> None:
    small = Small()
    whole_folder = small.folder

    def without(name: str) -> Any:
        def folder(model: torch.nn.Module, score: training.Score | None) -> dict[str, bytes]:
            kept = {key: value for key, value in training.weights(model).items() if key != name}
            return {**whole_folder(model, score), files.WEIGHTS: files.pack(kept)}

        return folder

    with pytest.raises(InputError, match=r"does not hold the model's hidden\.bias"):
        training.run(
            small.model, replace(small.task(), folder=without("hidden.bias")), OPTIONS, tmp_path, CONFIG
        )
    assert small.calls["loss"] == 0
    assert list(tmp_path.iterdir()) == []


def test_no_batches_is_said(tmp_path: Path) -> None:
    small = Small()
    with pytest.raises(TrainingError, match="nothing to train on"):
        training.run(small.model, replace(small.task(), batches=lambda epoch: []), OPTIONS, tmp_path, CONFIG)


def test_a_missing_accelerate_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingExtra, match=r"accelerate.*\n.*unspool\[train\]"):
        train(tmp_path / "run")


# Resuming


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, whole: dict[str, Any], epochs: int
) -> None:
    folder = tmp_path / "run"
    train(folder, replace(LOGGED, epochs=epochs))
    with (folder / "metrics.jsonl").open("a") as log:
        log.write('{"step": 99, "loss": 1.0}\n{"epoch": 9, "step": 99}\n{"step": 9')  # as a kill leaves it
    small = Small(seed=7)  # its own weights are not to matter
    small.seed = 1
    result = train(folder, replace(LOGGED, resume=True), small)
    assert contents(folder) == whole
    assert small.calls["loss"] == (4 - epochs) * BATCHES
    assert [record["epoch"] for record in result.history] == [1, 2, 3, 4]


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path, whole: dict[str, Any]) -> None:
    folder = tmp_path / "run"
    finished = train(folder, LOGGED)
    small = Small()
    assert train(folder, replace(LOGGED, resume=True), small) == finished
    assert small.calls["loss"] == 0
    assert contents(folder) == whole


def test_resuming_where_nothing_is_starts_at_the_first_epoch(
    tmp_path: Path, whole: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path / "run", replace(LOGGED, resume=True))
    assert contents(tmp_path / "run") == whole
    assert "nothing to resume from yet" in capsys.readouterr().err


def test_another_run_is_not_resumed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    small = Small()
    before = {"recipe": "small", "epochs": 2, "training": {"batch_size": 50, "patience": 1}}
    training.run(small.model, small.task(), replace(OPTIONS, epochs=1), folder, before)
    resumed = replace(OPTIONS, epochs=1, resume=True)
    now = {"recipe": "small", "epochs": 5, "training": {"batch_size": 64, "patience": 9, "clip": 2.0}}
    with pytest.raises(TrainingError, match="started with other options") as caught:
        training.run(small.model, small.task(), resumed, folder, now)
    assert str(caught.value).splitlines()[1:3] == [
        "  training.batch_size: was 50, now 64",
        "  training.clip: was 'not set', now 2.0",
    ]
    assert tomllib.loads((folder / "config.toml").read_text()) == before
    allowed = {**before, "epochs": 5}
    training.run(small.model, small.task(), resumed, folder, allowed)
    with pytest.raises(TrainingError, match="epochs: was 5, now 6"):
        training.run(
            small.model, small.task(), replace(resumed, decay="linear"), folder, {**allowed, "epochs": 6}
        )


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(folder, replace(OPTIONS, epochs=1))
    for name in ("model.safetensors", "optimizer.safetensors", "trainer_state.json", "config.json"):
        path = folder / "last" / name
        sound = path.read_bytes()
        for damaged in (sound[:-1], sound[:9] + bytes([sound[9] ^ 4]) + sound[10:]):
            path.write_bytes(damaged)
            with pytest.raises(ModelFileError, match=rf"last/{name} is damaged"):
                train(folder, replace(OPTIONS, resume=True))
        path.write_bytes(sound)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(folder, replace(OPTIONS, epochs=1))
    small = Small()
    small.model.hidden = torch.nn.Linear(8, 9)
    with pytest.raises(TrainingError, match=r"not a checkpoint of this model\.\n(.*\n)*.*size mismatch"):
        train(folder, replace(OPTIONS, resume=True), small)


def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(folder, replace(OPTIONS, epochs=1))
    parts = files.read_folder(folder / "last")
    state = {**json.loads(parts["trainer_state.json"]), "format": 2}
    files.write_folder(folder / "last", {**parts, "trainer_state.json": files.json_text(state)})
    with pytest.raises(ModelFileError, match="another format version than 1"):
        train(folder, replace(OPTIONS, resume=True))


def test_a_replacement_cut_short_is_resumed_from(tmp_path: Path, whole: dict[str, Any]) -> None:
    folder = tmp_path / "run"
    train(folder, replace(LOGGED, epochs=2))
    (folder / "last").rename(folder / ".last.old")
    (folder / ".last.new").mkdir()
    (folder / ".last.new" / "config.json").write_bytes(b"{")
    small = Small()
    train(folder, replace(LOGGED, resume=True), small)
    assert small.calls["loss"] == 2 * BATCHES
    assert contents(folder) == whole
    assert sorted(path.name for path in folder.iterdir()) == ["best", "config.toml", "last", "metrics.jsonl"]


# Signals and kills


def raising_at(small: Small, name: str, call: int, number: int) -> None:
    def on_call(called: str, calls: int) -> None:
        if (called, calls) == (name, call):
            signal.raise_signal(number)

    small.on_call = on_call


@pytest.mark.parametrize(
    ("name", "call", "batch"),
    [("loss", 1, 2), ("loss", 10, 3), ("loss", BATCHES, BATCHES), ("loss", 2 * BATCHES - 1, BATCHES)],
    ids=["first step", "mid-epoch", "last step of an epoch", "last step but one"],
)
def test_sigterm_saves_and_the_resumed_run_is_the_same(
    tmp_path: Path, whole: dict[str, Any], name: str, call: int, batch: int
) -> None:
    folder = tmp_path / "run"
    small = Small()
    raising_at(small, name, call, signal.SIGTERM)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    assert end_by_signal(folder, small, LOGGED) == 143
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    # The step in progress is finished, and at most the next.
    assert small.calls["loss"] in (call, call + 1)
    state = files.parse_json(files.read_folder(folder / "last")["trainer_state.json"], "state")
    assert (state["step"], state["batch"]) == (small.calls["loss"], (small.calls["loss"] - 1) % BATCHES + 1)
    train(folder, replace(LOGGED, resume=True))
    assert contents(folder) == whole


@pytest.mark.parametrize("call", [1, 2, 4])
def test_a_signal_ends_a_score_at_once(tmp_path: Path, whole: dict[str, Any], call: int) -> None:
    folder = tmp_path / "run"
    small = Small()
    raising_at(small, "score", call, signal.SIGINT)
    scored = small.score

    def score(model: torch.nn.Module) -> training.Score:
        found = scored(model)
        assert small.calls["score"] != call, "the score went on after the signal"
        return found

    task = replace(small.task(), score=score)
    with pytest.raises(SystemExit) as caught:
        training.run(small.model, task, LOGGED, folder, CONFIG)
    assert caught.value.code == 130
    train(folder, replace(LOGGED, resume=True))
    assert contents(folder) == whole


@pytest.mark.parametrize("call", [2, 3])
def test_a_signal_while_saving_waits_for_the_save(tmp_path: Path, whole: dict[str, Any], call: int) -> None:
    """The folder is made once before the first step and once an epoch."""
    folder = tmp_path / "run"
    small = Small()
    raising_at(small, "folder", call, signal.SIGINT)
    assert end_by_signal(folder, small, LOGGED) == 130
    assert len([record for record in records(folder) if "epoch" in record]) == call - 1
    assert small.calls["loss"] == (call - 1) * BATCHES
    train(folder, replace(LOGGED, resume=True))
    assert contents(folder) == whole


def test_a_signal_in_the_last_save_still_ends_the_run(tmp_path: Path, whole: dict[str, Any]) -> None:
    small = Small()
    raising_at(small, "folder", 5, signal.SIGINT)
    assert end_by_signal(tmp_path / "run", small, LOGGED) == 130
    assert contents(tmp_path / "run") == whole


class Process:
    """The script in a process of its own, which halts where it is told to."""

    def __init__(self, tmp_path: Path, *halts: str) -> None:
        self.folder = tmp_path / "run"
        self.home = tmp_path / "home"
        self.home.mkdir()
        options = json.dumps({"epochs": 4, "learning_rate": 0.02, "patience": 0, "log_every": 1})
        source = str(SCRIPT.parent.parent / "src")
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(self.folder), options, *halts],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.home,
            env={**os.environ, "HOME": str(self.home), "PYTHONPATH": source, "PYTHONDONTWRITEBYTECODE": "1"},
        )

    def reach(self, halt: str) -> None:
        assert self.process.stdout
        reached = self.process.stdout.readline().strip()
        assert reached == halt, self.process.communicate()[1]

    def go_on(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> tuple[int, str]:
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors


def test_ctrl_c_twice_saves_once_and_exits_with_130(tmp_path: Path, whole: dict[str, Any]) -> None:
    process = Process(tmp_path, "loss:11", "folder:3")
    process.reach("loss:11")
    process.send(signal.SIGINT)
    process.go_on()
    process.reach("folder:3")  # 1 before the first step, 2 after the first epoch
    process.send(signal.SIGINT)
    process.go_on()
    code, errors = process.end()
    assert code == 130, errors
    assert "stopping after this step" in errors
    assert "being saved; please wait" in errors
    assert "stopped by SIGINT" in errors
    assert "after 1 epochs and" in errors
    assert "Traceback" not in errors
    assert list(process.home.iterdir()) == [], "something was written outside the run folder"

    small = Small()
    stopped = len([record for record in records(process.folder) if "epoch" not in record])
    assert stopped in (11, 12)
    train(process.folder, replace(LOGGED, resume=True), small)
    assert contents(process.folder) == whole
    rest = [tuple(int(row) for row in batch) for epoch in (2, 3, 4) for batch in small.batches(epoch)]
    assert small.read == rest[stopped - BATCHES :], "an example was read twice, or never"


def test_sigkill_loses_no_more_than_the_epoch(tmp_path: Path, whole: dict[str, Any]) -> None:
    process = Process(tmp_path, f"loss:{2 * BATCHES + 3}")
    process.reach(f"loss:{2 * BATCHES + 3}")
    process.send(signal.SIGKILL)
    assert process.end()[0] == -signal.SIGKILL
    small = Small()
    train(process.folder, replace(LOGGED, resume=True), small)
    assert small.calls["loss"] == 2 * BATCHES
    assert contents(process.folder) == whole


# Steps that are not finite


@pytest.mark.parametrize("bad", ["loss nan", "loss inf", "loss alone", "gradient nan"])
def test_a_bad_step_is_skipped_and_counted(
    tmp_path: Path, bad: str, capsys: pytest.CaptureFixture[str]
) -> None:
    small = Small()
    small.bad, small.bad_steps = bad, [3]
    before: dict[str, Any] = {}

    def on_call(name: str, call: int) -> None:
        if name == "loss" and call == 3:
            before.update({key: value.clone() for key, value in small.model.state_dict().items()})
        if name == "loss" and call == 4:
            after = small.model.state_dict()
            assert all(torch.equal(before[key], after[key]) for key in before)

    small.on_call = on_call
    result = train(tmp_path / "run", replace(OPTIONS, epochs=1), small)
    assert before, "the step was never reached"
    assert result.skipped == result.history[0]["skipped"] == 1
    assert result.steps == BATCHES
    # Equal to a run that never saw the batch, so the optimizer is untouched too.
    for name, expected in by_hand(Small(), OPTIONS, skip=3).items():
        torch.testing.assert_close(small.model.state_dict()[name], expected, rtol=1e-4, atol=1e-6)
    errors = capsys.readouterr().err
    assert f"skipped epoch 1, step 3, batch 3 of {BATCHES}: loss" in errors
    where = "the gradients are finite" if bad == "loss alone" else "that of hidden.bias"
    assert f"{where}; examples" in errors
    assert "steps skipped: 1" in errors
    assert math.isfinite(result.history[0]["train_loss"])


def test_five_bad_steps_in_a_row_stop_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    small = Small()
    small.bad_steps = [3, *range(BATCHES + 4, 99)]
    with pytest.raises(TrainingError) as caught:
        train(folder, LOGGED, small)
    assert small.calls["loss"] == BATCHES + 8
    rows = ", ".join(str(row) for row in small.batches(2)[3][:8])
    message = str(caught.value)
    assert "5 steps in a row" in message
    assert (
        f"began at epoch 2, step {BATCHES + 4}, batch 4 of {BATCHES}: loss nan, the first gradient that "
        f"is not finite is that of hidden.bias; examples {rows} and 8 more" in message
    )
    assert f"{folder / 'last'} is kept as it was after epoch 1" in message
    state = files.parse_json(files.read_folder(folder / "last")["trainer_state.json"], "state")
    assert (state["epoch"], state["step"], state["skipped"]) == (1, BATCHES, 1)
    assert [r["loss"] for r in records(folder) if "epoch" not in r][BATCHES + 3 :] == [None] * 5


def test_four_bad_steps_in_a_row_do_not(tmp_path: Path) -> None:
    small = Small()
    small.bad_steps = [2, 3, 4, 5, 7, 8, 9, 10]
    assert train(tmp_path / "run", replace(OPTIONS, epochs=2), small).skipped == 8


def test_bad_steps_are_counted_across_a_resume(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    small = Small()
    small.bad_steps = range(2, 99)
    raising_at(small, "loss", 3, signal.SIGINT)
    assert end_by_signal(folder, small) == 130
    small.on_call = lambda name, call: None
    with pytest.raises(TrainingError, match=r"began at epoch 1, step 2(.*\n)*.*nothing was saved yet"):
        train(folder, replace(OPTIONS, resume=True), small)
    assert small.calls["loss"] == 6


# What is shown


def test_lines_where_there_is_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path / "run", replace(OPTIONS, epochs=2))
    shown = capsys.readouterr()
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert lines[0] == "seed 1, device cpu, kernels plain torch, 250 parameters, 1 process"
    assert [line.split(",")[0] for line in lines[1:3]] == ["epoch 1/2", "epoch 2/2"]
    for word in ("train loss", "dev loss", "accuracy", "tokens/s", "padding 3", "gradient norm", "time"):
        assert word in lines[1]
    assert len(lines) == 4
    assert "best accuracy" in lines[3]


def test_quiet_is_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = Small()
    small.bad_steps = [2]
    train(tmp_path / "run", replace(OPTIONS, quiet=True), small)
    assert capsys.readouterr() == ("", "")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_table_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    small = Small()
    small.scores = [0.5, 0.7, 0.6]
    train(tmp_path / "run", replace(OPTIONS, epochs=3), small)
    shown = terminal.getvalue()
    assert "train loss  dev loss  accuracy  tokens/s   padding  gradient norm      time" in shown
    rows = [line for line in shown.splitlines() if "/3 " in line and "%" in line]
    assert ["* best so far" in row for row in rows] == [True, True, False]
    assert f"/{BATCHES}" in shown  # the bar
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1  # the cursor is given back


# Several processes


def torchrun(folder: Path, options: dict[str, Any], *halts: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parent.parent / "src")}
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         str(SCRIPT), str(folder), json.dumps(options), *halts],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_two_processes_train_as_one(tmp_path: Path, whole: dict[str, Any]) -> None:
    """Twenty steps in two processes, ended by a failing rank and by a signal, the rest in one."""
    folder = tmp_path / "run"
    options = {"epochs": 4, "learning_rate": 0.02, "patience": 0, "log_every": 1}
    ended = torchrun(folder, options, "raise:11")
    assert ended.returncode == 1, ended.stderr
    assert "this rank fails" in ended.stderr
    lines = ended.stderr.splitlines()
    assert len([line for line in lines if line.startswith("seed ") and "2 processes" in line]) == 1
    assert len([line for line in lines if line.startswith("epoch ")]) == 1
    last = files.read_folder(folder / "last")
    assert files.parse_json(last["trainer_state.json"], "state")["step"] == BATCHES

    ended = torchrun(folder, {**options, "resume": True}, f"term:{20 - BATCHES}")
    assert ended.returncode != 0
    assert "stopped by SIGTERM" in ended.stderr, ended.stderr
    last = files.read_folder(folder / "last")
    assert files.parse_json(last["trainer_state.json"], "state")["step"] == 20

    train(folder, replace(LOGGED, resume=True))
    found, expected = records(folder), whole["records"]
    pairs = [(a["loss"], b["loss"]) for a, b in zip(found, expected, strict=True) if "loss" in a]
    assert len(pairs) == 4 * BATCHES
    assert max(abs(a - b) / b for a, b in pairs) < 1e-6
    for a, b in zip(found, expected, strict=True):
        if "epoch" in a:
            assert a == pytest.approx(b, rel=1e-4)


def test_processes_that_cannot_join_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="2 processes were launched"):
        train(tmp_path / "run")


# ---- looking inside


class Reader(torch.nn.Module):
    """A recurrent layer in the small task's network's place."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(20, 8, padding_idx=0)
        self.reader = nn.LSTM(8, 8, batch_first=True)
        self.hidden = torch.nn.Linear(8, 2)

    def forward(self, tokens: torch.Tensor, noise: training.Noise | None = None) -> torch.Tensor:
        _, (hidden, _) = self.reader(self.embedding(tokens), lengths=(tokens > 0).sum(1))
        logits: torch.Tensor = self.hidden(hidden[0])
        return logits


def reading() -> Small:
    small = Small()
    with training.seeded(1):
        small.model = Reader()  # type: ignore[assignment]
    return small


def test_a_monitored_run_has_the_bits_of_one_that_is_not(tmp_path: Path) -> None:
    plain, watched = reading(), reading()
    train(tmp_path / "plain", small=plain)
    told: list[int] = []
    training.run(
        watched.model,
        watched.task(),
        OPTIONS,
        tmp_path / "watched",
        CONFIG,
        monitor=lambda step, numbers: told.append(step) if numbers else None,
    )
    for name, tensor in plain.model.state_dict().items():
        assert torch.equal(tensor, watched.model.state_dict()[name]), name
    measured = [record for record in records(tmp_path / "watched") if "monitor" in record]
    assert [record["step"] for record in measured] == told == [25]
    assert {"reader.0.forward/vanished", "reader.0.forward/gate_memory"} <= set(measured[0]["monitor"])


def test_a_run_that_is_not_finite_ends_in_the_place_where_it_began(tmp_path: Path) -> None:
    small = reading()
    reader: Any = small.model
    with torch.no_grad():
        reader.embedding.weight[1:, 3] = math.inf
    with pytest.raises(TrainingError) as caught:
        train(tmp_path / "run", small=small)
    assert "not finite: the input is inf in reader, layer 0, forward, step 0, sample 0, unit 3" in str(
        caught.value
    )
    assert "largest singular value" in str(caught.value)
    saved = introspect.Capture.load(tmp_path / "run" / "fault.safetensors")
    assert (saved["reader"].inputs[0][0, :, 3] == math.inf).all()
