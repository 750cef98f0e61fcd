"""One definition of the settings for flags, files, `bincount config` and Prefect's form."""

import inspect
import tomllib
from pathlib import Path

import pytest
import yaml
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import validate
from test_cli import help_of, refused

from bincount import settings_file
from bincount.errors import SettingsError
from bincount.settings import (
    SECTIONS,
    DataConfig,
    ImageConfig,
    Job,
    PromotionConfig,
    RegistryConfig,
    RetentionConfig,
    RetrainConfig,
    RunnerConfig,
    TrainConfig,
    TuneConfig,
)
from flows import audit, evaluate, prepare, promote, retrain, run, train, tune, usage
from flows.cli import app

FLOWS = (
    prepare.prepare,
    train.train,
    evaluate.evaluate,
    promote.promote,
    promote.compare,
    run.run,
    retrain.retrain,
    audit.audit,
    tune.tune,
)
WORDS = {
    "predict": ["x.jpg"],
    "verify": ["x.jpg"],
    "approve": ["1"],
    "where": ["1"],
    "forget": ["1"],
    "compare": ["1", "2"],
    "export": ["--folder", "x"],
    "publish": ["--to", "s3://x"],
}
WITHOUT_SETTINGS = {"backbones", "demo", "bootstrap", "notify", "up", "down", "server"}
GROUPS = {"deploy", "review"}  # of commands
COMMANDS = sorted({name for name in app if not name.startswith("-")} - WITHOUT_SETTINGS - GROUPS)


def arguments(*words: str) -> dict:
    """Return the arguments that a command is called with."""
    _, bound, _ = app.parse_args(list(words), exit_on_error=False, print_error=False)
    return bound.arguments


