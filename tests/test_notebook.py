"""The notebook of the pages runs, and shows what a reader sees when it is run."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "docs" / "pages" / "notebooks" / "first_model.ipynb"
CELLS = json.loads(NOTEBOOK.read_text())["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]
FROM_THE_DATA = ("sorted(", "prepared = ", "snapshot = ", "prepared.balance")  # cells that show the same everywhere


def shown(cell) -> list[str]:
    """What a cell shows as text: what it prints, and its value."""
    texts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell["outputs"]]
    return ["".join(text) for text in texts]


def pictures(cells) -> list[int]:
    """The places of the cells that show a picture."""
    return [place for place, cell in enumerate(cells) if any("image/png" in o.get("data", {}) for o in cell["outputs"])]


def source(cell) -> str:
    return "".join(cell["source"])


def accuracies(cells) -> list[float]:
    """The shares of the cell that evaluates: the network's, and the most frequent class's."""
    return next([float(n) for n in re.findall(r"([\d.]+) %", shown(c)[0])] for c in cells if "evaluate(" in source(c))


def test_the_notebook_was_run_from_top_to_bottom_and_is_small():
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    assert [output for cell in CODE for output in cell["outputs"] if output["output_type"] == "error"] == []
    assert [output for cell in CODE for output in cell["outputs"] if output.get("name") == "stderr"] == []
    assert len(pictures(CODE)) == 3
    assert NOTEBOOK.stat().st_size < 400_000


def test_the_notebook_tells_nothing_of_the_machine_it_ran_on():
    texts = [text for cell in CODE for text in shown(cell)]
    assert [text for text in texts if re.search(r"/(tmp|home|root|Users|var)/", text)] == []
    assert all(cell["metadata"] == {} for cell in CELLS)


def test_the_links_of_the_notebook_lead_to_pages():
    links = re.findall(r"\]\(([^)]+)\)", "".join(source(cell) for cell in CELLS if cell["cell_type"] == "markdown"))
    assert links
    assert [link for link in links if not (NOTEBOOK.parent / link).is_file()] == []


@pytest.mark.services
def test_the_notebook_runs_and_shows_what_it_shows_in_the_pages(tmp_path):
    spec = importlib.util.spec_from_file_location("notebook", ROOT / "docs" / "notebook.py")
    notebook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(notebook)
    ran = [cell for cell in notebook.run(tmp_path).cells if cell["cell_type"] == "code"]
    assert pictures(ran) == pictures(CODE)
    for now, then in zip(ran, CODE, strict=True):
        assert source(now) == source(then)
        if source(then).startswith(FROM_THE_DATA):
            assert shown(now) == shown(then), "run `python docs/notebook.py`"
    for ours, majority in (accuracies(ran), accuracies(CODE)):
        assert ours > 1.5 * majority
