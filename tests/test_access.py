"""Tests of the server, region and signature of a source and a publication, and of the errors where they are wrong."""

import logging

import pytest
from bins import add_thirty_bins, bring, jpeg, record
from faulty_s3 import FaultyS3, elsewhere, refused

from bincount.data import assembly, bins, client, export, source
from bincount.errors import ServiceUnavailable, SettingsError, SourceError, SourceUnavailable
from bincount.problem import Classes
from bincount.settings import DataConfig
from flows.cli import main

OBJECTS = {"bin-images/00001.jpg": jpeg(1), "metadata/00001.json": record(1)}
LISTING = "list *"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path):
    """No credentials and no settings of the machine, nor a look at an address where clouds keep some."""
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(client, "MAX_RETRIES", 0)


@pytest.fixture
def keys(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "KEYID")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SECRETKEY")


@pytest.fixture
def server():
    with FaultyS3(dict(OBJECTS)) as running:
        yield running


@pytest.fixture
def snapshot(tmp_path):
    add_thirty_bins(tmp_path / "source")
    bring(tmp_path / "source", tmp_path / "data")
    rows = bins.read(tmp_path / "data")
    return assembly.build(tmp_path / "data", rows, Classes.parse("0..5"), "source")


def region_of(headers: dict[str, str]) -> str:
    return headers["authorization"].split("Credential=KEYID/", 1)[1].split("/")[1]


