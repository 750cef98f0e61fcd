"""Create, update and delete an endpoint of SageMaker.

Names follow from what they name, so that the same command made again goes on where it was interrupted, and finds
nothing to do in the end. Models and configurations of earlier versions stay, to go back to.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from bincount.errors import ServiceUnavailable, SettingsError
from bincount.training.spec import model_digest
from deployments.sagemaker import archive, image, inventory, price
from deployments.sagemaker.aws import Clients, explained
from deployments.sagemaker.inventory import TAG, Inventory
from deployments.sagemaker.target import Target

POLL_SECONDS = 15
UNDER_WAY = ("Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting")
BAKE_SECONDS = 600  # for which alarms are watched while the new instances get all requests and the old ones stand by
START_SECONDS = 600  # for the model's download, and for the container until /ping answers


@dataclass(frozen=True)
class Plan:
    """What a deployment is about to do. label is the version, as v7, or the digest of a folder's model."""

    target: Target
    checkpoint: Path
    label: str
    digest: str
    before: Inventory

    @property
    def model(self) -> str:
        return self.target.model_name(self.label, self.digest)

    @property
    def config(self) -> str:
        return self.target.config_name(self.model)

    @property
    def is_done(self) -> bool:
        return self.before.status == "InService" and self.before.config == self.config


def plan(clients: Clients, target: Target, checkpoint: Path, version: int | None) -> Plan:
    """Look at what there is, and say what is to be done; nothing is changed.

    version is the number of a registered model, None for a folder. Raises SettingsError, and ServiceUnavailable.
    """
    digest = model_digest(checkpoint)
    label = f"v{version}" if version else digest[:12]
    with explained():
        _check_alarms(clients.cloudwatch, target.alarms)
        pinned = target.model_copy(update={"image": image.pin(clients.ecr, target.image, clients.region)})
        return Plan(pinned, checkpoint, label, digest, inventory.take(clients, target.endpoint))


def describe(planned: Plan, clients: Clients) -> str:
    """Write what a deployment does and costs, in lines to be read before it is agreed to."""
    target, before = planned.target, planned.before
    hourly = price.per_hour(clients.pricing, target.instance_type, clients.region)
    each = f"{hourly.normalize():f} USD an hour each" if hourly else "at a price that AWS's price list did not tell"
    total = f"{(hourly * target.instances).normalize():f} USD an hour" if hourly else "unknown"
    is_new = before.status in ("", "Failed", "Deleting")
    if is_new:
        what, meanwhile = "is created", ""
    else:
        what, meanwhile = f"is updated, from {before.config}", "; during the update for old and new instances"
    lines = [
        f"The endpoint {target.endpoint} in {clients.region}, account {clients.account}, {what}:",
        f"  model     {planned.label}, digest {planned.digest[:12]}, as {planned.model}",
        f"  image     {target.image}",
        f"  instances {target.instances} x {target.instance_type}, {each}",
        f"  price     {total}, without storage and traffic, until `bincount deploy sagemaker --delete`{meanwhile}",
    ]
    if target.alarms:
        when = "of later updates, as nothing is there to go back to yet, " if is_new else ""
        lines.append(f"  rollback  {when}when one of these alarms goes off: {', '.join(target.alarms)}")
    return "\n".join(lines + image.warn_of_tag(target.image))


