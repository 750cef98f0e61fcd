"""List what is under a prefix of a bucket, or in a folder, page by page, whatever the names are.

A page is a record batch of PAGE: key, and tag, `etag/size`, by which a changed object is known. Where problem is not
null the object cannot be read by its name, which is given as text of one line, and problem says why.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import obstore
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from obstore.exceptions import BaseError, InvalidPathError
from obstore.store import S3Store

from bincount.data import names

PAGE = pa.schema([("key", pa.string()), ("tag", pa.string()), ("problem", pa.string())])
ROWS_IN_PAGE = 10_000
NO_FILE = {
    errno.ENOENT,
    errno.EACCES,
    errno.ELOOP,
    errno.ENOTDIR,
    errno.ENAMETOOLONG,
}  # faults of one name, not the disk
MOST_NAMES = 1000  # of one folder, from which a layout is detected
LEADS_OUT = "a link that leads out of the source, see --follow-links"
MAX_LINKS = 4  # links to folders that may follow each other: two in each of many folders would make millions of paths

Entry = tuple[str, str, str | None]  # key, tag, problem
Ask = Callable[[str, str], Iterator[list[dict]]]  # prefix, key to begin after -> pages of entries as boto3 gives them


@dataclass
class Skipped:
    """Folders whose contents are not listed, with the reason; a listing adds to them as it goes."""

    folders: dict[str, str] = field(default_factory=dict)


def bucket_pages(store: S3Store, prefix: str, ask: Ask) -> Iterator[pa.RecordBatch]:
    """List a bucket below a prefix (such as `bin-images/`, or all of it) in the order of keys.

    The client refuses a page with one key that it takes for no path. Such a page is asked for by ask(prefix, after),
    which yields the entries of ListObjectsV2 as boto3 gives them, and then the client goes on behind it.
    """
    after = ""
    while True:
        try:
            for chunk in obstore.list(
                store, prefix=prefix or None, offset=after or None, chunk_size=1000, return_arrow=True
            ):
                listed = pa.record_batch(chunk)
                yield _page(listed)
                after = listed["path"][-1].as_py() if len(listed) else after
        except BaseError as error:
            if not refuses_a_key(error):
                raise
            for entries in ask(prefix, after):
                yield _page_of_entries(entries)
                after = entries[-1]["Key"]
                if not names.why_unusable(after):
                    break
            else:
                return
        else:
            return


def refuses_a_key(error: Exception) -> bool:
    """Return whether the client refuses a page of a listing for a key in it: it is no path, or it cannot be read."""
    return isinstance(error, InvalidPathError) or "invalid list response" in str(error)


def exact_bucket_pages(prefix: str, ask: Ask) -> Iterator[pa.RecordBatch]:
    """List as bucket_pages does, with every key as it is: the client drops slashes at the ends of keys."""
    for entries in ask(prefix, ""):
        yield _page_of_entries(entries)


def size_of(tag: str) -> int:
    """Return the bytes of the object that a tag was made for."""
    return int(tag.rsplit("/", 1)[1])


def total_size(tags: pd.Series) -> int:
    """Return the bytes of all objects that tags were made for; null tags count nothing."""
    sizes = pc.extract_regex(pa.array(tags, pa.string()), "/(?P<size>[0-9]+)$")
    return pc.sum(pc.struct_field(sizes, "size").cast(pa.int64())).as_py() or 0


def is_content(data: bytes, tag: str) -> bool:
    """Return whether data is what a tag was made for: S3's etag of a plain upload is its MD5; of others it is False."""
    etag = tag.rsplit("/", 1)[0]
    return hashlib.md5(data, usedforsecurity=False).hexdigest() == etag


def _page(listed: pa.RecordBatch) -> pa.RecordBatch:
    key = listed["path"].cast(pa.string())
    version = pc.coalesce(listed["e_tag"], listed["last_modified"].cast(pa.string()))
    tag = pc.binary_join_element_wise(pc.utf8_trim(version, '"'), listed["size"].cast(pa.string()), "/")
    problem = pa.nulls(len(key), pa.string())
    if pc.any(pc.match_substring_regex(key, names.SUSPICIOUS)).as_py():
        keys = key.to_pylist()
        problem = pa.array([names.why_unusable(key) or None for key in keys], pa.string())
        key = pa.array([names.printable(key) for key in keys])
    return pa.record_batch([key, tag, problem], schema=PAGE)


def _page_of_entries(entries: list[dict]) -> pa.RecordBatch:
    objects = [entry for entry in entries if not entry["Key"].endswith("/")]  # such are made to show a folder
    return _page_of(
        (
            names.printable(entry["Key"]),
            f"{(entry.get('ETag') or str(entry['LastModified'])).strip(chr(34))}/{entry['Size']}",
            names.why_unusable(entry["Key"]) or None,
        )
        for entry in objects
    )


