"""Measure the time of a nightly run with one image in a hundred new, beside the first run, by `make bench-nights`.

The flow `prepare` (list, fetch, pack, split, balance) on 99 % of a folder of bins, and again on all of it, each time in
a new workspace; the ratio of the two, step by step. Training is not in it: a run trains on all images.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import pandas as pd

from bincount.data import source
from bincount.settings import DataConfig
from flows.prepare import prepare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("source", help="bucket or folder of bins")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()

    data = DataConfig(source=options.source)
    num_bins = len(source.open_source(data).list_bins())
    nights = {"first night": round(0.99 * num_bins), "1 % new": num_bins}
    runs = []
    for _ in range(options.runs):
        with tempfile.TemporaryDirectory() as workspace:
            for night, limit in nights.items():
                prepared = prepare(data=data.model_copy(update={"limit": limit}), workspace=Path(workspace))
                runs.append({"night": night, "images": prepared.report.num_fetched, **prepared.timings})
    table = pd.DataFrame(runs).assign(together=lambda row: row.drop(columns=["night", "images"]).sum(axis=1))
    seconds = table.groupby("night", sort=False).median()
    print(seconds.round(2).to_string())
    first, later = (table.loc[table["night"] == night, "together"] for night in nights)
    ratios = [b / a for a, b in zip(first, later, strict=True)]
    print(f"1 % new / first night: {statistics.median(ratios):.1%} ({min(ratios):.1%} to {max(ratios):.1%})")


if __name__ == "__main__":
    main()
