"""`make check-gpu`: it imports no more than it says, judges its targets, and runs whole without a GPU."""

import argparse
import importlib.metadata
import json
import os
import re
import select
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parent / "bench"))
import gpu

ROOT = Path(__file__).parents[1]
OWN = ("bincount", "tests", "train", "gpu", "gpu_rows", "synthetic_training", *(name[:-3] for name in gpu.TESTS))


def row(
    kind: str = "bincount, from the pack", rate: float = 10_000, of_limit: float = 0.95, waiting: float = 0.001, **also
):
    found = {"model": "resnet50", "mode": "eager", "batch": 256, "kind": kind, "rates": [rate] * 5, "gigabytes": 1.0}
    return found | {"of_limit": of_limit, "waiting": waiting} | also


def check(tmp_path: Path, **options) -> gpu.Check:
    defaults = {"minutes": 1, "cpu": False, "json": tmp_path / "found.json", "models": ["resnet50"], "image_size": 32}
    defaults |= {"batch_sizes": ["256", "128"], "modes": ["eager", "compiled"], "count": 4, "workers": 1}
    return gpu.Check(argparse.Namespace(**defaults | {"repeat_seconds": 0.1} | options), tmp_path)


# --- what it needs ---

IMPORTS = """
import json, sys
before = set(sys.modules)
import gpu_rows, test_gpu, test_reader, test_augment, synthetic_training
import bincount.training.worker, bincount.training.loop, bincount.training.calibration
import bincount.data.packing, bincount.data.synthetic
gpu_rows._machine()
files = {name.partition(".")[0] for name, module in sys.modules.items() if getattr(module, "__file__", None)}
print(json.dumps(sorted(files - set(sys.stdlib_module_names))))
"""


def closure(names: set[str]) -> set[str]:
    """The packages that these need, they themselves included, by their normalised names."""
    found, left = set(), set(names)
    while left:
        name = left.pop()
        found.add(name)
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        plain = {normalized(re.match(r"[\w.-]+", need)[0]) for need in needs if "extra ==" not in need}
        left |= plain - found
    return found


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.services
def test_the_check_and_training_import_what_it_says_and_neither_prefect_nor_mlflow():
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests" / "bench")))
    environment = os.environ | {"PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, env=environment, check=True)
    allowed = closure({"torch", "torchvision"}) | {normalized(name) for name, _ in gpu.NEEDS.values()}
    packages = importlib.metadata.packages_distributions()
    loaded = {
        normalized(package)
        for module in json.loads(done.stdout)
        if module not in OWN
        for package in packages.get(module, [])
    }
    optional = {"attrs", "cloudpickle", "pytz", "charset-normalizer", "tqdm"}  # others import them where they are there
    ours = {"bincount-pipeline"}
    assert loaded - allowed - optional - ours == set()
    assert {"torch", "pandas", "pydantic"} <= loaded  # the test would notice
    assert not {"prefect", "mlflow", "obstore", "boto3", "scikit-learn"} & loaded


def test_all_that_the_check_needs_is_what_these_packages_need_in_turn():
    names = {normalized(name) for name, _ in gpu.NEEDS.values()}
    others = closure({"torch", "torchvision"}) | {"colorama", "tzdata", "exceptiongroup", "tomli"}  # of other systems
    assert closure(names) - names - others == set()


def test_what_is_missing_is_named_with_its_size_and_how_to_bring_it(monkeypatch):
    found = gpu.importlib.util.find_spec
    lacking = ("pydantic", "pydantic_core", "simplejpeg")
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None if name in lacking else found(name))
    lines = gpu.missing()
    assert lines[0] == "3 packages are missing here; 3.2 MB of wheels:"
    assert lines[1].split() == ["pydantic", "pydantic-core", "simplejpeg"]
    assert "pip download --no-deps" in "\n".join(lines)
    versions = dict(pair.split("==") for pair in lines[-2].split())
    if versions["pydantic"] == importlib.metadata.version("pydantic"):  # not where the oldest versions are tested
        assert f"pydantic-core=={versions['pydantic-core']}" in importlib.metadata.requires("pydantic")