def _page_of(entries: Iterable[Entry]) -> pa.RecordBatch:
    columns = list(zip(*entries, strict=True)) or [(), (), ()]
    return pa.record_batch([pa.array(column, pa.string()) for column in columns], schema=PAGE)


def folder_pages(root: Path, prefix: str, follow_links: bool, skipped: Skipped) -> Iterator[pa.RecordBatch]:
    """List the files below a prefix of a folder; links to files and folders inside it count as what they point to.

    A link that leads out of the folder is listed with its problem unless follow_links. Folders that are skipped, such
    as one that leads back to where it is, are added to skipped. Raises OSError where the disk fails.
    """
    page = []
    for entry in _walk(root, prefix, follow_links, skipped):
        page.append(entry)
        if len(page) == ROWS_IN_PAGE:
            yield _page_of(page)
            page = []
    yield _page_of(page)


def names_in_folder(root: Path, below: str, follow_links: bool) -> tuple[set[str], set[str]]:
    """Find the folders and files right below a folder that can be listed; a thousand of them are enough."""
    folders, files = set(), set()
    try:
        with os.scandir(root / below) as entries:
            for entry in islice(entries, MOST_NAMES):
                if not names.why_unusable(entry.name) and (follow_links or not _leads_out(entry, root)):
                    (folders if _is_folder(entry) else files).add(entry.name)
    except PermissionError:
        if not below:
            raise
    return folders, files


def links_out(root: Path) -> list[str]:
    """Find the links right below a folder that lead out of it."""
    with os.scandir(root) as entries:
        return sorted(names.printable(entry.name) for entry in entries if _leads_out(entry, root))


def _leads_out(entry: os.DirEntry, root: Path) -> bool:
    return entry.is_symlink() and not _is_inside(os.path.realpath(entry.path), os.path.realpath(root))


@dataclass(frozen=True)
class _Folder:
    """A folder to list: the path to open, its key with a slash at the end (empty for the root), and its real path."""

    path: str
    key: str
    real: str
    came_from: tuple[str, ...] = ()  # the real paths of folders that hold the links that were followed


def _walk(root: Path, prefix: str, follow_links: bool, skipped: Skipped) -> Iterator[Entry]:
    real_root = os.path.realpath(root)
    first = _Folder(os.path.join(root, prefix.rstrip("/")), prefix, os.path.realpath(root / prefix))
    if not follow_links and not _is_inside(first.real, real_root):
        skipped.folders[prefix] = LEADS_OUT
        return
    folders = [first]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder.path) as entries:
                for entry in entries:
                    key = folder.key + entry.name
                    link_to = os.path.realpath(entry.path) if entry.is_symlink() else None
                    if _is_folder(entry):
                        below = _enter(folder, entry, link_to)
                        if reason := _why_not_entered(below, real_root, link_to, follow_links):
                            skipped.folders[f"{names.printable(key)}/"] = reason
                        else:
                            folders.append(below)
                    else:
                        leads_out = link_to is not None and not follow_links and not _is_inside(link_to, real_root)
                        yield _listed(entry, key, leads_out)
        except FileNotFoundError:  # there is none, or it was removed meanwhile
            pass
        except PermissionError:
            if folder is first:
                raise
            skipped.folders[names.printable(folder.key)] = "it may not be read"


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _enter(folder: _Folder, entry: os.DirEntry, link_to: str | None) -> _Folder:
    key = f"{folder.key}{entry.name}/"
    if link_to is None:
        return _Folder(entry.path, key, f"{folder.real}/{entry.name}", folder.came_from)
    return _Folder(entry.path, key, link_to, (*folder.came_from, folder.real))


def _why_not_entered(below: _Folder, real_root: str, link_to: str | None, follow_links: bool) -> str:
    if link_to is None:
        return ""
    if not follow_links and not _is_inside(link_to, real_root):
        return LEADS_OUT
    if any(_is_inside(passed, link_to) for passed in below.came_from):
        return "a link that leads back to a folder that holds it"
    return "a link behind more links than are followed" if len(below.came_from) > MAX_LINKS else ""


def _listed(entry: os.DirEntry, key: str, leads_out: bool) -> Entry:
    """Return the entry of a file, or of what is in its place; its tag is the one that the client makes for a file."""
    problem = names.why_unusable(key) or None
    try:
        status = entry.stat(follow_symlinks=not leads_out)
    except OSError as error:
        if error.errno not in NO_FILE:
            raise
        return names.printable(key), "/0", f"it cannot be read ({error.strerror})"
    if leads_out:
        problem = f"it is {LEADS_OUT}"
    elif not stat.S_ISREG(status.st_mode):
        problem = "it is no file"
    tag = f"{status.st_ino:x}-{status.st_mtime_ns // 1000:x}-{status.st_size:x}/{status.st_size}"
    return names.printable(key), tag, problem


def _is_inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")
