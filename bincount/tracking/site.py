"""MLflow's server with pages that open for trainings: `mlflow server --app-name bincount`.

MLflow's pages keep in the browser which side they show, the one for language models and agents or the one for
trainings, and open a chat beside them at the first visit. No setting of its server decides either. So the page that
starts them gets a script here that sets both for a browser that has not chosen yet.
"""

import json
from collections.abc import MutableMapping
from typing import TYPE_CHECKING

from mlflow.server.fastapi_app import app as mlflow_app

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

FIRST_VISIT = {  # keys of the browser's localStorage, as MLflow 3.17 names them
    "mlflow.workflowType_v1": "machine_learning",
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": True,
    "_mlflow_model_registry_promo_modal_dismissed_v1": True,
}
SCRIPT = f"""<script>
for (const [key, value] of Object.entries({json.dumps(FIRST_VISIT)}))
  if (localStorage.getItem(key) === null) localStorage.setItem(key, JSON.stringify(value));
</script>""".encode()
HEAD = b"<head>"
# The page is another than the file that these are about, so that a browser may not take its copy of that one for it.
OF_THE_FILE = (b"content-length", b"etag", b"last-modified", b"content-range", b"accept-ranges")
CONDITIONS = (b"if-none-match", b"if-modified-since", b"range", b"accept-encoding")


class TrainingPages:
    """An ASGI app in front of MLflow's, which adds the script to the start page and passes all else on."""

    def __init__(self, app: "ASGIApp"):
        self.app = app

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["method"] != "GET" or not scope["path"].endswith("/"):
            await self.app(scope, receive, send)
            return
        headers = [(name, value) for name, value in scope["headers"] if name not in CONDITIONS]
        await self.app({**scope, "headers": headers}, receive, _Addition(send))


class _Addition:
    """Sends an answer on, with the script in it where it is a page."""

    def __init__(self, send: "Send"):
        self._send = send
        self._start: MutableMapping | None = None  # of a page, until all of it is there
        self._body = b""

    async def __call__(self, message: "Message") -> None:
        if message["type"] == "http.response.start" and _is_page(message):
            self._start = message
        elif self._start is None or message["type"] != "http.response.body":
            await self._send(message)
        else:
            self._body += message.get("body", b"")
            if not message.get("more_body"):
                body = self._body.replace(HEAD, HEAD + SCRIPT, 1)
                headers = [(name, value) for name, value in self._start["headers"] if name not in OF_THE_FILE]
                headers.append((b"content-length", str(len(body)).encode()))
                await self._send({**self._start, "headers": headers})
                await self._send({"type": "http.response.body", "body": body})


def _is_page(message: "Message") -> bool:
    kind = next((value for name, value in message["headers"] if name.lower() == b"content-type"), b"")
    return message["status"] == 200 and kind.startswith(b"text/html")


app = TrainingPages(mlflow_app)
