"""Check training on a GPU, and measure it: `make check-gpu`, in under 8 minutes on one H100 or H200 with 16 cores.

It needs what a training needs, and pytest: neither Prefect nor MLflow, and no network. Elsewhere than in this project's
environment `python tests/bench/gpu.py` says which packages are missing.

1. The tests that need a GPU; a training that is killed, and whose weights must be those of an unbroken one to the bit.
2. Training images/s of each network, in bfloat16 with channels last, eager and compiled: a training here with its
   pictures in the GPU's memory, or streamed from the pack; the same network fed by ImageFolder; and a plain loop on one
   constant batch, with the kernels that cuDNN finds fastest, which is the limit. A rate is the median of five repeats
   after a warm-up, timed by events in the GPU's queue; waiting is the share of the time in which the GPU had nothing to
   do since the next batch was not there.

It writes all it found as JSON. Exit status: 0 all is well and every target is met; 1 something failed; 3 a target is
missed; 4 there is no GPU that torch can use.
"""

import argparse
import importlib.util
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from importlib import metadata
from pathlib import Path

FAILED, MISSED, NO_GPU = 1, 3, 4
ROOT = Path(__file__).resolve().parents[2]
TESTS = ("test_gpu.py", "test_reader.py", "test_augment.py")

# What training, these measurements and the tests import beside torch, torchvision and what these need: the packages,
# by the module that they are imported as, with the megabytes of their wheels for Python 3.12 on x86-64 Linux.
NEEDS = {
    "annotated_types": ("annotated-types", 0.01),
    "dateutil": ("python-dateutil", 0.1),
    "filelock": ("filelock", 0.2),
    "iniconfig": ("iniconfig", 0.01),
    "markdown_it": ("markdown-it-py", 0.1),
    "mdurl": ("mdurl", 0.01),
    "numpy": ("numpy", 16.6),
    "packaging": ("packaging", 0.1),
    "pandas": ("pandas", 12.0),
    "PIL": ("pillow", 7.1),
    "pluggy": ("pluggy", 0.03),
    "pyarrow": ("pyarrow", 50.1),
    "pydantic": ("pydantic", 0.5),
    "pydantic_core": ("pydantic-core", 2.3),
    "pygments": ("pygments", 1.3),
    "pytest": ("pytest", 0.4),
    "rich": ("rich", 0.3),
    "safetensors": ("safetensors", 0.5),
    "scipy": ("scipy", 35.2),
    "simplejpeg": ("simplejpeg", 0.4),
    "six": ("six", 0.01),
    "threadpoolctl": ("threadpoolctl", 0.02),
    "typing_extensions": ("typing-extensions", 0.05),
    "typing_inspection": ("typing-inspection", 0.01),
    "xxhash": ("xxhash", 0.5),
}

RATES = {"resnet50": 4500, "resnet34": 8000}  # images/s, wanted of a training here, the best of its rows
SHARE_OF_LIMIT = 0.9  # wanted of each row of a training here
WAITING = 0.01  # wanted of each row, at most
OURS = "bincount, "
LIMIT = "constant batch"
# Expected of a row, before one was measured: of the first batch size, which is compiled ahead, and of the others.
SECONDS_OF_A_ROW = {"eager": (40, 20), "compiled": (50, 70)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n", 1)[0], epilog=__doc__.rsplit("\n\n", 1)[1].strip()
    )
    parser.add_argument("--models", nargs="+", default=["resnet50", "resnet34", "resnet18", "convnext_tiny"])
    parser.add_argument(
        "--batch-sizes", nargs="+", default=["256", "128", "512"], help="the first with all comparisons, if it fits"
    )
    parser.add_argument("--modes", nargs="*", default=["eager", "compiled"], choices=["eager", "compiled"])
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--count", type=int, default=2048, help="pictures that are drawn")
    parser.add_argument("--workers", type=int, default=16, help="of ImageFolder's loader")
    parser.add_argument("--repeat-seconds", type=float, default=0.6, help="the length of each of the five repeats")
    parser.add_argument("--minutes", type=float, default=7.5, help="rows that would not end within them are left out")
    parser.add_argument("--json", type=Path, default=Path("check-gpu.json"), help="the file that is written")
    parser.add_argument("--cpu", action="store_true", help="without a GPU: run all of it on the CPU, to try it out")
    options = parser.parse_args()
    if lines := missing():
        sys.exit("\n".join(lines))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # tidy up then too
    with tempfile.TemporaryDirectory(prefix="check-gpu-") as folder:
        sys.exit(Check(options, Path(folder)).run())


