"""The image of an endpoint in Amazon ECR, pinned by its digest: a tag may be pushed again, a digest never changes."""

from typing import Any

from botocore.exceptions import ClientError

from bincount.errors import SettingsError
from deployments.sagemaker.aws import REFUSED

GONE = ("ImageNotFoundException", "RepositoryNotFoundException")


def pin(ecr: Any, image: str, region: str) -> str:
    """Return an image with the digest that its tag has now, or as it is where ECR does not let us ask.

    Raises SettingsError where there is no such image in the endpoint's region, from which SageMaker pulls it.
    """
    if "@" in image:
        return image
    registry, _, rest = image.partition("/")
    repository, _, tag = rest.partition(":")
    try:
        found = ecr.describe_images(
            registryId=registry.partition(".")[0],
            repositoryName=repository,
            imageIds=[{"imageTag": tag or "latest"}],
        )
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code in GONE:
            raise SettingsError(
                f"there is no image {image} in Amazon ECR in {region}; push it, or correct --image"
            ) from None
        if code.startswith(REFUSED):
            return image
        raise
    return f"{registry}/{repository}@{found['imageDetails'][0]['imageDigest']}"


def warn_of_tag(image: str) -> list[str]:
    """Return the lines that say so where an image is known by its tag alone; none otherwise."""
    if "@" in image:
        return []
    return [
        f"The digest of {image} could not be asked for (ecr:DescribeImages), so that a tag",
        "that is pushed again is not noticed: push every image with a tag of its own.",
    ]
