"""Notify people of nightly runs: a block keeps the address of a channel, and an automation a kind sends to it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote, urlencode, urlsplit
from uuid import UUID

import pandas as pd
from apprise import Apprise
from prefect.blocks.notifications import SlackWebhook
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient
from prefect.events.actions import CallWebhook, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings

from bincount.errors import SettingsError
from deployments import automations
from deployments.connection import connect, read_automations

Channel = Literal["slack", "email", "webhook"]
Addresses = Mapping[Channel, str]
# Prefect has no block for SMTP; Slack's sends to every kind of address that Apprise knows, mailto:// among them.
BLOCKS = {"slack": SlackWebhook, "email": SlackWebhook, "webhook": Webhook}
PREFIX = f"{automations.PREFIX}tell "  # automations on servers have it in their names
# Other projects on the same server may have a deployment of that name too.
NIGHTLY_RUNS = [{"prefect.resource.role": "deployment", "prefect.resource.name": "nightly"}, automations.OWN_RUNS]
MODEL = "bincount.model.*"  # resource of the events that a nightly run emits
PROMOTED = "bincount.champion.promoted"
WAITING = "bincount.champion.waiting"
REFUSED = "bincount.champion.refused"
DRIFT = "bincount.drift.found"


@dataclass(frozen=True)
class Notification:
    """One kind of notification: the events that cause it, and the subject of its message."""

    events: tuple[str, ...]
    subject: str

    @property
    def is_of_model(self) -> bool:
        return self.events[0].startswith("bincount.")


NOTIFICATIONS = {
    "failed": Notification(("prefect.flow-run.Failed", "prefect.flow-run.TimedOut"), "a nightly run failed"),
    "crashed": Notification(("prefect.flow-run.Crashed",), "a nightly run crashed"),
    "late": Notification(("prefect.flow-run.Late",), "a nightly run is late"),
    # The deployment's limit cancels a run that is due while another one goes on.
    "skipped": Notification(("prefect.flow-run.Skipped", "prefect.flow-run.Cancelled"), "a nightly run was skipped"),
    "promoted": Notification((PROMOTED,), "a new champion"),
    "waiting": Notification((WAITING,), "a version waits for approval"),
    "refused": Notification((REFUSED,), "a better version does not start"),
    "drift": Notification((DRIFT,), "the new images are unlike the old ones"),
}
# All kinds there were before versions could wait for approval
FIRST_KINDS = {"failed", "crashed", "late", "skipped", "promoted", "drift"}

RUN_MESSAGE = """\
{{{{ flow_run.name{plain} }}}} is {{{{ flow_run.state.name }}}}, start {{{{ flow_run.run_count }}}}.
{{{{ (flow_run.state.message or "No reason was given."){plain} }}}}
{link}"""
MODEL_MESSAGE = """\
{{{{ event.resource.name{plain} }}}} version {{{{ event.payload.version }}}}: {{{{ event.payload.words{plain} }}}}
{{% if flow_run %}}{link}{{% endif %}}"""
# In a chat <!channel> calls everybody; names and reasons may hold anything.
PLAIN = ' | replace("<", "‹") | replace(">", "›")'
LINK = "{ui}/runs/flow-run/{{{{ flow_run.id }}}}"
# {% set %}, so that the whole text becomes one JSON string whatever is in it
PAYLOAD = (
    '{{% set text %}}{body}{{% endset %}}{{"kind": {kind}, "subject": {subject}, "text": {{{{ text | tojson }}}}}}'
)


def subscribe(addresses: Addresses, only: Sequence[str] = ()) -> None:
    """Send notifications to these addresses from now on: of all kinds, or of those in only.

    A slack or webhook address is a URL, that of email is made by `email_url`. Addresses are kept in Prefect's blocks,
    encrypted. A channel's earlier subscription is replaced. Raises SettingsError for an address or a kind that cannot
    be.
    """
    kinds = tuple(only) or tuple(NOTIFICATIONS)
    if unknown := set(kinds) - set(NOTIFICATIONS):
        raise SettingsError(f"--only {', '.join(sorted(unknown))}: the kinds are {', '.join(NOTIFICATIONS)}")
    blocks = {channel: _block(channel, address) for channel, address in addresses.items()}
    with connect() as client:
        for channel, block in blocks.items():
            block_id = block.save(_block_name(channel), overwrite=True)
            wanted = [_automation(channel, kind, block_id) for kind in kinds]
            for automation in wanted:
                automations.ensure(client, automation)
            _delete_automations(client, f"{PREFIX}{channel} ", but={automation.name for automation in wanted})


def add_new_kinds(client: SyncPrefectClient) -> list[str]:
    """Notify the channels that get all kinds of an earlier release of the later ones too; return what was added."""
    channels: dict[Channel, set[str]] = {}
    for automation in read_automations(client):
        if automation.name.startswith(PREFIX):
            channel, _, kind = automation.name.removeprefix(PREFIX).partition(" ")
            channels.setdefault(channel, set()).add(kind)
    added = []
    for channel in (channel for channel, kinds in channels.items() if kinds == FIRST_KINDS):
        slug = BLOCKS[channel].get_block_type_slug()
        block = client.read_block_document_by_name(_block_name(channel), slug)
        wanted = [_automation(channel, kind, block.id) for kind in NOTIFICATIONS if kind not in FIRST_KINDS]
        for automation in wanted:
            automations.ensure(client, automation)
        added += [automation.name for automation in wanted]
    return added


def unsubscribe() -> None:
    """Remove all channels, and delete their addresses."""
    with connect() as client:
        _delete_automations(client, PREFIX)
        for channel, kind in BLOCKS.items():
            try:
                block = client.read_block_document_by_name(_block_name(channel), kind.get_block_type_slug())
            except ObjectNotFound:
                continue
            client.delete_block_document(block.id)


def subscriptions() -> dict[Channel, list[str]]:
    """Return the kinds of notifications that each channel gets; a kind whose automation is paused says so."""
    found = {}
    with connect() as client:
        for automation in read_automations(client):
            if automation.name.startswith(PREFIX):
                channel, _, kind = automation.name.removeprefix(PREFIX).partition(" ")
                found.setdefault(channel, []).append(kind if automation.enabled else f"{kind} (paused)")
    return found


def email_url(to: str, smtp: str, sender: str | None = None) -> str:
    """Return the address for email through smtp://[USER:PASSWORD@]HOST[:PORT], or smtps:// for TLS from the start.

    smtp:// changes to TLS where a password is sent; without one it is a relay nearby, and the connection is in the
    clear. Raises SettingsError.
    """
    server = urlsplit(smtp)
    if server.scheme not in ("smtp", "smtps") or not server.hostname or "@" not in to:
        raise SettingsError(
            "email needs --email ADDRESS and --smtp smtp://USER:PASSWORD@HOST:587, or smtps:// for TLS from the start"
        )
    mode = "ssl" if server.scheme == "smtps" else "starttls" if server.password else "insecure"
    login = f"{server.username}:{server.password or ''}@" if server.username else ""  # quoted already
    port = server.port or {"ssl": 465, "starttls": 587, "insecure": 25}[mode]
    scheme = "mailto" if mode == "insecure" else "mailtos"
    query = urlencode(
        {"from": sender or to, "to": to, "smtp": server.hostname, "mode": mode, "format": "text"}, quote_via=quote
    )
    return f"{scheme}://{login}{server.hostname}:{port}?{query}"


def _block(channel: Channel, address: str) -> SlackWebhook | Webhook:
    if channel == "webhook":
        if urlsplit(address).scheme not in ("http", "https") or not urlsplit(address).hostname:
            raise SettingsError("--webhook needs an address that starts with http:// or https://")
        return Webhook(url=address, headers={"Content-Type": "application/json"})
    if not Apprise().add(address):
        raise SettingsError(f"the address for {channel} cannot be used; copy it once more from where it was given")
    return BLOCKS[channel](url=address)


def _block_name(channel: Channel) -> str:
    return f"bincount-{channel}"


def _automation(channel: Channel, kind: str, block_id: UUID) -> AutomationCore:
    notification = NOTIFICATIONS[kind]
    trigger = EventTrigger(
        expect=set(notification.events),
        match={"prefect.resource.id": MODEL if notification.is_of_model else "prefect.flow-run.*"},
        match_related={} if notification.is_of_model else NIGHTLY_RUNS,
        posture=Posture.Reactive,
        threshold=1,
    )
    return AutomationCore(
        name=f"{PREFIX}{channel} {kind}",
        description=f"Set by `bincount notify`: {notification.subject}.",
        trigger=trigger,
        actions=[_action(channel, kind, block_id)],
    )


def _action(channel: Channel, kind: str, block_id: UUID) -> CallWebhook | SendNotification:
    notification = NOTIFICATIONS[kind]
    ui = (get_current_settings().ui_url or "").rstrip("/")
    plain = "" if channel == "webhook" else PLAIN  # a program that reads it knows what to escape
    body = (MODEL_MESSAGE if notification.is_of_model else RUN_MESSAGE).format(link=LINK.format(ui=ui), plain=plain)
    subject = f"bincount: {notification.subject}"
    if channel == "webhook":
        payload = PAYLOAD.format(body=body, kind=json.dumps(kind), subject=json.dumps(subject))
        return CallWebhook(block_document_id=block_id, payload=payload)
    return SendNotification(block_document_id=block_id, subject=subject, body=body)


def _delete_automations(client: SyncPrefectClient, prefix: str, but: set[str] = frozenset()) -> None:
    for automation in list(read_automations(client)):
        if automation.name.startswith(prefix) and automation.name not in but:
            client.delete_automation(automation.id)


def table(channels: Mapping[Channel, list[str]]) -> pd.DataFrame:
    """Return a table of the channels and the kinds of notifications that each gets."""
    rows = [(channel, ", ".join(kinds)) for channel, kinds in channels.items()]
    return pd.DataFrame(rows, columns=["", "notified of"])
