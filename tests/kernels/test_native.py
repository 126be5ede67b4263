"""The native set's own: instruction sets, threads, fork, many callers at once, exit.

What it computes is held by tests/contract.
"""

import math
import os
import platform
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from contract.cases import Case, differing_bits, draw
from contract.sets import KernelSet, infer, load_native, prepare, run
from unspool.errors import InputError, KernelsError
from unspool.kernels.contract import Cell

# Enough work for the engine to wake its threads, and rows enough to share.
CASE = Case(Cell.LSTM, 2, 65, 33, 12, 23, lengths=True, resets=True, reset_state=True, mask=True)


@pytest.fixture
def restored(native: ModuleType) -> Iterator[ModuleType]:
    """The native module, with its number of threads put back afterwards."""
    before = native.threads()
    yield native
    native.set_threads(before)


def as_set(module: ModuleType) -> KernelSet:
    return KernelSet("native", module, True, lambda array: array, lambda array: array)


# A sanitizer's checks make everything so much slower.
PATIENCE = 30 if "UNSPOOL_SANITIZED" in os.environ else 1


def in_a_new_process(code: str, *, timeout: float = 60, **environment: str) -> str:
    """What a fresh interpreter prints; it must end well, in time, and without a warning."""
    settings = {
        k: v
        for k, v in os.environ.items()
        if k not in ("UNSPOOL_ISA", "UNSPOOL_THREADS", "UNSPOOL_POOL", "OMP_NUM_THREADS")
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        env=settings | environment,
        capture_output=True,
        text=True,
        timeout=timeout * PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


# A layer heavy enough for threads, in a process of its own; with few rows the threads share its units.
_LAYER = (
    f"""
patience = {PATIENCE}
"""
    + """
import os, signal, sys
import numpy as np
from unspool.kernels import native
from unspool.kernels.contract import Cell, Weights

rng = np.random.default_rng(0)
def floats(*shape):
    return rng.uniform(-0.2, 0.2, shape).astype(np.float32)
units, rows, directions = {}
gates = 4 * units
weights = [Weights(floats(gates, 33), floats(gates, units), floats(gates)) for _ in range(directions)]
prepared = native.prepare(Cell.LSTM, weights)
x, d_hidden = floats(12, rows, 33), floats(12, rows, directions, units)
def bits():
    trace, final = native.forward(prepared, x)
    gradients, flow = native.backward(prepared, x, trace, d_hidden=d_hidden)
    arrays = [*trace[:3], *final, gradients.x, *gradients.weights[0][:3], *gradients.weights[-1][:3], *flow]
    return b"".join(array.tobytes() for array in arrays)
"""
)
LAYER, FEW = _LAYER.format("65, 23, 2"), _LAYER.format("200, 2, 1")
either = pytest.mark.parametrize("layer", [LAYER, FEW], ids=["rows", "units"])


def test_each_instruction_set_is_the_one_that_was_asked_for(native: ModuleType) -> None:
    names = native.instruction_sets()
    assert names[-1] == ("neon" if platform.machine() == "aarch64" else "baseline")
    for isa in names:
        module = load_native(isa)
        assert module.describe() == f"native[{isa}]"
        assert not np.isnan(run(as_set(module), CASE.cell, draw(CASE)).all["d_x"]).any()


@pytest.mark.parametrize("wanted", ["sse9", "", "AVX2", "native"])
def test_an_instruction_set_that_is_not_there_is_refused(native: ModuleType, wanted: str) -> None:
    with pytest.raises(KernelsError) as refused:
        load_native(wanted)
    wrong, received, fix = str(refused.value).split("\n")
    assert "UNSPOOL_ISA" in wrong
    assert repr(wanted) in received
    assert all(name in fix for name in native.instruction_sets())


def test_a_process_runs_the_instruction_set_and_threads_of_its_environment(native: ModuleType) -> None:
    code = """
        from unspool import kernels
        loaded = kernels.load("native")
        print(loaded.describe(), loaded.threads())
    """
    isa = native.instruction_sets()[-1]
    assert in_a_new_process(code, UNSPOOL_ISA=isa, UNSPOOL_THREADS="3") == f"native[{isa}] 3"
    assert in_a_new_process(code, OMP_NUM_THREADS="5").endswith(" 5")
    assert in_a_new_process(code, OMP_NUM_THREADS="5", UNSPOOL_THREADS="4").endswith(" 4")
    best = native.instruction_sets()[0]
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert in_a_new_process(code, UNSPOOL_THREADS="") == f"native[{best}] {here}"


@pytest.mark.parametrize("name", ["UNSPOOL_THREADS", "OMP_NUM_THREADS"])
@pytest.mark.parametrize("wanted", ["0", "-2", "1.5", "two", " ", "2147483648"])
def test_a_number_of_threads_that_is_none_is_refused(
    native: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str, wanted: str
) -> None:
    monkeypatch.delenv("UNSPOOL_THREADS", raising=False)
    monkeypatch.setenv(name, wanted)
    with pytest.raises(KernelsError) as refused:
        load_native(native.instruction_sets()[0])
    wrong, received, fix = str(refused.value).split("\n")
    assert name in wrong
    assert repr(wanted) in received
    assert "unset" in fix


@pytest.mark.parametrize("count", [1, 2, 7, 200])
def test_set_threads_changes_the_number_and_no_bit(restored: ModuleType, count: int) -> None:
    data = draw(CASE)
    restored.set_threads(1)
    want = run(as_set(restored), CASE.cell, data).all
    restored.set_threads(count)
    assert restored.threads() == count
    assert not differing_bits(run(as_set(restored), CASE.cell, data).all, want)


@pytest.mark.parametrize("count", [0, -1, 1.0, "2", None, True, 2**31])
def test_set_threads_refuses_what_is_no_number_of_threads(restored: ModuleType, count: Any) -> None:
    before = restored.threads()
    with pytest.raises(InputError) as refused:
        restored.set_threads(count)
    wrong, received, fix = str(refused.value).split("\n")
    assert "whole number" in wrong
    assert repr(count) in received
    assert "set_threads(" in fix
    assert restored.threads() == before


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads in /proc")
def test_threads_are_started_when_there_is_work_and_as_many_as_asked_for(native: ModuleType) -> None:
    code = """
        def alive():
            return len(os.listdir("/proc/self/task"))
        native.set_threads(1)
        before = alive()
        alone = bits()
        assert alive() == before, "one thread is no thread more"
        native.set_threads(3)
        small = [Weights(floats(2, 1), floats(2, 2), floats(2)) for _ in range(2)]
        native.infer(native.prepare(Cell.RNN_TANH, small), floats(2, 20, 1))
        assert alive() == before, "work too small to share woke a thread"
        assert bits() == alone
        assert alive() == before + 2
        native.set_threads(2)
        assert bits() == alone
        assert alive() == before + 2
        print("as asked")
    """
    assert in_a_new_process(LAYER + textwrap.dedent(code)) == "as asked"


# The same on the threads that torch has made; torch itself works on them before and after.
SHARED = """
import torch
import unspool.nn
assert native.pool().startswith("libgomp"), native.pool()
torch.set_num_threads(3)
many = torch.ones(1_000_000)
assert float(many.sum()) == 1_000_000
"""


@either
def test_torchs_threads_are_shared_and_give_the_bits_of_own_ones(native: ModuleType, layer: str) -> None:
    """Alone, from many Python threads at once, and in children, which have threads of their own."""
    pytest.importorskip("torch")
    code = """
        import warnings
        from concurrent.futures import ThreadPoolExecutor
        warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of forks beside threads
        native.set_threads(1)
        want = bits()
        native.set_threads(3)
        for _ in range(20):
            assert bits() == want and float(many.sum()) == 1_000_000
        with ThreadPoolExecutor(8) as executor:
            assert all(got == want for got in executor.map(lambda _: bits(), range(80)))
        for _ in range(20):
            pid = os.fork()
            if pid == 0:
                signal.alarm(20 * patience)
                os._exit(0 if bits() == want else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            assert bits() == want and float(many.sum()) == 1_000_000
        print("works")
    """
    assert in_a_new_process(layer + SHARED + textwrap.dedent(code)) == "works"


@either
def test_a_child_forked_before_the_engine_ran_has_own_threads(native: ModuleType, layer: str) -> None:
    """Torch's team stands, and does not cross the fork, though the engine has not used it yet."""
    pytest.importorskip("torch")
    code = """
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        float(many.sum())
        pid = os.fork()
        if pid == 0:
            signal.alarm(20 * patience)
            native.set_threads(3)
            bits()
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """
    assert in_a_new_process(layer + SHARED + textwrap.dedent(code)) == "0"


def test_own_threads_beside_torchs_where_they_are_asked_for(native: ModuleType) -> None:
    pytest.importorskip("torch")
    code = "import unspool.nn\nfrom unspool.kernels import native\nprint(native.pool())"
    assert in_a_new_process(code, UNSPOOL_POOL="own") == "own"
    assert in_a_new_process("from unspool.kernels import native\nprint(native.pool())") == "own"
    said = "try:\n import unspool.kernels.native\nexcept Exception as error:\n print(error)"
    assert "Received: 'mine'" in in_a_new_process(said, UNSPOOL_POOL="mine")


def test_a_library_that_is_not_loaded_or_has_no_threads_is_left_alone(native: ModuleType) -> None:
    code = """
        from pathlib import Path
        from unspool.kernels import _core, native
        native.share_threads(Path("libgomp-of-nobody.so.1"))
        native.share_threads(Path(_core.__file__))
        print(native.pool())
    """
    assert in_a_new_process(code) == "own"


def test_the_machines_limits_are_those_of_a_machine(restored: ModuleType) -> None:
    """Work that the compiler left out would look like a thousand times more."""
    for precision in ("float32", "bfloat16", "int8"):
        products, read = restored.roofline(precision)
        assert 1e8 < products < 1e15
        assert 1e8 < read < 1e15
    with pytest.raises(ValueError, match="no such engine"):
        restored.roofline("float32", 0)
    with pytest.raises(ValueError, match="no such engine"):
        restored.roofline("float64")


@either
def test_a_child_forked_after_a_parallel_region_works(native: ModuleType, layer: str) -> None:
    """The pool's threads do not cross a fork; the child makes its own, and so does its child."""
    code = """
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of forks beside threads
        native.set_threads(3)
        want = bits()

        def child(deep):
            pid = os.fork()
            if pid == 0:
                signal.alarm(20 * patience)
                code = 9
                try:
                    same = bits() == want and (deep == 0 or child(deep - 1) == 0) and bits() == want
                    code = 0 if same else 1
                finally:
                    os._exit(code)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

        for _ in range(20):
            assert child(1) == 0
            assert bits() == want
        print("works")
    """
    assert in_a_new_process(layer + textwrap.dedent(code)) == "works"


@either
def test_a_child_forked_while_another_thread_computes_works(native: ModuleType, layer: str) -> None:
    """Every lock of the pool may be held at that moment."""
    code = """
        import threading, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        native.set_threads(3)
        want = bits()
        stop = threading.Event()
        def busy():
            while not stop.is_set():
                assert bits() == want
        others = [threading.Thread(target=busy) for _ in range(2)]
        for other in others:
            other.start()
        try:
            for _ in range(30):
                pid = os.fork()
                if pid == 0:
                    signal.alarm(20 * patience)
                    os._exit(0 if bits() == want else 1)
                assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        finally:
            stop.set()
            for other in others:
                other.join()
        print("works")
    """
    assert in_a_new_process(layer + textwrap.dedent(code)) == "works"


@pytest.mark.parametrize("count", [1, 3])
def test_many_callers_of_one_layer_get_the_bits_of_one(restored: ModuleType, count: int) -> None:
    """One prepared layer, eight Python threads, each with a batch of its own size."""
    kernels = as_set(restored)
    restored.set_threads(count)
    first = draw(CASE)
    prepared = prepare(kernels, CASE.cell, first)
    batches = [draw(CASE._replace(batch=4 + n), seed=n)._replace(weights=first.weights) for n in range(8)]
    want = [run(kernels, CASE.cell, data, prepared).all for data in batches]

    def call(n: int) -> list[str]:
        wrong = differing_bits(run(kernels, CASE.cell, batches[n % 8], prepared).all, want[n % 8])
        inferred = infer(kernels, CASE.cell, batches[n % 8], prepared)
        return wrong + differing_bits(inferred, {name: want[n % 8][name] for name in inferred})

    with ThreadPoolExecutor(8) as pool:
        assert not [line for lines in pool.map(call, range(64)) for line in lines]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="keeps a process on one core")
