"""The benchmark of questions on real bins runs whole at a tiny size, and compares as it says."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from recurring_items import build, runs

from bincount.data import questions, synthetic
from bincount.evaluation.intervals import Score

pytestmark = pytest.mark.services

BENCH = Path(__file__).parent / "bench"
RECIPE = ["--weights", "none", "--model", "small", "--normalization", "imagenet", "--image-size", 32]
TINY = [*RECIPE, "--epochs", 1, "--counting-epochs", 1, "--set", "batch_size=32"]


@pytest.fixture
def bench(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCH)
    spec = importlib.util.spec_from_file_location("bench_verification", BENCH / "verification.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses look for their types
    spec.loader.exec_module(module)
    return module


@pytest.mark.usefixtures("this_training_here")
def test_the_benchmark_of_questions_shows_networks_beside_the_rules_and_does_nothing_twice(
    bench, monkeypatch, tmp_path, capsys
):
    synthetic.generate(tmp_path / "bins", 300, size=(48, 48), num_products=20)
    runs = tmp_path / "kept" / "runs"

    def run(*options: object) -> list[str]:
        command = [tmp_path / "bins", *TINY, *options, "--workspace", tmp_path / "kept"]
        monkeypatch.setattr(sys, "argv", ["verification.py", *map(str, command)])
        bench.main()
        return capsys.readouterr().out.splitlines()

    changes = "--tasks", "change", "--seeds", 0, 1, "--shares", 0.5
    said = run(*changes)

    trained = [line for line in said if "questions/s" in line]
    assert [line.split(",")[:2] for line in trained] == [["change", f" seed {seed}"] for seed in (0, 0, 1)]
    heads = [line.strip("| ").split(" | ")[0] for line in said if line.startswith("| ")]
    assert [head for head in heads if head[0] in "01"] == ["0.5", "1"]
    assert {"the mean of 2 networks", "the commonest change given the count before"} <= set(heads)
    assert {"network, seed 0", "network, seed 1", "yes where the commonest change is asked"} <= set(heads)
    assert sum("the best rule, “" in line for line in said) == 1
    times = {path: path.stat().st_mtime_ns for path in runs.glob("*/trained.json")}
    assert len(times) == 4  # with the counting model

    assert run(*changes) == said
    of_objects = run("--tasks", "object", "--seeds", 0, "--shares")
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert len(list(runs.glob("*/trained.json"))) == 5
    assert any(line.startswith("| an id at most 2 away holds the item | ") for line in of_objects)


@pytest.mark.parametrize("task", [questions.OBJECT, questions.QUANTITY])
def test_a_share_of_the_questions_has_whole_bins_and_is_part_of_a_larger_share(bench, task, tmp_path):
    """So have the questions of quantities about none of an item, which are trained on besides."""
    asked = questions.freeze(build(tmp_path, runs(60)), task)
    quarter, half, everything = (bench.keep_share(asked, share).read() for share in (0.25, 0.5, 1.0))
    of_train = [rows[rows["split"].isin(["train", "extra"])] for rows in (quarter, half, everything)]
    assert 0 < len(of_train[0]) < len(of_train[1]) < len(of_train[2])
    assert set(of_train[0]["image_id"]) < set(of_train[1]["image_id"])
    dropped = of_train[2][~of_train[2]["image_id"].isin(of_train[1]["image_id"])]
    assert not set(dropped["group"]) & set(of_train[1]["group"])
    for rows in (quarter, half):
        others = rows[rows["split"].isin(["val", "test"])].reset_index(drop=True)
        assert others.equals(everything[everything["split"].isin(["val", "test"])].reset_index(drop=True))
    assert ("extra" in set(everything["split"])) == (task == questions.QUANTITY)


def test_the_networks_count_by_their_mean_and_are_compared_with_a_rule_on_the_same_bins(bench, monkeypatch):
    """Of four questions, one network answers three rightly and the other all; the rule says yes, and half are."""
    asked = pd.DataFrame({"image_id": list("abcd"), "label": [1, 0, 1, 0], "group": list("wxyz"), "split": "test"})
    answers = {"yes": np.ones(4, np.int64)}
    monkeypatch.setattr(bench.shortcuts, "answer", lambda *_: (asked, answers))
    right = pd.DataFrame(np.eye(2)[asked["label"]], index=asked["image_id"])
    one_wrong = right.copy()
    one_wrong.loc["a"] = right.loc["b"]

    found = bench.compare(None, asked, "object", [right, one_wrong], ("test",))

    assert found[bench.NETWORKS][0].value == pytest.approx(7 / 8)
    rule, more = found["yes"]
    assert (rule.value, more.value) == (0.5, pytest.approx(3 / 8))
    assert rule.low < rule.value < rule.high
    assert more.low <= more.value <= more.high <= 1


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ((1, 9), "significantly more often"),
        ((-9, 9), "too small"),
        ((-9, -1), "less often than a rule"),
    ],
)
def test_the_verdict_rests_on_the_interval_of_the_difference_from_the_best_rule(bench, ends, said):
    worse, best = Score(value=0.3, low=0.2, high=0.4), Score(value=0.5, low=0.4, high=0.6)
    of_best = Score(value=0.05, low=ends[0] / 100, high=ends[1] / 100)
    far = Score(value=0.25, low=0.2, high=0.3)
    compared = {bench.NETWORKS: (best, far), "worse": (worse, far), "best": (best, of_best)}
    verdict = bench.judge("object", compared)
    assert said in verdict
    assert "“best”" in verdict
