"""Measure an audit, by `make bench-audit`: how well it ranks records, beside cleanlab, and how fast it is.

- ranking: records are made wrong on purpose, and the wrong ones looked for among the first. With SCORES, the
  scores.parquet of an audit, on its bins; else on made-up bins. cleanlab ranks the same records by the same
  probabilities; its label quality scores are two of ours by other names, so their order has to be the same.
- scoring: images a second of an audit's scoring from a pack, and of the bare network on the same batches and views,
  which are in memory
- table: seconds and memory from made-up scores to the ranked table, audit.parquet, audit.csv and the page
"""

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd

from bincount.data.snapshots import Snapshot
from bincount.evaluation import audit_quality, ranking
from bincount.evaluation.record_errors import RecordErrors
from bincount.problem import Classes
from bincount.settings import AuditConfig, DataConfig, ImageConfig, TrainConfig
from bincount.workspace import Workspace

RATE = AuditConfig().error_rate
MADE = {"wrong by anything": RecordErrors(rate=RATE), "wrong by one": RecordErrors(rate=RATE, shares=(1.0,))}
PEERS = {"self_confidence": "p_recorded", "normalized_margin": "margin"}  # cleanlab's name: ours
OUTPUTS = Classes.parse("0..10")
QUEUE_PIXELS = 224


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("scores", nargs="?", type=Path, help="scores.parquet of an audit; without, bins are made up")
    parser.add_argument("--bins", type=int, default=1600, help="made-up bins of the ranking")
    parser.add_argument("--pictures", type=int, default=2048, help="pictures that are scored")
    parser.add_argument("--model", default="mobilenet_v2")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=500_000, help="rows of the table")
    parser.add_argument("--queue", type=int, default=5000, help="bins on the page")
    options = parser.parse_args()

    scores = pd.read_parquet(options.scores) if options.scores else make_scores(options.bins)
    outputs = Classes.parse(",".join(name.removeprefix("p_") for name in scores if name.startswith("p_")))
    # First, since a process begins with the peak memory of the one that starts it.
    measure_table(options.rows, options.queue)
    compare_rankings(scores, outputs, str(options.scores or "made-up bins"))
    compare_speed(options.pictures, options.model, options.image_size, options.rounds)


def make_scores(num: int, outputs: Classes = OUTPUTS, seed: int = 0) -> pd.DataFrame:
    """Scores of bins whose probabilities are calibrated: each record is drawn from those of its picture."""
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(len(outputs), 0.5), num).astype(np.float32)
    labels = (probabilities.cumsum(axis=1) < rng.random((num, 1))).sum(axis=1).clip(max=len(outputs) - 1)
    ids = pd.Series([f"{number:07}" for number in range(num)], dtype="str")
    table = pd.DataFrame({"image_id": ids, "group": ids, "split": "train", "recorded": np.array(outputs.names)[labels]})
    table = table.assign(record="0" * 16, sha256="0" * 64, scored_by="fold 1 of 5")
    return table.join(pd.DataFrame(probabilities, columns=[f"p_{name}" for name in outputs.names]))


def compare_rankings(scores: pd.DataFrame, outputs: Classes, source: str) -> None:
    print(f"Ranking: {len(scores):,} bins of {source}, {100 * RATE:g} % of the records made wrong, %")
    measures = audit_quality.measures()
    print(f"{'':20}{'':22}" + "".join(f"{name:>22}" for name in measures))
    for made, errors in MADE.items():
        found = audit_quality.measure(scores, outputs, RecordErrors.prior(RATE), errors).set_index(["score", "measure"])
        for name in found.index.unique("score"):
            cells = [found.loc[(name, each)] for each in measures if (name, each) in found.index]
            text = [
                f"{100 * cell['value']:.1f} ({100 * cell['low']:.1f} to {100 * cell['high']:.1f})" for cell in cells
            ]
            print(f"{made:20}{name:22}" + "".join(f"{cell:>22}" for cell in text), flush=True)
    if find_spec("cleanlab") is None:
        print("cleanlab is left out: uv pip install --group bench")
        return
    compare_with_cleanlab(scores, outputs)


def compare_with_cleanlab(scores: pd.DataFrame, outputs: Classes) -> None:
    """Rank the same records by cleanlab's label quality scores, and say whether the order is ours."""
    from cleanlab.rank import get_label_quality_scores

    probabilities = scores[[f"p_{name}" for name in outputs.names]].to_numpy(np.float64)
    probabilities = probabilities / probabilities.sum(axis=1, keepdims=True)
    labels = ranking.labels_of(scores, outputs)
    rng = np.random.default_rng(0)
    is_wrong = rng.random(len(labels)) < RATE
    labels = np.where(is_wrong, (labels + rng.integers(1, len(outputs), len(labels))) % len(outputs), labels)
    ours = ranking.compare(probabilities, labels, outputs)
    ours["p_recorded"] = -ours["p_recorded"]
    first = max(1, round(0.05 * len(labels)))

    def recall(urgency: np.ndarray) -> float:
        return is_wrong[np.argsort(-urgency, kind="stable")[:first]].sum() / is_wrong.sum()

    for method, name in PEERS.items():
        theirs = get_label_quality_scores(labels, probabilities, method=method)
        same = np.array_equal(_ranks(-theirs), _ranks(ours[name]))
        print(
            f"cleanlab {method}: recall at 5 % {100 * recall(-theirs):.1f} %, {name} {100 * recall(ours[name]):.1f} %, "
            f"the order is {'the same' if same else 'another'}"
        )


