"""The files that put the service elsewhere: its image and entry point, compose, Kubernetes, and the local stack."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import servers
import yaml
from bins import jpeg
from kubernetes_asyncio import client as kubernetes
from manifests import unknown_fields
from serving_models import register
from test_registry import open_in

from bincount.errors import SettingsError
from bincount.workspace import Workspace
from deployments import FOLDER
from deployments.serve import entry
from deployments.stack import commands, supervisor
from deployments.stack.config import StackConfig

ROOT = Path(__file__).parent.parent
DOCKERFILE = (FOLDER / "serve" / "Dockerfile").read_text()
SERVE = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]["serve"]
DEPLOYMENT, SERVICE = yaml.safe_load_all((FOLDER / "kubernetes" / "serve.yaml").read_text())
SECONDS_TO_STOP = 25  # in which the service finishes what is under way


@pytest.fixture(scope="module")
def check_image():
    spec = importlib.util.spec_from_file_location("check_image", ROOT / ".ci" / "check_image.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# The image


def test_the_check_reads_a_dockerfile_as_an_engine_does(check_image):
    text = (
        '# a comment\nFROM a AS b\nRUN one \\\n    # inside\n    && two\nENV A=1 \\\n    PATH=/opt:$PATH\nCMD ["c"]\n'
    )
    assert check_image.instructions(text) == [
        ("FROM", "a AS b"),
        ("RUN", "one && two"),
        ("ENV", "A=1 PATH=/opt:$PATH"),
        ("CMD", '["c"]'),
    ]
    assert check_image.pairs("A=1 PATH=/opt:$PATH", {"PATH": "/bin"}) == {"A": "1", "PATH": "/opt:/bin"}


def test_the_check_knows_every_instruction_and_file_of_the_image(check_image):
    steps = check_image.instructions(DOCKERFILE)
    known = re.findall(r'"([A-Z]+)"', Path(check_image.__file__).read_text())
    assert {name for name, _ in steps} <= set(known)
    copied = [word for name, rest in steps if name == "COPY" and "--from" not in rest for word in rest.split()[:-1]]
    assert all(word == "." or word in check_image.context() for word in copied)


def test_the_image_is_of_two_stages_and_the_last_has_no_tools_and_is_not_root(check_image):
    steps = check_image.instructions(DOCKERFILE)
    last = steps[max(number for number, (name, _) in enumerate(steps) if name == "FROM") :]
    assert [rest for name, rest in last if name == "COPY"] == ["--from=build /opt/bincount /opt/bincount"]
    assert [rest for name, rest in last if name == "USER"] == ["1000"]
    assert all("install" not in rest for name, rest in last if name == "RUN")


def test_the_entry_point_has_the_exec_form_and_takes_the_word_that_sagemaker_gives(check_image):
    steps = dict(check_image.instructions(DOCKERFILE))
    assert json.loads(steps["ENTRYPOINT"]) == ["python", "-m", "deployments.serve.entry"]
    assert json.loads(steps["CMD"]) == ["serve"]
    assert "/ping" in json.loads(steps["HEALTHCHECK"].partition("CMD ")[2])[-1]
    assert "accept-bind-to-port=true" in steps["LABEL"]


def test_the_image_gets_what_is_locked_by_its_hashes_and_no_tools_of_the_tests(tmp_path, check_image):
    """The command of the Dockerfile, as far as it goes without network."""
    [command] = [rest for name, rest in check_image.instructions(DOCKERFILE) if "--extra serve" in rest]
    subprocess.run([servers.program("uv"), "venv", "--quiet", "--python", sys.executable, str(tmp_path)], check=True)
    words = command.replace("uv pip install", "pip install --dry-run --offline").split()
    planned = subprocess.run(
        [servers.program("uv"), *words],
        cwd=ROOT,
        env=os.environ | {"VIRTUAL_ENV": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    if planned.returncode and "network was disabled" in planned.stderr.lower():
        pytest.skip("uv has not fetched here what is locked")
    assert planned.returncode == 0, planned.stderr
    chosen = set(re.findall(r"^ \+ (\S+==\S+)$", planned.stderr, re.MULTILINE))
    assert chosen <= set(re.findall(r"^\S+==\S+", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    names = {each.partition("==")[0] for each in chosen}
    assert {"torch", "uvicorn", "prometheus-client", "python-multipart"} <= names
    assert not {"pytest", "ruff", "moto", "playwright", "zensical", "litserve"} & names


# The entry point


@pytest.fixture
def folders(tmp_path):
    for name in ("sagemaker", "mounted"):
        (tmp_path / name).mkdir()
    return tmp_path / "sagemaker", tmp_path / "mounted"


def serve_words(folders, *words, **environment):
    return entry.command(words, environment, folders)


def test_the_model_is_sagemakers_else_the_mounted_one_else_the_champion(folders):
    registry = {"MLFLOW_TRACKING_URI": "http://mlflow:5000"}
    assert serve_words(folders, "serve", **registry)[2] == "champion"
    (folders[1] / "model.json").touch()
    assert serve_words(folders, "serve", **registry)[2] == str(folders[1])
    (folders[0] / "model.json").touch()
    assert serve_words(folders, "serve", **registry)[2] == str(folders[0])
    assert serve_words(folders, "serve", "7", **registry)[2] == "7"


def test_without_a_model_it_says_where_to_put_one(folders, tmp_path):
    with pytest.raises(SystemExit, match=r"mount a folder .* at .*mounted, or set MLFLOW_TRACKING_URI"):
        serve_words((folders[0], folders[1]), "serve")
    with pytest.raises(SystemExit):
        serve_words((tmp_path / "none", tmp_path / "neither"))


def test_it_listens_for_others_with_a_token_where_there_is_one(folders):
    assert serve_words(folders, "serve", "7") == [
        *("bincount", "serve", "7", "--host", "0.0.0.0", "--port", "8080", "--insecure")
    ]
    assert "--insecure" not in serve_words(folders, "serve", "7", BINCOUNT_SERVE_TOKEN="secret")
    assert "--insecure" in serve_words(folders, "serve", "7", BINCOUNT_SERVE_TOKEN="")


def test_the_port_is_the_one_that_sagemaker_or_the_caller_names(folders):
    assert serve_words(folders, "serve", "7", SAGEMAKER_BIND_TO_PORT="9000")[-3:] == ["--port", "9000", "--insecure"]
    words = serve_words(folders, "serve", "7", "--port=81", "--host", "127.0.0.1", SAGEMAKER_BIND_TO_PORT="9000")
    assert words.count("--port=81") + words.count("--port") == 1
    assert words.count("--host") == 1


def test_options_alone_go_to_the_service_and_other_commands_to_bincount(folders):
    (folders[1] / "model.json").touch()
    words = serve_words(folders, "serve", "--max-batch", "64")
    assert words[:5] == ["bincount", "serve", str(folders[1]), "--max-batch", "64"]
    assert serve_words(folders, "models", "--newest", "3") == ["bincount", "models", "--newest", "3"]
    assert serve_words(folders, "--help") == ["bincount", "--help"]


def test_the_entry_point_becomes_the_command_so_that_signals_and_status_are_its(tmp_path):
    program = tmp_path / "bincount"
    program.write_text('#!/bin/sh\necho "$$ $*"\nexit 7\n')
    program.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "deployments.serve.entry", "models"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        said, _ = process.communicate(timeout=60)
    assert (process.returncode, said) == (7, f"{process.pid} models\n")


# Kubernetes

POD = DEPLOYMENT["spec"]["template"]["spec"]
[CONTAINER] = POD["containers"]


@pytest.mark.parametrize("manifest", [DEPLOYMENT, SERVICE], ids=["deployment", "service"])
def test_the_manifests_have_the_fields_of_their_kind_and_no_others(manifest):
    kind = f"V1{manifest['kind']}"
    assert unknown_fields(manifest, kind) == []
    client = kubernetes.ApiClient.__new__(kubernetes.ApiClient)  # its __init__ wants an event loop
    read = client.deserialize(SimpleNamespace(data=json.dumps(manifest)), kind)
    assert read.metadata.name == "bincount-serve"


def test_the_pod_starts_answers_and_ends_by_ping_and_has_time_to_finish():
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert CONTAINER[probe]["httpGet"] == {"path": "/ping", "port": "http"}
    startup = CONTAINER["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 120
    assert CONTAINER["ports"] == [{"name": "http", "containerPort": int(entry.PORT)}]
    assert DEPLOYMENT["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_a_pod_that_is_to_end_still_answers_until_no_more_requests_come_and_has_time_to_finish():
    program, flag, code = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    assert f'ENTRYPOINT ["{program}"' in DOCKERFILE  # it needs no shell
    slept = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", slept.append)
        exec(code, {})
    assert (flag, slept) == ("-c", [5])
    assert POD["terminationGracePeriodSeconds"] >= sum(slept) + SECONDS_TO_STOP + 10


def test_prometheus_is_told_the_token_and_finds_the_pods():
    """/metrics asks for the token, which annotations of a pod cannot give."""
    assert "annotations" not in DEPLOYMENT["spec"]["template"]["metadata"]
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    [job] = scrape_configs("endpoint")
    [found] = job["kubernetes_sd_configs"]
    assert found["role"] == "pod"
    assert dict([found["selectors"][0]["label"].split("=")]).items() <= labels.items()
    token = next(each for each in CONTAINER["env"] if each["name"] == "BINCOUNT_SERVE_TOKEN")
    secret = token["valueFrom"]["secretKeyRef"]
    assert job["authorization"]["credentials_file"].endswith(f"/{secret['name']}/{secret['key']}")
    [job] = scrape_configs("serving")
    assert set(job["authorization"]) == {"credentials_file"}


def scrape_configs(page):
    """Return what a page tells to write into Prometheus' configuration."""
    text = (ROOT / "docs" / "pages" / f"{page}.md").read_text()
    [block] = re.findall(r"```yaml\n(scrape_configs:.*?)```", text, re.DOTALL)
    return yaml.safe_load(block)["scrape_configs"]


