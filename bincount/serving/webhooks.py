"""MLflow's webhooks: the registry says itself when an alias moves, so that nobody waits for the next look.

In MLflow's page, or by its client, make a webhook for `model_version_alias.created` (and `.deleted`) with the address
of this route and the secret of BINCOUNT_WEBHOOK_SECRET.
"""

import base64
import hashlib
import hmac
import json
import logging
import time
from collections import OrderedDict

from fastapi import APIRouter, HTTPException, Request

from bincount.serving.follower import Follower

logger = logging.getLogger(__name__)

PATH = "/webhooks/mlflow"
# As MLflow 3.17 sends them: mlflow.webhooks.constants, which only tracking may import
SIGNATURE, TIMESTAMP, DELIVERY_ID = "X-MLflow-Signature", "X-MLflow-Timestamp", "X-MLflow-Delivery-Id"
VERSION = "v1"
MAX_BYTES = 64 * 1024  # of a body; those about aliases have some hundred
TOLERANCE = 300  # seconds that the clocks may differ, and an old delivery may be sent again
MOST_DELIVERIES = 1000  # that are remembered
ENTITY = "model_version_alias"


class Deliveries:
    """Checks that deliveries come from MLflow, are of now, and come once."""

    def __init__(self, secret: str) -> None:
        self._secret, self._seen = secret.encode(), OrderedDict()

    def take(self, headers: dict[str, str], body: bytes) -> bool:
        """Return whether a delivery is new. Raises PermissionError with the remedy where it is not MLflow's of now."""
        signature, timestamp, delivery_id = (
            headers.get(name.lower(), "") for name in (SIGNATURE, TIMESTAMP, DELIVERY_ID)
        )
        if not (signature and timestamp and delivery_id):
            raise PermissionError("it is not signed; give the webhook in MLflow the secret of BINCOUNT_WEBHOOK_SECRET")
        signed = f"{delivery_id}.{timestamp}.".encode() + body
        expected = f"{VERSION}," + base64.b64encode(hmac.digest(self._secret, signed, hashlib.sha256)).decode()
        if not hmac.compare_digest(expected.encode(), signature.encode()):
            raise PermissionError(
                "its signature is another one; give the webhook in MLflow the secret of BINCOUNT_WEBHOOK_SECRET"
            )
        now = time.time()
        if not timestamp.isdecimal() or len(timestamp) > 15 or abs(now - int(timestamp)) > TOLERANCE:
            raise PermissionError(f"it is older than {TOLERANCE} s; set the clocks of both machines right")
        while self._seen and (
            len(self._seen) >= MOST_DELIVERIES or next(iter(self._seen.values())) < now - 2 * TOLERANCE
        ):
            self._seen.popitem(last=False)
        if delivery_id in self._seen:
            return False
        self._seen[delivery_id] = now
        return True


def router(follower: Follower | None, secret: str | None) -> APIRouter:
    """Make the route that wakes a follower; there is none without a secret, or where nothing is followed."""
    made = APIRouter()
    if not secret or follower is None:
        return made
    deliveries = Deliveries(secret)

    @made.post(PATH, status_code=202, include_in_schema=False)
    async def receive(request: Request) -> dict[str, str]:
        body = await _read(request)
        try:
            is_new = deliveries.take(dict(request.headers), body)
        except PermissionError as error:
            logger.warning("a delivery to %s was refused: %s", PATH, error)
            raise HTTPException(401, f"the delivery was refused: {error}") from None
        try:
            content = json.loads(body)
            entity, data = content["entity"], content["data"]
            name, alias = data.get("name"), data.get("alias")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise HTTPException(400, "the body is not one of MLflow's events") from None
        if not is_new or (entity, name, alias) != (ENTITY, follower.model_name, follower.alias):
            return {"status": "ignored"}
        follower.wake()
        return {"status": "looking"}

    return made


async def _read(request: Request) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BYTES:
            raise HTTPException(413, f"at most {MAX_BYTES:,} bytes are read")
    return bytes(body)
