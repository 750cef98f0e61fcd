"""Every command in the README can be typed, and every promise in docs/guarantees.md names tests that exist."""

import ast
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from servers import program

from flows.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line and not line.startswith("#")
]


def commands(program):
    return [shlex.split(line) for line in COMMANDS if line.split()[0] == program]


def test_the_readme_has_commands_of_known_programs_only():
    assert {line.split()[0] for line in COMMANDS} == {"make", "bincount", "prefect", "mlflow", "."}


@pytest.mark.parametrize("words", commands("bincount"), ids=" ".join)
def test_a_bincount_command_of_the_readme_is_understood(words):
    command, bound, _ = app.parse_args(words[1:], exit_on_error=False, print_error=False)
    assert command.__name__ == words[1]
    assert bound is not None


@pytest.mark.parametrize("words", commands("make"), ids=" ".join)
def test_a_make_target_of_the_readme_exists(words):
    planned = subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert planned.returncode == 0, planned.stderr


@pytest.mark.services
@pytest.mark.parametrize("words", commands("prefect") + commands("mlflow"), ids=" ".join)
def test_a_command_of_prefect_or_mlflow_in_the_readme_exists_with_its_options(words):
    first_option = next((place for place, word in enumerate(words) if word.startswith("--")), len(words))
    depth = {"deploy": 2, "server": 3 if words[0] == "prefect" else 2}.get(words[1], 3)
    command = [program(words[0]), *words[1 : min(first_option, depth)], "--help"]
    wide = os.environ | {"COLUMNS": "300"}
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env=wide).stdout
    assert [word for word in words if word.startswith("--") and word not in shown] == []


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#:]+)\)", README))
def test_a_file_that_the_readme_points_to_is_there(link):
    assert (ROOT / link).is_file()


def test_every_command_of_the_program_is_in_the_readme():
    mentioned = {words[1] for words in commands("bincount")} | {"demo"}  # which is `make demo`
    assert mentioned == {name for name in app if not name.startswith("-")}


GUARANTEES = (ROOT / "docs" / "guarantees.md").read_text()
PROMISES = re.findall(r"^\| (?!---|fault )(.+?) \| (.+?) \| (.+?) \|$", GUARANTEES, re.MULTILINE)


@pytest.mark.parametrize(("fault", "promise", "tests"), PROMISES, ids=[fault[:60] for fault, _, _ in PROMISES])
def test_a_promise_names_tests_that_exist(fault, promise, tests):
    named = re.findall(r"`(test_\w+)\.py::(test_\w+)`", tests)
    assert named
    assert [name for file, name in named if name not in functions(file)] == []


def functions(file):
    tree = ast.parse((ROOT / "tests" / f"{file}.py").read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
