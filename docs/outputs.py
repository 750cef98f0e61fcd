"""Run the commands in the pages' console blocks, and write what they print into the pages.

Run as `make outputs`, which takes some minutes. A block begins with a command after `$ `, and what it printed
follows; a line `...` stands for lines that are left out: as many lines as stand before and after it stay. All blocks
run in one folder, in the order of the navigation, beside the demo (`demo/`) and photos in class folders (`photos/`).
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import yaml

DOCS = Path(__file__).parent
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)
LEFT_OUT = "..."
PREPARATION = (
    "bincount demo",
    "bincount export --source demo/bucket --workspace demo --classes 1..3 --folder photos --copy",
)


def rewrite(folder: Path, preparation: tuple[str, ...] = PREPARATION) -> Iterator[tuple[Path, str, str]]:
    """Run all blocks in a folder. Yield each page that has one, its text, and its text with today's output.

    preparation: the commands that make what the blocks read
    Raises CalledProcessError, with what was printed, where a command fails.
    """
    for command in preparation:
        run(command, folder)
    for page in pages():
        text = page.read_text()
        if BLOCK.search(text):
            yield page, text, BLOCK.sub(lambda block: f"```console\n{_run_block(block[1], folder)}```", text)


def pages() -> list[Path]:
    """Return the pages in the order of the navigation."""
    navigation = (DOCS / "mkdocs.yml").read_text()
    return [DOCS / "pages" / name for name in _files(yaml.safe_load(navigation)["nav"])]


def run(command: str, folder: Path) -> str:
    """Run a command as a user types it, and return what it prints, without paths of this machine."""
    programs = str(Path(sys.executable).parent)
    environment = os.environ | {
        "PATH": programs + os.pathsep + os.environ["PATH"],
        "HOME": str(folder),
        "PREFECT_HOME": str(folder / ".prefect"),
        "TTY_COMPATIBLE": "1",  # output as on a terminal,
        "TERM": "dumb",  # without escape codes
        "COLUMNS": "80",
    }
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "FORCE_COLOR"):
        environment.pop(name, None)
    done = subprocess.run(
        ["sh", "-c", command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout)
    printed = done.stdout.replace(str(folder), "~")
    return "".join(line.rstrip() + "\n" for line in printed.strip("\n").splitlines())


def _run_block(block: str, folder: Path) -> str:
    return "".join(f"$ {typed}\n{_shorten(run(typed, folder), shown)}" for typed, shown in COMMAND.findall(block))


def _shorten(printed: str, shown: str) -> str:
    """Leave out of new output what was left out of the output that stands in the page."""
    before, left_out, after = shown.partition(f"{LEFT_OUT}\n")
    if not left_out:
        return printed
    lines, first, last = printed.splitlines(keepends=True), before.count("\n"), after.count("\n")
    if len(lines) <= first + last:
        return printed
    return "".join([*lines[:first], f"{LEFT_OUT}\n", *(lines[-last:] if last else [])])


def _files(navigation: object) -> Iterator[str]:
    if isinstance(navigation, str):
        yield navigation
    else:
        for each in navigation.values() if isinstance(navigation, dict) else navigation:
            yield from _files(each)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        for page, _, text in rewrite(Path(home).resolve()):
            page.write_text(text)
