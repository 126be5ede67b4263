"""Run the tests on an engine built with gcc's sanitizers, which end the process at the first fault.

    python tests/sanitize.py            both
    python tests/sanitize.py address    addresses (ASan) and undefined behaviour (UBSan): the contract suite,
                                        the engine's tests and the verification suite
    python tests/sanitize.py thread     races (TSan): what works with threads, forks and many callers

Each file is run in a process of its own, two a core at a time: a fault ends one of them.

Builds in a folder and an environment of its own, build/sanitized-*, which reads the tools from the
environment that runs this.  Python itself is not instrumented: gcc's runtimes are preloaded, and leaks are
not looked for, since CPython leaves memory to the system when it ends.  In the build for addresses the
engine keeps and rounds up no memory, so that an access past an array's end is seen.
"""

import os
import platform
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Sanitizer(NamedTuple):
    """What is built in, what Python is run with, what is run."""

    flags: str
    preloaded: tuple[str, ...]
    settings: dict[str, str]
    tests: tuple[str, ...]
    left_out: dict[str, str]  # tests, and why


NATIVE = "tests/kernels/test_native.py::"
MEMORY = "that memory is kept, which it is not in this build"
FORKS = "forks while threads allocate: gcc 12's ASan can leave its allocator's own lock held in a child"
TORCHS = "TSan does not see how libgomp's threads, torch's, wait for one another"

SLOW = "a measurement of the machine, in a build that is many times slower"

SANITIZERS = {
    "address": Sanitizer(
        "address,undefined",
        ("libasan.so", "libubsan.so", "libstdc++.so"),
        {
            # Uses after return are not looked for: gcc 12 lays the frames for that out so that
            # the first AVX-512 value in one of them ends the process.
            "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0:allocator_may_return_null=1",
            "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        },
        (
            "tests/contract",
            "tests/kernels/test_native.py",
            "tests/test_small_calls.py",
            "tests/test_stream.py",
            "tests/verification",
        ),
        {
            f"{NATIVE}test_memory_is_handed_out_again_only_when_it_is_free": MEMORY,
            f"{NATIVE}test_the_machines_limits_are_those_of_a_machine": SLOW,
            f"{NATIVE}test_torchs_threads_are_shared_and_give_the_bits_of_own_ones": FORKS,
            f"{NATIVE}test_a_child_forked_while_another_thread_computes_works": FORKS,
            "tests/verification/test_processes.py::test_every_child_of_many_forks_works": FORKS,
        },
    ),
    "thread": Sanitizer(
        "thread",
        ("libtsan.so", "libstdc++.so"),
        {
            "TSAN_OPTIONS": "die_after_fork=0:halt_on_error=1:second_deadlock_stack=1:report_signal_unsafe=0",
            "UNSPOOL_POOL": "own",
        },
        (
            "tests/kernels/test_native.py",
            "tests/contract/test_independence.py",
            "tests/verification/test_bits.py",
            "tests/verification/test_lockstep.py",
            "tests/verification/test_processes.py",
            "tests/test_stream.py",
        ),
        {
            f"{NATIVE}test_the_machines_limits_are_those_of_a_machine": SLOW,
            f"{NATIVE}test_torchs_threads_are_shared_and_give_the_bits_of_own_ones": TORCHS,
            f"{NATIVE}test_a_child_forked_before_the_engine_ran_has_own_threads": TORCHS,
            f"{NATIVE}test_ctrl_c_ends_a_long_call[torch's": TORCHS,
            f"{NATIVE}test_threads_that_share_units_wait_for_nobody_who_is_kept_away[SHARED]": TORCHS,
        },
    ),
}


def build(name: str, sanitizer: Sanitizer) -> Path:
    """An environment with the engine so built; the path of its Python."""
    place = ROOT / "build" / f"sanitized-{name}"
    python = place / "venv" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", place / "venv"], check=True)
        packages = next((place / "venv" / "lib").glob("python3*")) / "site-packages"
        (packages / "tools.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    settings = {
        "build-dir": str(place / "cmake"),
        "cmake.define.UNSPOOL_SANITIZE": sanitizer.flags,
        "cmake.define.UNSPOOL_AVX512": "ON" if "avx512f" in Path("/proc/cpuinfo").read_text() else "OFF",
        "install.strip": "false",
    }
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps"]
    install += ["--disable-pip-version-check", "--no-build-isolation", "--force-reinstall"]
    for key, value in settings.items():
        install += ["--config-settings", f"{key}={value}"]
    subprocess.run([*install, "."], cwd=ROOT, check=True)
    return python


def run(name: str, chosen: list[str]) -> bool:
    """Build and run the tests; whether all went well."""
    sanitizer = SANITIZERS[name]
    python = build(name, sanitizer)
    found = [
        subprocess.run(["gcc", f"-print-file-name={each}"], capture_output=True, text=True, check=True)
        for each in sanitizer.preloaded
    ]
    environment = os.environ | sanitizer.settings
    environment |= {"LD_PRELOAD": " ".join(each.stdout.strip() for each in found), "REQUIRE": "native"}
    environment |= {"UNSPOOL_SANITIZED": name}
    # TSan needs its own ranges of addresses: without their being drawn at random it has them.
    fixed = ["setarch", platform.machine(), "--addr-no-randomize"] if name == "thread" else []
    command = [*fixed, str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", "3600"]
    command += [f"--deselect={test}" for test in sanitizer.left_out]
    print(sanitizer.flags, flush=True)
    for test, why in sanitizer.left_out.items():
        print(f"left out: {test}: {why}", flush=True)
    print("left out: three of four cases that tests/verification draws in make test: time", flush=True)

    def went_well(file: str) -> bool:
        done = subprocess.run([*command, file], cwd=ROOT, env=environment, capture_output=True, text=True)
        good = done.returncode == 0
        if not good:
            print(done.stdout + done.stderr, flush=True)
        print(f"{file}: {done.stdout.strip().splitlines()[-1] if good else 'failed'}", flush=True)
        return good

    with ThreadPoolExecutor(2 * (os.cpu_count() or 1)) as side_by_side:
        return all(list(side_by_side.map(went_well, chosen or files(sanitizer.tests))))


def files(places: tuple[str, ...]) -> list[str]:
    """The test files there."""
    found = [file for place in places for file in sorted((ROOT / place).rglob("test_*.py")) or [ROOT / place]]
    return [str(file.relative_to(ROOT)) for file in found]


def main(words: list[str]) -> int:
    """Run those that are named, or all; other words are tests to run in place of the usual ones."""
    names = [word for word in words if word in SANITIZERS] or list(SANITIZERS)
    chosen = [word for word in words if word not in SANITIZERS]
    went_well = [run(name, chosen) for name in names]
    return 0 if all(went_well) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
