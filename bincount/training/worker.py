"""The process that trains: `python -m bincount.training.worker REQUEST`, as launch starts it."""

import logging
import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from bincount import progress
from bincount.errors import BincountError, TrainingFailed
from bincount.files import raise_on_disk_full
from bincount.training import distributed
from bincount.training.launch import PARENT_HOLDS_STDIN
from bincount.training.loop import Stopped, fit
from bincount.training.run_folder import read_error, read_request, write_error

logger = logging.getLogger(__name__)

STOPPED = 128 + signal.SIGTERM  # the exit code that shells give for a process that ended on SIGTERM


def main() -> None:
    """Carry out the request in the file that the first argument names.

    Log lines go to standard output as `LEVEL message`, and so does the progress where a parent reads it. SIGTERM stops
    the training, and so does the end of standard input when the environment has PARENT_HOLDS_STDIN. An error of the
    library is left in error-RANK.json. torchrun restarts all processes when one ends with an error; when such a file
    was left, they end successfully, and the parent finds the file and no result.
    """
    # One process of each host logs: the first of all may be on another host than the one that started the training.
    level = logging.INFO if distributed.local_rank() == 0 else logging.WARNING
    logging.basicConfig(stream=sys.stdout, level=level, format="%(levelname)s %(message)s")
    sys.excepthook = _log_and_exit
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the parent sends SIGTERM
    if PARENT_HOLDS_STDIN in os.environ:
        progress.relay_to(_write_line if distributed.local_rank() == 0 else lambda line: None)
        threading.Thread(target=_stop_when_parent_ends, args=(stop,), daemon=True).start()

    try:
        request = read_request(Path(sys.argv[1]))
    except TrainingFailed as error:
        logger.error("%s", error)  # noqa: TRY400 - the message says it all
        _exit_with_error()
    if read_error(request.folder):
        return  # of an earlier attempt, before torchrun's restart
    try:
        with raise_on_disk_full(request.folder):
            fit(request, stop=stop)
    except Stopped:
        sys.exit(0 if distributed.started_by_torchrun() else STOPPED)
    except BincountError as error:
        write_error(request.folder, error, distributed.rank())
        _exit_with_error()


def _write_line(line: str) -> None:
    with suppress(OSError):  # nobody reads it when the parent has ended; the checkpoint is to be written all the same
        sys.stdout.write(line)
        sys.stdout.flush()


def _stop_when_parent_ends(stop: threading.Event) -> None:
    # The parent holds the other end of this pipe and never writes. os.read, since a buffered file that a daemon thread
    # is reading makes the interpreter abort at its exit.
    while os.read(sys.stdin.fileno(), 1024):
        pass
    stop.set()


def _log_and_exit(*failure) -> None:
    logger.critical("the trainer crashed", exc_info=failure)
    _exit_with_error()


def _exit_with_error() -> NoReturn:
    """End this process; one of several ends without cleanup, in which it would wait for others that wait for it."""
    logging.shutdown()
    sys.stderr.flush()
    if distributed.started_by_torchrun():
        os._exit(1)
    sys.exit(1)


if __name__ == "__main__":
    main()
