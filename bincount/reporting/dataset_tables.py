"""What was found in a dataset, what was repaired and what was exported, as tables."""

from typing import TYPE_CHECKING

import pandas as pd

from bincount.reporting.tables import Tables, of_warnings

if TYPE_CHECKING:  # they import more than a command that only shows something need wait for
    from bincount.data.check import Diagnosis
    from bincount.data.export import Exported
    from bincount.data.repair import RepairReport

NUM_SHOWN = 5  # places of one kind of problem


def of_diagnosis(diagnosis: "Diagnosis") -> Tables:
    """Return the numbers of good and quarantined bins by reason, and the problems by kind with their remedies."""
    numbers = [
        (f"good {diagnosis.nouns}", diagnosis.num_good),
        (f"{diagnosis.nouns} quarantined", diagnosis.quarantined.total()),
        *((f"- {reason}", count) for reason, count in diagnosis.quarantined.most_common()),
        ("problems", len(diagnosis.problems)),
    ]
    tables = {"Dataset": pd.DataFrame(numbers, columns=["", "number"])} | of_warnings(diagnosis.warnings)
    if not diagnosis.problems:
        return tables
    problems = pd.DataFrame(diagnosis.problems)
    rows = []
    for kind, where in problems.groupby("kind", sort=False)["where"]:
        rows += [(place, kind) for place in where[:NUM_SHOWN]]
        if len(where) > NUM_SHOWN:
            rows.append((f"and {len(where) - NUM_SHOWN:,} more", kind))
    remedies = problems.groupby("remedy", sort=False)["kind"]
    return tables | {
        "Problems": pd.DataFrame(rows, columns=["where", "what"]),
        "What to do": pd.DataFrame({"": [f"{', '.join(kinds.unique())}: {remedy}" for remedy, kinds in remedies]}),
    }


def of_repair(report: "RepairReport", nouns: str = "bins") -> Tables:
    """Return the numbers of what a repair removed or made again."""
    rows = [
        (f"damaged {nouns}, to be fetched again", report.num_bins),
        ("stray files", report.num_strays),
        ("leftovers of killed runs", report.num_leftovers),
        ("packs of an older decoder", report.num_packs),
        ("damaged pictures in packs, decoded again where the original is sound", report.num_pictures),
    ]
    return {"Removed or repaired": pd.DataFrame(rows, columns=["", "number"])}


def of_export(exported: "Exported", where: str) -> Tables:
    """Return the numbers of files that were copied, and of those that were there before."""
    rows = [
        ("copied now", exported.num_copied),
        ("there already", exported.num_present),
        ("not of this snapshot, left alone", exported.num_foreign),
    ]
    title = f"Exported to {where}, {exported.num_bytes / 1e6:,.1f} MB"
    return {title: pd.DataFrame(rows, columns=["", "files"])}