def missing() -> list[str]:
    """Say which packages are not there, or are older than the project asks for."""
    wanted = {}
    for line in (ROOT / "pyproject.toml").read_text().splitlines():
        if found := re.match(r'\s+"([\w-]+)>=([\d.]+)', line):
            wanted[found[1]] = found[2]
    lacking, older = {}, []
    for module in ("torch", "torchvision"):
        if importlib.util.find_spec(module) is None:
            return [f"there is no {module} here: take an environment that has torch and torchvision for your GPU"]
        if _numbers(found := metadata.version(module)) < _numbers(wanted[module]):
            return [f"{module} {found} is too old: take an environment that has {wanted[module]} or newer for your GPU"]
    for module, (name, megabytes) in NEEDS.items():
        if importlib.util.find_spec(module) is None:
            lacking[name] = megabytes
        elif name in wanted and _numbers(metadata.version(name)) < _numbers(wanted[name]):
            older.append(f"{name} {metadata.version(name)} (from {wanted[name]} on)")
            lacking[name] = megabytes
    if "pydantic" in lacking:  # each of its versions takes one version of its core
        lacking["pydantic-core"] = NEEDS["pydantic_core"][1]
    if not lacking:
        return []
    number = "1 package is" if len(lacking) == 1 else f"{len(lacking)} packages are"
    # As locked where that is one version for all: the newest ones need not fit each other, as pydantic and its core.
    locked = dict(re.findall(r"^([\w.-]+)==(\S+) \\$", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    pinned = [f"{name}=={locked[name]}" if name in locked else name for name in lacking]
    return [
        f"{number} missing here{', or too old: ' if older else ''}{', '.join(older)}; "
        f"{sum(lacking.values()):.1f} MB of wheels:",
        "  " + " ".join(lacking),
        "fetch them where there is a network, and install them here:",
        f"  pip download --no-deps --only-binary=:all: --python-version {_python()} --dest wheels \\",
        *(f"    --platform manylinux{tag}_x86_64 \\" for tag in ("2014", "_2_17", "_2_24", "_2_27", "_2_28")),
        "    " + " ".join(pinned),
        "  pip install --no-index --no-deps wheels/*.whl",
    ]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _python() -> str:
    return ".".join(map(str, sys.version_info[:2]))


class Check:
    """One check: what it found so far, and until when it may go on."""

    def __init__(self, options: argparse.Namespace, folder: Path):
        self.options, self.folder = options, folder
        self.deadline = time.monotonic() + 60 * options.minutes
        self.device = "cpu" if options.cpu else "cuda"
        self.rows: list[dict] = []
        self.skipped: list[str] = []
        self.failures: list[str] = []
        self.found: dict = {"began": time.strftime("%Y-%m-%d %H:%M:%S%z"), "commit": _commit()}
        paths = [ROOT, ROOT / "tests", ROOT / "tests" / "bench"]
        self.environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([*map(str, paths), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        }

    def run(self) -> int:
        """Do all of it, and return the exit status."""
        began, options = time.monotonic(), self.options
        values = self.folder / "data", options.count, options.image_size, ",".join(options.models)
        machine = self._end(self._start("prepare", *values), 180)
        if not machine:
            return self._finish(began)
        options.models = [model for model in options.models if model not in machine[0]["unknown"]]
        self.skipped += [f"{model}, which this release cannot train" for model in machine[0]["unknown"]]
        self.found["machine"] = machine[0]
        print(self._describe(machine[0]), flush=True)
        if machine[0]["gpu"] is None and not options.cpu:
            self._write()
            return NO_GPU
        self._check()
        for name, *values in self._plan():
            self._measure(name, *values)
        return self._finish(began)

    def _describe(self, machine: dict) -> str:
        name = f"torch {machine['torch']}, CUDA {machine['cuda']}, Python {machine['python']}, {machine['cores']} cores"
        if machine["gpu"] is None:
            remedy = "" if self.options.cpu else "; `--cpu` runs the check on the CPU, to try it out"
            return f"There is no GPU here that torch can use ({name}), so nothing was measured on one{remedy}."
        return f"{machine['gpu']}, {machine['gpu_gigabytes']:.0f} GB, driver {machine['driver']}, {name}"

    def _check(self) -> None:
        """Run the tests and the training that is killed; meanwhile the networks are compiled, by the other cores."""
        tests = [f"{ROOT}/tests/{name}" for name in TESTS]
        command = [
            "-m",
            "pytest",
            "--noconftest",
            "-o",
            "addopts=",
            "-p",
            "no:cacheprovider",
            "-m",
            "gpu",
            "-q",
            "-rfE",
        ]
        (self.folder / "resumed").mkdir()
        # from here on side by side: none of it is timed
        testing = self._start("tests", *command, *tests)
        resuming = self._start("resume", self.folder / "resumed", self.device)
        compiled = self.options.models if "compiled" in self.options.modes else []
        # Two at a time, which fit into 80 GB together; one that fails is compiled with its rows, and fails there.
        chains = [chain for chain in (compiled[::2], compiled[1::2]) if chain]
        compiling = [self._start("compile", *self._network(",".join(chain))) for chain in chains]
        output = self._wait(testing, 0.6 * self._left())
        self.found["tests"] = _summary(output)
        print(f"Tests: {self.found['tests']}")
        self.found["resumed"] = (self._end(resuming, 0.6 * self._left()) or [None])[0]
        if resumed := self.found["resumed"]:
            same = "the same bits as" if resumed["same_bits"] else "OTHER BITS THAN"
            print(
                f"A {resumed['model']}, killed in epoch {resumed['killed_after'] + 1} of {resumed['epochs']} and",
                end="",
            )
            print(f" resumed: {same} an unbroken one", flush=True)
            if not resumed["same_bits"]:
                self.failures.append("a resumed training ended with other weights than an unbroken one")
        for process in compiling:
            self._wait(process, 0.4 * self._left(), may_fail=True)

    def _network(self, model: str) -> tuple:
        return self.folder / "data", model, self.options.image_size, self.options.batch_sizes[0], self.device

    def _plan(self) -> list[tuple[str, str, str]]:
        """The rows in the order in which they are measured: what matters most comes first."""
        first, *others = self.options.batch_sizes
        models, modes = self.options.models, self.options.modes
        rows = [(model, mode, first) for mode in reversed(modes) for model in models]
        rows += [(model, mode, batch) for mode in modes for batch in others for model in models]
        return rows

    def _measure(self, model: str, mode: str, batch: str) -> None:
        name = f"{model}, {mode}, batches of {batch}"
        is_first = batch == self.options.batch_sizes[0]
        measured = self.found.setdefault("seconds", {})
        kind = f"row, {mode}, {'first' if is_first else 'other'} batch size"
        expected = measured.get(kind, SECONDS_OF_A_ROW[mode][not is_first])
        if expected > self._left():
            self.skipped.append(f"{name}, for which no time was left")
            return
        began, (folder, _, size, _, device) = time.monotonic(), self._network(model)
        values = folder, model, size, batch, device, mode, self.options.repeat_seconds, self.options.workers, is_first
        rows = self._end(self._start("row", *values), self._left(), late=f"{name}, which the end of the time cut off")
        measured[kind] = max(measured.get(kind, 0.0), time.monotonic() - began)  # of the slowest network so far
        if rows and not self.rows:
            print(f"\n{'training, 224 px' if size == 224 else f'training, {size} px':60}", end="")
            print(f"{'images/s':>30}{'of limit':>10}{'waiting':>9}{'GB':>7}")
        limit = next((_rate(row) for row in rows if row["kind"] == LIMIT), None)
        for row in rows:
            row["of_limit"] = _rate(row) / limit if limit and row["waiting"] is not None else None
            print(_line(row), flush=True)
        self.rows += rows

    def _finish(self, began: float) -> int:
        targets = [] if self.options.cpu else _judge(self.rows, self.options.models)
        print()
        for name in self.skipped:
            print(f"skipped: {name}")
        for target in targets:
            print(f"{'met   ' if target['met'] else 'MISSED'}  {target['text']}")
        for failure in self.failures:
            print(f"FAILED  {failure}")
        if self.options.cpu:
            print("This was a trial on a CPU with no GPU: the numbers mean nothing about one, and no target is judged.")
        seconds = time.monotonic() - began
        self.found |= {"rows": self.rows, "skipped": self.skipped, "targets": targets, "failures": self.failures}
        self.found["seconds"] = self.found.get("seconds", {}) | {"all": seconds}
        self._write()
        print(f"{seconds / 60:.1f} minutes; all of it is in {self.options.json}")
        if self.failures:
            return FAILED
        return NO_GPU if self.options.cpu else MISSED if not all(target["met"] for target in targets) else 0

    def _write(self) -> None:
        self.options.json.write_text(json.dumps(self.found, indent=2) + "\n")

    def _left(self) -> float:
        return max(0.0, self.deadline - time.monotonic())

    # --- processes ---

    def _start(self, name: str, *values: object) -> tuple[str, subprocess.Popen]:
        arguments = values if name == "tests" else (Path(__file__).with_name("gpu_rows.py"), name, *values)
        log = open(self.folder / f"log-{time.monotonic_ns()}", "w+")  # noqa: SIM115 - read when the process has ended
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=ROOT,
            env=self.environment,
            start_new_session=True,
        )
        process.log, process.began = log, time.monotonic()
        return " ".join([name, *map(str, values[1:4])]) if name != "tests" else name, process

    def _end(self, started: tuple[str, subprocess.Popen], seconds: float, late: str = "") -> list[dict]:
        """Wait for a measurement, and return its results; late is what is skipped where it takes too long."""
        lines = self._wait(started, seconds, late=late).splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def _wait(
        self, started: tuple[str, subprocess.Popen], seconds: float, *, may_fail: bool = False, late: str = ""
    ) -> str:
        """Wait for a process, and return what it wrote. One that takes too long is killed with all that it started.

        That is a failure, unless late says what is then skipped.
        """
        name, process = started
        try:
            output, _ = process.communicate(timeout=seconds)
            reason = f"it ended with code {process.returncode}"
        except subprocess.TimeoutExpired:
            reason = f"it took longer than {seconds:.0f} seconds"
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            if late:
                self.skipped.append(late)
                may_fail = True
        if process.returncode and not may_fail:
            process.log.seek(0)
            last = (process.log.read().strip() or output.strip()).splitlines()[-15:]
            self.failures.append("\n".join([f"{name}: {reason}. Its last lines:", *last]))
        process.log.close()
        return output


def _commit() -> str:
    """The commit that is checked, and whether files differ from it; empty outside of a clone."""
    with suppress(OSError):
        git = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
        done = subprocess.run(git, capture_output=True, text=True, check=False)
        return done.stdout.strip()
    return ""


def _summary(output: str) -> str:
    lines = [line for line in output.splitlines() if re.search(r"\d+ (passed|failed|skipped|error)", line)]
    return lines[-1].strip("= ") if lines else "none were run"


def _rate(row: dict) -> float:
    return statistics.median(row["rates"])


def _line(row: dict) -> str:
    name = f"{row['model']}, {row['mode']}, {row['batch']}, {row['kind']}"
    rate = f"{_rate(row):,.0f} ({min(row['rates']):,.0f} to {max(row['rates']):,.0f})"
    share = "" if row["of_limit"] is None else f"{100 * row['of_limit']:.1f} %"
    waiting = "" if row["waiting"] is None else f"{100 * row['waiting']:.1f} %"
    memory = "" if row["gigabytes"] is None else f"{row['gigabytes']:.1f}"
    return f"{name:60}{rate:>30}{share:>10}{waiting:>9}{memory:>7}"


def _judge(rows: list[dict], models: list[str]) -> list[dict]:
    """Compare the rows of trainings here with the targets; what was not measured is not met."""
    ours = [row for row in rows if row["kind"].startswith(OURS)]
    targets = []
    for model, wanted in RATES.items():
        if model in models:
            best = max((_rate(row) for row in ours if row["model"] == model), default=0)
            text = f"{model}: {best:,.0f} images/s, wanted {wanted:,}"
            targets.append({"text": text, "value": best, "wanted": wanted, "met": best >= wanted})
    lowest = min((row["of_limit"] or 0 for row in ours), default=0)
    text = f"of the constant batch's rate, the lowest row: {100 * lowest:.1f} %, wanted {100 * SHARE_OF_LIMIT:.0f} %"
    targets.append({"text": text, "value": lowest, "wanted": SHARE_OF_LIMIT, "met": lowest >= SHARE_OF_LIMIT})
    longest = max((row["waiting"] for row in ours), default=1)
    text = f"waiting for data, the longest row: {100 * longest:.2f} %, wanted under {100 * WAITING:.0f} %"
    targets.append({"text": text, "value": longest, "wanted": WAITING, "met": longest < WAITING})
    return targets


if __name__ == "__main__":
    main()