def carry_out(planned: Plan, clients: Clients, sleep: Callable[[float], None] = time.sleep) -> None:
    """Upload the archive, make model, configuration and endpoint, and wait until the endpoint serves.

    Raises SettingsError where AWS refuses or the endpoint fails, and ServiceUnavailable.
    """
    target, sagemaker = planned.target, clients.sagemaker
    tags = [{"Key": TAG, "Value": target.endpoint}, {"Key": "bincount:model", "Value": planned.label}]
    with explained():
        bucket, key = target.archive_key(planned.digest)
        _upload(clients.s3, planned.checkpoint, bucket, key)
        if planned.model not in planned.before.models:
            container = {"Image": target.image, "ModelDataUrl": f"s3://{bucket}/{key}"}
            _create(
                sagemaker.create_model,
                ModelName=planned.model,
                PrimaryContainer=container,
                ExecutionRoleArn=target.role,
                Tags=tags,
            )
        if planned.config not in planned.before.configs:
            variant = {
                "VariantName": "all",
                "ModelName": planned.model,
                "InstanceType": target.instance_type,
                "InitialInstanceCount": target.instances,
                "ModelDataDownloadTimeoutInSeconds": START_SECONDS,
                "ContainerStartupHealthCheckTimeoutInSeconds": START_SECONDS,
            }
            _create(
                sagemaker.create_endpoint_config,
                EndpointConfigName=planned.config,
                ProductionVariants=[variant],
                Tags=tags,
            )
        found = _settle(sagemaker, target.endpoint, sleep)
        if found.get("EndpointStatus") == "Failed":  # it never served, and cannot be updated
            sagemaker.delete_endpoint(EndpointName=target.endpoint)
            found = _settle(sagemaker, target.endpoint, sleep)
        if not found:
            alarmed = {"DeploymentConfig": _blue_green(target)} if target.alarms else {}  # for later updates
            sagemaker.create_endpoint(
                EndpointName=target.endpoint, EndpointConfigName=planned.config, Tags=tags, **alarmed
            )
        elif found["EndpointConfigName"] != planned.config:
            sagemaker.update_endpoint(
                EndpointName=target.endpoint, EndpointConfigName=planned.config, DeploymentConfig=_blue_green(target)
            )
        _check(_settle(sagemaker, target.endpoint, sleep), planned, clients.region)


def delete(clients: Clients, endpoint: str, found: Inventory, sleep: Callable[[float], None] = time.sleep) -> None:
    """Delete an endpoint, and then the configurations and models that were made for it.

    Interrupted, it goes on when it is called again. Raises SettingsError, and ServiceUnavailable.
    """
    sagemaker = clients.sagemaker
    with explained():
        if found.status and _settle(sagemaker, endpoint, sleep):
            print(f"Deleting the endpoint {endpoint} ...", flush=True)
            sagemaker.delete_endpoint(EndpointName=endpoint)
            _settle(sagemaker, endpoint, sleep)
        for config in found.configs:
            _delete(sagemaker.delete_endpoint_config, EndpointConfigName=config)
        for model in found.models:
            _delete(sagemaker.delete_model, ModelName=model)


def describe_deletion(clients: Clients, endpoint: str, found: Inventory) -> str:
    """Write what is deleted, in lines to be read before it is agreed to."""
    lines = [f"In {clients.region}, account {clients.account}, this is deleted:"]
    if found.status:
        lines.append(f"  endpoint  {endpoint}, which is {found.status}")
    lines += [f"  config    {config}" for config in found.configs] + [f"  model     {model}" for model in found.models]
    return "\n".join(lines)


def describe_rest(endpoint: str) -> str:
    """Write what a deletion leaves."""
    return (
        "It is deleted, and costs nothing any more. There are still, for you to keep or to remove: the archives "
        f"under models/ in the bucket, the images in Amazon ECR, the log group {log_group(endpoint)}, and the role."
    )


def describe_result(planned: Plan, clients: Clients) -> str:
    """Write what serves now, how to ask it, and which earlier models one could go back to."""
    endpoint = planned.target.endpoint
    lines = [
        f"The endpoint {endpoint} in {clients.region} serves {planned.label}, digest {planned.digest[:12]}. Ask it:",
        f"  aws sagemaker-runtime invoke-endpoint --endpoint-name {endpoint} --region {clients.region} \\",
        "    --content-type image/jpeg --body fileb://BIN.jpg /dev/stdout",
    ]
    lines += image.warn_of_tag(planned.target.image)
    if earlier := [model for model in planned.before.models if model != planned.model]:
        lines += ["Kept from before, to deploy them again:", *(f"  {model}" for model in earlier)]
    return "\n".join(lines)