def test_nothing_is_missing_where_the_project_is_installed_and_an_old_package_is_told(monkeypatch):
    assert gpu.missing() == []
    version = gpu.metadata.version
    monkeypatch.setattr(gpu.metadata, "version", lambda name: "2.2.3" if name == "pandas" else version(name))
    assert gpu.missing()[0].startswith("1 package is missing here, or too old: pandas 2.2.3 (from 3.0.1 on); 12.0 MB")


def test_an_older_pydantic_comes_with_the_core_that_it_alone_takes(monkeypatch):
    version = gpu.metadata.version
    monkeypatch.setattr(gpu.metadata, "version", lambda name: "2.11.7" if name == "pydantic" else version(name))
    first, names, *_ = gpu.missing()
    assert first.startswith("2 packages are missing here, or too old: pydantic 2.11.7 (from 2.12 on); 2.8 MB")
    assert names.split() == ["pydantic", "pydantic-core"]


def test_without_torch_it_says_what_to_do(monkeypatch):
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    assert gpu.missing()[0].startswith("there is no torch here: take an environment that has torch")


def test_a_torch_that_is_too_old_is_told_at_once(monkeypatch):
    version = gpu.metadata.version
    monkeypatch.setattr(gpu.metadata, "version", lambda name: "2.9.1+cu126" if name == "torch" else version(name))
    assert gpu.missing() == ["torch 2.9.1+cu126 is too old: take an environment that has 2.11 or newer for your GPU"]


# --- what it judges ---


def test_the_best_row_is_held_against_the_rate_and_the_worst_against_limit_and_waiting():
    rows = [row(rate=4400), row(rate=4600, of_limit=0.89), row(waiting=0.02, rate=100), row("constant batch", rate=9e9)]
    rate, share, waiting = gpu._judge(rows, ["resnet50", "resnet18"])
    assert (rate["met"], rate["text"]) == (True, "resnet50: 4,600 images/s, wanted 4,500")
    assert (share["met"], share["value"]) == (False, 0.89)
    assert (waiting["met"], waiting["value"]) == (False, 0.02)


def test_what_was_not_measured_is_not_met():
    assert not any(target["met"] for target in gpu._judge([], ["resnet50"]))
    assert not gpu._judge([row(of_limit=None)], ["resnet50"])[1]["met"]


@pytest.mark.parametrize(
    ("rows", "failures", "cpu", "status"),
    [
        ([row()], [], False, 0),
        ([row(rate=10)], [], False, gpu.MISSED),
        ([], [], False, gpu.MISSED),
        ([row()], ["resume: it ended with code 1"], False, gpu.FAILED),
        ([row(rate=10)], [], True, gpu.NO_GPU),
        ([row()], ["a test"], True, gpu.FAILED),
    ],
)
def test_the_exit_status_tells_missed_from_failed_and_from_no_gpu(tmp_path, capsys, rows, failures, cpu, status):
    done = check(tmp_path, cpu=cpu)
    done.rows, done.failures = rows, failures
    assert done._finish(0) == status
    assert json.loads((tmp_path / "found.json").read_text())["rows"] == rows
    said = capsys.readouterr().out
    assert ("the numbers mean nothing about one" in said) == cpu
    assert ("MISSED" in said) == (not cpu and (not rows or rows[0]["rates"][0] == 10))


def test_without_a_gpu_it_says_so_and_measures_nothing(tmp_path, capsys, monkeypatch):
    done = check(tmp_path)
    facts = {"torch": "2", "cuda": None, "python": "3.12", "cores": 2, "gpu": None, "unknown": ["convnext_tiny"]}
    monkeypatch.setattr(done, "_start", lambda name, *values: name)
    monkeypatch.setattr(
        done, "_end", lambda started, seconds: [facts] if started == "prepare" else pytest.fail("measured")
    )
    assert done.run() == gpu.NO_GPU
    assert capsys.readouterr().out.startswith("There is no GPU here that torch can use (torch 2")


