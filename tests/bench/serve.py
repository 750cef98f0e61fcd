"""Measure how fast `bincount serve` answers, beside `mlflow models serve` and LitServe, with the same model.

All three answer the same requests: a photo as base64 in MLflow's dataframe_split. wrk asks in closed loops of some
clients, each of which sends its next photo when it has the answer to the last. The three take turns, round by round,
and so does the limit: the bare network, which decodes the same photos and predicts them in full batches, in one
process without HTTP.

Where there are two cores or more, the last is left to wrk, and what is measured has the others, the network too. CPU
time and memory are those of a server's processes together; of memory, pages that several share count once. LitServe
batches and decodes as its documentation does, and runs the network as it was trained.

--memory N sends N requests at 64 clients to `bincount serve` and compares its memory in the first tenth with the last.

Needs the group `bench`, wrk and taskset (Debian and Ubuntu: apt-get install wrk util-linux), and Linux' /proc.
"""

import argparse
import base64
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Imports beyond these are made where they are needed: a process should hold what it measures and nothing else.

OURS, MLFLOW, LITSERVE, LIMIT = "bincount serve", "mlflow models serve", "LitServe", "bare network"
PHOTO = (560, 420)  # of drawn photos: they have some 50 kB then, as the real ones do
BATCH = 32  # as the service has it
STARTED = 300  # seconds that a server may take
ANSWERS = 3  # of the slowest server to each client, at least: with fewer, those that take longest are never counted
TARGETS = "wanted: at 64 clients 3x the requests/s of mlflow models serve with a lower p99; at 1 client no fewer; "
TARGETS += "85 % of the bare network; memory within 2 %"

