"""A script for the tests of `files`: replaces a folder over and over, and is killed while at it.

`training_kills.py events FOLDER`: a child is killed at each file event of a replacement in turn.
`training_kills.py moments FOLDER SEED`: a child that replaces without end is killed after a random time,
twenty times, while the parent reads.
After each kill the folder must hold all of the old version or all of the new one, and one call of
`recover` must leave no temporary behind.  Any failure ends the script with a traceback.
"""

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from unspool import files

FILE_EVENTS = ("open", "os.mkdir", "os.rename", "os.rmdir", "os.remove", "os.listdir", "os.scandir")


def version(number: int) -> dict[str, bytes]:
    text = str(number).encode()
    return {"config.json": text, "model.safetensors": text * 20000, "trainer_state.json": text * 3}


VERSIONS = [version(number) for number in range(10)]


def child(work: Callable[[], None]) -> int:
    """Fork a process that does the work and exits with 0, or 9 if it raises."""
    pid = os.fork()
    if pid == 0:
        code = 9
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


def check(folder: Path) -> dict[str, bytes]:
    found = files.read_folder(folder)
    assert found in VERSIONS, "the folder holds a mixture"
    files.recover(folder)
    assert files.read_folder(folder) == found, "recovering changed what is read"
    left = [path.name for path in folder.parent.iterdir()]
    assert left == [folder.name], f"left behind: {left}"
    return found


def replaced_until_event(folder: Path, number: int) -> Callable[[], None]:
    def work() -> None:
        seen = 0

        def hook(event: str, _: tuple[object, ...]) -> None:
            nonlocal seen
            if event in FILE_EVENTS:
                seen += 1
                if seen == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        files.write_folder(folder, VERSIONS[1])

    return work


def at_each_event(folder: Path) -> None:
    outcomes = []
    number = 0
    ended = False
    while not ended:
        number += 1
        files.write_folder(folder, VERSIONS[0])
        _, status = os.waitpid(child(replaced_until_event(folder, number)), 0)
        ended = os.WIFEXITED(status)
        assert not ended or os.WEXITSTATUS(status) == 0
        outcomes.append(VERSIONS.index(check(folder)))
    # Old until some event, new from there on; and kills on both sides of it.
    assert outcomes == sorted(outcomes)
    assert outcomes.count(0) > 5
    assert outcomes.count(1) > 5
    print(f"{number - 1} kills")


def at_random_moments(folder: Path, seed: int) -> None:
    def work() -> None:
        while True:
            for parts in VERSIONS:
                files.write_folder(folder, parts)

    chance = random.Random(seed)
    reads = 0
    for _ in range(20):
        files.write_folder(folder, VERSIONS[0])
        pid = child(work)
        try:
            end = time.monotonic() + chance.uniform(0.005, 0.08)
            while time.monotonic() < end:
                assert files.read_folder(folder) in VERSIONS
                reads += 1
        finally:
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status), "the writer ended by itself"
        check(folder)
    print(f"20 kills, {reads} reads beside a writer")


if __name__ == "__main__":
    what, where, *rest = sys.argv[1:]
    if what == "events":
        at_each_event(Path(where))
    else:
        at_random_moments(Path(where), int(rest[0]))
