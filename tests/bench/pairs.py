"""Measure how long the pairs and the questions of a dataset as large as the public bucket take, by `make bench-pairs`.

535,234 made-up bins without pictures, in the proportions of a sample of the bucket: 2.65 items a bin, of which a part
recurs in other bins, and three quarters of the bins photographed two or three times. Pairs, and the questions of each
task, frozen as snapshots, are made in a process of their own, whose peak memory is printed.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# Imports beyond these are made where they are needed: a process starts with its parent's peak memory.

PUBLIC_BUCKET = 535_234  # bins
CATALOGUE = 1_500_000  # items, of which a third is drawn: about as many as the bucket's records list
NUM_PICTURES_OF_BIN = (0.42, 0.50, 0.08)  # of 1, 2 and 3
NUM_ITEMS = (0.17, 0.33, 0.28, 0.14, 0.05, 0.03)  # of 1 to 6
QUANTITIES = (0.67, 0.16, 0.06, 0.04, 0.03, 0.04)  # of 1 to 6


def make(dataset: Path, num_bins: int) -> None:
    """Write the rows of a dataset and its snapshot; the records of a bin differ by one item from picture to picture."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from bincount.data import assembly, bins
    from bincount.problem import Classes

    random = np.random.default_rng(0)
    num_pictures = random.choice([1, 2, 3], num_bins, p=NUM_PICTURES_OF_BIN)
    bin_of = np.repeat(np.arange(num_bins), num_pictures)[:num_bins]
    place = np.arange(num_bins) - np.searchsorted(bin_of, bin_of)  # among the pictures of the bin
    num_items = random.choice(np.arange(1, 7), bin_of[-1] + 1, p=NUM_ITEMS)
    first_line = np.cumsum(num_items) - num_items
    items = (CATALOGUE * random.random(num_items.sum()) ** 2).astype(int)  # some occur often
    quantities = random.choice(np.arange(1, 7), len(items), p=QUANTITIES)

    offsets = np.concatenate([[0], np.cumsum(num_items[bin_of])])
    lines = np.arange(offsets[-1]) + np.repeat(first_line[bin_of] - offsets[:-1], num_items[bin_of])
    of_picture = quantities[lines]
    starts = offsets[:-1]
    of_picture[starts] += np.where(of_picture[starts] > place, -place, place)  # picked, or stowed
    names = pa.array([f"B{item:09d}" for item in range(CATALOGUE)]).take(pa.array(items[lines]))
    held = pa.MapArray.from_arrays(pa.array(offsets, pa.int32()), names, pa.array(of_picture, pa.int16()))
    quantity = np.add.reduceat(of_picture, starts)
    ids = [f"{number:05d}" for number in range(1, num_bins + 1)]
    columns = {
        "image_id": ids,
        "class_name": [str(count) for count in quantity],
        "quantity": quantity,
        "items": held,
        "path": [f"originals/bin-images/{image_id}.jpg" for image_id in ids],
        "bytes": [51_000] * num_bins,
        "sha256": [random.bytes(32).hex() for _ in ids],
        "width": [500] * num_bins,
        "height": [400] * num_bins,
        "dhash": random.integers(0, 2**63, num_bins),
        "status": ["ok"] * num_bins,
        "reason": [""] * num_bins,
    }
    missing = {field.name: pa.nulls(num_bins, field.type) for field in bins.SCHEMA if field.name not in columns}
    dataset.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns | missing, bins.SCHEMA), dataset / bins.FILE)
    assembly.build(dataset, bins.read(dataset), Classes.parse("0..5"), "made up")


def measure(dataset: Path) -> None:
    """Print the time of each step, and the peak memory of the process after it."""
    import bincount.evaluation.shortcuts  # noqa: F401 - imported before the first step is timed
    from bincount.data import pairs, questions, snapshots

    snapshot = snapshots.latest(dataset)
    print(f"{len(snapshot.read()):,} bins without their pictures{'':10}rows   seconds  peak MiB", flush=True)
    began, cpu = time.monotonic(), time.process_time()
    _timed("pairs", lambda: len(pairs.read(snapshot)))
    for task in questions.TASKS:
        _timed(f"questions: {task}, frozen", lambda task=task: questions.freeze(snapshot, task).num_images)
    _timed("questions: changes to verify", lambda: len(questions.verify_changes(snapshot)))
    print(f"all: {time.monotonic() - began:.1f} s, {time.process_time() - cpu:.1f} s of CPU")


def _timed(what: str, count_rows: Callable[[], int]) -> None:
    began = time.monotonic()
    num_rows = count_rows()
    seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"    {what:30}{num_rows:>12,}{seconds:>10.1f}{peak:>10,.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--bins", type=int, default=PUBLIC_BUCKET, help="how many bins [default: as many as the bucket]"
    )
    parser.add_argument("--step", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        name, folder = options.step
        make(Path(folder), options.bins) if name == "make" else measure(Path(folder))
        return
    with tempfile.TemporaryDirectory() as folder:
        for step in ("make", "measure"):
            subprocess.run([sys.executable, __file__, "--bins", str(options.bins), "--step", step, folder], check=True)


if __name__ == "__main__":
    main()