DEAD = "http://127.0.0.1:9"
ENVIRONMENTS = [
    {"AWS_ENDPOINT_URL_S3": DEAD},
    {"AWS_ENDPOINT_URL": DEAD},
    {"AWS_ENDPOINT": DEAD},
    {"AWS_ENDPOINT_URL_S3": DEAD, "AWS_ENDPOINT_URL": DEAD, "AWS_ALLOW_HTTP": "false"},
    {"AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true"},
    {"AWS_REGION": "ap-south-1", "AWS_DEFAULT_REGION": "eu-west-3"},
    {"AWS_SKIP_SIGNATURE": "true"},
    {"AWS_SKIP_SIGNATURE": "false", "AWS_BUCKET": "another", "AWS_BUCKET_NAME": "another"},
]


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=str)
@pytest.mark.parametrize("unsigned", [True, False])
def test_what_is_given_for_reading_wins_over_the_environment(
    tmp_path, server, keys, monkeypatch, environment, unsigned
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    server.objects["bin-images/a//b.jpg"] = jpeg(2)  # so that both clients are asked
    report = bring(None, tmp_path, server.config(region="us-west-2", unsigned=unsigned))
    assert report.num_fetched == 1
    assert ["authorization" in headers for headers in server.headers] == [not unsigned] * len(server.headers)
    assert unsigned or {region_of(headers) for headers in server.headers} == {"us-west-2"}


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=str)
def test_what_is_given_for_publishing_wins_over_the_environment(
    snapshot, own_server, s3_client, keys, monkeypatch, environment
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    bucket, endpoint = own_server
    exported = export.to_bucket(snapshot, export.open_bucket(f"s3://{bucket}", endpoint, "us-east-1"))
    assert exported.num_copied == 30
    assert s3_client.list_objects_v2(Bucket=bucket)["KeyCount"] == 30


@pytest.fixture
def own_server(s3_client, s3_endpoint, tmp_path):
    name = f"own-{tmp_path.name.replace('_', '-').lower()[:50]}"
    s3_client.create_bucket(Bucket=name)
    return name, s3_endpoint


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"])
def test_without_a_flag_the_environment_names_the_server(tmp_path, server, monkeypatch, name):
    monkeypatch.setenv(name, server.config().endpoint)
    if name == "AWS_ENDPOINT_URL_S3":
        monkeypatch.setenv("AWS_ENDPOINT_URL", DEAD)
    assert bring(None, tmp_path, DataConfig(source="s3://bins")).num_fetched == 1


@pytest.mark.parametrize("name", ["AWS_REGION", "AWS_DEFAULT_REGION", None])
def test_without_a_flag_the_environment_names_the_region(tmp_path, server, keys, monkeypatch, name):
    if name:
        monkeypatch.setenv(name, "eu-west-3")
    bring(None, tmp_path, server.config(unsigned=False))
    assert {region_of(headers) for headers in server.headers} == {"eu-west-3" if name else "us-east-1"}


def test_the_region_of_a_profile_counts_where_none_is_given(tmp_path, server, monkeypatch):
    profile = "[profile lab]\nregion = sa-east-1\naws_access_key_id = KEYID\naws_secret_access_key = s\n"
    (tmp_path / "none").write_text(profile)
    monkeypatch.setenv("AWS_PROFILE", "lab")
    bring(None, tmp_path / "data", server.config(unsigned=False))
    assert {region_of(headers) for headers in server.headers} == {"sa-east-1"}


@pytest.mark.parametrize(("status", "names_it"), [(301, False), (400, True), (400, False)])
def test_a_bucket_in_another_region_is_named_with_the_region_that_the_server_sent(server, status, names_it):
    fault = elsewhere("eu-west-1", status, names_it=names_it)
    for pattern in (LISTING, ""):
        server.fail(pattern, fault)
    for layout in ("auto", "bins"):
        with pytest.raises(
            SourceError, match=r"is in the region eu-west-1, not us-west-2; pass --region eu-west-1"
        ) as raised:
            source.open_source(server.config(region="us-west-2", layout=layout)).list_bins()
        assert not isinstance(raised.value, SourceUnavailable)


def test_a_region_that_the_server_does_not_name_is_asked_for(server):
    server.fail("*", elsewhere("", 301))
    with pytest.raises(SourceError, match="is in another region than us-east-1; pass it as --region"):
        source.open_source(server.config())


def test_a_region_of_the_environment_gives_way_to_the_one_that_the_server_sent(tmp_path, server, keys, monkeypatch):
    monkeypatch.setenv("AWS_DEFAULT_REGION", "ap-south-1")
    server.fail("list  page 1", elsewhere("eu-west-1", 301), times=1)
    server.fail("", elsewhere("eu-west-1", 301))
    opened = source.open_source(server.config(unsigned=False))
    assert opened.list_bins()["image_id"].to_list() == ["00001"]
    assert region_of(server.headers[-1]) == "eu-west-1"


def test_publishing_names_the_region_that_the_server_sent(snapshot, server, keys):
    for pattern in (LISTING, ""):
        server.fail(pattern, elsewhere("eu-west-1"))
    bucket = export.open_bucket("s3://bins", server.config().endpoint, "us-west-2")
    with pytest.raises(SettingsError, match="is in eu-west-1; give it as --to-region eu-west-1"):
        export.to_bucket(snapshot, bucket)


def test_requests_are_paid_for_when_asked_and_are_then_signed(tmp_path, server, keys):
    server.objects["bin-images/a//b.jpg"] = jpeg(2)
    assert bring(None, tmp_path, server.config(requester_pays=True)).num_fetched == 1
    assert {headers.get("x-amz-request-payer") for headers in server.headers} == {"requester"}
    assert all("authorization" in headers for headers in server.headers)


def test_who_is_refused_hears_of_buckets_whose_requester_pays(server):
    server.fail("*", refused)
    with pytest.raises(
        SourceError, match=r"pass --no-unsigned and sign in to AWS, and for one whose requester pays --req"
    ):
        source.open_source(server.config())


@pytest.mark.parametrize("setting", [{"requester_pays": True}, {"unsigned": False}])
def test_without_credentials_reading_says_how_to_sign_in(server, setting):
    with pytest.raises(SettingsError, match="set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        source.open_source(server.config(**setting))


SECRET = "http://user:SECRETPW@127.0.0.1:9"


@pytest.mark.parametrize(
    "settings",
    [
        {"endpoint": SECRET},
        {"endpoint": "https://SECRETPW@127.0.0.1"},
        {"source": "s3://KEY:SECRETPW@bucket"},
        {"source": "https://user:SECRETPW@host/bucket"},
    ],
)
def test_a_url_with_credentials_is_refused_without_repeating_them(settings):
    with pytest.raises(SettingsError, match=r"holds credentials.*AWS_ACCESS_KEY_ID") as raised:
        DataConfig(**settings)
    assert "SECRETPW" not in f"{raised.value} {raised.value!r}"


def test_the_command_line_refuses_them_without_repeating_them(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["bincount", "prepare", "--source", "s3://b", "--endpoint", SECRET])
    with pytest.raises(SystemExit) as raised:
        main()
    shown = capsys.readouterr()
    assert raised.value.code == 1
    assert "SECRETPW" not in shown.out + shown.err
    assert "http://***@127.0.0.1:9 holds credentials" in shown.err


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"])
def test_an_endpoint_of_the_environment_with_credentials_is_refused_without_repeating_them(monkeypatch, caplog, name):
    monkeypatch.setenv(name, SECRET)
    with caplog.at_level(logging.DEBUG), pytest.raises(SettingsError, match="holds credentials") as raised:
        source.open_source(DataConfig(source="s3://b"))
    assert "SECRETPW" not in str(raised.value) + caplog.text


@pytest.mark.parametrize(
    ("to", "endpoint"), [("s3://own", SECRET), ("s3://KEY:SECRETPW@own", None), ("https://u:SECRETPW@host", None)]
)
def test_publishing_refuses_them_without_repeating_them(keys, to, endpoint):
    with pytest.raises(SettingsError) as raised:
        export.open_bucket(to, endpoint)
    assert "SECRETPW" not in str(raised.value)
    assert "***@" in str(raised.value)


def test_a_server_that_does_not_answer_is_not_asked_elsewhere(snapshot, keys, free_port, monkeypatch, server):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.config().endpoint)
    with pytest.raises(ServiceUnavailable, match=str(free_port)):
        export.to_bucket(snapshot, export.open_bucket("s3://bins", f"http://127.0.0.1:{free_port}"))
    assert server.headers == []