def test_rows_that_would_not_end_in_time_are_listed_and_not_begun(tmp_path, capsys, monkeypatch):
    done = check(tmp_path, minutes=45 / 60)
    monkeypatch.setattr(done, "_start", lambda *values: values)
    monkeypatch.setattr(done, "_end", lambda started, seconds, late: [row()])
    for planned in done._plan():
        done._measure(*planned)
    late = [f"resnet50, compiled, batches of {size}, for which no time was left" for size in (256, 128)]
    assert done.skipped == late
    assert len(done.rows) == 2
    done._finish(0)
    assert f"skipped: {late[0]}\nskipped: {late[1]}\n" in capsys.readouterr().out


def test_a_measurement_that_fails_or_hangs_is_reported_with_its_last_lines(tmp_path, monkeypatch):
    done = check(tmp_path)
    start = lambda code: done._start("tests", "-c", code)  # noqa: E731
    assert done._end(start("import sys; print('{\"a\": 1}'); sys.exit('the card is hot')"), 60) == [{"a": 1}]
    assert done.failures[0].splitlines() == ["tests: it ended with code 1. Its last lines:", "the card is hot"]
    done._wait(start("import time; time.sleep(600)"), 0.01)
    assert done.failures[1].startswith("tests: it took longer than 0 seconds")
    assert done._wait(start("raise SystemExit(2)"), 60, may_fail=True) == ""
    assert len(done.failures) == 2


def test_a_row_that_the_end_of_the_time_cuts_off_is_skipped_and_what_it_printed_is_kept(tmp_path):
    done = check(tmp_path)
    code = "import time; print('{\"rate\": 1}', flush=True); print('{\"ha', end='', flush=True); time.sleep(600)"
    started = done._start("tests", "-c", code)
    select.select([started[1].stdout], [], [])  # until it has printed something
    assert done._end(started, 0.01, late="resnet18, which was cut off") == [{"rate": 1}]
    assert (done.skipped, done.failures) == (["resnet18, which was cut off"], [])


def test_a_rate_is_the_median_of_repeats_after_the_warm_up():
    import gpu_rows

    # steps of 1 s, of which the network waits 0.25 s; the last repeat takes twice as long
    moments = [(second, second + 0.25) for second in range(9)]
    watch = SimpleNamespace(moments=moments, end=13, _seconds=lambda start, end: end - start)
    found = gpu_rows._read(watch, batch=10, num_steps=2, warm_up=5)
    assert found["rates"] == pytest.approx([10, 20 / 6])
    assert found["waiting"] == pytest.approx(4 * 0.25 / 8)


# --- all of it ---

TINY = ["--models", "small", "--batch-sizes", "4", "--modes", "eager", "--image-size", "32", "--count", "24"]


@pytest.mark.services
def test_the_check_runs_whole_on_a_cpu(tmp_path):
    command = [sys.executable, gpu.__file__, "--cpu", *TINY, "--workers", "1", "--repeat-seconds", "0.01"]
    for name in ("prefect", "mlflow", "boto3", "obstore", "sklearn", "matplotlib"):
        (tmp_path / f"{name}.py").write_text("raise ModuleNotFoundError(f'no {__name__} here')")
    # The path of a socket has at most 107 bytes, and a loader's lies two folders down.
    with tempfile.TemporaryDirectory(dir="/tmp") as scratch:
        environment = os.environ | {"TMPDIR": scratch, "PYTHONPATH": str(tmp_path)}
        done = subprocess.run(
            [*command, "--json", tmp_path / "found.json", "--minutes", "15"],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
        assert os.listdir(scratch) == []

    assert done.returncode == gpu.NO_GPU, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["resumed"]["same_bits"]
    assert re.match(r"\d+ skipped", found["tests"]) or "passed" in found["tests"]
    kinds = {one["kind"] for one in found["rows"]}
    assert len(kinds) == 6
    assert {"constant batch", "bincount, from the pack", "ImageFolder, 1 workers"} <= kinds
    assert "the numbers mean nothing about one" in done.stdout
