"""README and pages stay true: quoted commands and options exist, links lead somewhere, promises name their tests."""

import ast
import inspect
import os
import re
import runpy
import shlex
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from servers import program, with_database, with_prefect_database

import bincount
from flows.cli import app

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "docs" / "pages"
REFERENCE = PAGES / "reference.md"
TEXTS = {path: path.read_text() for path in [ROOT / "README.md", *sorted(PAGES.rglob("*.md"))]}
BY_HAND = {path: text for path, text in TEXTS.items() if path != REFERENCE}
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
INLINE_CODE = re.compile(r"(?<!`)`([^`\n]+(?:\n[^`\n]+)?)`(?!`)")
FOLDERS = (
    "bincount",
    "tasks",
    "flows",
    "deployments",
    "tests",
    "docs",
    ".ci",
)  # and no environment, which has many files
MODULES = {path.name for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
COMMANDS = [
    line
    for text in BY_HAND.values()
    for block in [
        *re.findall(r"```sh\n(.*?)```", text, re.DOTALL),
        "\n".join(re.findall(r"^\$ (.+)$", text, re.MULTILINE)),
    ]
    for line in block.splitlines()
    if line and not line.startswith(("#", " ", "("))  # a comment, the second line of a command, or a pipe
]


def commands(program):
    typed = (line.partition(" > ")[0] for line in dict.fromkeys(COMMANDS))
    return [shlex.split(line) for line in typed if line.split()[0] == program]


def name(path):
    return str(path.relative_to(ROOT))


def find(parent, prefix=""):
    """Yield the name and the app of each command, `models` and `review import`."""
    for word in parent:
        if not word.startswith("-"):
            if parent[word].default_command:
                yield f"{prefix}{word}", parent[word]
            yield from find(parent[word], f"{prefix}{word} ")


def command_of(words, known):
    """The name of the command that words begin with, of one or two words."""
    return next((name for name in (" ".join(words[:2]), words[0]) if name in known), "")


def options(command):
    return {name for argument in command.assemble_argument_collection() for name in argument.names} | {
        "--help",
        "--help-all",
    }


def test_the_pages_have_commands_of_known_programs_only():
    ours = {"make", "bincount", "prefect", "mlflow", "uv", ".", "export"}
    assert {line.split()[0] for line in COMMANDS} <= ours | {"aws", "curl", "docker", "kubectl", "pip", "printf", "zip"}


@pytest.mark.parametrize("words", commands("bincount"), ids=" ".join)
def test_a_bincount_command_of_the_pages_is_understood(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "--config" in words:
        file = tmp_path / words[words.index("--config") + 1]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    command, bound, _ = app.parse_args(words[1:], exit_on_error=False, print_error=False)
    known = dict(find(app))
    assert command is known[command_of(words[1:], known)].default_command
    assert bound is not None


@pytest.mark.parametrize("words", commands("make"), ids=" ".join)
def test_a_make_target_of_the_pages_exists(words):
    planned = subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert planned.returncode == 0, planned.stderr


@pytest.mark.services
@pytest.mark.parametrize("words", commands("prefect") + commands("mlflow"), ids=" ".join)
def test_a_command_of_prefect_or_mlflow_in_the_pages_exists_with_its_options(words):
    first_option = next((place for place, word in enumerate(words) if word.startswith("--")), len(words))
    depth = {"deploy": 2, "server": 3 if words[0] == "prefect" else 2}.get(words[1], 3)
    command = [program(words[0]), *words[1 : min(first_option, depth)], "--help"]
    wide = os.environ | {"COLUMNS": "300"}
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env=wide).stdout
    assert [word for word in words if word.startswith("--") and word not in shown] == []


@pytest.mark.parametrize("path", BY_HAND, ids=name)
def test_a_command_or_option_that_a_sentence_quotes_exists(path):
    known = {command: options(found) for command, found in find(app)}
    anywhere = set().union(*known.values(), (command for command in app if command.startswith("-")))
    for quoted in INLINE_CODE.findall(FENCED.sub("", BY_HAND[path])):
        words = quoted.split()
        # A sentence may name a command without the program before it: `doctor --services --fix`.
        words = words[1:] if words[0] == "bincount" and len(words) > 1 else words
        if words[0] in {"make", "prefect", "mlflow", "python", "uv"}:
            continue
        allowed = known.get(command_of(words, known), anywhere)
        assert [word for word in words if word.startswith("--") and word not in allowed] == [], quoted
        if quoted.startswith("bincount "):
            assert command_of(words, known) or words[0] in anywhere, quoted


@pytest.mark.parametrize("path", BY_HAND, ids=name)
def test_a_make_target_that_a_sentence_quotes_exists(path):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    quoted = re.findall(r"`make ([a-z-]+)[^`]*`", BY_HAND[path])
    assert [target for target in quoted if target not in targets] == []


@pytest.mark.parametrize("path", BY_HAND, ids=name)
def test_a_file_of_the_project_that_a_sentence_quotes_exists(path):
    quoted = re.findall(
        r"`((?:bincount|tasks|flows|deployments|tests|docs)/[\w./-]*|\w+\.py)(?:::\w+)?`", BY_HAND[path]
    )
    made = {"docs/site", "tasks.py"}  # the latter in a project that hides a package of this one
    assert [file for file in set(quoted) - made if not (ROOT / file).exists() and file not in MODULES] == []


def test_every_command_of_the_program_is_shown_in_a_page_written_by_hand():
    known = dict(find(app))
    mentioned = {command_of(words[1:], known) for words in commands("bincount")} | {"demo"}  # which is `make demo`
    assert mentioned == set(known)


def test_the_page_of_commands_and_settings_is_the_one_that_the_code_makes():
    made = runpy.run_path(str(ROOT / "docs" / "reference.py"))["make"]()
    assert REFERENCE.read_text() == made, "docs/pages/reference.md differs from the code; run `make docs`"


@pytest.mark.parametrize("command", [command for command, _ in find(app)])
def test_the_reference_has_a_command_with_each_of_its_options(command):
    section = re.search(rf"^### bincount {command}\n(.*?)(?=^##|\Z)", REFERENCE.read_text(), re.DOTALL | re.MULTILINE)
    assert section, f"{command} is missing in docs/pages/reference.md; run `make docs`"
    shown = {
        argument.names[0]
        for argument in dict(find(app))[command].assemble_argument_collection()
        if argument.show and argument.parse
    }
    assert [option for option in shown if f"`{option}`" not in section[1]] == []


@pytest.mark.services
def test_the_output_of_commands_in_the_pages_is_what_they_print(tmp_path):
    outputs = runpy.run_path(str(ROOT / "docs" / "outputs.py"))
    # Numbers are not compared, so that half of the bins and a shorter training do: enough for a champion.
    preparation = ("bincount demo --bins 1500 --epochs 6", *outputs["PREPARATION"][1:])
    with_prefect_database(tmp_path / ".prefect")
    for workspace in ("demo", "bincount-data"):
        with_database(tmp_path / workspace)
    for page, text, with_todays_output in outputs["rewrite"](tmp_path, preparation):
        today = " ".join(words_of(with_todays_output)).split()  # a wider number may wrap the words beside it
        lost = [line for line in words_of(text) if not set(line.split()) <= set(today)]
        assert lost == [], f"{page}: run `make outputs`"


def words_of(text):
    """The lines of a text as they are on any day and machine: their words, without numbers; no lines of the log."""
    lines = [line.split() for line in text.splitlines() if not re.match(r"\d\d:\d\d:\d\d ", line)]
    return [" ".join(word for word in words if re.fullmatch(r"[^\d─%]+", word) and word != "to") for words in lines]


def signature(name):
    """The line that shows a public name in docs/pages/python.md: how it is called, without types and settings."""
    called = inspect.unwrap(getattr(bincount, name))
    own = inspect.signature(called)
    shown = own.replace(
        parameters=[each.replace(annotation=inspect.Parameter.empty) for each in own.parameters.values()],
        return_annotation=inspect.Signature.empty,
    )
    returned = own.return_annotation
    returned = getattr(returned, "__name__", returned)
    return f"{name}{shown}" + (f" -> {returned}" if not inspect.isclass(called) else "")


def test_the_page_of_python_shows_each_name_as_it_is_called():
    page = TEXTS[PAGES / "python.md"]
    shown = [line for block in re.findall(r"```text\n(.*?)```", page, re.DOTALL) for line in block.splitlines()]
    called = [name for name in bincount.__all__ if name not in {"BincountError", "Job"}]  # which the text explains
    assert [line for line in map(signature, called) if line not in shown] == []
    blocks = ast.parse("\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL)))
    froms = [node for node in ast.walk(blocks) if isinstance(node, ast.ImportFrom) and node.module == "bincount"]
    assert sorted(alias.name for node in froms for alias in node.names) == bincount.__all__


@pytest.mark.services
def test_the_blocks_of_the_page_of_python_run_one_after_the_other(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    known = {}
    for block in re.findall(r"```python\n(.*?)```", TEXTS[PAGES / "python.md"], re.DOTALL):
        exec(compile(block, "python.md", "exec"), known)
    printed = capsys.readouterr().out
    for comment in ('(0, 2) {1: "not an image', "epochs takes a whole number of at least 1, not 0"):  # as the page says
        assert comment in printed
    assert "torch.Size([64, 3, 64, 64]) torch.Size([64])" in printed
    assert known["frame"].groupby("split").size()["train"] == len(known["train_images"])


def test_the_readme_is_read_in_a_minute():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    assert max(len(line) for line in lines if "](" not in line) <= 120


def links(text):
    return re.findall(r"\]\(([^)\s]+)\)", INLINE_CODE.sub("", FENCED.sub("", text)))


def anchors(path):
    """The anchors of a page's headings, as both GitHub and the site make them."""
    titles = re.findall(r"^#+ (.+)$", FENCED.sub("", path.read_text()), re.MULTILINE)
    slugs = [re.sub(r"[^\w\s-]", "", title).strip().lower().replace(" ", "-") for title in titles]
    assert len(set(slugs)) == len(slugs), f"{path} has a heading twice, and GitHub and the site number them differently"
    assert not any("--" in slug for slug in slugs), f"{path} has a heading that GitHub and the site name differently"
    return set(slugs)


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_every_link_leads_to_a_file_and_to_a_heading_in_it(path):
    for link in links(TEXTS[path]):
        parts = urlsplit(link)
        if parts.scheme:
            assert parts.scheme == "https", link
            assert re.fullmatch(r"[\w.-]+\.\w+", parts.netloc), link
            continue
        target = (path.parent / parts.path).resolve() if parts.path else path
        assert target.is_file(), f"{link} leads to no file"
        if parts.fragment:
            assert parts.fragment in anchors(target), f"{link} leads to no heading"


@pytest.mark.parametrize("path", [path for path in TEXTS if path.is_relative_to(PAGES)], ids=name)
def test_a_page_links_to_nothing_outside_the_site(path):
    local = [urlsplit(link).path for link in links(TEXTS[path]) if not urlsplit(link).scheme]
    assert [link for link in local if link and not (path.parent / link).resolve().is_relative_to(PAGES)] == []


def test_every_picture_is_shown():
    shown = {(path.parent / link).resolve() for path, text in TEXTS.items() for link in links(text)}
    assert [picture.name for picture in PAGES.rglob("*.png") if picture not in shown] == []


def test_every_page_is_in_the_navigation_and_on_the_first_page():
    nav = yaml.safe_load((ROOT / "docs" / "mkdocs.yml").read_text())["nav"]

    def files(entry):
        if isinstance(entry, str):
            return [entry]
        return [file for each in (entry.values() if isinstance(entry, dict) else entry) for file in files(each)]

    pages = {str(path.relative_to(PAGES)) for path in PAGES.rglob("*.md")}
    assert sorted(files(nav)) == sorted(pages)
    assert pages - {"index.md"} <= {urlsplit(link).path for link in links(TEXTS[PAGES / "index.md"])}


@pytest.mark.parametrize("path", [path for path in TEXTS if path.is_relative_to(PAGES)], ids=name)
def test_a_page_begins_with_what_its_reader_can_do_after_it(path):
    title, empty, first = TEXTS[path].splitlines()[:3]
    assert title.startswith("# ")
    assert not empty
    assert first.startswith("After this page ")


PROMISES = re.findall(
    r"^\| (?!---|fault )(.+?) \| (.+?) \| (.+?) \|$", (PAGES / "guarantees.md").read_text(), re.MULTILINE
)


@pytest.mark.parametrize(("fault", "promise", "tests"), PROMISES, ids=[fault[:60] for fault, _, _ in PROMISES])
def test_a_promise_names_tests_that_exist(fault, promise, tests):
    named = re.findall(r"`(test_\w+)\.py::(test_\w+)`", tests)
    assert named
    assert [name for file, name in named if name not in functions(file)] == []


def functions(file):
    tree = ast.parse((ROOT / "tests" / f"{file}.py").read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
