"""Tell people what became of the nights: a block holds where to, and an automation for each kind of news sends it."""

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
from flows import automations
from flows.bootstrap import connect

Channel = Literal["slack", "email", "webhook"]
Addresses = Mapping[Channel, str]
# Prefect has no block for SMTP; Slack's sends to every kind of address that Apprise knows, mailto:// among them.
BLOCKS = {"slack": SlackWebhook, "email": SlackWebhook, "webhook": Webhook}
PREFIX = f"{automations.PREFIX}tell "
# Other projects on the same server may have a deployment of that name too.
NIGHTS = [{"prefect.resource.role": "deployment", "prefect.resource.name": "nightly"}, automations.OURS]
MODEL = "bincount.model.*"  # resource of the events that a night emits
PROMOTED = "bincount.champion.promoted"
DRIFT = "bincount.drift.found"


@dataclass(frozen=True)
class News:
    """One kind of news: the events that bring it, and the subject of the message."""

    events: tuple[str, ...]
    subject: str

    @property
    def is_of_model(self) -> bool:
        return self.events[0].startswith("bincount.")


NEWS = {
    "failed": News(("prefect.flow-run.Failed", "prefect.flow-run.TimedOut"), "a night failed"),
    "crashed": News(("prefect.flow-run.Crashed",), "a night crashed"),
    "late": News(("prefect.flow-run.Late",), "a night is late"),
    # The deployment's limit cancels a night that comes while another one goes on.
    "skipped": News(("prefect.flow-run.Skipped", "prefect.flow-run.Cancelled"), "a night was skipped"),
    "promoted": News((PROMOTED,), "a new champion"),
    "drift": News((DRIFT,), "the new images are unlike the old ones"),
}

OF_RUN = """\
{{{{ flow_run.name{plain} }}}} is {{{{ flow_run.state.name }}}}, start {{{{ flow_run.run_count }}}}.
{{{{ (flow_run.state.message or "No reason was given."){plain} }}}}
{link}"""
OF_MODEL = """\
{{{{ event.resource.name{plain} }}}} version {{{{ event.payload.version }}}}: {{{{ event.payload.words{plain} }}}}
{{% if flow_run %}}{link}{{% endif %}}"""
# In a chat <!channel> calls everybody; names and reasons may hold anything.
PLAIN = ' | replace("<", "‹") | replace(">", "›")'
LINK = "{ui}/runs/flow-run/{{{{ flow_run.id }}}}"
# {% set %}, so that the whole text becomes one JSON string whatever is in it
PAYLOAD = (
    '{{% set text %}}{body}{{% endset %}}{{"kind": {kind}, "subject": {subject}, "text": {{{{ text | tojson }}}}}}'
)


def tell(addresses: Addresses, only: Sequence[str] = ()) -> None:
    """Send news to these addresses from now on, and to each of them no other than those named, where some are.

    A slack or webhook address is a URL, that of email what email_url makes. Addresses go into Prefect's blocks, which
    keep them encrypted. Raises SettingsError for what cannot be an address, or no kind of news.
    """
    kinds = tuple(only) or tuple(NEWS)
    if unknown := set(kinds) - set(NEWS):
        raise SettingsError(f"--only {', '.join(sorted(unknown))}: the kinds of news are {', '.join(NEWS)}")
    blocks = {channel: _block(channel, address) for channel, address in addresses.items()}
    with connect() as client:
        for channel, block in blocks.items():
            block_id = block.save(_block_name(channel), overwrite=True)
            wanted = [_automation(channel, kind, block_id) for kind in kinds]
            for automation in wanted:
                automations.ensure(client, automation)
            _delete_automations(client, f"{PREFIX}{channel} ", {automation.name for automation in wanted})


def silence() -> list[Channel]:
    """Remove what tell has made; the channels that there were."""
    with connect() as client:
        channels = list(_told(client))
        _delete_automations(client, PREFIX)
        for channel, kind in BLOCKS.items():
            try:
                block = client.read_block_document_by_name(_block_name(channel), kind.get_block_type_slug())
            except ObjectNotFound:
                continue
            client.delete_block_document(block.id)
    return channels


def told() -> dict[Channel, list[str]]:
    """The kinds of news by channel."""
    with connect() as client:
        return _told(client)


def email_url(to: str, smtp: str, sender: str | None = None) -> str:
    """The address of email to somebody, through smtp://[USER:PASSWORD@]HOST[:PORT], or smtps:// for TLS from the start.

    smtp:// changes to TLS where a password is sent; without one it is a relay nearby and spoken to in the clear.
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
    news = NEWS[kind]
    trigger = EventTrigger(
        expect=set(news.events),
        match={"prefect.resource.id": MODEL if news.is_of_model else "prefect.flow-run.*"},
        match_related={} if news.is_of_model else NIGHTS,
        posture=Posture.Reactive,
        threshold=1,
    )
    return AutomationCore(
        name=f"{PREFIX}{channel} {kind}",
        description=f"Set by `bincount notify`: {news.subject}.",
        trigger=trigger,
        actions=[_action(channel, kind, block_id)],
    )


def _action(channel: Channel, kind: str, block_id: UUID) -> CallWebhook | SendNotification:
    news = NEWS[kind]
    ui = (get_current_settings().ui_url or "").rstrip("/")
    plain = "" if channel == "webhook" else PLAIN  # there, whoever reads it knows what to escape
    body = (OF_MODEL if news.is_of_model else OF_RUN).format(link=LINK.format(ui=ui), plain=plain)
    subject = f"bincount: {news.subject}"
    if channel == "webhook":
        payload = PAYLOAD.format(body=body, kind=json.dumps(kind), subject=json.dumps(subject))
        return CallWebhook(block_document_id=block_id, payload=payload)
    return SendNotification(block_document_id=block_id, subject=subject, body=body)


def _told(client: SyncPrefectClient) -> dict[Channel, list[str]]:
    found = {}
    for automation in automations.everything(client):
        if automation.name.startswith(PREFIX):
            channel, _, kind = automation.name.removeprefix(PREFIX).partition(" ")
            found.setdefault(channel, []).append(kind if automation.enabled else f"{kind} (paused)")
    return found


def _delete_automations(client: SyncPrefectClient, prefix: str, but: set[str] = frozenset()) -> None:
    for automation in list(automations.everything(client)):
        if automation.name.startswith(prefix) and automation.name not in but:
            client.delete_automation(automation.id)


def table(channels: Mapping[Channel, list[str]]) -> pd.DataFrame:
    """Who is told what."""
    return pd.DataFrame([(channel, ", ".join(kinds)) for channel, kinds in channels.items()], columns=["", "told of"])