def job(*words: str, command: str = "config") -> Job:
    """The settings that a command is called with."""
    called = arguments(command, *words)
    return Job(**{name: called[name] for name in Job.model_fields if name in called})


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a file of settings into the current folder; returns the words that name it."""
    monkeypatch.chdir(tmp_path)

    def write(text: str, name: str = "night.toml") -> list[str]:
        Path(name).write_text(text)
        return ["--config", name]

    return write


# --- what config prints, read back ------------------------------------------------------------------------------------

ODD = "a \"quoted\" \\ 'name' # = [x]\n\ttab\x00\x7f é \u2028 \"\"\" '''"
JOBS = {
    "the defaults": Job(),
    "some set": Job(data=DataConfig(limit=5, ordered=False), training=TrainConfig(epochs=3, flip=False)),
    "every kind of value": Job(
        data=DataConfig(source="s3://bins/a b", only_listed=Path("ids of 'today'.csv"), retry_quarantined=True),
        images=ImageConfig(image_size=64, resize="crop"),
        training=TrainConfig(optimizer="sgd", learning_rate=1e-05, weight_decay=0, device="cuda"),
        registry=RegistryConfig(tracking_uri="postgresql+psycopg://anna@host:5432/bins?sslmode=require"),
        promotion=PromotionConfig(metric="rmse", min_gain=float("inf"), force=True),
        runner=RunnerConfig(runner="dask", dask_address="tcp://host:8786"),
        retraining=RetrainConfig(grow_by=10**20, currency="€"),
        retention=RetentionConfig(keep_days=1),
        tuning=TuneConfig(objective=("rmse", "log_loss"), sampler_options={"multivariate": True, "n_ei_candidates": 9}),
        workspace=Path("/data/of bincount"),
    ),
    "text that TOML writes otherwise": Job(
        data=DataConfig(source=ODD, classes="true,null"), registry=RegistryConfig(experiment=ODD), workspace=Path(ODD)
    ),
    "text that looks like another value": Job(
        data=DataConfig(source="none"), training=TrainConfig(weights="1e5"), registry=RegistryConfig(experiment="true")
    ),
    "weight decay that follows from the optimizer": Job(training=TrainConfig(optimizer="adam")),
}


@pytest.mark.parametrize("settings", JOBS.values(), ids=JOBS)
def test_what_is_written_and_read_back_is_the_same_job(settings, tmp_path):
    (tmp_path / "night.toml").write_text(settings_file.write(settings))
    assert settings_file.read(tmp_path / "night.toml") == settings


def test_a_file_fills_in_the_images_and_the_training_that_a_job_does_not_set(tmp_path):
    best = Job(
        data=DataConfig(limit=5), images=ImageConfig(image_size=64), training=TrainConfig(epochs=3, optimizer="sgd")
    )
    (tmp_path / "best.toml").write_text(settings_file.write(best))
    filled = settings_file.fill(Job(training=TrainConfig(epochs=7)), tmp_path / "best.toml")
    assert filled.training == best.training.model_copy(update={"epochs": 7})
    assert filled.images == best.images
    assert filled.data == DataConfig()


def test_a_default_that_a_form_sends_does_not_come_before_the_file(tmp_path):
    best = Job(training=TrainConfig(epochs=3, model="resnet18"))
    (tmp_path / "best.toml").write_text(settings_file.write(best))
    shown = Job(training=TrainConfig(model=TrainConfig().model, epochs=TrainConfig().epochs, learning_rate=0.1))
    filled = settings_file.fill(shown, tmp_path / "best.toml")
    assert filled.training == best.training.model_copy(update={"learning_rate": 0.1})


@pytest.mark.parametrize("data", [DataConfig(source="s3://other"), DataConfig(classes="1..5")])
def test_a_file_of_a_search_on_other_data_is_left_out_and_named(data, tmp_path, caplog):
    (tmp_path / "best.toml").write_text(settings_file.write(Job(data=data, training=TrainConfig(epochs=3))))
    given = Job(training=TrainConfig(model="resnet18"))
    assert settings_file.fill(given, tmp_path / "best.toml") is given
    assert "best.toml are those of a search on other data" in caplog.text


def test_a_file_that_is_not_there_yet_changes_nothing_and_one_that_is_wrong_is_an_error(tmp_path):
    given = Job(training=TrainConfig(epochs=7))
    assert settings_file.fill(given, tmp_path / "best.toml") is given
    assert settings_file.fill(given, None) is given
    (tmp_path / "best.toml").write_text("[training]\nepochs = 0\n")
    with pytest.raises(SettingsError, match=r"best\.toml: \[training\] epochs takes"):
        settings_file.fill(given, tmp_path / "best.toml")


@pytest.mark.parametrize("settings", JOBS.values(), ids=JOBS)
def test_a_command_is_called_with_what_the_file_says(settings, write):
    assert job(*write(settings_file.write(settings))) == settings


FLAGS = [
    *("--source", 's3://b/"x"', "--limit", "7", "--epochs", "3", "--no-flip", "--optimizer", "sgd"),
    *("--metric", "rmse", "--workspace", "w", "--classes", "1..5", "--grow-by", "4"),
]


def test_a_file_that_config_prints_stands_for_the_flags_that_it_was_given(write, capsys):
    app(["config", *FLAGS], result_action="return_value")
    printed = capsys.readouterr().out
    words = write(printed)

    assert job(*words) == job(*FLAGS)
    assert job(*words, command="run") == job(*FLAGS[: FLAGS.index("--grow-by")], command="run")
    app(["config", *words], result_action="return_value")
    assert capsys.readouterr().out == printed


def test_config_prints_every_setting_below_its_description_and_one_without_a_value_as_a_comment(capsys):
    app(["config"], result_action="return_value")
    printed = capsys.readouterr().out
    parts = [" ".join(part.replace("\n# ", " ").split()) for part in printed.split("\n\n")]
    for name, model in SECTIONS.items():
        assert f"[{name}]" in printed
        for key, field in model.model_fields.items():
            [part] = [part for part in parts if part.startswith(f"# {field.description}")]
            assert f" {key} =" in part
    assert "\n# limit =\n" in printed
    assert "\n# weight_decay = 0.1\n" in printed  # else another optimizer in the file would keep it
    assert tomllib.loads(printed)["training"]["epochs"] == TrainConfig().epochs


def test_a_name_that_is_not_utf_8_is_refused_since_no_toml_can_hold_it(tmp_path):
    with pytest.raises(SettingsError, match=r"source '/data/\\udcff' is not UTF-8"):
        settings_file.write(Job(data=DataConfig(source="/data/\udcff")))


# --- which value is taken ---------------------------------------------------------------------------------------------


def test_a_flag_comes_before_the_file_and_the_file_before_the_default(write):
    words = write("workspace = 'there'\n[training]\nepochs = 3\nseed = 4")
    called = arguments("run", *words, "--epochs", "9")
    assert called["training"] == TrainConfig(epochs=9, seed=4)
    assert called["workspace"] == Path("there")
    assert arguments("run", *words, "--workspace", "here")["workspace"] == Path("here")
    assert "data" not in called  # which is the default of the command


@pytest.mark.parametrize(
    ("variable", "section", "key"),
    [
        ("MLFLOW_TRACKING_URI", "registry", "tracking_uri"),
        ("AWS_ENDPOINT_URL_S3", "data", "endpoint"),
        ("AWS_ENDPOINT_URL", "data", "endpoint"),
        ("AWS_REGION", "data", "region"),
        ("AWS_DEFAULT_REGION", "data", "region"),
    ],
)
def test_the_environment_comes_before_the_file_and_after_a_flag(variable, section, key, write, monkeypatch):
    words = write(f"[{section}]\n{key} = 'http://file:5000'")
    monkeypatch.delenv(variable, raising=False)
    assert getattr(job(*words), section) == SECTIONS[section](**{key: "http://file:5000"})

    monkeypatch.setenv(variable, "http://environment:5000")
    assert getattr(job(*words), section) == SECTIONS[section]()  # from which the variable is looked up, as always
    flag = ["--" + key.replace("_", "-"), "http://flag:5000"]
    assert getattr(job(*words, *flag), section) == SECTIONS[section](**{key: "http://flag:5000"})

    monkeypatch.setenv(variable, "")
    assert getattr(job(*words), section) == SECTIONS[section](**{key: "http://file:5000"})


def test_a_value_of_the_file_counts_as_set_and_no_other(write):
    called = arguments("export", "--folder", "x", *write("[data]\nclasses = '0..5'\nlayout = 'bins'"))
    assert called["data"].model_fields_set == {"classes"}


def test_toml_and_yaml_say_the_same(write):
    content = {"workspace": "w", "data": {"limit": 7, "ordered": None}, "training": {"flip": False, "dropout": 0.5}}
    of_yaml = job(*write(yaml.safe_dump(content), "night.yaml"))
    del content["data"]["ordered"]
    assert of_yaml == job(*write("workspace = 'w'\ndata.limit = 7\ntraining = {flip = false, dropout = 0.5}"))
    assert of_yaml == job(*write(yaml.safe_dump(content) + "images:\n", "night.yml"))


@pytest.mark.parametrize("command", COMMANDS)
def test_one_file_serves_every_command_that_takes_settings(command, write):
    words = write(settings_file.write(JOBS["every kind of value"]))
    called = arguments(command, *WORDS.get(command, []), *words)
    assert called["workspace"] == Path("/data/of bincount")
    for name in called.keys() & SECTIONS.keys():
        whole = getattr(JOBS["every kind of value"], name)
        assert all(getattr(called[name], key) == getattr(whole, key) for key in type(called[name]).model_fields)


@pytest.mark.parametrize("command", sorted(WITHOUT_SETTINGS))
def test_a_command_without_settings_takes_no_file(command, write, monkeypatch, capsys):
    said = refused([command, *write("")], monkeypatch, capsys)
    assert said.startswith("bincount: there is no option --config")


def test_an_empty_file_changes_nothing(write):
    assert job(*write("")) == job(*write("", "night.yaml")) == Job()


# --- mistakes in a file -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[trainig]\nepochs = 3", "there is no section [trainig]; did you mean [training]?"),
        ("workspce = 'w'", "there is no setting workspce; did you mean workspace?"),
        ("epochs = 3", "epochs is a setting of [training]; write it there"),
        ("[data]\nepochs = 3", "epochs is no setting of [data] but of [training]; write it there"),
        ("[training]\nbatch-size = 3", "there is no setting batch-size in [training]; did you mean batch_size?"),
        ("[training]\nepochs = 0", "[training] epochs takes a whole number of at least 1, not 0"),
        ("[training]\nepochs = '3'", "[training] epochs takes a whole number of at least 1, not '3'"),
        ("[training]\nepochs = true", "[training] epochs takes a whole number of at least 1, not true"),
        ("[training]\nflip = 'no'", "[training] flip takes true or false, not 'no'"),
        ("[training]\nweights = 4", "[training] weights takes text, not 4"),
        ("[training]\noptimizer = 'adan'", "[training] optimizer takes one of adamw, adam, sgd, not 'adan'; did you"),
        ("[data]\nonly_listed = 4", "[data] only_listed takes a path, not 4"),
        ("[data]\nclasses = '3'", "[data] classes: '3' names fewer than two classes; write a range as 0..5"),
        ("[registry]\nmodel_name = 'a/b'", "[registry] model_name takes a name without any of / : % ' \" `, not 'a/b'"),
        ("[registry]\nexperiment = ''", "[registry] experiment: string should have at least 1 character, not ''"),
        ("workspace = 4", "workspace takes a path, not 4"),
        ("data = 's3://bins'", "[data] takes settings, not 's3://bins'"),
        ("[data", "is not valid TOML ("),
    ],
    ids=lambda value: value.replace("\n", " ") if "=" in value else "",
)
def test_a_mistake_is_reported_with_file_section_and_key_what_it_takes_and_what_may_have_been_meant(
    text, told, write, monkeypatch, capsys
):
    for command in ("models", "run"):  # whether the command uses the section or not
        said = refused([command, *write(text)], monkeypatch, capsys)
        assert said.startswith("bincount: night.toml")
        assert told in said
        assert len(said.splitlines()) == 1


def test_all_mistakes_of_a_file_are_reported_at_once(write, monkeypatch, capsys):
    words = write("x:\n  y: 1\ntraining:\n  epochs: 0\n  spochs: 1\n  seed: -1\n", "night.yaml")
    said = refused(["run", *words], monkeypatch, capsys)
    assert said.splitlines() == [
        "bincount: night.yaml: there is no section [x]; `bincount config` shows all",
        "night.yaml: there is no setting spochs in [training]; did you mean epochs?; `bincount config` shows all",
        "night.yaml: [training] epochs takes a whole number of at least 1, not 0",
        "night.yaml: [training] seed takes a whole number of at least 0, not -1",
    ]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("night.yaml", b"training: [1\nb", "night.yaml is not valid YAML (expected ',' or ']'"),
        ("night.yaml", b"- training", "night.yaml holds no sections; write it as `bincount config` does"),
        ("night.json", b"{}", "night.json has no name of a settings file; name it .toml, .yaml or .yml"),
        ("night.toml", b"\xff\xfe", "night.toml is not valid TOML ('utf-8' codec"),
        ("night.toml", None, "there is no file night.toml; correct --config, or make one with `bincount config`"),
    ],
)
def test_a_file_that_cannot_be_read_is_reported_with_the_remedy(name, content, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path(name).write_bytes(content)
    said = refused(["models", "--config", name], monkeypatch, capsys)
    assert said.startswith(f"bincount: {told}")
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    "text",
    [
        "[registry]\ntracking_uri = 'https://anna:pa55word@host'",
        "[data]\nsource = 's3://anna:pa55word@bucket'",
        "[data]\nlimit = 's3://anna:pa55word@bucket'",
        "[runner]\ndask_address = 'tcp://pa55word@host:1'",
        "[data]\npassword = 'pa55word'",
        "password = 'pa55word'",
        "data = 'https://anna:pa55word@host'",
    ],
)
def test_a_secret_in_a_file_is_refused_and_not_repeated(text, write, monkeypatch, capsys):
    said = refused(["config", *write(text)], monkeypatch, capsys)
    assert said.startswith("bincount: night.toml: ")
    assert "pa55word" not in said


def test_a_line_that_is_no_yaml_is_not_repeated_since_it_may_hold_a_secret(write, monkeypatch, capsys):
    said = refused(["config", *write("registry:\n  password: [pa55word", "night.yaml")], monkeypatch, capsys)
    assert "not valid YAML" in said
    assert "pa55word" not in said


# --- names of before --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["--retry-set-aside", "--retry-set-aside=true"])
def test_a_flag_of_before_is_understood(flag, monkeypatch, capsys):
    assert job(*usage.rename_flags([flag, "--limit", "3"])) == job("--retry-quarantined", "--limit", "3")
    assert usage.rename_flags(["--no-retry-set-aside"]) == ["--no-retry-quarantined"]
    said = refused(["prepare", flag, "--source", "nowhere"], monkeypatch, capsys)
    assert said.startswith("bincount: there is no folder nowhere")


def test_a_flag_of_before_is_neither_in_the_help_nor_completed(capsys):
    shown = help_of("prepare", capsys) + app.generate_completion(shell="bash")
    assert "--retry-quarantined" in shown
    assert "set-aside" not in shown


def test_a_setting_of_before_is_read_from_files_and_from_the_parameters_of_deployments(write):
    assert job(*write("[data]\nretry_set_aside = true")).data == DataConfig(retry_quarantined=True)
    parameters = {"data": {"source": "s3://bins", "retry_set_aside": True}}
    given = retrain.retrain.validate_parameters(parameters)
    assert given["data"] == DataConfig(source="s3://bins", retry_quarantined=True)
    schema = parameter_schema(retrain.retrain).model_dump_for_openapi()
    assert validate(parameters, schema) == []  # as Prefect's server does with each run of a deployment
    assert validate({"data": {"retry_set_asides": True}}, schema) != []
    assert "retry_set_aside" not in schema["properties"]["data"]["properties"]  # which the form shows


def test_predict_reads_its_buckets_and_every_command_computes_as_the_file_says(write):
    file = write('[data]\nunsigned = false\nendpoint = "http://here:9000"\nlimit = 5\n[training]\ndevice = "cpu"')
    predicted = arguments("predict", *WORDS["predict"], *file)
    bucket = predicted["bucket"]
    assert (bucket.unsigned, bucket.endpoint, bucket.limit) == (False, "http://here:9000", None)
    for command in ("evaluate", "compare", "promote"):
        assert arguments(command, *WORDS.get(command, []), *file)["device"] == "cpu"
    assert predicted["device"] == "cpu"
    assert arguments("evaluate", *file, "--device", "cuda")["device"] == "cuda"


# --- one definition ---------------------------------------------------------------------------------------------------


def test_every_setting_has_a_name_of_its_own_since_flags_and_params_of_mlflow_have_no_sections():
    names = [name for model in SECTIONS.values() for name in model.model_fields]
    assert len(names) == len(set(names))
    assert {"runner"} == set(names) & set(Job.model_fields)  # --runner is the flag, and [runner] its section


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
def test_a_flow_takes_the_sections_by_name_and_in_one_order(flow):
    sections = [name for name in inspect.signature(flow.fn).parameters if name in Job.model_fields]
    assert sections == [name for name in Job.model_fields if name in sections]
    assert set(sections) >= {"data", "workspace"}