def log_group(endpoint: str) -> str:
    return f"/aws/sagemaker/Endpoints/{endpoint}"


def _check_alarms(cloudwatch: Any, alarms: tuple[str, ...]) -> None:
    """Raise SettingsError for an alarm that does not exist: it would never roll anything back."""
    if not alarms:
        return
    found = cloudwatch.describe_alarms(AlarmNames=list(alarms), AlarmTypes=["MetricAlarm", "CompositeAlarm"])
    names = {each["AlarmName"] for kind in ("MetricAlarms", "CompositeAlarms") for each in found.get(kind, [])}
    if missing := [alarm for alarm in alarms if alarm not in names]:
        raise SettingsError(f"there is no CloudWatch alarm {', '.join(missing)} in this region; correct --alarm")


def _upload(s3: Any, checkpoint: Path, bucket: str, key: str) -> None:
    """Upload the archive of a model, unless it is there: its key has the digest of what is in it."""
    try:
        s3.head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if error.response["ResponseMetadata"].get("HTTPStatusCode") not in (403, 404):
            raise
    else:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tar.gz"
        archive.write(checkpoint, path)
        print(f"Uploading {path.stat().st_size / 1e6:.1f} MB to s3://{bucket}/{key} ...", flush=True)
        s3.upload_file(str(path), bucket, key)


def _create(create: Callable[..., Any], **parameters: Any) -> None:
    """Create what is not there yet; another call of the same command may have been quicker."""
    try:
        create(**parameters)
    except ClientError as error:
        if "already exist" not in error.response["Error"]["Message"]:
            raise


def _delete(remove: Callable[..., Any], **name: str) -> None:
    try:
        remove(**name)
    except ClientError as error:
        if not inventory.is_missing(error):
            raise


def _blue_green(target: Target) -> dict:
    """Let new instances start beside the old ones, take all requests at once, and only then end the old ones."""
    policy = {
        "TrafficRoutingConfiguration": {
            "Type": "ALL_AT_ONCE",
            "WaitIntervalInSeconds": BAKE_SECONDS if target.alarms else 0,
        },
        "TerminationWaitInSeconds": 0,
    }
    alarms = [{"AlarmName": alarm} for alarm in target.alarms]
    return {"BlueGreenUpdatePolicy": policy} | ({"AutoRollbackConfiguration": {"Alarms": alarms}} if alarms else {})


def _settle(sagemaker: Any, endpoint: str, sleep: Callable[[float], None]) -> dict:
    """Wait while SageMaker is at work on an endpoint; return what it says then, empty where there is none any more."""
    said = ""
    while (found := inventory.describe(sagemaker, endpoint)).get("EndpointStatus") in UNDER_WAY:
        if (status := found["EndpointStatus"]) != said:
            print(f"{endpoint}: {status} ...", flush=True)
            said = status
        sleep(POLL_SECONDS)
    return found


def _check(found: dict, planned: Plan, region: str) -> None:
    """Raise SettingsError where the endpoint does not serve what it should, and ServiceUnavailable where it is gone."""
    endpoint = planned.target.endpoint
    if not found:
        raise ServiceUnavailable(f"the endpoint {endpoint} was deleted meanwhile; run the same command again")
    log = f"its log is the group {log_group(endpoint)} of CloudWatch in {region}"
    reason = found.get("FailureReason", "SageMaker gives no reason")
    if found["EndpointStatus"] != "InService":
        raise SettingsError(f"the endpoint {endpoint} is {found['EndpointStatus']}: {reason}; {log}")
    if found["EndpointConfigName"] != planned.config:
        raise SettingsError(
            f"the endpoint {endpoint} went back to {found['EndpointConfigName']}, which serves on: {reason}; {log}"
        )
