"""How `make setup` chooses a Python: with Pythons on PATH that are shell scripts and note what they are asked to do."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NEW_VENV = ROOT / ".ci" / "new-venv"
PYTHON = """\
#!/bin/sh
# Python {version}: says its version, imports what it has, and makes environments with a Python in them as itself.
case "$*" in
    *version_info*) echo {version} ;;
    *"import ensurepip"*) exit {lacks_ensurepip} ;;
    "-m venv "*) echo "venv {version}" >>{log}; mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
    "-m pip install"*) echo "pip $*" >>{log}; cp {uv} "$(dirname "$0")/uv" ;;
    *) exit 9 ;;
esac
"""
UV = """\
#!/bin/sh
echo "uv $*" >>{log}
case "$1" in venv) exit {fails} ;; esac
"""


@pytest.fixture
def machine(tmp_path):
    """Return a function that makes an environment where only some Pythons are there; it returns how that ended."""
    log = tmp_path / "log"

    def executable(path: Path, text: str) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def make(pythons: dict[str, str], *, lacking: str = "", uv: bool = False, fails: bool = False, chosen: str = ""):
        folder = tmp_path / "bin"
        for tool in ("sh", "mkdir", "cp", "dirname", "rm"):
            folder.mkdir(exist_ok=True)
            (folder / tool).symlink_to(f"/bin/{tool}" if Path(f"/bin/{tool}").exists() else f"/usr/bin/{tool}")
        executable(tmp_path / "uv", UV.format(log=log, fails=int(fails)))
        if uv:
            executable(folder / "uv", UV.format(log=log, fails=int(fails)))
        for name, version in pythons.items():
            text = PYTHON.format(
                version=version, lacks_ensurepip=int(name in lacking.split()), log=log, uv=tmp_path / "uv"
            )
            # an empty version: pyenv leaves such a name for each Python that is not in use
            executable(folder / name, text if version else "#!/bin/sh\nexit 127\n")
        done = subprocess.run(
            [str(NEW_VENV), str(tmp_path / "venv"), *([chosen] if chosen else [])],
            env={"PATH": str(folder)},
            capture_output=True,
            text=True,
            check=False,
        )
        return done, log.read_text() if log.exists() else ""

    return make


ALL = {f"python3.{minor}": f"3.{minor}" for minor in (9, 11, 12, 13, 14, 15)}


@pytest.mark.parametrize(
    ("pythons", "version"),
    [
        (ALL, "3.14"),
        ({"python3.11": "3.11", "python3": "3.13"}, "3.11"),  # a name with a version is a choice that somebody made
        ({"python3": "3.13"}, "3.13"),  # Debian
        ({"python": "3.12"}, "3.12"),  # an environment that is active
        ({"python3.14": "", "python3.13": "", "python3": "3.11"}, "3.11"),  # pyenv
    ],
)
def test_the_newest_supported_python_that_runs_makes_the_environment(machine, pythons, version):
    done, log = machine(pythons)
    assert (done.returncode, done.stderr) == (0, "")
    assert log.startswith(f"venv {version}\npip -m pip install")


def test_a_python_without_ensurepip_is_passed_over_for_an_older_one_that_has_it(machine):
    done, log = machine({"python3.13": "3.13", "python3.11": "3.11"}, lacking="python3.13")
    assert done.returncode == 0
    assert log.startswith("venv 3.11\n")


def test_uv_makes_the_environment_where_it_is_there_since_it_needs_no_ensurepip(machine):
    done, log = machine({"python3.13": "3.13"}, lacking="python3.13", uv=True)
    assert done.returncode == 0
    assert re.search(r"^uv venv .*--python python3\.13 ", log, re.MULTILINE)
    assert "uv pip install" in log


@pytest.mark.parametrize("pythons", [{"python3": "3.9"}, {"python3": "3.15"}])
def test_where_none_is_supported_another_python_gets_uv_which_fetches_one(machine, pythons, tmp_path):
    done, log = machine(pythons)
    assert done.returncode == 0
    assert "--python >=3.11,<3.15 " in log
    assert not (tmp_path / "venv.uv").exists()


@pytest.mark.parametrize(
    ("pythons", "options", "said"),
    [
        ({}, {}, r"there is no Python 3\.11 to 3\.14; install one .*apt-get install python3 python3-venv"),
        ({"python3": "3.13"}, {"lacking": "python3"}, r"python3 cannot make environments.*python3\.13-venv"),
        ({"python3": "3.9"}, {"fails": True}, r"uv did not get one; install one, or name it with PYTHON="),
        ({"python3": "3.13"}, {"chosen": "python3.12"}, r"PYTHON=python3\.12 does not run; give another one"),
        (ALL, {"chosen": "python3.9"}, r"PYTHON=python3\.9 is Python 3\.9; give one of 3\.11 to 3\.14"),
    ],
)
def test_what_is_missing_is_said_in_one_line(machine, pythons, options, said):
    done, _ = machine(pythons, **options)
    assert done.returncode == 1
    assert re.fullmatch(rf"make: .*{said}.*\n", done.stderr), done.stderr


def test_a_python_that_is_named_is_taken_though_a_newer_one_is_there(machine):
    done, log = machine(ALL, chosen="python3.12")
    assert done.returncode == 0
    assert log.startswith("venv 3.12\n")


def test_a_python_may_have_a_space_in_its_path(machine, tmp_path):
    done, log = machine({"python 3.12": "3.12"}, chosen=str(tmp_path / "bin" / "python 3.12"))
    assert (done.returncode, done.stderr) == (0, "")
    assert log.startswith("venv 3.12\n")
    said = subprocess.run(
        ["make", "--dry-run", "setup", f"VENV={tmp_path}/none", "PYTHON=/my tools/python"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f".ci/new-venv {tmp_path}/none '/my tools/python'\n" in said.stdout


def test_an_environment_whose_python_is_gone_is_made_anew(machine, tmp_path):
    link = tmp_path / "venv" / "bin" / "python"
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "gone")
    done, log = machine({"python3": "3.13"})
    assert (done.returncode, done.stderr) == (0, "")
    assert log.startswith("venv 3.13\n")
    assert link.exists()
    assert not (tmp_path / "gone").exists()


def test_the_versions_are_those_that_the_project_declares():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    script = NEW_VENV.read_text()
    assert f'wanted="{project["requires-python"]}"' in script
    declared = [entry.rpartition(" ")[2] for entry in project["classifiers"] if "Python :: 3." in entry]
    assert re.search(r'supported="([^"]*)"', script)[1].split() == declared[::-1]
    assert re.search(r"oldest=(\S+) newest=(\S+)", script).groups() == (declared[0], declared[-1])
