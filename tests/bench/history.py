"""Measure what the record before and the earlier picture of a bin add, by `make bench-history`.

MODEL, the folder of a trained model, scores the bins of val and test of DATASET's last snapshot, none of which it was
trained on. Two tables follow, with 95 % intervals over bins:

- the count of the later picture of a pair, by what it is inferred from
- how many records that were made wrong on purpose an audit finds, with earlier pictures and without, by how the records
  of pairs are made wrong: naively, whatever the record before; since the record before, to a change that occurs; and
  carried over from the record before

With --change-model, the folder of a model that was trained on the questions about changes of the same snapshot, both
tables have rows in which it is asked about each pair too, and a third says what it adds to all the rest.
"""

import argparse
import dataclasses
import tempfile
from pathlib import Path

import pandas as pd

from bincount.data import pairs, questions, snapshots
from bincount.data.snapshots import Snapshot
from bincount.evaluation import audit as audits
from bincount.evaluation import audit_quality, change_evidence, earlier, history_quality
from bincount.evaluation.audit import MODEL, Scorer
from bincount.evaluation.change_evidence import Evidence
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
DEFAULT = "both pictures and records"
ASSUMED = {
    DEFAULT: PairErrors(),
    "as if no error were carried over": PairErrors(carried=0, not_made=0),
    "any change as likely": PairErrors(carried=0, not_made=0, as_changes=False),
}
FIGURES = ("precision at 50", "recall at 5 %", "recall at 10 %")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("dataset", type=Path, help="a dataset of a workspace, WORKSPACE/datasets/NAME")
    parser.add_argument("model", type=Path, help="the folder of a model that was trained on its last snapshot")
    parser.add_argument("--change-model", type=Path, help="the folder of a model of changes, of the same snapshot")
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
    evidence = None
    if options.change_model:
        evidence = ask_changes(snapshot, options.change_model, scores, found)
        found = evidence.earlier
        print(
            f"the model of changes was asked about {evidence.num_pairs:,} pairs; its power is "
            f"{', '.join(f'{power:g}' for power in evidence.powers)}\n"
        )
    show_counts(history_quality.measure(scores, found, snapshot.classes, RecordErrors.prior(RATE)))
    if evidence:
        than = history_quality.BOTH
        show_gains(history_quality.measure(scores, found, snapshot.classes, RecordErrors.prior(RATE), than=than), than)
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


def ask_changes(snapshot: Snapshot, model: Path, scores: pd.DataFrame, found: EarlierPictures) -> Evidence:
    """Ask a model of changes about the pairs of scored pictures of bins that it was not trained on."""
    scorer = Scorer(MODEL, model, (questions.ask(snapshot, questions.CHANGE),))
    answers = change_evidence.ask_unseen(snapshot, scorer, found.table["image_id"])
    evidence = change_evidence.add(found, answers, scores, RecordErrors.prior(RATE))
    if evidence is None:
        raise SystemExit("there are too few pairs that the model of changes was not trained on; take more bins")
    return evidence


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


def show_gains(report: pd.DataFrame, than: str) -> None:
    print(f"| the count from | {' | '.join(f'{name}, more than from {than}' for name in history_quality.SCORES)} |")
    print("| --- | --- | --- | --- | --- |")
    for row in report[report["known"].isin(history_quality.WITH_CHANGE)].to_dict("records"):
        changes = [
            _text(row, f"{name}_change", *((100, 1) if name == "accuracy" else ())) for name in history_quality.SCORES
        ]
        print(f"| {row['known']} | {' | '.join(changes)} |")
    print()


def show_audits(scores: pd.DataFrame, found: EarlierPictures, outputs: Classes, title: str) -> None:
    print(f"{title}: {len(scores):,} pictures, {100 * RATE:g} % of the records made wrong, %\n")
    print(f"| wrong by | made wrong | ranked by | {' | '.join(FIGURES)} |\n| --- | --- | --- | --- | --- | --- |")
    for by, made in MADE.items():
        for how, of_pairs in OF_PAIRS.items():
            for name, known in ways_of_audits(found).items():
                measured = audit_quality.measure(
                    scores, outputs, RecordErrors.prior(RATE), made, earlier=known, made_of_pairs=of_pairs
                ).set_index(["score", "measure"])
                if name == DEFAULT:
                    _show_audit(measured, by, how, audit_quality.ALONE, audit_quality.ALONE)
                _show_audit(measured, by, how, "p_wrong", name)
    print()


def ways_of_audits(found: EarlierPictures) -> dict[str, EarlierPictures]:
    """Return what audits rank by, by name; the last one has the changes, where a model of these was asked."""
    without = dataclasses.replace(found, change_ratios=None)
    ways = {name: without.with_errors(assumed) for name, assumed in ASSUMED.items()}
    return ways if found.change_ratios is None else ways | {f"{DEFAULT}, change": found}


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