def _ranks(urgency: np.ndarray) -> np.ndarray:
    """Ranks of scores that differ by more than rounding."""
    return pd.Series(urgency).round(9).rank(method="dense").to_numpy()


def compare_speed(num: int, model: str, image_size: int, rounds: int) -> None:
    """Score the same pictures by an audit and by the bare network, in turns, and print the fastest round of each."""
    import torch

    from bincount.data import synthetic
    from bincount.evaluation import audit
    from bincount.evaluation.audit import Scorer
    from bincount.training.augment import center_crop, normalize
    from bincount.training.model import INFERENCE_BATCH, build, load, save
    from bincount.training.spec import ModelSpec

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        synthetic.generate(root / "bins", num, size=(160, 160))
        data, images = DataConfig(source=str(root / "bins")), ImageConfig(image_size=image_size)
        snapshot = prepare(Workspace(root=root / "workspace"), data)
        spec = ModelSpec.make(images, TrainConfig(model=model, weights="none"), data.class_set, data.extra_names)
        save(root / "model", build(spec), spec)
        scorer = Scorer(audit.MODEL, root / "model", ())
        seconds = {"audit": [], "bare network": []}
        for number in range(rounds):
            begun = audit.begin(root / f"audits{number}", snapshot, [scorer], "a model")
            rows = begun.bins_of(scorer)
            pack = audit.pack_for(begun, scorer)
            network, _ = load(scorer.checkpoint)
            pixels = torch.from_numpy(np.take(pack.images, pack.locate(rows["sha256"]), axis=0))
            batches = [normalize(center_crop(batch, 1), spec.normalization) for batch in pixels.split(INFERENCE_BATCH)]

            def run_bare(network=network, batches=batches) -> None:
                with torch.inference_mode():
                    for batch in batches:
                        for view in [batch, batch.flip(3)] if spec.flip_at_test else [batch]:
                            network(view)

            run_bare(batches=batches[:1])  # the first batch also fills caches
            seconds["bare network"].append(_timed(run_bare))
            seconds["audit"].append(_timed(lambda begun=begun, pack=pack: audit.score(begun, scorer, pack, "cpu")))
    speed = {name: len(rows) / min(taken) for name, taken in seconds.items()}
    print(
        f"Scoring: {len(rows):,} pictures, {model}, {image_size} pixels, the fastest of {rounds} rounds: audit "
        f"{speed['audit']:.0f} images/s, bare network {speed['bare network']:.0f} images/s: "
        f"{100 * speed['audit'] / speed['bare network']:.1f} %",
        flush=True,
    )


def prepare(workspace: Workspace, data: DataConfig) -> Snapshot:
    """Make a snapshot of a folder of bins."""
    from bincount.data import assembly, fetch, source, sync

    dataset, opened = workspace.dataset(data), source.open_source(data)
    plan = sync.plan(dataset, opened, data)
    for number in range(plan.num_batches):
        fetch.fetch_batch(dataset, opened, plan.batch(number), data)
    return assembly.freeze_fetched(dataset, data)


def measure_table(rows: int, queue: int) -> None:
    """Make the result of an audit of made-up scores in a process of its own, whose memory is then that of this."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        seconds, peak = process.submit(_make_result, rows, queue).result()
    parts = ", ".join(f"{name} {taken:.1f} s" for name, taken in seconds.items())
    print(f"Table: {rows:,} rows, {queue:,} bins on the page: {sum(seconds.values()):.1f} s ({parts}), {peak:.2f} GB")


def _make_result(rows: int, queue: int) -> tuple[dict[str, float], float]:
    from bincount.data import tables
    from bincount.evaluation import audit_table
    from bincount.reporting import audit as page

    outputs = OUTPUTS
    scores = make_scores(rows)
    plan = scores[["image_id", "group", "split", "recorded", "record", "sha256", "scored_by"]]
    plan = plan.assign(path="", width=224, height=224, status="scored", reason="")
    audit = SimpleNamespace(
        plan=lambda: plan,
        outputs=outputs,
        model="version 1",
        snapshot=SimpleNamespace(digest="0" * 64),
        time="2026-01-01",
    )
    seconds, made = {}, {}

    def step(name: str, act: Callable[[], object]) -> None:
        start = time.perf_counter()
        made[name] = act()
        seconds[name] = time.perf_counter() - start

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        step("rank", lambda: ranking.rank(scores, outputs, RecordErrors.prior(RATE), 0.5))
        step("table", lambda: audit_table.tabulate(audit, made["rank"], pd.Series([], dtype="str")))
        step("parquet", lambda: tables.write_frame(made["table"], root / "audit.parquet"))
        step("csv", lambda: audit_table.write_csv(made["table"], root / "audit.csv"))
        config = AuditConfig(queue=queue)
        step("queue", lambda: audit_table.choose_queue(made["table"], config, pd.Series([], dtype="str"), "seed"))
        about = page.About("Audit", audit.model, audit.snapshot.digest, audit.time, outputs)
        step("page", lambda: page.write(root / "audit.html", made["queue"], _pictures, about))
        print(f"the page has {(root / 'audit.html').stat().st_size / 1e6:.1f} MB", flush=True)
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def _pictures(positions: np.ndarray) -> np.ndarray:
    """Pictures of blocks and noise, of which the middle of a WebP is about as large as of a photo."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (len(positions), 14, 14, 3), np.uint8)
    fine = rng.integers(0, 16, (len(positions), QUEUE_PIXELS, QUEUE_PIXELS, 3), np.uint8)
    return coarse.repeat(16, axis=1).repeat(16, axis=2) // 16 * 15 + fine


def _timed(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
