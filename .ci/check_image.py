"""Run the steps of deployments/serve/Dockerfile where there is no container engine, and the service that they make.

    .ci/check_image.py [--torch-backend cpu] [--keep]

Of the engine's part this does: a root of Debian 12 by debootstrap in place of python:3.11-slim, whose python3.11 is
Debian's; RUN in that root by chroot, in a process namespace of its own; COPY of what .dockerignore lets through; ENV,
ARG, WORKDIR and USER as the file has them. The entry point then runs as the first process of a namespace, as in a
container: as the image's user, as root, and on a root that cannot be written but for /tmp. Each time it gets a model in
/opt/ml/model and has to answer GET /ping and POST /invocations, to refuse a picture that is none, and to end within 25
seconds of SIGTERM. HEALTHCHECK's command runs beside it.

It leaves out: the base image itself, layers, and the network of containers. It must run as root, on Debian or Ubuntu
with debootstrap, and takes some minutes and 8 GB under /tmp, 1 GB where uv's cache has the wheels.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = ROOT / "deployments" / "serve" / "Dockerfile"
PACKAGES = "python3.11,python3.11-venv,python3-pip,ca-certificates"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
START_SECONDS, STOP_SECONDS = 120, 25
# How this machine reaches the package index; a build with an engine has its own ways.
NETWORK = re.compile(r"(?i)(https?|no|all)_proxy|(PIP|UV)_\w*(CERT|INDEX|TIMEOUT)\w*|SSL_CERT_\w+|\w+_CA_BUNDLE")


def instructions(text: str) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile as name and arguments, without comments and continued lines."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name.upper(), rest.strip()) for name, _, rest in (line.partition(" ") for line in joined.splitlines())]


def pairs(text: str, known: Mapping[str, str]) -> dict[str, str]:
    """Return NAME=VALUE of ENV and LABEL, with $NAME of what is known replaced."""

    def value_of(match: re.Match) -> str:
        return known.get(match[1] or match[2], "")

    words = (word.partition("=") for word in shlex.split(text))
    return {name: re.sub(r"\$(?:(\w+)|\{(\w+)\})", value_of, value) for name, _, value in words}


class Stage:
    """A stage of the Dockerfile: a folder with its root, and what the instructions so far have set."""

    def __init__(self, root: Path) -> None:
        self.root, self.environment, self.arguments = root, {"PATH": PATH}, {}
        self.folder, self.user, self.entry, self.command, self.health = "/", "0", [], [], []

    def chroot(self, words: list[str], environment: Mapping[str, str], user: str, before: str = "true") -> list[str]:
        """Return the command that runs words in the root, as the first process of a namespace; before runs outside."""
        root = shlex.quote(str(self.root))
        group = f":{user}" if user != "0" else ":0"
        inside = ["/usr/bin/env", "-i", "-C", self.folder, *(f"{name}={value}" for name, value in environment.items())]
        mounts = f"mount -t proc proc {root}/proc && {before}"
        jump = f'exec chroot --userspec={user}{group} --groups="" {root} "$@"'
        return ["unshare", "--mount", "--pid", "--fork", "sh", "-c", f"{mounts} && {jump}", "sh", *inside, *words]

    def run(self, text: str, extra: Mapping[str, str]) -> None:
        print(f"RUN {text}", flush=True)
        environment = {**self.environment, **self.arguments, **extra}
        subprocess.run(self.chroot(["/bin/sh", "-c", text], environment, self.user), check=True)

    def place(self, name: str) -> Path:
        return self.root / os.path.join(self.folder, name).lstrip("/")


def build(folder: Path, torch_backend: str) -> Stage:  # noqa: PLR0912 - one branch for each instruction
    """Carry out the Dockerfile below folder; return its last stage."""
    base = make_base(folder / "base")
    stages: dict[str, Stage] = {}
    stage = None
    extra = {name: value for name, value in os.environ.items() if NETWORK.fullmatch(name)}
    for name, rest in instructions(DOCKERFILE.read_text()):
        if name == "FROM":
            image, _, label = rest.partition(" AS ")
            if image != "python:3.11-slim":
                raise SystemExit(f"FROM {image}: this check has Debian's python3.11 alone")
            stage = Stage(folder / f"stage{len(stages)}")
            subprocess.run(["cp", "--archive", base, stage.root], check=True)
            stages[label or str(len(stages))] = stage
            lend_cache(stage.root)
        elif name == "RUN":
            stage.run(rest, extra)
        elif name == "COPY":
            copy(stage, rest, stages)
        elif name == "ENV":
            stage.environment |= pairs(rest, {**stage.environment, **stage.arguments})
        elif name == "ARG":
            argument, _, default = rest.partition("=")
            stage.arguments[argument] = torch_backend if argument == "TORCH_BACKEND" else default
        elif name == "WORKDIR":
            stage.folder = rest
            stage.place("").mkdir(parents=True, exist_ok=True)
        elif name == "USER":
            stage.user = rest
        elif name in ("ENTRYPOINT", "CMD"):
            setattr(stage, "entry" if name == "ENTRYPOINT" else "command", json.loads(rest))  # the exec form
        elif name == "HEALTHCHECK":
            stage.health = json.loads(rest.partition("CMD ")[2])
        elif name not in ("EXPOSE", "LABEL"):
            raise SystemExit(f"{name}: this check does not know what it does")
        if name in ("COPY", "ENV", "ARG", "WORKDIR", "USER"):
            print(name, rest, flush=True)
    return stage


def make_base(root: Path) -> Path:
    """Make a root of Debian 12 from the mirror that apt uses here, with the names that python:3.11-slim has."""
    targets = ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages", "Codename: bookworm"]
    mirror = subprocess.run(targets, capture_output=True, text=True, check=True).stdout.split()[0]
    command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(root), mirror]
    with open(root.with_suffix(".log"), "w") as log:
        if subprocess.run(command, stdout=log, stderr=log, check=False).returncode:
            raise SystemExit(f"debootstrap failed; {log.name} says why")
    for name in ("python", "python3", "python3.11"):
        (root / "usr/local/bin" / name).symlink_to("/usr/bin/python3.11")
    (root / "usr/lib/python3.11/EXTERNALLY-MANAGED").unlink()
    for path in ("etc/resolv.conf", "etc/hosts", "etc/ssl/certs/ca-certificates.crt"):
        shutil.copyfile(Path("/") / path, root / path)
    return root


def lend_cache(root: Path) -> None:
    """Let uv in the root find the wheels that uv has fetched on this machine, without a second copy of them."""
    cache = Path(os.environ.get("UV_CACHE_DIR", Path.home() / ".cache" / "uv"))
    if cache.is_dir() and cache.stat().st_dev == root.stat().st_dev:
        (root / "root/.cache").mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "--archive", "--link", cache, root / "root/.cache/uv"], check=False)


def copy(stage: Stage, text: str, stages: Mapping[str, Stage]) -> None:
    words = text.split()
    *sources, target = [word for word in words if not word.startswith("--")]
    place = stage.place(target)
    if source_stage := next((word.removeprefix("--from=") for word in words if word.startswith("--from=")), None):
        [source] = sources
        # Linked, since nothing writes to it any more.
        subprocess.run(["cp", "-a", "--link", stages[source_stage].place(source), place], check=True)
        return
    place.mkdir(parents=True, exist_ok=True)
    names = context() if sources == ["."] else sources
    for name in names:
        if not set(Path(name).parts[:1]) <= set(context()):
            raise SystemExit(f"COPY {name}: .dockerignore leaves it out")
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__", ".env"))
        else:
            shutil.copyfile(ROOT / name, place / name)


def context() -> list[str]:
    """Return what .dockerignore lets through: it excludes everything, and then names exceptions."""
    return [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]


# The service


def make_model(folder: Path) -> None:
    """Make an untrained model of the size of a trained one, through the archive that SageMaker unpacks."""
    from bincount.problem import Classes
    from bincount.settings import ImageConfig, TrainConfig
    from bincount.training import model
    from bincount.training.spec import ModelSpec
    from deployments.sagemaker import archive

    spec = ModelSpec.make(ImageConfig(), TrainConfig(), Classes.parse("0..5"))
    with tempfile.TemporaryDirectory() as made:
        model.save(Path(made) / "model", model.build(spec), spec)
        archive.write(Path(made) / "model", Path(made) / "model.tar.gz")
        with tarfile.open(Path(made) / "model.tar.gz") as tar:
            tar.extractall(folder, filter="data")


def picture() -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (400, 300), "sienna").save(buffer, "JPEG")
    return buffer.getvalue()


@contextmanager
def serving(stage: Stage, user: str, before: str, log: Path) -> Iterator[tuple[int, str]]:
    """Run the entry point as SageMaker does, with the word serve; gives the first process's pid and its address."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    environment = {**stage.environment, "SAGEMAKER_BIND_TO_PORT": str(port)}
    command = stage.chroot([*stage.entry, "serve"], environment, user, before)
    with open(log, "w") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            deadline = time.monotonic() + START_SECONDS
            while status(f"http://127.0.0.1:{port}/ping") != 200:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"the service does not answer; {log}:\n{log.read_text()[-3000:]}")
                time.sleep(0.2)
            first = int(children.read_text())
            yield first, f"http://127.0.0.1:{port}"
            before_stop = time.monotonic()
            os.kill(first, signal.SIGTERM)
            code = process.wait(STOP_SECONDS)
            print(f"  SIGTERM: ended with {code} after {time.monotonic() - before_stop:.1f} s")
            if code:
                raise SystemExit(f"it should end with 0; {log}:\n{log.read_text()[-3000:]}")
        finally:
            with suppress(OSError, ValueError):
                os.kill(int(children.read_text()), signal.SIGKILL)
            process.kill()


