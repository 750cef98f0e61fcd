"""Small sources for the tests: a few bins, each as wanted."""

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from bincount.data import bins, fetch, source, sync
from bincount.data.snapshots import Snapshot
from bincount.problem import Classes, Problem
from bincount.settings import DataConfig


def jpeg(seed: int = 0, size: tuple[int, int] = (64, 48)) -> bytes:
    """A JPEG that decodes; another seed is another picture."""
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def undecodable_jpeg(seed: int = 0) -> bytes:
    """A JPEG with a good header and a good end and nothing in between."""
    whole = jpeg(seed)
    return whole[: whole.index(b"\xff\xda")] + b"\xff\xd9"


def png(width: int, height: int) -> bytes:
    """A PNG of one bit a pixel, all of it black: also one of far more pixels than are read."""
    return png_of(width, height, 1, 0, bytes((1 + (width + 7) // 8) * height))


def png_of(width: int, height: int, bits: int, color: int, rows: bytes = b"", transparent: bytes = b"") -> bytes:
    """A PNG as its header says, whatever the rows hold."""
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    hidden = png_chunk(b"tRNS", transparent) if transparent else b""
    data = png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + hidden + data + png_chunk(b"IEND", b"")


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def record(quantity: object, items: dict[str, int] | None = None) -> bytes:
    """A metadata record with so many items."""
    listed = {asin: {"asin": asin, "name": None, "quantity": count} for asin, count in (items or {}).items()}
    return json.dumps({"BIN_FCSKU_DATA": listed, "EXPECTED_QUANTITY": quantity}).encode()


def add_bin(
    folder: Path,
    image_id: str,
    quantity: object = 1,
    items: dict[str, int] | None = None,
    image: bytes | None = None,
    recorded: bytes | None = None,
) -> None:
    """Put one bin into a folder laid out as the public bucket; its items are its own unless given."""
    (folder / "bin-images").mkdir(parents=True, exist_ok=True)
    (folder / "metadata").mkdir(parents=True, exist_ok=True)
    if items is None and isinstance(quantity, int) and quantity > 0:
        items = {f"ITEM{image_id}": quantity}
    seed = sum(map(ord, image_id)) * 1000 + int(image_id) if image_id.isdecimal() else 0
    (folder / "bin-images" / f"{image_id}.jpg").write_bytes(jpeg(seed) if image is None else image)
    (folder / "metadata" / f"{image_id}.json").write_bytes(record(quantity, items) if recorded is None else recorded)


def add_thirty_bins(folder: Path) -> None:
    """Five bins of each class 0 to 5; beside them one that is broken, and one with more items than the classes."""
    for number in range(30):
        add_bin(folder, f"{number * 40:05d}", number % 6)
    add_bin(folder, "90000", image=b"")
    add_bin(folder, "90040", 17)


def bring(folder: Path, dataset: Path, config: DataConfig | None = None) -> fetch.SyncReport:
    """A whole sync, as the flow does it."""
    config = config or DataConfig(source=str(folder))
    opened = source.open_source(config)
    plan = sync.plan(dataset, opened, config)
    batches = [fetch.fetch_batch(dataset, opened, plan.batch(number), config) for number in range(plan.num_batches)]
    bins.merge(dataset)
    return sum(batches, fetch.SyncReport())


def described_snapshot(
    folder: Path, classes: Classes, source: str = "s3://aft-vbi-pds", problem: Problem | None = None
) -> Snapshot:
    """Write the description of a snapshot, without a manifest."""
    path = folder / "bins" / "snapshots" / "0123456789abcdef0123456789abcdef"
    path.mkdir(parents=True)
    about = {"digest": path.name, "num_images": 1616, "classes": classes.model_dump(), "source": source}
    about |= {"problem": problem.model_dump()} if problem else {}
    (path / "snapshot.json").write_text(json.dumps(about))
    return Snapshot(path, path.name, 1616)
