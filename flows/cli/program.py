"""The program: its App, which the commands register with, and its entry point, which explains errors."""

import os
import sys
from importlib.metadata import version
from typing import NoReturn

from cyclopts import CycloptsError
from pydantic import ValidationError
from rich.text import Text

from bincount import hints
from bincount.errors import BincountError
from deployments.stack.running import sign_in
from flows import interrupts, usage
from flows.cli import settings_file, terminal
from flows.cli.help import Program

app = Program(
    name="bincount",
    help="Count the items in warehouse bins from photos: from a bucket of images to a registered model.",
    version=lambda: version("bincount-pipeline"),
    version_flags=["--version"],
    help_flags=usage.HELP_FLAGS,
    config=settings_file.fill,
    suppress_keyboard_interrupt=False,
    error_formatter=lambda error: Text(usage.explain(error)),
)
app["--help"].help = "Display this message and exit; --help-all of a command shows all its settings."
app.register_install_completion_command(help="Let the shell complete commands and options of bincount.")

KEPT = {
    "audit": "what was fetched, trained up to the last checkpoint and scored is kept",
    "prepare": "what was fetched and packed is kept",
    "train": "the last checkpoint is kept",
    "tune": "the trials that ended, and the last checkpoints of the others, are kept",
    "evaluate": "nothing was changed",
    "compare": "nothing was changed",
    "promote": "the champion is changed as a whole or not at all",
    "approve": "what was approved is, and the champion is changed as a whole or not at all",
    "rollback": "the champion is changed as a whole or not at all",
    "predict": "nothing was changed",
    "verify": "nothing was changed",
    "serve": "nothing was changed",
    "models": "nothing was changed",
    "report": "the page of before is kept",
    "config": "nothing was changed",
    "deploy": "AWS goes on with what was begun",
    "review": "a file is imported as a whole or not at all",
    "doctor": "nothing is removed in part",
    "export": "the files that were exported are kept",
    "publish": "the files that were uploaded are kept",
    "backbones": "nothing was changed",
    "where": "nothing was changed",
    "forget": "what was taken away is gone",
    "gc": "what was removed is gone, and nothing is removed in part",
    "bootstrap": "what was set up is kept",
    "up": "what was started runs on",
    "down": "what was not stopped yet runs on",
    "server": "what it recorded is kept",
    "demo": "what was generated, packed and trained up to the last checkpoint is kept",
}
KEPT_BY_A_RUN = "what was fetched, packed and trained up to the last checkpoint is kept"


def main() -> None:
    """Run the command line; an error that names its remedy is shown without a traceback."""
    kept = KEPT.get(next((word for word in sys.argv[1:] if not word.startswith("-")), ""), KEPT_BY_A_RUN)
    sign_in(os.environ)  # before Prefect reads its settings
    terminal.set_up()
    with interrupts.handled(f"{kept}, and the same command goes on from there"):
        try:
            app(usage.rename_flags(sys.argv[1:]), exit_on_error=False, print_error=False)
            sys.stdout.flush()  # here, since an error at the end of the process would be shown as it is
        except CycloptsError as error:
            _fail(usage.explain(error))
        except ValidationError as error:
            _fail("\n".join(usage.explain_values(error)))
        except BincountError as error:
            _fail(terminal.describe_error(error))
        except BrokenPipeError:
            terminal.end_without_reader()
            raise


def _fail(text: str) -> NoReturn:
    name = "bincount: "
    usage.fail(terminal.fit(f"{name}{hints.complete(text)}", len(name)).removeprefix(name))
