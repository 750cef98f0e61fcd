"""A model as an endpoint of SageMaker, against moto; what moto lacks, updates and the price list, is played here."""

import hashlib
import io
import itertools
import json
import sys
import tarfile

import boto3
import botocore.client
import pytest
from botocore.exceptions import ClientError
from botocore.stub import Stubber
from botocore.validate import validate_parameters
from moto import mock_aws
from moto.sagemaker.models import sagemaker_backends

from bincount.errors import ServiceUnavailable, SettingsError
from bincount.problem import Classes
from bincount.settings import ImageConfig, TrainConfig
from bincount.training import model as models
from bincount.training.spec import ModelSpec, model_digest
from deployments.sagemaker import archive, endpoint, inventory, price
from deployments.sagemaker.aws import Clients, explained
from deployments.sagemaker.target import Target
from flows.cli import main

ACCOUNT, REGION = "123456789012", "eu-central-1"
IMAGE = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/bincount-serve:1"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/bincount"
TARGET = Target(image=IMAGE, role=ROLE, bucket="s3://models/of/ours")
FLAGS = ["--image", IMAGE, "--role", ROLE, "--bucket", "s3://models/of/ours", "--region", REGION]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"), "0..5")


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("other"), "0..3")


def make_model(folder, classes):
    spec = ModelSpec.make(ImageConfig(image_size=32), TrainConfig(model="small"), Classes.parse(classes))
    models.save(folder, models.build(spec), spec)
    return folder


class Aws:
    """An account of moto's, with updates of endpoints, and endpoints that take a while.

    asked lists the operations that change something. An endpoint shows each of the states before it is as moto has it;
    what is in outcome it is in the end.
    """

    def __init__(self):
        self.asked, self.states, self.outcome, self.prices = [], [], {}, []
        self.updates, self.creations = [], []

    @property
    def backend(self):
        return sagemaker_backends[ACCOUNT][REGION]

    def answer(self, ask, client, operation, parameters):
        if operation.startswith(("Create", "Update", "Delete")):
            self.asked.append(operation)
        if operation == "CreateEndpoint":
            validate_parameters(parameters, client.meta.service_model.operation_model(operation).input_shape)
            self.creations.append(parameters)
        if operation == "UpdateEndpoint":
            validate_parameters(parameters, client.meta.service_model.operation_model(operation).input_shape)
            self.updates.append(parameters)
            if not self.outcome:
                self.backend.endpoints[parameters["EndpointName"]].endpoint_config_name = parameters[
                    "EndpointConfigName"
                ]
            return {}
        if operation == "GetProducts":
            return {"PriceList": [json.dumps(product) for product in self.prices]}
        found = ask(client, operation, parameters)
        if operation == "DescribeEndpoint":
            if self.states:
                return found | {"EndpointStatus": self.states.pop(0)}
            return found | self.outcome
        return found


@pytest.fixture
def aws(monkeypatch):
    for name, value in (("AWS_ACCESS_KEY_ID", "me"), ("AWS_SECRET_ACCESS_KEY", "secret")):
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    account, ask = Aws(), botocore.client.BaseClient._make_api_call
    with mock_aws():
        monkeypatch.setattr(
            botocore.client.BaseClient,
            "_make_api_call",
            lambda client, operation, parameters: account.answer(ask, client, operation, parameters),
        )
        boto3.client("s3", region_name=REGION).create_bucket(
            Bucket="models", CreateBucketConfiguration={"LocationConstraint": REGION}
        )
        push_image()
        account.asked.clear()
        yield account


def push_image(layer="0"):
    """Push an image of one layer with the tag of IMAGE; return its digest."""
    ecr = boto3.client("ecr", region_name=REGION)
    if not ecr.describe_repositories()["repositories"]:
        ecr.create_repository(repositoryName="bincount-serve")
    kind = "application/vnd.docker.distribution.manifest.v2+json"
    layers = [{"digest": f"sha256:{layer * 64}"}]
    manifest = json.dumps({"schemaVersion": 2, "mediaType": kind, "config": layers[0], "layers": layers})
    return ecr.put_image(repositoryName="bincount-serve", imageManifest=manifest, imageTag="1")["image"]["imageId"][
        "imageDigest"
    ]


def deploy(checkpoint, target=TARGET, version=7):
    clients = Clients.open(REGION)
    planned = endpoint.plan(clients, target, checkpoint, version)
    endpoint.carry_out(planned, clients, sleep=lambda seconds: None)
    return planned


def take(name="bincount"):
    return inventory.take(Clients.open(REGION), name)