SCRIPT = """
local bodies = {}
function init(arguments)
  for position = 1, tonumber(arguments[2]) do
    local file = io.open(arguments[1] .. "/" .. position .. ".json", "rb")
    bodies[position] = file:read("*a")
    file:close()
  end
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/json"
end
local last = 0
function request()
  last = last % #bodies + 1
  return wrk.format(nil, nil, nil, bodies[last])
end
function done(summary, latency, requests)
  local errors = 0
  for _, count in pairs(summary.errors) do errors = errors + count end
  io.write(string.format('\\n{"requests": %d, "seconds": %.6f, "p50": %.3f, "p99": %.3f, "errors": %d}\\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1000, latency:percentile(99) / 1000, errors))
end
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--images", type=Path, help="a folder of JPEG files [default: photos are drawn]")
    parser.add_argument("--count", type=int, default=200, help="photos, at most")
    parser.add_argument("--model", default="mobilenet_v2")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement, at least, and of the warm-up")
    parser.add_argument("--skip-absent", action="store_true", help="leave out what is not installed")
    parser.add_argument("--memory", type=int, metavar="N", help="measure the memory over so many requests instead")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)  # one process of its own
    options = parser.parse_args()
    if options.measure:
        name, *values = options.measure
        MEASUREMENTS[name](*values)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # tidy up then too
    for program in ("wrk", "taskset"):
        if not shutil.which(program):
            sys.exit(f"the benchmark needs {program}: apt-get install wrk util-linux")
    with tempfile.TemporaryDirectory(prefix="bench-serve-") as name:
        os.environ |= {
            "TMPDIR": name,  # for what servers leave
            "PYTHONDONTWRITEBYTECODE": "",
            "PYTHONPYCACHEPREFIX": f"{name}/compiled",
            "MLFLOW_TRACKING_URI": f"sqlite:///{name}/mlflow.db",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "HOME": name,
        }
        values = (name, options.images or "", options.count, options.model, options.image_size)
        prepared = json.loads(_run("prepare", *values).stdout.splitlines()[-1])
        print(f"{options.model}, {options.image_size} pixels; {prepared['photos']} photos of", end=" ")
        print(
            f"{prepared['kilobytes']:.0f} kB; {os.cpu_count()} cores, of which servers have {CORES}, wrk {WRK_CORES};"
        )
        print(f"load {', '.join(f'{load:.1f}' for load in os.getloadavg())} at the start; {TARGETS}")
        names = [OURS] if options.memory else [OURS, MLFLOW, LITSERVE]
        if LITSERVE in names and prepared["litserve"] is None:
            if not options.skip_absent:
                sys.exit("the benchmark needs litserve: uv pip install --group bench")
            names.remove(LITSERVE)
            print(f"{LITSERVE} is left out: it needs litserve: uv pip install --group bench")
        with contextlib.ExitStack() as stack:
            servers = [stack.enter_context(running(name, Path(os.environ["TMPDIR"]))) for name in names]
            if options.memory:
                measure_memory(servers[0], options.memory, prepared["photos"])
            else:
                compare(servers, options, prepared["photos"])


# --- servers ---


@dataclass(frozen=True)
class Server:
    """A server that runs, by the id of its first process."""

    name: str
    url: str
    pid: int

    def processes(self) -> list[int]:
        """The ids of its processes."""
        parents = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        found = [self.pid]
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found

    def cpu_seconds(self) -> float:
        """The time that its processes have computed so far."""
        ticks = 0
        for pid in self.processes():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def memory(self) -> float:
        """The memory of its processes in MiB, shared pages counted once."""
        kilobytes = 0
        for pid in self.processes():
            with contextlib.suppress(OSError):
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                kilobytes += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        return kilobytes / 1024


@contextlib.contextmanager
def running(name: str, folder: Path) -> Iterator[Server]:
    """Start a server and wait until it answers; stop it and what it has started."""
    port = _free_port()
    commands = {
        OURS: ["-m", "flows.cli", "serve", folder / "model", "--port", port],
        MLFLOW: ["-m", "mlflow", "models", "serve", "--model-uri", (folder / "uri").read_text(), "--port", port],
        LITSERVE: [Path(__file__).with_name("serve_litserve.py"), folder / "model", port],
    }
    commands[MLFLOW] += ["--env-manager", "local", "--host", "127.0.0.1"]
    paths, ready = {OURS: "/invocations", MLFLOW: "/invocations", LITSERVE: "/predict"}, {OURS: "/ping"}
    command = ["taskset", "-c", CORES, sys.executable, *map(str, commands[name])]
    root = Path(__file__).parents[2]
    log = folder / f"{name}.log".replace(" ", "-")
    environment = os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),  # mlflow starts uvicorn
        "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, cwd=folder, start_new_session=True
        )
    server = Server(name, f"http://127.0.0.1:{port}{paths[name]}", process.pid)
    try:
        _wait(process, f"http://127.0.0.1:{port}{ready.get(name, '/health')}", log)
        yield server
    finally:
        pids = server.processes()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def _wait(process: subprocess.Popen, url: str, log: Path) -> None:
    deadline = time.monotonic() + STARTED
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.2)
    sys.exit(f"{url} does not answer: {log.read_text()[-3000:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# --- measurements ---


def compare(servers: list[Server], options: argparse.Namespace, num_photos: int) -> None:
    """The table of servers and clients, and the limit."""
    most = max(options.clients)
    slowest = min(_load(server, most, options.seconds, num_photos)["rate"] for server in servers)
    results = {(server.name, clients): [] for clients in options.clients for server in servers}
    limits = []
    for number in range(options.rounds):
        limits.append(json.loads(_run("limit", os.environ["TMPDIR"], options.seconds, pinned=True).stdout)["rate"])
        for clients in options.clients:
            seconds = max(options.seconds, ANSWERS * clients / slowest)
            shift = number % len(servers)
            for server in servers[shift:] + servers[:shift]:
                results[server.name, clients].append(_load(server, clients, seconds, num_photos))
    print(f"\n{LIMIT}, decoding and predicting {BATCH} at once: {_spread(limits, '.1f')} images/s")
    head = f"{'clients':>8}  {'server':21}{'requests/s':>25}{'p50 ms':>9}{'p99 ms':>9}{'CPU ms':>8}{'MiB':>7}"
    print(f"{head}{'ours / it':>20}{'p99 ours / it':>20}{'of the limit':>14}")
    for (name, clients), found in results.items():
        ours = results[OURS, clients]
        rates = [one["rate"] for one in found]
        middle = {key: statistics.median(one[key] for one in found) for key in ("p50", "p99", "cpu", "memory")}
        ratios = [mine["rate"] / one["rate"] for mine, one in zip(ours, found, strict=True)]
        slower = [mine["p99"] / one["p99"] for mine, one in zip(ours, found, strict=True)]
        share = statistics.median(rate / limit for rate, limit in zip(rates, limits, strict=True))
        row = f"{clients:>8}  {name:21}{_spread(rates, '.1f'):>25}{middle['p50']:>9.0f}{middle['p99']:>9.0f}"
        row += f"{middle['cpu']:>8.1f}{middle['memory']:>7.0f}"
        print(f"{row}{_spread(ratios, '.2f'):>20}{_spread(slower, '.2f'):>20}{share:>14.1%}")
    print(f"load {', '.join(f'{load:.1f}' for load in os.getloadavg())} at the end")


def measure_memory(server: Server, num_requests: int, num_photos: int) -> None:
    """The memory in the first and in the last tenth of the requests."""
    rate = _load(server, 64, 5, num_photos)["rate"]
    tenths, sent = [], 0
    for _ in range(10):
        load = _load(server, 64, max(1, num_requests / 10 / rate), num_photos)
        rate, sent = load["rate"], sent + load["requests"]
        tenths.append(load["memory"])
    change = tenths[-1] / tenths[0] - 1
    print(f"{sent:,} requests: {', '.join(f'{memory:.0f}' for memory in tenths)} MiB by tenths; ", end="")
    print(f"the last has {change:+.1%} of the first")


def _load(server: Server, clients: int, seconds: float, num_photos: int) -> dict:
    """Ask a server for some seconds. Every answer must be good."""
    folder = Path(os.environ["TMPDIR"])
    began = server.cpu_seconds()
    command = ["taskset", "-c", WRK_CORES, "wrk", "--threads", "1", "--connections", str(clients), "--timeout", "120s"]
    command += ["--duration", f"{max(1, round(seconds))}s", "--script", str(folder / "wrk.lua"), server.url]
    command += ["--", str(folder / "bodies"), str(num_photos)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    memories = []
    while process.poll() is None:
        memories.append(server.memory())
        time.sleep(max(0.2, seconds / 20))
    output = process.stdout.read()
    found = json.loads(output.splitlines()[-1]) if process.returncode == 0 else {"errors": 1}
    if found["errors"] or not found["requests"]:
        sys.exit(f"{server.name} with {clients} clients: {output}")
    cpu = 1000 * (server.cpu_seconds() - began) / found["requests"]
    return found | {"rate": found["requests"] / found["seconds"], "cpu": cpu, "memory": statistics.median(memories)}


def limit(folder: str, seconds: str) -> None:
    """Images a second of the network that the service uses, which decodes and predicts by turns."""
    import numpy as np

    from bincount.data import pictures
    from bincount.serving.engine import Engine

    engine = Engine.load(Path(folder) / "model", "cpu")
    photos = [path.read_bytes() for path in sorted(Path(folder, "photos").iterdir())]
    chosen = random.Random(0)

    def predict() -> None:
        batch = [pictures.decode(content, engine.spec.images) for content in chosen.choices(photos, k=BATCH)]
        engine.logits(np.stack(batch))

    predict()
    began, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - began) < float(seconds) or not count:
        predict()
        count += BATCH
    print(json.dumps({"rate": count / elapsed}))


def prepare(folder: str, images: str, count: str, model: str, size: str) -> None:
    """Make photos, requests, and a model: as a folder, and registered in MLflow."""
    from importlib.util import find_spec

    import torch

    from bincount.data import synthetic
    from bincount.problem import Classes
    from bincount.settings import ImageConfig, RegistryConfig, TrainConfig
    from bincount.tracking import connection
    from bincount.training import model as models
    from bincount.training.spec import ModelSpec

    root = Path(folder)
    if images:
        found = sorted(path for path in Path(images).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
        chosen = random.Random(0).sample(found, min(int(count), len(found)))
    else:
        synthetic.generate(root / "drawn", int(count), size=PHOTO, broken=False)
        chosen = sorted((root / "drawn" / "bin-images").iterdir())
    for name in ("photos", "bodies"):
        (root / name).mkdir()
    contents = [path.read_bytes() for path in chosen]
    for number, content in enumerate(contents, 1):
        (root / "photos" / f"{number}.jpg").write_bytes(content)
        table = {"columns": ["image"], "data": [[base64.b64encode(content).decode()]]}
        (root / "bodies" / f"{number}.json").write_text(json.dumps({"dataframe_split": table}))
    (root / "wrk.lua").write_text(SCRIPT)

    torch.manual_seed(0)
    training = TrainConfig(model=model, weights="none")
    spec = ModelSpec.make(ImageConfig(image_size=int(size)), training, Classes.parse("0..5"))
    models.save(root / "model", models.build(spec), spec)  # speed does not depend on what was learnt
    registry = connection.open_registry(os.environ["MLFLOW_TRACKING_URI"], root, RegistryConfig())
    run_id = registry.runs.start("bench", {}, {})
    version = registry.register(run_id, root / "model", "for a benchmark", {}, contents[0])
    (root / "uri").write_text(version.uri)
    kilobytes = statistics.mean(map(len, contents)) / 1000
    print(
        json.dumps({"photos": len(contents), "kilobytes": kilobytes, "litserve": bool(find_spec("litserve")) or None})
    )


MEASUREMENTS = {"prepare": prepare, "limit": limit}


def _run(name: str, *values: object, pinned: bool = False) -> subprocess.CompletedProcess:
    """Carry out one part in a process of its own."""
    command = [sys.executable, __file__, "--measure", name, *map(str, values)]
    done = subprocess.run(
        ["taskset", "-c", CORES, *command] if pinned else command, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{name}: {done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done


def _cores() -> tuple[str, str]:
    """The cores of what is measured, and those of wrk, as taskset takes them."""
    cores = sorted(os.sched_getaffinity(0))
    servers, load = cores[:-1] or cores, cores[-1:]
    return ",".join(map(str, servers)), ",".join(map(str, load))


def _spread(values: list[float], form: str) -> str:
    middle, low, high = (format(value, form) for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low} to {high})"


CORES, WRK_CORES = _cores()


if __name__ == "__main__":
    main()