@pytest.mark.parametrize("shared", ["", "SHARED"])
def test_threads_that_share_units_wait_for_nobody_who_is_kept_away(native: ModuleType, shared: str) -> None:
    """Three threads on one core: each time, those who wait keep away those they wait for."""
    if shared:
        pytest.importorskip("torch")
    code = """
        native.set_threads(1)
        want = bits()
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        native.set_threads(3)
        for _ in range(200):
            assert bits() == want
        print("works")
    """
    assert in_a_new_process(FEW + (SHARED if shared else "") + textwrap.dedent(code)) == "works"


def test_threads_that_share_units_find_every_core_taken(native: ModuleType) -> None:
    """Others compute on each core all the time, eight threads share the units: the bits are those of one."""
    code = """
        import subprocess
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count())]
        try:
            native.set_threads(1)
            want = bits()
            for count in (2, 3, 8):
                native.set_threads(count)
                for _ in range(100):
                    assert bits() == want
        finally:
            for process in busy:
                process.kill()
                process.wait()
        print("works")
    """
    assert in_a_new_process(FEW + textwrap.dedent(code)) == "works"


def test_other_threads_run_while_the_engine_works(native: ModuleType) -> None:
    """The interpreter's lock is let go: nothing else makes this caller give way within an hour."""
    code = """
        import threading
        sys.setswitchinterval(3600)
        long = floats(300, 23, 33)
        native.set_threads(1)
        seen, counted, done = [], 0, threading.Event()
        def call():
            seen.append(counted)
            native.infer(prepared, long)
            seen.append(counted)
            done.set()
        threading.Thread(target=call).start()
        while not done.is_set():
            counted += 1
            os.stat(".")  # lets go of the lock itself
        print(seen[1] > seen[0])
    """
    assert in_a_new_process(LAYER + textwrap.dedent(code)) == "True"


