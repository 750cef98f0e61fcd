"""JPEG files decoded strictly: to the same pixels as Pillow's, but not where data is missing or wrong.

libjpeg-turbo fills what it cannot decode and warns of it; here that is an error. Two kinds of hole it does not notice,
since the data stays in order: zeros that stand for as many blocks as they replace, and scans that are missing. Both are
looked for here. Other foreign data that happens to stand for as many blocks as it replaces is not found.
"""

import re
from collections.abc import Iterator

import numpy as np
import simplejpeg

MAX_SCANS = 100  # encoders write some ten; each passes over all pixels, however short it is
UNNAMED_SUBSAMPLING = "Could not determine subsampling"
ZEROS = bytes(48)  # a block of luma at least, in which 63 frequencies would have one and the same value

DHT, SOS, EOI, COM, ADOBE = 0xC4, 0xDA, 0xD9, 0xFE, 0xEE
FRAMES = {*range(0xC0, 0xD0)} - {DHT, 0xC8, 0xCC}
PROGRESSIVE = {0xC2, 0xCA}
HUFFMAN_SEQUENTIAL = {0xC0, 0xC1}
METADATA = {*range(0xE0, 0xF0), COM}
STANDING_ALONE = {0x01, *range(0xD0, 0xD8)}
MARKER_IN_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)  # other than a restart


def decode(data: bytes, colorspace: str, least_size: tuple[int, int] | None) -> np.ndarray | None:
    """Return the pixels, (H, W, channels) uint8, decoded at the smallest scale that has the size (width, height).

    colorspace is RGB, or CMYK for a file that has it. Raises ValueError, in words, where the file has a hole. Returns
    None for a file without missing scans or zeros whose subsampling is so rare that TurboJPEG has no name for it.
    """
    _check_scans(data)
    if ZEROS in data:
        _check_zeros(data)
    try:
        return _decode_strictly(data, colorspace, least_size)
    except ValueError as error:
        if UNNAMED_SUBSAMPLING in str(error):
            return None
    # The first warning hides the others, and some are of metadata that says nothing about the pixels
    return _decode_strictly(_without_metadata(data), colorspace, least_size)


def _decode_strictly(data: bytes, colorspace: str, least_size: tuple[int, int] | None) -> np.ndarray:
    width, height = least_size or (0, 0)
    return simplejpeg.decode_jpeg(data, colorspace, min_width=width, min_height=height, strict=True)


def _check_scans(data: bytes) -> None:
    """Raise ValueError where a picture's bits were not all sent, which its data cannot tell, or in countless scans."""
    frame, num_scans = 0, 0
    unsent = {}  # by component and frequency: how many low bits are still to come
    for marker, start, end in _segments(data):
        if marker in FRAMES and not frame:
            frame, unsent = marker, {component: [None] * 64 for component in data[start + 6 : end : 3]}
        elif marker == SOS:
            num_scans += 1
            if num_scans > MAX_SCANS:
                raise ValueError(f"more than {MAX_SCANS} scans")
            components, first, last, bits = _scan(data[start:end], frame in PROGRESSIVE)
            for component in components:
                if component in unsent:
                    unsent[component][first : last + 1] = [bits] * (last + 1 - first)
            if len(components) == len(unsent) and frame not in PROGRESSIVE:
                return  # there is no other scan, and its end need not be looked for
    if any(bits != 0 for frequencies in unsent.values() for bits in frequencies):
        raise ValueError("scans are missing")


def _scan(body: bytes, is_progressive: bool) -> tuple[bytes, int, int, int]:
    """Return a scan's components, its first and last frequency, and how many low bits it leaves to others."""
    end = 1 + 2 * body[0]
    if not is_progressive:
        return body[1:end:2], 0, 63, 0  # whatever is there; decoders do not heed it
    return body[1:end:2], body[end], min(body[end + 1], 63), body[end + 2] & 15


def _check_zeros(data: bytes) -> None:
    """Raise ValueError for a run of zeros, in the data of a sequential scan, that no encoder writes.

    Zero bits repeat the first symbol of each table. Where that is the end of a block, they stand for an even area, as
    many a picture has one; else for frequencies that all have one value, as none has.
    """
    frame, first_symbols = 0, {}
    for marker, start, end in _segments(data):
        if marker in FRAMES:
            frame = marker
        elif marker == DHT:
            first_symbols |= _first_symbols(data[start:end])
        elif marker == SOS and frame in HUFFMAN_SEQUENTIAL:
            tables = data[start + 2 : start + 1 + 2 * data[start] : 2]
            scan_end = MARKER_IN_SCAN.search(data, end)
            zeros = data.find(ZEROS, end, scan_end.start() if scan_end else None)
            if zeros >= 0 and any(first_symbols.get(table & 15) for table in tables):
                raise ValueError("a run of zeros in its data")


def _first_symbols(tables: bytes) -> dict[int, int]:
    """Return the symbol that zero bits stand for, by the number of a table of AC coefficients."""
    symbols = {}
    while len(tables) > 17:
        is_ac, number, count = tables[0] >> 4, tables[0] & 15, sum(tables[1:17])
        if is_ac and count:
            symbols[number] = tables[17]
        tables = tables[17 + count :]
    return symbols


def _without_metadata(data: bytes) -> bytes:
    """Return the file without comments and what applications keep in it, but for a colour transform that is known."""
    kept, position = [data[:2]], 2
    for marker, start, end in _segments(data):
        if marker == SOS:
            break
        is_known_adobe = marker == ADOBE and data[start : start + 5] == b"Adobe" and data[start + 11] <= 2
        if is_known_adobe or marker not in METADATA:
            kept.append(data[position:end])
        position = end
    return b"".join([*kept, data[position:]])


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the marker of each segment up to the end of the picture, and where its content starts and ends."""
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
            end = position + 2 + max(int.from_bytes(data[position + 2 : position + 4]), 2)
            yield marker, position + 4, end
            position = end
            if marker == SOS:
                following = MARKER_IN_SCAN.search(data, end)
                if following is None:
                    return
                position = following.start()
