"""Tests of the command lines that are accepted, and of the errors for the others."""

from importlib.metadata import version

import pytest
from bins import jpeg, record
from test_cli import refused

from bincount.data import assembly, bins, fetch, source, sync
from bincount.settings import (
    AuditConfig,
    DataConfig,
    DriftConfig,
    EvaluationConfig,
    ImageConfig,
    LaunchConfig,
    PromotionConfig,
    RegistryConfig,
    RetentionConfig,
    RetrainConfig,
    RunnerConfig,
    ServeConfig,
    TrainConfig,
    TuneConfig,
)
from bincount.workspace import Workspace
from flows import usage
from flows.cli import app, options


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["run", "--learning-rate", "-1"], "--learning-rate takes a number of more than 0, not '-1'"),
        (["run", "--epochs", "0"], "--epochs takes a whole number of at least 1, not '0'"),
        (["run", "--epochs", "many"], "--epochs takes a whole number of at least 1, not 'many'"),
        (
            ["run", "--members", '[{model = "resnet18"}, {}]'],
            "--members takes a whole number of at least 1 and at most 20, not '[{model = \"resnet18\"}, {}]'; a list "
            "goes into a file for --config, as [training] members = ...",
        ),
        (["run", "--limit", "1.5"], "--limit takes a whole number of at least 1, not '1.5'"),
        (["run", "--dropout", "1"], "--dropout takes a number of at least 0 and less than 1, not '1'"),
        (
            ["prepare", "--image-size", "33"],
            "--image-size takes a whole number in steps of 32 of at least 32 and at most 1024, not '33'",
        ),
        (["run", "--optimizer", "adan"], "--optimizer takes one of adamw, adam, sgd, not 'adan'; did you mean adam?"),
        (["prepare", "--classes", "3"], "--classes: '3' names fewer than two classes; write a range as 0..5"),
        (["export", "--folder", "x", "--classes", "3"], "--classes: '3' names fewer than two classes"),
        (["models", "--model-name", "a/b"], "--model-name takes a name without any of / : % ' \" `, not 'a/b'"),
        (["compare", "1", "2", "--confidence", "2"], "--confidence takes a number of more than 0.5 and less than 1"),
        (["run", "--hlep"], "there is no option --hlep; did you mean --help?; `bincount run --help` lists them"),
        (["--hlep"], "there is no option --hlep; did you mean --help?"),
        (["--verison"], "there is no option --verison; did you mean --version?"),
        (["run", "--epoch", "3"], "there is no option --epoch; did you mean --epochs?"),
        (["trian"], "there is no command trian; did you mean train?"),
        (["predict"], "`bincount predict --help` shows how"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_reported_with_the_flag_as_it_is_typed_and_what_it_takes(words, told, monkeypatch, capsys):
    said = refused(words, monkeypatch, capsys)
    assert said.startswith("bincount: ")
    assert told in said
    assert "pydantic" not in said
    assert len(said.splitlines()) == 1


def test_several_mistakes_are_reported_at_once_a_line_each(monkeypatch, capsys):
    said = refused(["run", "--epochs", "0", "--learning-rate", "fast"], monkeypatch, capsys)
    assert said.splitlines() == [
        "bincount: --epochs takes a whole number of at least 1, not '0'",
        "--learning-rate takes a number of more than 0, not 'fast'",
    ]


def test_the_version_is_that_of_the_distribution(capsys):
    app(["--version"], result_action="return_value")
    assert capsys.readouterr().out == f"{version('bincount-pipeline')}\n"


@pytest.mark.services
def test_shells_can_complete_commands_and_options():
    script = app.generate_completion(shell="bash")
    assert "predict" in script
    assert "learning-rate" in script


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--retry-set-aside", True), ("--no-retry-set-aside", False), ("--retry-set-aside=false", False)],
)
def test_a_flag_that_an_earlier_release_called_otherwise_is_understood_and_not_shown(flag, value, capsys):
    words = usage.rename_flags(["prepare", "--source", "s3://bins", flag])
    _, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    assert bound.arguments["data"] == DataConfig(source="s3://bins", retry_quarantined=value)
    app(["prepare", "--help"], result_action="return_value")
    assert "set-aside" not in capsys.readouterr().out


