"""The answers of a service that are kept beside their pictures, as bincount.serving.capture writes them."""

import json
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import obstore
import pandas as pd
from obstore.store import S3Store

from bincount.data import client
from bincount.errors import SettingsError
from bincount.settings import DataConfig

logger = logging.getLogger(__name__)

ANSWERS = "answers"  # the folder of a source, with DATE/ID.json
COLUMNS = ["id", "at", "version", "count", "confidence", "abstains"]


def read_answers(data_config: DataConfig) -> pd.DataFrame:
    """Return the answers that are kept in a source, a row each, with COLUMNS; count is the name of the class.

    What is no answer is left out, and the log says how many. Raises SettingsError where there is none, and SourceError
    and SourceUnavailable as a source's client does.
    """
    store, rows, num_damaged = client.open_store(data_config), [], 0
    with (
        client.errors_explained(data_config.source, "does not deliver answers", data_config=data_config),
        ThreadPoolExecutor(data_config.concurrency) as threads,
    ):
        for content in threads.map(_reader(store), _keys(store)):
            try:
                kept = json.loads(content)
                answer = kept["answer"]
                count, abstains = str(answer["count"]), bool(answer["abstains"])
                rows.append((kept["id"], kept["at"], kept["version"], count, float(answer["confidence"]), abstains))
            except (ValueError, TypeError, KeyError):
                num_damaged += 1
    if num_damaged:
        logger.warning("%d files in %s/%s are no answers and are left out", num_damaged, data_config.source, ANSWERS)
    if not rows:
        raise SettingsError(
            f"{data_config.source} holds no answers; give --source the place that `bincount serve --capture` was given"
        )
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.assign(at=pd.to_datetime(table["at"], utc=True, format="ISO8601"))


def _keys(store: Path | S3Store) -> Iterator[str]:
    if isinstance(store, Path):
        paths = sorted((store / ANSWERS).glob("*/[!.]*.json"))
        return (path.relative_to(store).as_posix() for path in paths)
    pages = obstore.list(store, prefix=f"{ANSWERS}/")
    return (entry["path"] for page in pages for entry in page if PurePosixPath(entry["path"]).suffix == ".json")


def _reader(store: Path | S3Store) -> Callable[[str], bytes]:
    if isinstance(store, Path):
        return lambda key: (store / key).read_bytes()
    return lambda key: bytes(store.get(key).bytes())
