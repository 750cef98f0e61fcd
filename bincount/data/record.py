"""Parse the metadata JSON of a bin: what the warehouse believes is in it."""

import json
import re
from dataclasses import dataclass

SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")  # in JSON's writing, and in UTF-8 that is none
MAX_BYTES = 1_000_000  # the largest of the public bucket's records is far below


class BadRecord(ValueError):
    """The reason why a record cannot be used, in a few words, the kind first: `kind: detail`."""


@dataclass(frozen=True)
class Record:
    """quantity is EXPECTED_QUANTITY; items is how many of each product (ASIN) are listed.

    The two need not agree: in the public data the listed quantities do not always add up to the expected one.
    """

    quantity: int
    items: dict[str, int]


def parse(data: bytes) -> Record:
    """Read one record. Raises BadRecord with what is wrong."""
    if len(data) > MAX_BYTES:
        raise BadRecord(f"malformed record: {len(data):,} bytes")
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadRecord(f"malformed record: {error}") from None
    if not isinstance(content, dict):
        raise BadRecord("malformed record: not a JSON object")
    if SURROGATE.search(data) and not _is_unicode(content):
        raise BadRecord("malformed record: half of a surrogate pair, which is no character, in its texts")
    quantity = content.get("EXPECTED_QUANTITY")
    if quantity is None:
        raise BadRecord("no quantity")
    if not _is_count(quantity):
        raise BadRecord(f"unusable quantity: {str(quantity)[:40]!r}")
    if quantity < 0:
        raise BadRecord(f"negative quantity: {quantity}")
    if quantity > 32_767:  # the manifest keeps it as int16
        raise BadRecord(f"unusable quantity: {quantity}")
    return Record(quantity=quantity, items=_items(content.get("BIN_FCSKU_DATA")))


def _is_unicode(content: object) -> bool:
    """Return whether every text in a record can be written to a file; JSON can hold halves of characters."""
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _items(listed: object) -> dict[str, int]:
    """Return the products with a usable quantity: items only show whether two photos are of one bin."""
    if not isinstance(listed, dict):
        return {}
    quantities = {asin: item.get("quantity") for asin, item in listed.items() if isinstance(item, dict)}
    return {asin: quantity for asin, quantity in quantities.items() if _is_count(quantity) and 0 < quantity <= 32_767}


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
