"""Set up the servers that flows run on, and look after them.

Beside the modules lie the files that other programs read: prefect.yaml (what is deployed), Procfile and stack.env (the
local stack), compose.yaml, Dockerfile and kubernetes/ (the same in containers).

Nothing here imports flows/ or tasks/: a server knows flows by the names of their entrypoints, `flows.retrain.retrain`.
"""

from pathlib import Path

from bincount import environment

environment.set_defaults()  # before Prefect and MLflow are imported

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent  # of the checkout or, where the wheel is installed, of its packages
PREFECT_FILE = FOLDER / "prefect.yaml"
