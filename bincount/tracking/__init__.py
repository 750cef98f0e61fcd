"""Runs, versions and the champion, kept in MLflow; only this package imports mlflow or knows its errors.

MLflow reads its settings from the environment when it is imported. They are set here, since Python runs this file
before any module of the package.
"""

import logging
import os

from bincount import database

# Without the first two, one call to a dead server blocks for four minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # it would lead to MLflow's other side
os.environ.setdefault("DO_NOT_TRACK", "true")
# PostgreSQL's client reads this; without it, a host that drops packets would hold up a connection for minutes.
os.environ.setdefault("PGCONNECT_TIMEOUT", str(database.CONNECT_SECONDS))

logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # else a traceback for each error explained here
