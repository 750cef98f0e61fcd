"""The parts of pages that open in a browser without internet: style, script and data inside one HTML file.

A policy in such a page lets no other script run than its own, and lets nothing be loaded.
"""

import base64
import hashlib
import json
import re
from importlib import resources

from bincount import reporting

SURROGATES = re.compile(r"[\ud800-\udfff]")  # Python's signs for the bytes of a path that is not UTF-8


def read(name: str, package: str = reporting.__name__) -> str:
    """Return a file that lies beside the modules of a package."""
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")


def script_digest(script: str) -> str:
    """Return the digest by which a page's policy knows its own script."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def as_script_data(content: dict) -> str:
    """Write JSON that ends no script element and begins no comment, whatever the names in it are."""
    text = json.dumps(content, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
