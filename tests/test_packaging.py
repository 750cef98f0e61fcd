"""A model version carries the code that answering needs, and no other."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import mlflow
import pytest
from bins import jpeg
from test_registry import checkpoint, open_in

from bincount.tracking import packaging
from bincount.tracking.packaging import PACKAGE, find_modules

EARLIER = Path(__file__).parent / "data" / "workspace_e87d28a.tar.xz"

# Everything that a saved model needs of this library comes from its own folder `code`, which MLflow puts into sys.path.
READER = """
import os, sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in getattr(finder, "__module__", "")]
sys.path = [folder for folder in sys.path if folder and not os.path.isdir(os.path.join(folder, "bincount"))]
import mlflow, pandas
model = mlflow.pyfunc.load_model({model!r})
pictures = [{path!r}, open({path!r}, "rb").read(), "no picture"]
assert len(model.predict(pandas.DataFrame({{"image": pictures[:2]}}))) == 2
try:
    model.predict(pandas.DataFrame({{"image": pictures}}))
    sys.exit("a row that is no picture was predicted")
except mlflow.MlflowException as error:
    assert "row 2 is not a picture" in str(error), error
import bincount
assert bincount.__file__.startswith({model!r}), bincount.__file__
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """The folder of a version as MLflow gives it out."""
    folder = tmp_path_factory.mktemp("saved")
    registry = open_in(folder)
    registry.register(registry.runs.start("first", {}, {}), checkpoint(folder / "model"), "a model", {}, jpeg())
    source = registry.client.get_model_version_download_uri("bincount", "1")
    return Path(mlflow.artifacts.download_artifacts(source, dst_path=str(folder / "downloaded")))


def test_a_version_has_what_answering_imports_and_nothing_of_the_rest(saved):
    code = {path.relative_to(saved / "code").as_posix() for path in saved.joinpath("code").rglob("*.py")}

    assert code == {path.relative_to(PACKAGE.parent).as_posix() for path in find_modules()}
    rooms = {Path(name).parts[1] for name in code if len(Path(name).parts) > 2}
    assert rooms <= {"data", "training", "evaluation"}
    assert not {name for name in code if "synthetic" in name or "retention" in name or "registry" in name}
    assert not {"bincount/settings.py", "bincount/data_settings.py"} & code
    assert len(code) <= 28


@pytest.fixture
def predict(tmp_path):
    """Load a model's folder and predict in a process where its own code is all there is of this library."""

    def run(model: Path) -> None:
        path = tmp_path / "bin.jpg"
        path.write_bytes(jpeg())
        code = READER.format(model=str(model), path=str(path))
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        subprocess.run([sys.executable, "-P", "-B", "-c", code], check=True, cwd=tmp_path, env=environment, timeout=240)

    return run


@pytest.mark.services
def test_a_saved_model_predicts_where_its_own_code_is_all_there_is_of_this_library(saved, predict):
    predict(saved)


@pytest.mark.services
def test_a_model_that_an_earlier_release_has_saved_predicts_with_the_code_it_came_with(predict, tmp_path):
    with tarfile.open(EARLIER) as archive:
        archive.extractall(tmp_path, filter="data")
    model = next(tmp_path.glob("workspace/mlflow-artifacts/models/*/artifacts/MLmodel")).parent
    assert (model / "code" / "bincount" / "retention.py").exists()

    predict(model)


def test_packages_of_the_library_import_nothing_that_a_version_would_carry_with_them():
    for path in find_modules():
        if path.name == "__init__.py":
            assert find_modules(path) == (), path


def test_imports_inside_functions_count_and_those_for_type_checkers_do_not(tmp_path, monkeypatch):
    package = tmp_path / "bincount"
    for name, text in {
        "__init__.py": "",
        "start.py": "import os\nfrom bincount.room import one, names\nif TYPE_CHECKING:\n    import bincount.never\n",
        "room/__init__.py": "names = ()\n",
        "room/one.py": "def later():\n    import bincount.two\n",
        "two.py": "from bincount import start\n",
        "never.py": "",
        "other.py": "",
    }.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    monkeypatch.setattr(packaging, "PACKAGE", package)

    found = find_modules(package / "room" / "one.py")

    assert [path.relative_to(package).as_posix() for path in found] == [
        *("__init__.py", "room/__init__.py", "room/one.py", "start.py", "two.py")
    ]
