"""Load a packaged model and ask it about pictures: a script for a process of its own.

Run as `python -I start_process.py PACKAGE PICTURES ANSWERS`. It imports nothing of this library, so that what
answers is the code in the package.
"""

import gc
import json
import os
import sys
import threading
from pathlib import Path

NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")


def main(package: Path, pictures: Path, answers: Path) -> None:
    """Ask the model in the folder package about pictures, base64 in JSON by column, and write what it answers.

    Where there are none, the model is asked about the example that it was saved with.
    """
    gc.disable()  # it imports much and ends soon
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.addaudithook(_refuse_network)
    import mlflow
    import pandas as pd
    from mlflow.models import Model

    model = mlflow.pyfunc.load_model(str(package))
    asked = json.loads(pictures.read_text())
    table = pd.DataFrame(asked) if asked else Model.load(package).load_input_example(str(package))
    predicted = model.predict(table)
    loaded = [module.__file__ for name, module in sys.modules.items() if name.split(".")[0] == "bincount"]
    content = {
        "asked": len(table),
        "columns": [str(column) for column in predicted.columns],
        "rows": [[str(cell) for cell in row] for row in predicted.itertuples(index=False)],
        "foreign": sorted(file for file in loaded if file and not Path(file).resolve().is_relative_to(package)),
    }
    answers.write_text(json.dumps(content))


def _refuse_network(event: str, arguments: tuple) -> None:
    """Refuse what would need a network, so that a model that fetches something as it starts is found out here."""
    if event in NETWORK:
        raise OSError("it asks the network for something, which users of it may not have")


def _end_with_parent() -> None:
    """End at once when the process that started this one is gone, which holds the other end of standard input."""
    os.read(sys.stdin.fileno(), 1)  # not through sys.stdin, whose lock would be held at the end
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]), Path(sys.argv[3]))
