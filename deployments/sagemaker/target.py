"""Where a model is deployed to, and the names of what is made there."""

import hashlib
import json
import re
from functools import cache

from pydantic import Field, field_validator

from bincount.frozen import Frozen

INSTANCE_TYPE = "ml.m5.large"  # 2 virtual CPUs, 8 GiB
ROLE = re.compile(r"arn:aws[a-z-]*:iam::\d{12}:role/[\w+=,.@/-]+")


class Target(Frozen):
    """An endpoint as it is wanted: its name, what runs on it, and how it is updated.

    bucket is s3://NAME, or s3://NAME/PREFIX, for archives of models; alarms are names of CloudWatch alarms.
    """

    endpoint: str = Field("bincount", max_length=36, pattern="^[a-zA-Z0-9](-?[a-zA-Z0-9])*$")
    image: str
    role: str
    bucket: str
    instance_type: str = INSTANCE_TYPE
    instances: int = Field(1, ge=1, le=100)
    alarms: tuple[str, ...] = Field((), max_length=10)

    @field_validator("image")
    @classmethod
    def _pushed(cls, image: str) -> str:
        if not re.fullmatch(r"\d{12}\.dkr\.ecr\.[\w-]+\.amazonaws\.com(\.cn)?/\S+", image):
            raise ValueError(
                "give the image as it was pushed to Amazon ECR, ACCOUNT.dkr.ecr.REGION.amazonaws.com/NAME:TAG; "
                "SageMaker pulls from there"
            )
        return image

    @field_validator("role")
    @classmethod
    def _is_role(cls, role: str) -> str:
        if not ROLE.fullmatch(role):
            raise ValueError(
                "give the ARN of the role that SageMaker takes on to read archive and image, "
                "arn:aws:iam::ACCOUNT:role/NAME"
            )
        return role

    @field_validator("bucket")
    @classmethod
    def _is_bucket(cls, bucket: str) -> str:
        if not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/\S*)?", bucket):
            raise ValueError("give s3://NAME or s3://NAME/PREFIX, where the archive of the model is uploaded to")
        return bucket.rstrip("/")

    @field_validator("instance_type")
    @classmethod
    def _exists(cls, instance_type: str) -> str:
        if instance_type not in instance_types():
            alike = [name for name in instance_types() if name.split(".")[1:2] == instance_type.split(".")[1:2]]
            known = f"; there are {', '.join(alike)}" if alike else f", such as {INSTANCE_TYPE}"
            raise ValueError(f"{instance_type} is no instance type of SageMaker{known}")
        return instance_type

    @classmethod
    def check_endpoint(cls, name: str) -> str:
        """Return the name of an endpoint. Raises ValidationError as for a whole target."""
        cls.__pydantic_validator__.validate_assignment(cls.model_construct(), "endpoint", name)
        return name

    def model_name(self, label: str, digest: str) -> str:
        """Return the name of the model of a version: the same for the same predictions, image and role."""
        return f"{self.endpoint}-{label}-{_short(digest, self.image, self.role, self.bucket)}"

    def config_name(self, model_name: str) -> str:
        """Return the name of the configuration of an endpoint with this model: the same for the same instances."""
        return f"{model_name}-{_short(model_name, self.instance_type, str(self.instances), length=4)}"

    def archive_key(self, digest: str) -> tuple[str, str]:
        """Return the bucket and the key of the archive of a model."""
        bucket, _, prefix = self.bucket.removeprefix("s3://").partition("/")
        return bucket, "/".join(filter(None, (prefix, "models", digest, "model.tar.gz")))


@cache
def instance_types() -> tuple[str, ...]:
    """Return the types of instances that the installed boto3 knows for endpoints."""
    from botocore.loaders import Loader

    shapes = Loader().load_service_model("sagemaker", "service-2")["shapes"]
    return tuple(shapes["ProductionVariantInstanceType"]["enum"])


def _short(*parts: str, length: int = 8) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:length]
