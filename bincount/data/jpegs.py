"""JPEG files decoded strictly: to the same pixels as Pillow's, but not where data is missing or wrong.

libjpeg-turbo fills what it cannot decode and warns of it; here that is an error. Two kinds of hole it does not notice,
since the data stays in order: zeros that stand for as many blocks as they replace, and scans that are missing.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import simplejpeg

MAX_SCANS = 500  # encoders write some ten; each is a pass over all pixels, which may be a few bytes in the file
ZEROS = bytes(48)  # a block of luma at least, in which 63 frequencies would have one and the same value

SOF_BASELINE, SOF_EXTENDED, SOF_PROGRESSIVE, SOF_PROGRESSIVE_ARITHMETIC = 0xC0, 0xC1, 0xC2, 0xCA
SOF = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # frame headers
DHT, SOS, EOI, COM, ADOBE = 0xC4, 0xDA, 0xD9, 0xFE, 0xEE
APP = range(0xE0, 0xF0)
STANDING_ALONE = {0x01, *range(0xD0, 0xD8)}
MARKER_IN_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)  # other than a restart


@dataclass(frozen=True)
class Segment:
    """A segment of the file: its marker, where it begins and ends, and for a scan where its data ends."""

    marker: int
    start: int
    end: int

    def body(self, data: bytes) -> bytes:
        return data[self.start + 4 : self.end]


def decode(data: bytes, colorspace: str, least_size: tuple[int, int] | None) -> np.ndarray:
    """Return the pixels, (H, W, channels) uint8, decoded at the smallest scale that has the size (width, height).

    colorspace is RGB, or CMYK for a file that has it. Raises ValueError, in words, where the file has a hole.
    """
    _check_scans(data)
    width, height = least_size or (0, 0)
    try:
        return simplejpeg.decode_jpeg(data, colorspace, min_width=width, min_height=height, strict=True)
    except ValueError:
        # The first warning hides the others, and some are of metadata that says nothing about the pixels
        bare = _without_metadata(data)
        return simplejpeg.decode_jpeg(bare, colorspace, min_width=width, min_height=height, strict=True)


def _check_scans(data: bytes) -> None:
    """Raise ValueError for missing or countless scans, and for zeros in one."""
    frame, first_symbols, scans = 0, {}, 0
    unsent = {}  # by component and frequency: how many low bits are still to come
    for segment in _segments(data):
        body = segment.body(data)
        if segment.marker in SOF and not frame:
            frame = segment.marker
            unsent = {component: [None] * 64 for component in body[6::3]}
        elif segment.marker == DHT:
            first_symbols |= _first_symbols(body)
        elif segment.marker == SOS:
            scans += 1
            if scans > MAX_SCANS:
                raise ValueError(f"more than {MAX_SCANS} scans")
            count = body[0] if body else 0
            components, tables = body[1 : 1 + 2 * count : 2], body[2 : 2 + 2 * count : 2]
            first, last, bits = (*body[1 + 2 * count :], 0, 0, 0)[:3]
            if frame not in (SOF_PROGRESSIVE, SOF_PROGRESSIVE_ARITHMETIC):
                first, last, bits = 0, 63, 0  # what else it says is not heeded
            for component in components:
                if component in unsent:
                    unsent[component][first : last + 1] = [bits & 15] * (last + 1 - first)
            if frame in (SOF_BASELINE, SOF_EXTENDED):
                _check_zeros(data, segment.end, [first_symbols.get(table & 15, 0) for table in tables])
            if frame in (SOF_BASELINE, SOF_EXTENDED) and count == len(unsent):
                return  # there is no other scan, and its end need not be looked for
    if any(bits != 0 for frequencies in unsent.values() for bits in frequencies):
        raise ValueError("scans are missing")


def _check_zeros(data: bytes, start: int, first_symbols: list[int]) -> None:
    """Raise ValueError for a run of zeros that is not the code of empty blocks.

    A run of zero bits repeats the first symbol of each table. As the end of a block it stands for an even area, which
    many a picture has; as anything else for frequencies that all have one value, which none has.
    """
    zeros = data.find(ZEROS, start)
    if zeros < 0 or not any(first_symbols):
        return
    end = MARKER_IN_SCAN.search(data, start)
    if end is None or zeros < end.start():
        raise ValueError("a run of zeros in its data")


def _first_symbols(tables: bytes) -> dict[int, int]:
    """The symbol that zero bits stand for, by the number of a table of AC coefficients."""
    symbols = {}
    while len(tables) > 17:
        is_ac, number, count = tables[0] >> 4, tables[0] & 15, sum(tables[1:17])
        if is_ac and count:
            symbols[number] = tables[17]
        tables = tables[17 + count :]
    return symbols


def _without_metadata(data: bytes) -> bytes:
    """The file without comments and what applications keep in it, but for a colour transform that is known."""
    kept, position = [data[:2]], 2
    for segment in _segments(data):
        if segment.marker == SOS:
            break
        body = segment.body(data)
        is_known_adobe = segment.marker == ADOBE and body[:5] == b"Adobe" and body[11:12] in (b"\0", b"\1", b"\2")
        if is_known_adobe or not (segment.marker in APP or segment.marker == COM):
            kept.append(data[segment.start : segment.end])
        position = segment.end
    return b"".join([*kept, data[position:]])


def _segments(data: bytes) -> Iterator[Segment]:
    """The segments up to the end of the picture, or to what is none."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # fills up
            position += 1
        elif marker in STANDING_ALONE:
            position += 2
        elif marker == EOI:
            return
        else:
            end = position + 2 + int.from_bytes(data[position + 2 : position + 4])
            yield Segment(marker, position, end)
            following = MARKER_IN_SCAN.search(data, end) if marker == SOS else None
            if marker == SOS and following is None:
                return
            position = max(following.start() if following else end, position + 4)