def test_a_process_ends_well_while_the_pool_lives(native: ModuleType) -> None:
    """After a parallel region, with the layer and its traces still held, ten times over."""
    code = """
        native.set_threads(3)
        for _ in range(10):
            pid = os.fork()
            if pid == 0:
                signal.alarm(20 * patience)
                bits()
                sys.exit(7)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        bits()
        print("ended")
    """
    assert in_a_new_process(LAYER + textwrap.dedent(code)) == "ended"


def test_the_weights_are_copied_when_they_are_prepared(native: ModuleType) -> None:
    kernels, data = as_set(native), draw(CASE)
    prepared = prepare(kernels, CASE.cell, data)
    want = run(kernels, CASE.cell, data, prepared).all
    for w in data.weights:
        for part in w:
            if part is not None:
                part[:] = np.nan
    assert not differing_bits(run(kernels, CASE.cell, data, prepared).all, want)


def test_torch_tensors_are_refused(native: ModuleType) -> None:
    torch = pytest.importorskip("torch")
    data = draw(CASE)
    tensors = [type(w)(*(p if p is None else torch.from_numpy(p) for p in w)) for w in data.weights]
    with pytest.raises(InputError, match=r"takes NumPy arrays\.\n  Received: Tensor\.\n  Fix: "):
        native.prepare(CASE.cell, tensors)
    prepared = prepare(as_set(native), CASE.cell, data)
    with pytest.raises(InputError, match=r"another library.*\n  Received: Tensor of torch.*\n  Fix: .*nn"):
        native.infer(prepared, torch.from_numpy(data.x))


