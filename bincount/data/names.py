"""Names of objects and files: which can be an id and a file here, and how all others are shown.

What stands in a bucket or on a disk may have every name: with line breaks, bytes that are no UTF-8, empty parts. Such a
name becomes no path, no cell of a table and no line of a log as it is.
"""

import re
from pathlib import PurePosixPath

LONGEST_PART = 255  # bytes between two slashes, which is the most that file systems take
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")  # line and paragraph separators break lines as well
SUSPICIOUS = r"[\x{80}-\x{9f}\x{2028}\x{2029}]|[^/]{64,}"  # as RE2 writes it: what obstore lets pass
HIDDEN = r"(?:^|/)(?:\.(?:[^./]|\.[^/])|__MACOSX/|@eaDir/|\$RECYCLE\.BIN/)"  # what tools keep for themselves
NO_SUFFIX = "without a suffix"


def printable(text: str) -> str:
    r"""Return any text as one line of Unicode, with \x0a or \u2028 for what is no UTF-8 or would break the line."""
    if is_torn(text):
        try:
            text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        except UnicodeEncodeError:  # surrogates that stand for no byte, as JSON can write them
            text = text.encode("utf-8", "backslashreplace").decode()
    return CONTROL.sub(lambda found: _escaped(found[0]), text)


def why_unusable(key: str) -> str:
    """Say why a key can be no path here, in a few words; empty where it can.

    Characters that stand for bytes which are no UTF-8, as Python reads them from a disk, count as such.
    """
    if is_torn(key):
        return "it is not UTF-8"
    if CONTROL.search(key):
        return "it holds a line break or another control character"
    parts = key.split("/")
    if "" in parts:
        return "it has an empty part"
    if "." in parts or ".." in parts:
        return "it has a part that leads elsewhere"
    longest = max(len(part.encode()) for part in parts)
    return f"it has a part of {longest} bytes, more than a file may" if longest > LONGEST_PART else ""


def suffix(name: str) -> str:
    """Return the suffix of a file's name, as it is counted in messages; one that is too odd to name is none."""
    found = PurePosixPath(name).suffix
    return found if re.fullmatch(r"\.\w{1,12}", found) else NO_SUFFIX


def is_torn(name: str) -> bool:
    """Return whether a text has surrogates in it, so that no file can hold it as UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return True
    return False


def _escaped(character: str) -> str:
    return f"\\x{ord(character):02x}" if ord(character) < 256 else f"\\u{ord(character):04x}"
