"""What there is of an endpoint in an account: the endpoint, and the configurations and models that were made for it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from bincount.errors import SettingsError
from deployments.sagemaker.aws import Clients

TAG = "bincount:endpoint"  # of everything that is made for an endpoint, with its name


@dataclass(frozen=True)
class Inventory:
    """status and config are empty where there is no such endpoint; configs and models have the newest first."""

    status: str
    config: str
    configs: tuple[str, ...]
    models: tuple[str, ...]

    @property
    def is_empty(self) -> bool:
        return not (self.status or self.configs or self.models)


def take(clients: Clients, endpoint: str) -> Inventory:
    """Find what was made for an endpoint. Raises SettingsError where another program has made one of the name."""
    found = describe(clients.sagemaker, endpoint)
    if found and not _is_ours(clients.sagemaker, found["EndpointArn"], endpoint):
        raise SettingsError(
            f"the endpoint {endpoint} in {clients.region} was not made by bincount; give another name with --endpoint"
        )
    return Inventory(
        status=found.get("EndpointStatus", ""),
        config=found.get("EndpointConfigName", ""),
        configs=tuple(_made_for(clients.sagemaker, endpoint, "list_endpoint_configs", "EndpointConfig")),
        models=tuple(_made_for(clients.sagemaker, endpoint, "list_models", "Model")),
    )


def describe(sagemaker: Any, endpoint: str) -> dict:
    """Return what SageMaker says of an endpoint; empty where there is none."""
    try:
        return sagemaker.describe_endpoint(EndpointName=endpoint)
    except ClientError as error:
        if is_missing(error):
            return {}
        raise


def is_missing(error: ClientError) -> bool:
    """Return whether an error says that what was named is not there."""
    return error.response["Error"]["Message"].startswith("Could not find")


def _made_for(sagemaker: Any, endpoint: str, operation: str, kind: str) -> Iterator[str]:
    pages = sagemaker.get_paginator(operation).paginate(
        NameContains=f"{endpoint}-", SortBy="CreationTime", SortOrder="Descending"
    )
    for page in pages:
        for entry in page[f"{kind}s"]:
            if _is_ours(sagemaker, entry[f"{kind}Arn"], endpoint):
                yield entry[f"{kind}Name"]


def _is_ours(sagemaker: Any, arn: str, endpoint: str) -> bool:
    tags = (tag for page in sagemaker.get_paginator("list_tags").paginate(ResourceArn=arn) for tag in page["Tags"])
    return any(tag["Key"] == TAG and tag["Value"] == endpoint for tag in tags)