def test_the_pod_is_not_root_writes_nothing_but_its_own_tmp_and_has_a_token_and_limits():
    assert POD["securityContext"]["runAsNonRoot"]
    assert f"\nUSER {POD['securityContext']['runAsUser']}\n" in DOCKERFILE
    assert CONTAINER["securityContext"]["readOnlyRootFilesystem"]
    assert CONTAINER["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert [mount["mountPath"] for mount in CONTAINER["volumeMounts"]] == ["/tmp"]
    assert "HOME=/tmp" in DOCKERFILE
    environment = {each["name"]: each for each in CONTAINER["env"]}
    token = environment["BINCOUNT_SERVE_TOKEN"]["valueFrom"]["secretKeyRef"]
    assert (
        f"generic {token['name']} --from-literal={token['key']}=" in (FOLDER / "kubernetes" / "serve.yaml").read_text()
    )
    assert set(CONTAINER["resources"]["limits"]) == {"cpu", "memory"}


def test_the_service_finds_its_pods():
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    assert SERVICE["spec"]["selector"].items() <= labels.items()
    assert DEPLOYMENT["spec"]["selector"]["matchLabels"] == labels
    assert SERVICE["spec"]["ports"][0]["targetPort"] == CONTAINER["ports"][0]["name"]


# Compose, and the local stack


def test_the_service_of_the_compose_file_is_asked_for_by_name_and_guarded():
    assert SERVE["profiles"] == ["serve"]
    assert SERVE["ports"] == [f"127.0.0.1:8080:{entry.PORT}"]
    assert SERVE["environment"]["BINCOUNT_SERVE_TOKEN"] == "${BINCOUNT_SERVE_TOKEN:-}"
    assert SERVE["read_only"]
    assert SERVE["tmpfs"] == ["/tmp"]
    assert int(SERVE["stop_grace_period"].removesuffix("s")) > SECONDS_TO_STOP
    assert "/ping" in SERVE["healthcheck"]["test"][-1]


def test_a_stack_serves_only_where_a_port_is_given(tmp_path):
    without, served = StackConfig(workspace=tmp_path), StackConfig(workspace=tmp_path, serve_port=8081)
    assert without.processes == ["prefect", "mlflow", "worker"]
    assert served.processes == [*without.processes, "serve"]
    assert served.environment()["BINCOUNT_SERVE_PORT"] == "8081"
    assert "BINCOUNT_SERVE_PORT" not in without.environment()


def test_a_stack_of_an_earlier_release_has_the_same_settings_as_one_that_does_not_serve(tmp_path):
    assert "serve_port" not in StackConfig(workspace=tmp_path).without_password()
    assert StackConfig(workspace=tmp_path, serve_port=8081).without_password()["serve_port"] == 8081


def test_the_ports_of_a_stack_must_differ(tmp_path):
    port = servers.free_port()
    config = StackConfig(workspace=tmp_path, prefect_port=servers.free_port(), mlflow_port=port, serve_port=port)
    with pytest.raises(SettingsError, match="--serve-port must differ"):
        commands.up(config)


def test_a_stack_that_cannot_serve_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "find_spec", lambda name: None)
    supervisor.check_service(StackConfig(workspace=tmp_path))
    with pytest.raises(SettingsError, match=r"bincount-pipeline\[serve\]"):
        supervisor.check_service(StackConfig(workspace=tmp_path, serve_port=8081))


@pytest.mark.services
def test_the_champion_of_a_stack_answers_at_the_port_that_is_given(tmp_path):
    """The line of the Procfile, as the stack's supervisor runs it."""
    registry = open_in(tmp_path)
    registry.promote(register(registry, tmp_path, None), None, by="a test", reason="the first")
    port = servers.free_port()
    environment = os.environ | {
        "BINCOUNT_SERVE_PORT": str(port),
        "BINCOUNT_WORKSPACE": str(tmp_path),
        "MLFLOW_TRACKING_URI": Workspace(root=tmp_path).own_tracking_uri,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    command = [servers.program("honcho"), "-d", str(FOLDER), "-f", "Procfile", "-e", "stack.env", "start", "serve"]
    address = f"http://127.0.0.1:{port}"
    with servers.running(command, environment, tmp_path / "log", f"{address}/ping"):
        files = {"image": ("bin.jpg", jpeg(), "image/jpeg")}
        reply = httpx.post(f"{address}/predict", files=files, timeout=60)
        assert reply.status_code == 200, reply.text
        assert '"version":"1"' in reply.text.replace(" ", "")
