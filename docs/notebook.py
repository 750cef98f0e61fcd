"""Run the notebook of docs/ and keep what it shows: `python docs/notebook.py`, after a change of what it uses."""

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent / "pages" / "notebooks" / "first_model.ipynb"
ROOT = Path(__file__).parent.parent
SECONDS = 600  # for a cell, on a busy machine


def run(folder: Path) -> nbformat.NotebookNode:
    """Run a copy of the notebook in a folder, with this Python and this checkout; return it with what it shows.

    Raises nbclient's CellExecutionError where a cell fails.
    """
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    paths = os.pathsep.join(map(str, filter(None, [ROOT, os.environ.get("PYTHONPATH")])))
    client = NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": folder}})
    client.execute(env=os.environ | {"PYTHONPATH": paths})
    for cell in notebook.cells:
        cell.metadata = {}  # the times of the run, which change each time
    notebook.metadata.language_info = {"name": "python"}
    return notebook


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        nbformat.write(run(Path(temporary)), NOTEBOOK)
    print(f"{NOTEBOOK.relative_to(ROOT)}: {NOTEBOOK.stat().st_size / 1000:.0f} kB", file=sys.stderr)