def test_float64_is_refused(native: ModuleType) -> None:
    data = draw(CASE)
    wide = tuple(type(w)(*(p if p is None else p.astype("float64") for p in w)) for w in data.weights)
    with pytest.raises(InputError, match=r"does not run float64\.\n  Received: .*\n  Fix: .*float32"):
        native.prepare(CASE.cell, wide)


def test_a_module_that_is_not_built_says_so(native: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without a compiler: it says what to do, and nothing slower runs instead."""
    import unspool.kernels as kernels

    monkeypatch.delattr(kernels, "_core")
    monkeypatch.setitem(sys.modules, "unspool.kernels._core", None)
    with pytest.raises(KernelsError, match=r"cannot be loaded\.\n  Received: .*\n  Fix: .*pip install"):
        load_native(native.instruction_sets()[0])


def test_memory_is_handed_out_again_only_when_it_is_free(native: ModuleType) -> None:
    """Large arrays come and go in random order, views of them outlive them: none is written by another."""
    rng = np.random.default_rng(0)
    alive: list[tuple[np.ndarray, float]] = []
    addresses = set()
    for number in range(400):
        shape = (int(rng.integers(1, 5)), 20_000 + 5_000 * int(rng.integers(4)))
        array = native.empty(*shape)
        assert array.shape == shape
        assert array.dtype == np.float32
        assert array.flags.writeable
        assert array.ctypes.data % 64 == 0
        addresses.add(array.ctypes.data)
        array[...] = number
        alive.append((array[0, 7:] if rng.random() < 0.5 else array, number))
        while len(alive) > 6:
            kept, value = alive.pop(int(rng.integers(len(alive))))
            assert (kept == value).all()
    assert len(addresses) < 200  # most of it is not fresh


LONG = """
import os, signal, threading, time
import numpy as np
from unspool.kernels import native
from unspool.kernels.contract import Cell, Weights

size = 128 if 'UNSPOOL_SANITIZED' in os.environ else 512
weights = [np.full((4 * size, size), 0.01, np.float32) for _ in range(2)]
prepared = native.prepare(Cell.LSTM, [Weights(*weights, np.zeros(4 * size, np.float32))])
short = np.zeros((200, 1, size), np.float32)
def infer(x): return native.infer(prepared, x)
def backward(x):
    steps = (len(x), 1, 1)
    trace = Trace(*(np.zeros((*steps, *tail), np.float32) for tail in ((4, size), (size,), (size,))))
    return native.backward(prepared, x, trace, d_hidden=trace.hidden)
"""


@pytest.mark.parametrize("what", ["infer", "backward"])
@pytest.mark.parametrize("threads", ["own", "torch's"])
def test_ctrl_c_ends_a_long_call(what: str, threads: str) -> None:
    """Of a call of some ten seconds, within a fraction of them; the next call is right."""
    if threads != "own":
        pytest.importorskip("torch")
    told = in_a_new_process(
        "from unspool.kernels.contract import Trace\n"
        + LONG
        + ("" if threads == "own" else "import unspool.nn\nassert native.pool() != 'own'\n")
        + f"""
before = infer(short)[0]
started = time.monotonic()
{what}(short)
expected = 10.0
longer = np.zeros((int(200 * expected / (time.monotonic() - started)), 1, size), np.float32)
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
started = time.monotonic()
try:
    {what}(longer)
    print("not interrupted")
except KeyboardInterrupt:
    # A call that does not listen raises too, when it is done.
    print("early" if time.monotonic() - started < expected / 3 else "late")
assert (infer(short)[0] == before).all()
"""
    )
    assert told == "early"


@pytest.mark.parametrize(
    ("limits", "cores"),
    [
        ({}, math.inf),
        ({"service/job": "max 100000"}, math.inf),
        ({"service/job": "150000 100000"}, 1.5),
        ({"service/job": "400000 100000", "service": "50000 100000"}, 0.5),
        ({"service/job": "max 100000", "": "300000 100000"}, 3.0),
        ({"elsewhere": "100000 100000"}, math.inf),
        ({"service/job": "nonsense", "service": "200000 100000"}, 2.0),
        ({"service/job": "100000 0"}, math.inf),
    ],
)
def test_the_quota_of_a_control_group_counts(
    native: ModuleType, tmp_path: Path, limits: dict[str, str], cores: float
) -> None:
    """The least on the way from the process's group to the root; groups beside it do not count."""
    membership, root = tmp_path / "membership", tmp_path / "groups"
    membership.write_text("1:cpu:/elsewhere\n0::/service/job\n")
    (root / "service" / "job").mkdir(parents=True)
    for group, line in limits.items():
        (root / group).mkdir(exist_ok=True)
        (root / group / "cpu.max").write_text(line + "\n")
    assert native._quota(membership, root) == cores
    assert native._quota(tmp_path / "missing", root) == math.inf
