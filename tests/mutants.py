"""Plant bugs in the kernels, one at a time, and see that the contract suite fails on each.

    python tests/mutants.py            all of them
    python tests/mutants.py WORD …     those whose name holds one of the words

Works on a copy of the project in a temporary directory, with an engine of one instruction set and little
optimisation, rebuilt only where C++ was changed.  Prints for each mutant the test that caught it, or
SURVIVED.  Exit code 1 when one survives, does not fit its file any more or does not compile, and when the
suite fails without any.

Each is a mistake that is easily made and easily missed, or one that a single rule of the contract can see.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("src", "native", "tests/contract", "tests/conftest.py", "pyproject.toml", "CMakeLists.txt")
PATIENCE_SECONDS = 600  # a planted bug may hang; that is caught too

REFERENCE = "src/unspool/kernels/reference.py"
EQUATIONS = "src/unspool/kernels/equations.py"
NATIVE = "src/unspool/kernels/native.py"
CHECKS = "src/unspool/kernels/checks.py"
BACKWARD = "native/backward.h"
BINDINGS = "native/bindings.cpp"
BATCH = "native/batch.h"
ENGINE = "native/engine.cpp"
FORWARD = "native/forward.h"
MASKS = "native/masks.h"
OPTIONS = "native/options.h"
PANELS = "native/panels.h"
PRECISION = "native/precision.h"
PRODUCTS = "native/products.h"
TILE = "native/tile.h"
VECTOR = "native/vector.h"


class Mutant(NamedTuple):
    """A bug: what of a file is replaced by what.  `old` stands in the file exactly once."""

    name: str
    file: str
    old: str
    new: str


MUTANTS = (
    Mutant(
        "bfloat16 is cut off, not rounded",
        PRECISION,
        "const IntVec up = bits + 0x7fff + ((bits >> 16) & 1);",
        "const IntVec up = bits;",
    ),
    Mutant(
        "bfloat16 rounds ties away from even",
        PRECISION,
        "return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);",
        "return static_cast<uint16_t>((bits + 0x8000) >> 16);",
    ),
    Mutant(
        "int8 weights have one scale too small",
        "native/panels.h",
        "static_cast<float>(most / 127.0)",
        "static_cast<float>(most / 128.0)",
    ),
    Mutant(
        "the 128 that int8 adds to h is not taken off",
        "native/panels.h",
        "sum *= -128;",
        "sum *= -127;",
    ),
    Mutant(
        "the weights are returned as their gradient",
        REFERENCE,
        "        d_weights.append(sums)",
        "        d_weights.append(sums._replace(input=weights.input))",
    ),
    Mutant(
        "the cell state's gradient is not carried back",
        EQUATIONS,
        "        dc_before = dc_before + dc_made * f",
        "        dc_before = dc_before + nothing(dc)",
    ),
    Mutant(
        "the GRU's recurrent bias stands outside the reset gate",
        EQUATIONS,
        "tanh(_bounded(x_n + r * recurrent_candidate, bound))",
        "tanh(_bounded(x_n + r * h_n + w.candidate_bias, bound))",
    ),
    Mutant(
        "a reset cuts the reverse direction one step late",
        REFERENCE,
        "        at = t if d == 0 else t + 1\n        if at",
        "        at = t\n        if at",
    ),
    Mutant(
        "the state runs on past a sequence's end",
        REFERENCE,
        "h = where(live, made.hidden, h)",
        "h = made.hidden",
    ),
    Mutant(
        "the mask is not applied on the way back",
        REFERENCE,
        "through = through if recurrent_mask is None else through * recurrent_mask[d]",
        "pass",
    ),
    Mutant(
        "a length may be larger than the number of steps",
        CHECKS,
        "(values < 0) | (values > time)",
        "values < 0",
    ),
    Mutant(
        "nobody looks at the reset state's shape",
        CHECKS,
        '    _check_state(sizes, reset_state, "reset_state", batch)\n',
        "",
    ),
    Mutant(
        "what is returned is handed out again at the next call",
        NATIVE,
        "def empty(",
        '@__import__("functools").cache\ndef empty(',
    ),
    Mutant(
        "the gradients of initial and reset state are exchanged",
        NATIVE,
        "[d_initial.hidden, d_reset.hidden]",
        "[d_reset.hidden, d_initial.hidden]",
    ),
    Mutant(
        "input gate and forget gate are exchanged",
        FORWARD,
        "i = sigmoid(sum[0]), f = sigmoid(sum[1])",
        "i = sigmoid(sum[1]), f = sigmoid(sum[0])",
    ),
    Mutant(
        "padding is read into the weights' gradients, where it is multiplied by 0",
        ENGINE,
        "        if (t < batch.length(b)) {\n          token_time",
        "        {\n          token_time",
    ),
    Mutant(
        "the engine cuts the reverse direction one step early",
        BATCH,
        "d == 0 ? s : length(row) - s;  // the cut",
        "d == 0 ? s : length(row) - 1 - s;  // the cut",
    ),
    Mutant(
        "only the last cut of a sequence has a gradient",
        BACKWARD,
        "d_reset[batch.stated(d, b) * width + j] += running[j];",
        "d_reset[batch.stated(d, b) * width + j] = running[j];",
    ),
    Mutant(
        "the GRU's gradient of the recurrent candidate forgets the reset gate",
        BACKWARD,
        "store(dz_recurrent + 2 * H + j, dz_n * reset, lanes);",
        "store(dz_recurrent + 2 * H + j, dz_n, lanes);",
    ),
    Mutant(
        "an option: the output gate's peephole looks at the cell state before",
        OPTIONS,
        "z_o = fma(load(w.peephole + 2 * padded + u), made, z_o);",
        "z_o = fma(load(w.peephole + 2 * padded + u), c_prev, z_o);",
    ),
    Mutant(
        "an option: the cell shows what zoneout keeps of it",
        OPTIONS,
        "show(beyond, row.h_prev, row.h, u, lanes, o * tanh(made));",
        "show(beyond, row.h_prev, row.h, u, lanes, o * tanh(c));",
    ),
    Mutant(
        "masks: a word at the bound is not below it, and chooses",
        MASKS,
        "static_cast<uint32_t>(wanted.below - (none ? 0 : 1))",
        "static_cast<uint32_t>(wanted.below - 0)",
    ),
    Mutant(
        "masks: the reverse direction draws what the forward one draws",
        MASKS,
        "static_cast<uint64_t>(2 * wanted.use + d)",
        "static_cast<uint64_t>(2 * wanted.use + 0 * d)",
    ),
    Mutant(
        "steps: what zoneout keeps is left out",
        BINDINGS,
        "one.zoneout_cell = pointer_to(share_cell_);",
        "one.zoneout_cell = nullptr;",
    ),
    Mutant(
        "steps: the cell states of chosen rows are not put back",
        BINDINGS,
        "if (lstm) move(cell, chosen_cell_.data(), units_, back);",
        "if (lstm && !back) move(cell, chosen_cell_.data(), units_, back);",
    ),
    Mutant(
        "an option: a norm's variance counts what lies past the units",
        OPTIONS,
        "const Vec centred = first_lanes(a - mean, lanes);",
        "const Vec centred = a - mean;",
    ),
    Mutant(
        "an option: the bias of the input's norm is forgotten",
        PANELS,
        "packed.bias[d][j] += bias[j];",
        "packed.bias[d][j] += 0 * bias[j];",
    ),
    Mutant(
        "an option: a gradient passes the bound of the cell state",
        BACKWARD,
        "dc = magnitude_of(made) < batch.z.cell_clip ? dc : Vec{};",
        "dc = magnitude_of(made) < HUGE_VALF ? dc : Vec{};",
    ),
    Mutant(
        "an option: what zoneout keeps has no gradient",
        BACKWARD,
        "store(dh_row + j, share != nullptr ? kept * dh : Vec{}, lanes);",
        "store(dh_row + j, Vec{}, lanes);",
    ),
    Mutant(
        "an option: the projection's gradient sees the gradient before zoneout's share is taken",
        BACKWARD,
        "store(d_made + j, share != nullptr ? (1.0f - kept) * dh : dh, lanes);",
        "store(d_made + j, dh, lanes);",
    ),
    Mutant(
        "an option: what is set is seen only where a trace is kept",
        OPTIONS,
        "computed = patched(beyond.patch_gates, L::row(p, n, H), lanes, computed);\n    if (row.gates",
        "const Vec seen = computed;\n"
        "    computed = patched(beyond.patch_gates, L::row(p, n, H), lanes, computed);\n"
        "    if (row.gates == nullptr) return seen;\n    if (row.gates",
    ),
    Mutant(
        "the weights' gradients see the hidden state without its mask",
        PRODUCTS,
        "if (mask[i] != nullptr) value[i] *= load(mask[i] + j, lanes);",
        "",
    ),
    Mutant(
        "an empty sequence returns zeros, not the state given",
        FORWARD,
        ": initial != nullptr ? initial + at",
        ": false ? initial + at",
    ),
    Mutant(
        "without a trace the cell state crosses a reset",
        FORWARD,
        "work.c_prev[r] = s > 0 && !batch.cut(d, b, s)",
        "work.c_prev[r] = s > 0",
    ),
    Mutant(
        "the gates past a sequence's end are left unwritten",
        FORWARD,
        "    zero_past_end(batch, d, b, out.gates, batch.z.gates * H);\n",
        "",
    ),
    Mutant(
        "the zeros past the last sequence's end go one float too far",
        BATCH,
        "std::memset(array + at, 0, static_cast<size_t>(floats) * sizeof(float));",
        "const bool last = t * batch.run.batch + row + 1 == batch.run.time * batch.run.batch;\n"
        "    std::memset(array + at, 0, static_cast<size_t>(floats + last) * sizeof(float));",
    ),
    Mutant(
        "a single row is summed from the other end",
        TILE,
        "  for (int64_t k = 0; k < depth; ++k) {\n    Vec a[R];",
        "  for (int64_t j = 0; j < depth; ++j) {\n"
        "    const int64_t k = R == 1 ? depth - 1 - j : j;\n"
        "    Vec a[R];",
    ),
    Mutant(
        "a thread begins every other chunk of a weight's gradient with the total, not with 0",
        PRODUCTS,
        "          tile<kRows, decltype(width)::value, Product, kColumns>(\n"
        "              depth, ByToken{left_packed + j, kStride}, right_panel + p * depth * kWide,\n"
        "              [](int, int) INLINE_LAMBDA { return Vec{}; },\n",
        "          static thread_local int64_t calls = 0;\n"
        "          const bool total = !is_first && (++calls & 1) != 0;\n"
        "          const bool outer = is_first, joined = outer || total;\n"
        "          const bool is_first = joined;\n"
        "          tile<kRows, decltype(width)::value, Product, kColumns>(\n"
        "              depth, ByToken{left_packed + j, kStride}, right_panel + p * depth * kWide,\n"
        "              [=](int r, int n) INLINE_LAMBDA {\n"
        "                const int64_t lanes = columns - p * kWide - n * W;\n"
        "                return total && r < real ? load(to + r * columns + n * W, lanes) : Vec{};\n"
        "              },\n",
    ),
    Mutant(
        "of a panel's last vector that is not full nothing is multiplied",
        TILE,
        "switch (smaller((columns + W - 1) / W, kColumns))",
        "switch (smaller(larger(columns / W, 1), kColumns))",
    ),
    Mutant(
        "the last vector of a row is stored one lane too wide",
        VECTOR,
        "if (lanes > 0) std::memcpy(p, part, static_cast<size_t>(lanes) * sizeof(float));",
        "if (lanes > 0) std::memcpy(p, part, static_cast<size_t>(lanes + 1) * sizeof(float));",
    ),
    Mutant(
        "tanh keeps to its polynomial where that is no longer good",
        VECTOR,
        "magnitude < 0.625f",
        "magnitude < 0.9f",
    ),
    Mutant(
        "exp makes a number of NaN",
        VECTOR,
        "larger_of(splat(-87.0f), x)",
        "larger_of(x, splat(-87.0f))",
    ),
    Mutant(
        "exp overflows for large arguments",
        VECTOR,
        "smaller_of(splat(88.0f), larger_of(splat(-87.0f), x))",
        "larger_of(splat(-87.0f), x)",
    ),
)


def changed(text: str, old: str, new: str, where: str) -> str:
    """Replace what stands in the text exactly once."""
    if text.count(old) != 1:
        raise SystemExit(f"{where}: {old!r} stands there {text.count(old)} times, not once.")
    return text.replace(old, new)


class Copy:
    """A copy of the project in which bugs are planted, the suite is run, and all is put back."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for name in COPIED:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "*.so")
                shutil.copytree(ROOT / name, folder / name, ignore=ignored)
            else:
                shutil.copy(ROOT / name, folder / name)
        self._lighten()
        tools = Path(sys.executable).parent
        self._environment = os.environ | {
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
            # Without `site` (python -S) no editable installation leads back to the project itself.
            "PYTHONPATH": os.pathsep.join([str(folder / "src"), *_packages()]),
            "PYTHONDONTWRITEBYTECODE": "1",  # a restored file may be as old, to the second, as its mutant
            "REQUIRE": "native",
        }
        nanobind = self._call([sys.executable, "-m", "nanobind", "--cmake_dir"]).stdout.strip()
        options = [f"-Dnanobind_DIR={nanobind}", f"-DPython_EXECUTABLE={sys.executable}"]
        configured = self._call(
            ["cmake", "-G", "Ninja", "-S", ".", "-B", "build", "-DCMAKE_BUILD_TYPE=Release", *options]
        )
        if configured.returncode != 0:
            raise SystemExit(f"cmake cannot configure the copy.\n{configured.stdout}{configured.stderr}")

    def _lighten(self) -> None:
        """One instruction set, the one that every machine runs, and a third of the time to compile it."""
        cmake = self._folder / "CMakeLists.txt"
        text = cmake.read_text().replace("-O3", "-O1")
        only = 'if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")'
        cmake.write_text(changed(text, only, "if(FALSE)", cmake.name))
        dispatch = self._folder / "native/dispatch.cpp"
        dispatch.write_text(dispatch.read_text().replace("#if defined(__x86_64__)", "#if 0"))

    def _call(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )

    @contextmanager
    def planted(self, mutant: Mutant) -> Iterator[None]:
        """Plant a bug, and put the file back as it was."""
        path = self._folder / mutant.file
        text = path.read_text()
        path.write_text(changed(text, mutant.old, mutant.new, mutant.file))
        yield
        path.write_text(text)

    def imported(self) -> list[Path]:
        """Where the package and its engine come from when the suite imports them."""
        whence = "import unspool, unspool.kernels._core as c; print(unspool.__file__, c.__file__, sep='\\n')"
        ran = self._call([sys.executable, "-S", "-c", whence])
        if ran.returncode != 0:
            raise SystemExit(f"The copy cannot be imported.\n{ran.stdout}{ran.stderr}")
        return [Path(line) for line in ran.stdout.splitlines()]

    def build(self) -> str | None:
        """Build the engine where it changed; what the compiler says when it cannot."""
        built = self._call(["ninja", "-C", "build"])
        if built.returncode != 0:
            return built.stdout + built.stderr
        (module,) = (self._folder / "build").glob("_core*.so")
        shutil.copy(module, self._folder / "src/unspool/kernels" / module.name)
        return None

    def suite(self, kernel_set: str = "") -> tuple[bool, str]:
        """Run the contract suite until something fails; whether it passed, and what failed first.

        With `kernel_set` only the tests of that set: no other can see what is changed in it alone.
        """
        command = [sys.executable, "-S", "-m", "pytest", "-xq", "-p", "no:cacheprovider", "tests/contract"]
        command += ["-k", kernel_set] if kernel_set else []
        try:
            ran = self._call(command)
        except subprocess.TimeoutExpired:
            return False, f"still running after {PATIENCE_SECONDS} seconds"
        if ran.returncode == 0:
            return True, ran.stdout.strip().splitlines()[-1]
        failed = re.search(r"^FAILED (.+?)(?: - |$)", ran.stdout, re.MULTILINE)
        if failed:
            return False, failed[1].removeprefix("tests/contract/")
        if ran.returncode < 0:
            return False, f"the interpreter died of signal {-ran.returncode}"
        raise SystemExit(f"The suite could not run.\n{ran.stdout}{ran.stderr}")