def run(*words, monkeypatch):
    """Call the command as a shell does; return its exit status."""
    monkeypatch.setattr(sys, "argv", ["bincount", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def product(price_, **attributes):
    dimension = {"unit": "Hrs", "pricePerUnit": {"USD": price_}}
    return {
        "product": {"attributes": {"platoinstancetype": "Hosting", **attributes}},
        "terms": {"OnDemand": {"a": {"priceDimensions": {"b": dimension}}}},
    }


# The archive


def test_the_archive_has_the_two_files_and_is_the_same_each_time(checkpoint, tmp_path):
    first = archive.write(checkpoint, tmp_path / "1.tar.gz")
    assert first == archive.write(checkpoint, tmp_path / "2.tar.gz")
    assert first == hashlib.sha256((tmp_path / "1.tar.gz").read_bytes()).hexdigest()
    with tarfile.open(tmp_path / "1.tar.gz") as tar:
        tar.extractall(tmp_path / "model", filter="data")
    assert model_digest(tmp_path / "model") == model_digest(checkpoint)
    assert len(list((tmp_path / "model").iterdir())) == 2


# Create, update, go back, delete


def test_an_endpoint_is_created_with_the_image_the_role_and_the_archive(aws, checkpoint):
    planned = deploy(checkpoint)
    assert aws.asked == ["CreateModel", "CreateEndpointConfig", "CreateEndpoint"]
    sagemaker = boto3.client("sagemaker", region_name=REGION)
    model = sagemaker.describe_model(ModelName=planned.model)
    assert model["ExecutionRoleArn"] == ROLE
    assert model["PrimaryContainer"]["Image"].startswith(f"{IMAGE.removesuffix(':1')}@sha256:")
    bucket, _, key = model["PrimaryContainer"]["ModelDataUrl"].removeprefix("s3://").partition("/")
    content = boto3.client("s3", region_name=REGION).get_object(Bucket=bucket, Key=key)["Body"].read()
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        assert tar.getnames() == ["model.safetensors", "model.json"]
    [variant] = sagemaker.describe_endpoint_config(EndpointConfigName=planned.config)["ProductionVariants"]
    assert (variant["ModelName"], variant["InstanceType"]) == (planned.model, "ml.m5.large")
    assert take().status == "InService"


def test_the_same_command_again_finds_nothing_to_do(aws, checkpoint, monkeypatch, capsys):
    deploy(checkpoint, version=None)
    aws.asked.clear()
    assert run("deploy", "sagemaker", str(checkpoint), *FLAGS, monkeypatch=monkeypatch) == 0
    assert aws.asked == []
    assert "serves" in capsys.readouterr().out


def test_a_tag_that_was_pushed_again_is_an_update_to_the_new_image(aws, checkpoint):
    deploy(checkpoint)
    digest = push_image("1")
    aws.asked.clear()
    planned = deploy(checkpoint)
    assert aws.asked == ["CreateModel", "CreateEndpointConfig", "UpdateEndpoint"]
    sagemaker = boto3.client("sagemaker", region_name=REGION)
    assert sagemaker.describe_model(ModelName=planned.model)["PrimaryContainer"]["Image"].endswith(f"@{digest}")


def test_an_image_with_a_digest_is_taken_as_it_is_and_one_that_is_not_there_is_named(aws, checkpoint):
    pinned = f"{IMAGE.removesuffix(':1')}@sha256:{'0' * 64}"
    assert deploy(checkpoint, TARGET.model_copy(update={"image": pinned})).target.image == pinned
    with pytest.raises(SettingsError, match=r"no image .*:2 in Amazon ECR in eu-central-1; push it"):
        deploy(checkpoint, TARGET.model_copy(update={"image": IMAGE.replace(":1", ":2")}))


def test_where_the_digest_may_not_be_asked_for_the_tag_counts_and_it_is_said(aws, checkpoint, monkeypatch, capsys):
    answer = aws.answer

    def refuse(ask, client, operation, parameters):
        if operation == "DescribeImages":
            raise ClientError({"Error": {"Code": "AccessDeniedException", "Message": "no"}}, operation)
        return answer(ask, client, operation, parameters)

    aws.answer = refuse
    assert deploy(checkpoint, version=None).target.image == IMAGE
    capsys.readouterr()
    assert run("deploy", "sagemaker", str(checkpoint), *FLAGS, monkeypatch=monkeypatch) == 0
    assert "push every image with a tag of its own" in capsys.readouterr().out


@pytest.mark.parametrize("num_done", [1, 2, 3])
def test_a_deployment_that_was_interrupted_goes_on(aws, checkpoint, num_done):
    interrupt = itertools.count(1)
    answer = aws.answer

    def cut(ask, client, operation, parameters):
        found = answer(ask, client, operation, parameters)
        if operation.startswith("Create") and next(interrupt) == num_done:
            raise KeyboardInterrupt
        return found

    aws.answer = cut
    with pytest.raises(KeyboardInterrupt):
        deploy(checkpoint)
    aws.answer = answer
    deploy(checkpoint)
    assert aws.asked == ["CreateModel", "CreateEndpointConfig", "CreateEndpoint"]
    assert take().status == "InService"


def test_another_version_is_started_beside_the_one_before_which_stays_to_go_back_to(aws, checkpoint, other):
    before = deploy(checkpoint, version=7)
    after = deploy(other, version=8)
    [update] = aws.updates
    assert update["EndpointConfigName"] == after.config
    assert update["DeploymentConfig"]["BlueGreenUpdatePolicy"]["TrafficRoutingConfiguration"]["Type"] == "ALL_AT_ONCE"
    assert "AutoRollbackConfiguration" not in update["DeploymentConfig"]
    assert set(take().models) == {before.model, after.model}
    aws.asked.clear()
    deploy(checkpoint, version=7)
    assert aws.asked == ["UpdateEndpoint"]
    assert take().config == before.config


def test_alarms_take_an_update_back_and_must_exist(aws, checkpoint, other):
    deploy(checkpoint)
    alarmed = TARGET.model_copy(update={"alarms": ("errors",)})
    with pytest.raises(SettingsError, match=r"no CloudWatch alarm errors .*correct --alarm"):
        deploy(other, alarmed, version=8)
    boto3.client("cloudwatch", region_name=REGION).put_metric_alarm(
        AlarmName="errors", EvaluationPeriods=1, ComparisonOperator="GreaterThanThreshold", Threshold=1
    )
    deploy(other, alarmed, version=8)
    [update] = aws.updates
    config = update["DeploymentConfig"]
    assert config["AutoRollbackConfiguration"] == {"Alarms": [{"AlarmName": "errors"}]}
    assert config["BlueGreenUpdatePolicy"]["TrafficRoutingConfiguration"]["WaitIntervalInSeconds"] == 600


def test_alarms_at_the_creation_are_for_later_updates_and_it_is_said(aws, checkpoint):
    boto3.client("cloudwatch", region_name=REGION).put_metric_alarm(
        AlarmName="errors", EvaluationPeriods=1, ComparisonOperator="GreaterThanThreshold", Threshold=1
    )
    clients = Clients.open(REGION)
    planned = endpoint.plan(clients, TARGET.model_copy(update={"alarms": ("errors",)}), checkpoint, 7)
    said = endpoint.describe(planned, clients)
    assert "rollback  of later updates, as nothing is there to go back to yet, when one of these alarms" in said
    endpoint.carry_out(planned, clients, sleep=lambda seconds: None)
    [created] = aws.creations
    assert created["DeploymentConfig"]["AutoRollbackConfiguration"] == {"Alarms": [{"AlarmName": "errors"}]}


def test_an_update_that_was_taken_back_is_an_error_with_the_reason_and_the_log(aws, checkpoint, other):
    before = deploy(checkpoint)
    aws.states = ["InService", "InService", "Updating", "RollingBack"]
    aws.outcome = {"FailureReason": "alarm errors"}
    with pytest.raises(SettingsError, match=rf"went back to {before.config}.*alarm errors.*/aws/sagemaker/Endpoints/"):
        deploy(other, version=8)


def test_an_endpoint_that_fails_is_an_error_and_is_replaced_the_next_time(aws, checkpoint, capsys):
    aws.states, aws.outcome = ["Creating", "Creating"], {"EndpointStatus": "Failed", "FailureReason": "no /ping"}
    with pytest.raises(SettingsError, match=r"is Failed: no /ping; its log is the group /aws/sagemaker/Endpoints/"):
        deploy(checkpoint)
    assert capsys.readouterr().out.count("Creating") == 1
    aws.asked.clear()
    aws.states, aws.outcome = ["Failed", "Failed"], {}
    deploy(checkpoint)
    assert aws.asked == ["DeleteEndpoint", "CreateEndpoint"]


def test_an_endpoint_that_others_have_made_is_left_alone(aws, checkpoint):
    deploy(checkpoint, TARGET.model_copy(update={"endpoint": "theirs"}))
    arn = boto3.client("sagemaker", region_name=REGION).describe_endpoint(EndpointName="theirs")["EndpointArn"]
    boto3.client("sagemaker", region_name=REGION).delete_tags(ResourceArn=arn, TagKeys=[inventory.TAG])
    with pytest.raises(SettingsError, match=r"theirs .* was not made by bincount; give another name"):
        deploy(checkpoint, TARGET.model_copy(update={"endpoint": "theirs"}))


def test_delete_removes_what_was_made_for_this_endpoint_alone_and_says_what_it_leaves(
    aws, checkpoint, other, monkeypatch, capsys
):
    deploy(checkpoint)
    deploy(other, version=8)
    kept = deploy(checkpoint, TARGET.model_copy(update={"endpoint": "bincount-two"}))
    aws.asked.clear()
    assert run("deploy", "sagemaker", "--delete", "--yes", "--region", REGION, monkeypatch=monkeypatch) == 0
    assert aws.asked == ["DeleteEndpoint"] + ["DeleteEndpointConfig"] * 2 + ["DeleteModel"] * 2
    assert take().is_empty
    assert take("bincount-two").models == (kept.model,)
    said = capsys.readouterr().out
    assert "log group /aws/sagemaker/Endpoints/bincount" in said
    assert "archives" in said
    assert run("deploy", "sagemaker", "--delete", "--region", REGION, monkeypatch=monkeypatch) == 0
    assert "Nothing in eu-central-1" in capsys.readouterr().out


# Price and question


@pytest.mark.parametrize(
    ("prices", "shown"),
    [
        ([product("0.134"), product("0.5", platoinstancetype="Training")], "0.268 USD an hour,"),
        ([product("0.134"), product("0.0000000000")], "0.268 USD an hour,"),
        ([product("0.134"), product("0.2")], "unknown,"),
        ([], "unknown,"),
    ],
)
def test_the_price_is_that_of_the_list_or_unknown(aws, checkpoint, prices, shown):
    aws.prices = prices
    clients = Clients.open(REGION)
    planned = endpoint.plan(clients, TARGET.model_copy(update={"instances": 2}), checkpoint, 7)
    assert f"price     {shown}" in endpoint.describe(planned, clients)


def test_the_price_of_one_instance_in_one_region_is_asked_for():
    client = boto3.client("pricing", region_name="us-east-1", aws_access_key_id="me", aws_secret_access_key="secret")
    fields = {"regionCode": REGION, "instanceName": "ml.m5.large", "productFamily": "ML Instance"}
    asked = {
        "ServiceCode": "AmazonSageMaker",
        "Filters": [{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in fields.items()],
    }
    with Stubber(client) as stubbed:
        stubbed.add_response("get_products", {"PriceList": [json.dumps(product("0.1340000000"))]}, asked)
        assert f"{price.per_hour(client, 'ml.m5.large', REGION).normalize()}" == "0.134"
        stubbed.add_client_error("get_products", "AccessDeniedException")
        assert price.per_hour(client, "ml.m5.large", REGION) is None


def test_it_asks_first_and_refuses_where_nobody_can_answer(aws, checkpoint, monkeypatch, capsys):
    assert run("deploy", "sagemaker", str(checkpoint), *FLAGS, monkeypatch=monkeypatch) != 0
    said = capsys.readouterr()
    assert "price     unknown" in said.out
    assert "give --yes" in said.err
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda question: "n")
    assert run("deploy", "sagemaker", str(checkpoint), *FLAGS, monkeypatch=monkeypatch) == 0
    assert "Nothing was changed" in capsys.readouterr().out
    assert aws.asked == []
    assert run("deploy", "sagemaker", str(checkpoint), *FLAGS, "--yes", monkeypatch=monkeypatch) == 0
    assert "aws sagemaker-runtime invoke-endpoint --endpoint-name bincount" in capsys.readouterr().out


# Errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--image, --role, --bucket must be given"),
        ([*FLAGS, "--role", "me"], "--role"),
        ([*FLAGS[2:], "--image", "bincount-serve"], "--image: give the image as it was pushed to Amazon ECR"),
        (["--image", IMAGE, "--role", "me", "--bucket", "s3://models"], "--role: give the ARN of the role"),
        ([*FLAGS, "--instance-type", "m6i.large"], "--instance-type: m6i.large is no instance type of SageMaker"),
        ([*FLAGS, "--endpoint", "a_b"], "--endpoint"),
        (["--delete", "--endpoint", "a_b"], "--endpoint"),
    ],
)
def test_what_cannot_be_is_named_before_aws_is_asked(words, message, monkeypatch, capsys):
    monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", lambda *_: pytest.fail("AWS was asked"))
    assert run("deploy", "sagemaker", *words, monkeypatch=monkeypatch) != 0
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("code", "kind", "remedy"),
    [
        ("AccessDeniedException", SettingsError, "sign in as somebody who may do that"),
        ("ExpiredTokenException", SettingsError, "sign in"),
        ("ThrottlingException", ServiceUnavailable, "run the same command again"),
        ("ResourceLimitExceeded", SettingsError, "correct what it names"),
    ],
)
def test_an_error_of_aws_is_explained(code, kind, remedy):
    with pytest.raises(kind, match=rf"CreateEndpoint.*\({code}: the quota\).*{remedy}"), explained():
        raise ClientError({"Error": {"Code": code, "Message": "the quota"}}, "CreateEndpoint")


def test_nobody_signed_in_and_no_region_are_named(monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(SettingsError, match="give --region"):
        Clients.open(None)
    with pytest.raises(SettingsError, match="AWS_PROFILE"):
        Clients.open(REGION)
