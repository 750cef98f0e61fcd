"""The entry point of the image: `bincount`, whose `serve` finds its model and listens as containers need it.

SageMaker runs `IMAGE serve`, mounts the model at /opt/ml/model, and sends no token. BINCOUNT_SERVE_TOKEN makes one
necessary where the caller can send it.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

SAGEMAKER_MODEL = Path("/opt/ml/model")
MOUNTED_MODEL = Path("/model")
PORT = "8080"


def command(words: Sequence[str], environment: Mapping[str, str], folders: Sequence[Path]) -> list[str]:
    """Return the command that these words of `docker run IMAGE WORDS` stand for.

    `serve` alone, or with options, serves the model of the first folder that is not empty, else the champion of the
    registry; a word after it names the model, as `bincount serve` takes it. All other words go to bincount as they are.
    """
    name, *rest = words or ["serve"]
    if name != "serve":
        return ["bincount", *words]
    if not rest or rest[0].startswith("-"):
        rest = [_find_model(environment, folders), *rest]
    defaults = {"--host": "0.0.0.0", "--port": environment.get("SAGEMAKER_BIND_TO_PORT", PORT)}
    for flag, value in defaults.items():
        if not any(word.split("=")[0] == flag for word in rest):
            rest += [flag, value]
    if not environment.get("BINCOUNT_SERVE_TOKEN") and "--insecure" not in rest:
        rest.append("--insecure")
    return ["bincount", "serve", *rest]


def _find_model(environment: Mapping[str, str], folders: Sequence[Path]) -> str:
    for folder in folders:
        if folder.is_dir() and any(folder.iterdir()):
            return str(folder)
    if environment.get("MLFLOW_TRACKING_URI"):
        return "champion"
    sys.exit(
        f"bincount: there is no model to serve; mount a folder with model.safetensors and model.json at {folders[-1]}, "
        "or set MLFLOW_TRACKING_URI to serve the champion of a registry"
    )


def main() -> None:
    """Become the command: signals reach it, and its exit status is that of the container."""
    words = command(sys.argv[1:], os.environ, (SAGEMAKER_MODEL, MOUNTED_MODEL))
    os.execvp(words[0], words)


if __name__ == "__main__":
    main()
