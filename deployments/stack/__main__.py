"""`python -m deployments.stack up` or `down`, for make, which puts the settings into the environment:

make up PREFECT_PORT=4300
"""

import os
import sys

from bincount.errors import BincountError
from deployments.stack.commands import down, find, up
from deployments.stack.config import StackConfig


def main(command: str) -> None:
    """Start the stack, or stop it; an error that names its remedy is shown without a traceback."""
    try:
        if command == "up":
            up(StackConfig.read(os.environ))
        else:
            down(find(os.environ), force=bool(os.environ.get("FORCE")))
    except BincountError as error:
        sys.exit(f"make {command}: {error}")


if __name__ == "__main__":
    main(sys.argv[1])