def _packages() -> list[str]:
    return sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})


def main(words: list[str]) -> int:
    chosen = [mutant for mutant in MUTANTS if not words or any(word in mutant.name for word in words)]
    survived = 0
    with tempfile.TemporaryDirectory(prefix="unspool-mutants-") as folder:
        copy = Copy(Path(folder))
        complaint = copy.build()
        if complaint is None:
            for path in copy.imported():
                if not path.resolve().is_relative_to(Path(folder).resolve()):
                    raise SystemExit(f"{path} is imported, not its copy: no mutant would be seen.")
                print(f"imported: {path}", flush=True)
        passed, said = (False, complaint) if complaint else copy.suite()
        print(f"no mutant: {said}", flush=True)
        if not passed:
            return 1
        for mutant in chosen:
            started = time.perf_counter()
            with copy.planted(mutant):
                complaint = copy.build()
                if complaint:
                    raise SystemExit(f"{mutant.name}: does not compile.\n{complaint}")
                passed, said = copy.suite("native" if "native" in mutant.file else "")
            survived += passed
            verdict = "SURVIVED" if passed else f"caught by {said}"
            print(
                f"{mutant.name} ({mutant.file}): {verdict}, {time.perf_counter() - started:.0f} s", flush=True
            )
    print(f"{len(chosen) - survived} of {len(chosen)} mutants caught")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