def status(url: str, content: bytes | None = None, kind: str = "image/jpeg") -> int:
    request = urllib.request.Request(url, content, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def check_service(stage: Stage, user: str, name: str, before: str = "true") -> None:
    print(f"serve {name}:", flush=True)
    begun = time.monotonic()
    with serving(stage, user, before, stage.root.with_name(f"serve {name}.log")) as (_, address):
        print(f"  GET /ping: 200 after {time.monotonic() - begun:.1f} s")
        request = urllib.request.Request(f"{address}/invocations", picture(), {"Content-Type": "image/jpeg"})
        with urllib.request.urlopen(request, timeout=30) as reply:
            print(f"  POST /invocations: {reply.status} {reply.read().decode()[:160]}")
        refused = status(f"{address}/invocations", b"no picture")
        print(f"  POST /invocations of no picture: {refused}")
        if not 400 <= refused < 500:
            raise SystemExit("a bad picture should be refused")
        health = [word.replace("http://127.0.0.1:8080", address) for word in stage.health]
        subprocess.run(stage.chroot(health, stage.environment, user), check=True)
        print("  HEALTHCHECK: healthy")


def check(stage: Stage) -> None:
    """Start the service in each of the ways in which it has to run."""
    make_model(stage.root / "opt/ml/model")
    check_service(stage, stage.user, "as the user of the image")
    check_service(stage, "0", "as root")
    root = shlex.quote(str(stage.root))
    read_only = f"mount --bind {root} {root} && mount -t proc proc {root}/proc && mount -o remount,ro,bind {root}"
    check_service(
        stage, stage.user, "on a read-only root", f"{read_only} && mount -t tmpfs -o mode=1777 tmp {root}/tmp"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--torch-backend", default="", help="as the build argument; cpu needs PyTorch's own index")
    parser.add_argument("--keep", action="store_true", help="leave the roots where they were made")
    arguments = parser.parse_args()
    if os.geteuid() or not shutil.which("debootstrap"):
        sys.exit("check-image: be root, on a machine with debootstrap")
    folder = Path(tempfile.mkdtemp(prefix="bincount-image-"))
    try:
        stage = build(folder, arguments.torch_backend)
        size = subprocess.run(["du", "-sm", stage.root / "opt/bincount"], capture_output=True, text=True, check=True)
        print(f"/opt/bincount has {size.stdout.split()[0]} MB")
        check(stage)
        print("The steps of the Dockerfile ran, and the service does what it should.")
    finally:
        if arguments.keep:
            print(f"The roots are in {folder}")
        else:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
