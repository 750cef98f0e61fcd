"""How often a search has evaluated on the test. A test by which people decide again and again is no test any more.

WORKSPACE/tuning/NAME/test.json     the comparisons that were made on the test, each once
"""

from pathlib import Path

from bincount.errors import DatasetError
from bincount.files import read_sealed, write_sealed
from bincount.tuning import winner
from bincount.tuning.finalists import Findings

FILE = "test.json"
EARLIER = "before it was counted"  # of an earlier release


def count(folder: Path, findings: Findings) -> Findings:
    """Return the findings with the number of comparisons on the test in this search; call it before measure_test.

    That of the winner and the given settings is counted where it is to be made. One that was made before, with the
    same seeds, shows the same numbers again, and is not counted twice. Raises DatasetError where the file is damaged.
    """
    made = _read(folder)
    if findings.val:
        comparison = f"trial {findings.winner.number}, seeds {', '.join(map(str, findings.winner.seeds))}"
        if comparison not in made:
            made.append(comparison)
            write_sealed(folder / FILE, {"comparisons": made})
    return findings.model_copy(update={"num_tests": len(made)})


def _read(folder: Path) -> list[str]:
    path = folder / FILE
    try:
        return read_sealed(path)["comparisons"]
    except FileNotFoundError:
        return [EARLIER] if _was_tested(folder / winner.NAME) else []
    except (OSError, ValueError, KeyError) as error:
        raise DatasetError(
            f"{path} is damaged ({error}), which has how often the test was evaluated; remove it to count from 0"
        ) from None


def _was_tested(best: Path) -> bool:
    """Return whether the comment of the winner's settings has a result on the test."""
    try:
        lines = best.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return False
    return "On the test, by which" in " ".join(line.removeprefix("# ") for line in lines if line.startswith("#"))
