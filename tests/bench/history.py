"""Measure what the record before and the earlier picture of a bin add, by `make bench-history`.

MODEL, the folder of a trained model, scores the bins of val and test of DATASET's last snapshot, none of which it was
trained on. Two tables follow, with 95 % intervals over bins:

- the count of the later picture of a pair, by what it is inferred from
- how many records that were made wrong on purpose an audit finds, with earlier pictures and without, by how the records
  of pairs are made wrong: naively, whatever the record before; since the record before, to a change that occurs; and
  carried over from the record before
"""

import argparse
import tempfile
from pathlib import Path

import pandas as pd

from bincount.data import pairs, snapshots
from bincount.data.snapshots import Snapshot
from bincount.evaluation import audit as audits
from bincount.evaluation import audit_quality, earlier, history_quality
from bincount.evaluation.audit import MODEL, Scorer
from bincount.evaluation.earlier import EarlierPictures
from bincount.evaluation.joint import PairErrors
from bincount.evaluation.record_errors import RecordErrors
from bincount.problem import Classes
from bincount.settings import AuditConfig

RATE = AuditConfig().error_rate
OF_PAIRS = {
    "naively": PairErrors(carried=0, not_made=0, as_changes=False),
    "since": PairErrors(carried=0, not_made=0),
    "half of them carried over": PairErrors(),
    "carried over": PairErrors(carried=1, not_made=0),
}
MADE = {"anything": RecordErrors(rate=RATE), "one item": RecordErrors(rate=RATE, shares=(1.0,))}
ASSUMED = {
    "both pictures and records": PairErrors(),
    "as if no error were carried over": PairErrors(carried=0, not_made=0),
    "any change as likely": PairErrors(carried=0, not_made=0, as_changes=False),
}
FIGURES = ("precision at 50", "recall at 5 %", "recall at 10 %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("dataset", type=Path, help="a dataset of a workspace, WORKSPACE/datasets/NAME")
    parser.add_argument("model", type=Path, help="the folder of a model that was trained on its last snapshot")
    options = parser.parse_args()

    snapshot = snapshots.latest(options.dataset)
    scores, outputs, records = score(snapshot, options.model)
    found = earlier.find(pairs.read(snapshot), records, scores, outputs)
    if found is None:
        raise SystemExit("there are too few pairs of consecutive pictures; take a dataset of real bins")
    print(
        f"{len(scores):,} pictures of {scores['group'].nunique():,} bins; {len(found):,} have an earlier picture, ",
        end="",
    )
    print(
        f"of which {(scores['image_id'].isin(found.table['before'])).sum():,} were scored; "
        f"the correlation of the errors on both is {found.correlation:.2f}\n"
    )
    show_counts(history_quality.measure(scores, found, snapshot.classes, RecordErrors.prior(RATE)))
    some = scores[found.locate(scores["image_id"]) >= 0].reset_index(drop=True)
    show_audits(scores, found, outputs, "All bins")
    show_audits(some, found, outputs, "Bins with an earlier picture")


def score(snapshot: Snapshot, model: Path) -> tuple[pd.DataFrame, Classes, pd.Series]:
    """Return the scores of what the model was not trained on, as an audit makes them, its outputs, and all records."""
    scorer = Scorer(MODEL, model, (snapshot,))
    with tempfile.TemporaryDirectory() as folder:
        audit = audits.begin(Path(folder), snapshot, (scorer,), str(model))
        audits.score(audit, scorer, audits.pack_for(audit, scorer))
        return audits.collect(audit), audit.outputs, audit.plan().set_index("image_id")["recorded"]


def show_counts(report: pd.DataFrame) -> None:
    print(
        "| the count from | accuracy | RMSE, items | RMSE of the expected count | log loss | change of the log loss |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for row in report.to_dict("records"):
        cells = [_text(row, "accuracy", 100, 1), *(_text(row, name) for name in history_quality.SCORES[1:])]
        change = "" if pd.isna(row["log_loss_change"]) else _text(row, "log_loss_change")
        print(f"| {row['known']} | {' | '.join(cells)} | {change} |")
    print(f"\n{report['num_images'].iloc[0]:,} pairs of {report['num_bins'].iloc[0]:,} bins\n")


def show_audits(scores: pd.DataFrame, found: EarlierPictures, outputs: Classes, title: str) -> None:
    print(f"{title}: {len(scores):,} pictures, {100 * RATE:g} % of the records made wrong, %\n")
    print(f"| wrong by | made wrong | ranked by | {' | '.join(FIGURES)} |\n| --- | --- | --- | --- | --- | --- |")
    for by, made in MADE.items():
        for how, of_pairs in OF_PAIRS.items():
            for name, assumed in ASSUMED.items():
                measured = audit_quality.measure(
                    scores,
                    outputs,
                    RecordErrors.prior(RATE),
                    made,
                    earlier=found.with_errors(assumed),
                    made_of_pairs=of_pairs,
                ).set_index(["score", "measure"])
                if assumed == PairErrors():
                    _show_audit(measured, by, how, audit_quality.ALONE, audit_quality.ALONE)
                _show_audit(measured, by, how, "p_wrong", name)
    print()


def _show_audit(measured: pd.DataFrame, by: str, how: str, score: str, name: str) -> None:
    cells = [
        _text(measured.loc[score, figure].rename({"low": "value_low", "high": "value_high"}), "value", 100, 1)
        for figure in FIGURES
        if (score, figure) in measured.index
    ]
    print(f"| {by} | {how} | {name} | {' | '.join(cells)} |", flush=True)


def _text(row: dict | pd.Series, name: str, scale: int = 1, digits: int = 3) -> str:
    value, low, high = (f"{scale * row[name + end]:.{digits}f}" for end in ("", "_low", "_high"))
    return f"{value} ({low} to {high})"


if __name__ == "__main__":
    main()
