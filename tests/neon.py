"""Build the wheel for 64-bit ARM on another machine, and run the contract suite on it under qemu.

    python tests/neon.py             the native set's part of tests/contract
    python tests/neon.py TEST …      these tests or files, in its place

Everything lies in build/neon: Debian's Python for arm64 with what it needs, unpacked and not installed; the
packages that the suite imports; the wheel, built by Debian's cross-compiler as native/aarch64.cmake says, and
unpacked.  A whole run writes down what it saw: benchmarks/results/neon.md.

qemu computes what a processor would, to the bit, but says nothing of its speed, and orders what threads write
as strictly as the machine that it runs on: races are for `make sanitize`.
"""

import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLACE = ROOT / "build" / "neon"
SYSROOT, SITE, PACKAGE = PLACE / "sysroot", PLACE / "site", PLACE / "package"
RESULTS = ROOT / "benchmarks" / "results" / "neon.md"

PYTHON = "python3.11"  # of Debian 12
DEBIAN = (PYTHON, f"lib{PYTHON}-dev", "libstdc++6")
SUITE = ("tests/contract", "-k", "native")  # not the reference, nor the reference on torch's tensors

# What the suite imports, as constraints.txt has it.  torch's wheel of that release for arm64 wants CUDA; the
# oldest that unspool takes is for the processor alone.
PINNED = {"torch": "2.10.0"}
IMPORTED = ["numpy", "nanobind-backend", "torch", "pytest", "pytest-timeout", "hypothesis"]
IMPORTED += ["iniconfig", "packaging", "pluggy", "Pygments", "sortedcontainers"]  # by pytest and hypothesis
IMPORTED += ["filelock", "typing_extensions", "sympy", "mpmath", "networkx"]  # by torch, and the next three
IMPORTED += ["Jinja2", "MarkupSafe", "fsspec"]


def tools() -> None:
    """The cross-compiler and qemu, on this machine; what is there already is used."""
    if not shutil.which("apt-get"):
        sys.exit(
            "make neon runs Debian's Python for arm64.\n  Received: a machine without apt-get.\n"
            "  Fix: run it on Debian 12, or in a container of it."
        )
    if shutil.which("aarch64-linux-gnu-g++") and shutil.which("qemu-aarch64"):
        return
    subprocess.run(["apt-get", "update", "-qq"], check=True)
    wanted = ["g++-aarch64-linux-gnu", "qemu-user"]
    subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *wanted], check=True)


def sysroot() -> None:
    """Debian's Python for arm64, through an apt that knows only the folder: the system is not touched."""
    if (SYSROOT / "complete").exists():
        return
    apt = PLACE / "apt"
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (apt / folder).mkdir(parents=True, exist_ok=True)
    (apt / "status").write_text("", encoding="utf-8")
    (apt / "apt.conf").write_text(
        'APT::Architecture "arm64";\nAPT::Architectures "arm64";\n'
        f'Dir::State "{apt}/state";\nDir::State::status "{apt}/status";\nDir::Cache "{apt}/cache";\n',
        encoding="utf-8",
    )
    environment = os.environ | {"APT_CONFIG": str(apt / "apt.conf")}
    subprocess.run(["apt-get", "update", "-qq"], env=environment, check=True)
    fetch = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "--download-only"]
    subprocess.run([*fetch, *DEBIAN], env=environment, check=True)
    for package in sorted((apt / "cache" / "archives").glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", package, SYSROOT], check=True)
    (SYSROOT / "complete").touch()


def site() -> None:
    """The wheels of others for arm64."""
    if (SITE / "complete").exists():
        return
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line) | PINNED
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    install += ["--no-compile", "--upgrade", "--only-binary=:all:", "--target", str(SITE)]
    install += ["--python-version", PYTHON.removeprefix("python"), "--implementation", "cp"]
    for platform in ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64"):
        install += ["--platform", platform]
    for abi in ("cp311", "abi3", "none"):
        install += ["--abi", abi]
    subprocess.run([*install, *(f"{name}=={pins[name]}" for name in IMPORTED)], check=True)
    (SITE / "complete").touch()


def wheel() -> Path:
    """Our own wheel for arm64, and the same unpacked; the wheel's path."""
    headers = SYSROOT / "usr" / "include"
    settings = {
        "build-dir": str(PLACE / "cmake"),
        "cmake.define.CMAKE_TOOLCHAIN_FILE": str(ROOT / "native" / "aarch64.cmake"),
        "cmake.define.Python_INCLUDE_DIR": str(headers / PYTHON),
        "cmake.define.CMAKE_CXX_FLAGS": f"-idirafter {headers}",  # where pyconfig.h looks for another
    }
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    build += ["--no-build-isolation", "--wheel-dir", str(PLACE / "wheel")]
    for key, value in settings.items():
        build += ["--config-settings", f"{key}={value}"]
    for old in (PLACE / "wheel", PACKAGE):
        shutil.rmtree(old, ignore_errors=True)
    environment = os.environ | {"_PYTHON_HOST_PLATFORM": "linux-aarch64"}
    subprocess.run([*build, str(ROOT)], env=environment, check=True)
    (made,) = (PLACE / "wheel").glob("unspool-*-cp311-abi3-linux_aarch64.whl")
    with zipfile.ZipFile(made) as archive:
        archive.extractall(PACKAGE)
    return made


def run(tests: tuple[str, ...]) -> tuple[bool, list[str]]:
    """Run the tests under qemu: whether all went well, and the lines that say how many."""
    emulated = ["qemu-aarch64", "-L", str(SYSROOT), str(SYSROOT / "usr" / "bin" / PYTHON)]
    command = [*emulated, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", "3600", *tests]
    environment = os.environ | {"PYTHONPATH": f"{PACKAGE}:{SITE}", "REQUIRE": "native", "UNSPOOL_ISA": "neon"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    kept = []
    for line in process.stdout or ():
        print(line, end="", flush=True)
        if any(mark in line for mark in (" passed", " failed", "FAILED", "ERROR")):
            kept.append(line.strip())
    return process.wait() == 0, kept


def about() -> str:
    """What a result is stamped with, as a line of Markdown."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from stamp import commit, machine

    versions = [
        subprocess.run([tool, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
        for tool in ("aarch64-linux-gnu-g++", "qemu-aarch64")
    ]
    stamp = f"command: make neon, date: {time.strftime('%Y-%m-%d')}, commit: {commit()}, machine: {machine()}"
    return ", ".join([stamp, *versions]) + "."


def write_down(passed: bool, lines: list[str], made: Path, stamp: str) -> None:
    """The result as Markdown."""
    text = [
        "# NEON",
        "",
        f"## make neon: {'passed' if passed else 'FAILED'}",
        "",
        f"The wheel `{made.name}`, cross-compiled, under qemu: `pytest {' '.join(SUITE)}` with",
        "`UNSPOOL_ISA=neon`: the native set's part of the contract suite, the accuracy of activations in it.",
        "No speed is measured there.",
        "",
        *(f"- {line}" for line in lines),
        "",
        stamp,
        "",
    ]
    RESULTS.write_text("\n".join(text), encoding="utf-8")


def main(chosen: list[str]) -> int:
    """Build and run; a whole run is written down."""
    PLACE.mkdir(parents=True, exist_ok=True)
    tools()
    sysroot()
    site()
    stamp, made = about(), wheel()
    passed, lines = run(tuple(chosen) or SUITE)
    if not chosen:
        write_down(passed, lines, made, stamp)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