# --- options that have an effect --------------------------------------------------------------------------------------

DATASET = {
    "source",
    "keep_splits",
    "only_listed",
    "endpoint",
}  # which dataset is meant; what is in it was decided by a prepare
ALL = {
    model: set(model.model_fields)
    for model in (
        AuditConfig,
        DataConfig,
        ImageConfig,
        TrainConfig,
        LaunchConfig,
        RegistryConfig,
        PromotionConfig,
        RetrainConfig,
        DriftConfig,
        EvaluationConfig,
        RetentionConfig,
        RunnerConfig,
        ServeConfig,
        TuneConfig,
    )
}
A_RUN = ALL[DataConfig] | ALL[ImageConfig] | ALL[TrainConfig] | ALL[RegistryConfig] | ALL[PromotionConfig]
A_RUN |= ALL[RunnerConfig] | ALL[LaunchConfig] | {"workspace"}
NIGHTLY = ALL[EvaluationConfig] | ALL[RetrainConfig] | ALL[DriftConfig] | ALL[RetentionConfig]
OPTIONS = {
    "run": A_RUN | ALL[EvaluationConfig],
    "retrain": A_RUN | NIGHTLY,
    "config": A_RUN | NIGHTLY | ALL[AuditConfig] | ALL[ServeConfig] | ALL[TuneConfig],
    "tune": A_RUN | ALL[TuneConfig] | {"price_per_hour", "currency", "fetch", "register"},
    "audit": A_RUN | ALL[AuditConfig] | {"scored_by", "fetch", "to"},
    "prepare": ALL[DataConfig] | ALL[ImageConfig] | ALL[RunnerConfig] | {"workspace"},
    "train": A_RUN - ALL[DataConfig] - ALL[RunnerConfig] | ALL[EvaluationConfig] | DATASET | {"snapshot"},
    "evaluate": {"model"} | DATASET | ALL[RegistryConfig] | {"device", "workspace"},
    "predict": {
        "pictures",
        "model",
        "device",
        "min_confidence",
        "output",
        "record_before",
        "region",
        "endpoint",
        "unsigned",
        "requester_pays",
        "limit",
        "concurrency",
    }
    | ALL[RegistryConfig]
    | {"workspace"},
    "verify": {"image", "item", "quantity", "references", "image_before", "change", "model", "device", "output"}
    | DATASET
    | ALL[RegistryConfig]
    | {"workspace"},
    "serve": {"model", "device", "min_confidence", "error_rate", "workspace"}
    | DATASET
    | ALL[ServeConfig]
    | ALL[RegistryConfig],
    "models": {"newest"} | ALL[RegistryConfig] | {"workspace"},
    "compare": {"first", "second", "device", "workspace"}
    | DATASET
    | ALL[RegistryConfig]
    | (ALL[PromotionConfig] - {"force", "approval"}),
    "approve": {"model", "reject", "reason", "device", "workspace"}
    | DATASET
    | ALL[RegistryConfig]
    | (ALL[PromotionConfig] - {"force", "approval"}),
    "promote": {"model", "device", "workspace"} | DATASET | ALL[RegistryConfig] | ALL[PromotionConfig],
    "rollback": {"reason", "workspace"} | ALL[RegistryConfig],
    "report": {"output", "workspace"} | ALL[RegistryConfig],
    "up": {"source", "workspace", "database", "prefect_port", "mlflow_port", "serve_port"},
    "down": {"workspace", "force"},
    "server": set(),
    "demo": {"problem", "bins", "products", "task", "epochs", "folder"},
    "doctor": {"quick", "services", "fix", "prefect_file", "workspace"} | DATASET | ALL[RegistryConfig],
    "export": {"folder", "by_split", "copy", "classes", "concurrency", "workspace"} | DATASET,
    "publish": {"to", "to_endpoint", "to_region", "by_split", "classes", "concurrency", "workspace"} | DATASET,
    "backbones": {"filter", "json"},
    "where": {"image_ids", "output", "tracking_uri", "experiment", "workspace"} | DATASET,
    "forget": {"image_ids", "yes", "tracking_uri", "experiment", "workspace"} | DATASET,
    "gc": {"dry_run", "tracking_uri", "experiment", "workspace"} | ALL[RetentionConfig],
    "bootstrap": {"prefect_file", "gpu", "gpu_template", "zombie_seconds"},
    "notify": {"slack", "email", "smtp", "sender", "webhook", "only", "off"},
}
TRAINING = ("run", "retrain", "prepare", "train", "tune", "audit", "config")
OPTIONS = {
    command: names
    | ({"preset"} if command in TRAINING else set())
    | ({"config"} if "workspace" in names and command not in ("up", "down") else set())
    for command, names in OPTIONS.items()
}


