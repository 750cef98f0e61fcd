"""Start a version as its users do, in a process of its own, and see whether it predicts as in its test.

A version that is better and does not start serves nobody, so lifecycle asks here before it makes one champion. The
process runs with the interpreter and the packages of this one and with the code of the package alone: `python -I` in an
empty folder. Its environment is without credentials, and connections that it makes itself are refused, so that a model
that needs either is found out here. This is a check of the package and no sandbox: the package's code is whatever those
who may write to the registry have put there, and runs with the rights of this user. It may start programs, which the
refusal does not reach and which outlive it in a session of their own, and read what this user may read, this process's
environment in /proc among it.
"""

import base64
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from bincount.errors import ModelNotFound, mask_credentials

if TYPE_CHECKING:
    from bincount.tracking.registry import Registry, Version
    from bincount.tracking.self_check import SelfCheck

logger = logging.getLogger(__name__)

SCRIPT = Path(__file__).with_name("start_process.py")
SECONDS = 300  # a start takes 5 to 10 s on two idle cores; a busy machine, and a model of many networks, take longer
NOT_A_SUM = 1e-3  # by which the probabilities of a picture may miss 1
LINES_IN_LOG = 20
LONGEST_REASON = 300  # characters
# All that a process needs of this environment: where programs and libraries are, the language, threads, and temporary
# folders.
PASSED_ON = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "TEMP", "TMP", "SYSTEMROOT", "TZ")
PASSED_ON_PREFIXES = ("LD_", "DYLD_", "OMP_", "MKL_", "VIRTUAL_ENV")
SILENT = {
    "CUDA_VISIBLE_DEVICES": "",  # a GPU may be in use by a training, and is no part of what is asked
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "HF_HUB_OFFLINE": "1",
}


def explain_failure(registry: "Registry", version: "Version", pictures: Sequence[bytes] = ()) -> str:
    """Return why a version does not start as its users load it; empty where it does, and predicts as in its test.

    A version of an earlier release was registered without predictions to compare with: it has to answer in the right
    form for these pictures, or, where there are none, for the example that it was saved with. Raises ServiceUnavailable
    and DiskFull, which say nothing about the version.
    """
    # here, since they import MLflow, which takes seconds
    from bincount.tracking import self_check
    from bincount.tracking.download import download_model

    with tempfile.TemporaryDirectory(prefix="bincount-") as temporary:
        folder = Path(temporary).resolve()
        try:
            package = download_model(registry.client, version.name, version.version, folder / "model")
            kept = package / self_check.FOLDER
            check = self_check.read_folder(kept) if kept.is_dir() else None
            is_counting = version.task == "counting"
            answers = _ask(package, _columns(check, pictures if is_counting else ()), folder)
            answer = "count" if is_counting else "answer"
            predicted = _read(answers, check.classes.names if check else _classes_of(version), answer)
            if check:
                _compare(predicted, check, self_check.TOLERANCE)
        except (ModelNotFound, _Refused) as error:
            return _shorten(mask_credentials(str(error).replace(f"{folder}{os.sep}", "")))
    how = "predicts as in its test" if check else "answers in the right form"
    logger.info("%s version %d starts as packaged, and %s", version.name, version.version, how)
    return ""


class _Refused(Exception):
    """A packaged model does not start, or does not answer as it should; the text says how."""


def _classes_of(version: "Version") -> tuple[str, ...]:
    """Return the names of the classes that a version's tag holds; none where nothing says so."""
    return tuple(filter(None, version.tags.get("classes", "").split(",")))


def _columns(check: "SelfCheck | None", pictures: Sequence[bytes]) -> dict[str, list]:
    """Return what a model is asked, by column, as JSON carries it: the questions of a check, else pictures."""
    columns = {"image": _as_text(check.pictures if check else pictures)}
    if check and check.references:
        columns |= {"references": [_as_text(each) for each in check.references], "asked": list(check.asked)}
    return columns if columns["image"] else {}


def _as_text(pictures: Sequence[bytes]) -> list[str]:
    return [base64.b64encode(picture).decode() for picture in pictures]


def _ask(package: Path, columns: dict[str, list], folder: Path) -> dict:
    """Have a packaged model answer in a process of its own, which uses folder; return what start_process writes."""
    asked = folder / "pictures.json"
    asked.write_text(json.dumps(columns))
    home, answers = folder / "home", folder / "answers.json"
    home.mkdir()
    with (folder / "stderr").open("w+b") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-I", str(SCRIPT), str(package), str(asked), str(answers)],
            cwd=home,
            env=_environment(os.environ) | {"HOME": str(home)},
            stdin=subprocess.PIPE,  # never written to: its end means that this process is gone
            stdout=stderr,
            stderr=stderr,
            start_new_session=True,  # so that its children are stopped with it
        )
        try:
            process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            raise _Refused(f"it did not answer within {SECONDS} s") from None
        finally:
            _kill(process)
        stderr.seek(0)
        lines = [line for line in stderr.read().decode(errors="replace").splitlines() if line.strip()]
    if process.returncode == 0 and answers.exists():
        return json.loads(answers.read_text())
    last = mask_credentials("\n".join(lines[-LINES_IN_LOG:]))
    logger.warning("the packaged model did not start; the last lines of its process:\n%s", last)
    raise _Refused(_explain(process.returncode, lines))


def _environment(environment: Mapping[str, str]) -> dict[str, str]:
    passed_on = {
        name: value for name, value in environment.items() if name in PASSED_ON or name.startswith(PASSED_ON_PREFIXES)
    }
    return passed_on | SILENT


def _kill(process: subprocess.Popen) -> None:
    """Stop a process and all that it has started."""
    with suppress(ProcessLookupError, PermissionError):  # macOS says the latter of a group that has ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdin.close()


def _explain(code: int, lines: Sequence[str]) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        return f"its process was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return lines[-1].strip() if lines else f"its process ended with code {code}"


def _read(answers: dict, classes: Sequence[str], answer: str = "count") -> np.ndarray:
    """Return the probabilities (N, C) of answers that have the right form.

    answer is the column with the answer, classes are the names of the C classes, or none where they are not known.
    Raises _Refused.
    """
    if answers["foreign"]:
        raise _Refused(f"it uses code that is not in its package: {answers['foreign'][0]}")
    table = pd.DataFrame(answers["rows"], columns=answers["columns"])
    columns = [name for name in table if name.startswith("p_")]
    expected = [f"p_{name}" for name in classes] or columns
    if answer not in table or not columns or columns != expected:
        raise _Refused(
            f"it answers with the columns {', '.join(table)}, and not with {answer} and {', '.join(expected)}"
        )
    if len(table) != answers["asked"]:
        raise _Refused(f"it gives {len(table)} answers about {answers['asked']} pictures")
    predicted = table[columns].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    if not (np.abs(predicted.sum(axis=1) - 1) < NOT_A_SUM).all():  # also where one is not a number
        raise _Refused("its probabilities are not numbers that sum to 1")
    return predicted


def _compare(predicted: np.ndarray, check: "SelfCheck", tolerance: float) -> None:
    """Raise _Refused unless probabilities are those of the test, within the tolerance that self_check explains."""
    difference = float(np.abs(predicted - check.probabilities).max())
    if not difference <= tolerance:  # also where one is not a number
        raise _Refused(
            f"it does not predict as in its test: probabilities of {len(check.pictures)} pictures differ by up to "
            f"{difference:.4f}, and {tolerance} is allowed"
        )


def _shorten(reason: str) -> str:
    return reason if len(reason) <= LONGEST_REASON else f"{reason[:LONGEST_REASON].rstrip()} …"
