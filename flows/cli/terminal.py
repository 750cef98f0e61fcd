"""What commands write beside their results, on standard error: log lines that fit the terminal, and one error.

    21:30:52 fetched 2,973 of 3,000 bins, 1,146 bins/s
    21:31:03 warning: check registry: MLflow does not answer at http://mlflow:5000; try 2 of 5 in 5 s

Prefect's own lines about flows and tasks that begin and end are left to the run's page, which has every line with its
logger and its time. Where the environment sets up Prefect's logging, log lines are as it says.
"""

import logging
import os
import select
import signal
import sys
import textwrap
import time

from rich.text import Text

from bincount import hints
from bincount.environment import RUN_LOGGERS
from bincount.errors import BincountError, TrainingFailed
from bincount.progress import console, format_seconds

IN_RESULT = "in_result"  # attribute of log records that say what the command's result shows too
STYLES = {logging.WARNING: "yellow", logging.ERROR: "red", logging.CRITICAL: "bold red"}
LOGGING_SETTINGS = tuple(
    f"PREFECT_LOGGING_{part}" for part in ("SETTINGS_PATH", "CONFIG_PATH", "FORMATTERS", "HANDLERS")
)
RETRY = "Task run failed with %s: %r - Retry"
# How Prefect's lines about an error begin that ends the command, which says it in its last line.
ABOUT_THE_ERROR = ("Task run failed with", "Finished in state", "Encountered exception during", "Crash detected!")
QUIET = {
    "MLFLOW_CONFIGURE_LOGGING": "false",  # its warnings come through the root logger
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
LAST_LINES = " Its last lines:"
LENGTH_OF_TIME = len("21:30:52")


class TerminalHandler(logging.Handler):
    """Writes log records above the progress bars: the time, the level from a warning on, and the message."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            level, text = describe(record)
            if text:
                line = Text(fit(text, LENGTH_OF_TIME + 1))
                line.stylize("dim", 0, LENGTH_OF_TIME)
                if level >= logging.WARNING:
                    line.stylize(STYLES.get(level, ""), LENGTH_OF_TIME, text.index(": ") + 1)
                console().print(line, soft_wrap=True)
        except Exception:  # noqa: BLE001 - as logging's own handlers
            self.handleError(record)


def end_without_reader() -> None:
    """End the command without a word where nobody reads its standard output any more, as with `| head`."""
    reader = select.poll()
    reader.register(sys.stdout, 0)
    if any(events & select.POLLERR for _, events in reader.poll(0)):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be flushed
        sys.exit(128 + signal.SIGPIPE)  # as a shell says of programs that it ends


def set_up() -> None:
    """Let log lines of this process appear as commands show them, and let no character of a name end a command."""
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", "") == "strict":
            stream.reconfigure(errors="backslashreplace")  # a locale without UTF-8, or a file's name that is not UTF-8
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if not _is_set_up() and not any(name.startswith(LOGGING_SETTINGS) for name in os.environ):
        handler = TerminalHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))  # by which Prefect knows that it is somebody's own
        logging.root.addHandler(handler)


def set_up_access_log() -> None:
    """Write the lines of requests as log lines are, by a handler that takes no time to fit them to the terminal."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    requests = logging.getLogger("bincount.serving.requests")
    requests.addHandler(handler)
    requests.propagate = False
    requests.setLevel(logging.INFO)


def remove_prefect_handler() -> None:
    """Write no log line twice where Prefect, as it was imported, has added a handler of its own."""
    if _is_set_up():
        for handler in logging.root.handlers[:]:
            if type(handler).__name__ == "PrefectConsoleHandler":
                logging.root.removeHandler(handler)


def _is_set_up() -> bool:
    return any(isinstance(handler, TerminalHandler) for handler in logging.root.handlers)


def describe(record: logging.LogRecord) -> tuple[int, str]:
    """Return the level and the text of a record as commands show it; no text where they do not."""
    if getattr(record, IN_RESULT, False):
        return record.levelno, ""
    message, level = record.getMessage(), record.levelno
    if record.name.startswith("prefect") and logging.getLogger("prefect").getEffectiveLevel() > logging.DEBUG:
        if str(record.msg).startswith(RETRY):
            message, level = _describe_retry(record), logging.WARNING
        elif level < logging.WARNING or (record.name in RUN_LOGGERS and message.startswith(ABOUT_THE_ERROR)):
            return level, ""
    elif record.exc_info and not isinstance(record.exc_info[1], BincountError):
        message += f"\n{logging.Formatter().formatException(record.exc_info)}"
    word = f"{logging.getLevelName(level).lower()}: " if level >= logging.WARNING else ""
    return level, f"{time.strftime('%H:%M:%S', time.localtime(record.created))} {word}{hints.complete(message)}"


def describe_error(error: BincountError) -> str:
    """Return an error as the last line of a command; the lines of a trainer stand above as log lines already."""
    text = str(error)
    if isinstance(error, TrainingFailed) and LAST_LINES in text:
        return f"{text.partition(LAST_LINES)[0]} Its last lines are above."
    return text


def _describe_retry(record: logging.LogRecord) -> str:
    _, error, number, retries, when = record.args
    first_line = next(iter(str(error).splitlines()), "") or type(error).__name__
    seconds = str(when).partition(" ")[0]
    pause = f"in {format_seconds(float(seconds))}" if seconds[:1].isdigit() else "now"
    name = getattr(record, "task_run_name", "task")
    return f"{name}: {first_line.removesuffix(LAST_LINES)}; try {number + 1} of {retries + 1} {pause}"


def fit(text: str, indent: int) -> str:
    """Break lines that are wider than the terminal between words, with the rest of each indented."""
    if not console().is_terminal:
        return text
    width = max(console().width, 2 * indent + 20)
    lines = []
    for line in text.splitlines():
        wraps = {"subsequent_indent": " " * indent, "break_long_words": False, "break_on_hyphens": False}
        lines += textwrap.wrap(line, width, **wraps) if len(line) > width else [line]
    return "\n".join(lines)