def options_of(command: str) -> set[str]:
    """The options of a command, by the names of Python."""
    names = {argument.names[0] for argument in app[command].assemble_argument_collection() if argument.parse}
    return {name.lstrip("-").replace("-", "_").lower().partition("[")[0] for name in names - {"*"}}  # which is a group


def test_every_command_takes_the_options_that_it_uses_and_no_others():
    assert {command: sorted(options_of(command)) for command in OPTIONS} == {
        command: sorted(names) for command, names in OPTIONS.items()
    }
    have_their_own = {"deploy", "review"}
    assert set(OPTIONS) == {name for name in app if not name.startswith("-")} - have_their_own


@pytest.fixture
def read_fields(monkeypatch):
    """The settings of data that are read from now on."""
    read = set()
    original = DataConfig.__getattribute__

    def note(self, name):
        if name in DataConfig.model_fields:
            read.add(name)
        return original(self, name)

    monkeypatch.setattr(DataConfig, "__getattribute__", note)
    return read


def test_which_dataset_is_meant_depends_on_the_options_that_say_so_and_no_others(tmp_path, read_fields):
    Workspace(root=tmp_path).dataset(DataConfig(source=str(tmp_path), only_listed=tmp_path / "list"))
    assert read_fields - {"layout", "region", "unsigned"} == DATASET


def test_an_export_uses_each_of_its_options(tmp_path, read_fields):
    for number in range(12):
        for name, content in (
            (f"bin-images/{number:05d}.jpg", jpeg(number)),
            (f"metadata/{number:05d}.json", record(number % 3)),
        ):
            path = tmp_path / "bins" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    data = DataConfig(source=str(tmp_path / "bins"), classes="0..2")
    dataset = Workspace(root=tmp_path / "data").dataset(data)
    plan = sync.plan(dataset, source.open_source(data), data)
    fetch.fetch_batch(dataset, source.open_source(data), plan.batch(0), data)
    assembly.build(dataset, bins.merge(dataset), data.class_set, data.source, data.extra_names)
    read_fields.clear()
    words = ["export", "--source", str(tmp_path / "bins"), "--workspace", str(tmp_path / "data"), "--classes", "0..1"]
    app([*words, "--folder", str(tmp_path / "out")], result_action="return_value")
    assert read_fields >= OPTIONS["export"] & set(DataConfig.model_fields)
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == ["0", "1"]


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "--limit", "3"],
        ["compare", "1", "2", "--force"],
        ["doctor", "--concurrency", "3"],
        ["train", "--classes", "1..5"],
        ["gc", "--model-name", "other"],
    ],
    ids=" ".join,
)
def test_an_option_that_would_change_nothing_is_refused(words, monkeypatch, capsys):
    said = refused(words, monkeypatch, capsys)
    assert said.startswith(f"bincount: there is no option {next(word for word in words if word.startswith('--'))}")


def test_a_group_of_some_settings_keeps_their_bounds_and_what_was_not_given_stays_the_default():
    some = options.some_of(DataConfig, "source", "concurrency")
    assert options.whole(DataConfig, some(source="s3://mine")) == DataConfig(source="s3://mine")
    with pytest.raises(ValueError, match="concurrency"):
        some(concurrency=0)
