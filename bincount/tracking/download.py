"""The files of a registered version, fetched and compared with what was registered."""

from pathlib import Path

import mlflow
from botocore.exceptions import BotoCoreError, ClientError
from mlflow import MlflowClient, MlflowException

from bincount.errors import ModelDamaged, ModelNotFound, ServiceUnavailable, mask_credentials
from bincount.files import raise_on_disk_full
from bincount.tracking.champion import ignore_missing
from bincount.training.spec import check_weights, read_spec, weights_digest

# What fetching files may raise: MLflow's errors, those of the system and of HTTP, and those of the client for S3
FETCH_ERRORS = (MlflowException, OSError, BotoCoreError, ClientError)

REMEDY = "`bincount promote VERSION --force` puts another version in its place"


def download_checkpoint(client: MlflowClient, name: str, version: int, folder: Path, digest: str | None) -> Path:
    """Fetch a version's files into folder; return the folder in it that has model.safetensors and model.json.

    digest is the SHA-256 of the weights, None where an older release has not kept it. Raises ModelNotFound when the
    files are gone, ModelDamaged when they are not what was registered, ServiceUnavailable when they are there and
    cannot be fetched, and DiskFull.
    """
    model = f"models:/{name}/{version}"
    checkpoint = _fetch(client, name, version, folder, "/artifacts")
    if not ((checkpoint / "model.safetensors").exists() and (checkpoint / "model.json").exists()):
        raise ModelNotFound(f"the files of {model} are gone; {REMEDY}")
    _compare(checkpoint, model, digest)
    return checkpoint


def download_model(client: MlflowClient, name: str, version: int, folder: Path) -> Path:
    """Fetch all files of a version into folder, as MLflow loads them; return the folder that holds them.

    Raises ModelNotFound when they are gone, ServiceUnavailable when they are there and cannot be fetched, and DiskFull.
    """
    return _fetch(client, name, version, folder)


def _fetch(client: MlflowClient, name: str, version: int, folder: Path, part: str = "") -> Path:
    """Fetch the files of a version, or a part of them. Raises as download_model does."""
    tracking_uri, model, reason = client.tracking_uri, f"models:/{name}/{version}", None
    with ignore_missing():
        source = f"{client.get_model_version_download_uri(name, str(version))}{part}"
        try:
            with raise_on_disk_full(folder):
                return Path(
                    mlflow.artifacts.download_artifacts(source, dst_path=str(folder), tracking_uri=tracking_uri)
                )
        except FETCH_ERRORS as error:
            if _may_be_there(source, tracking_uri):
                raise ServiceUnavailable(
                    f"the files of {model} cannot be fetched from MLflow at {mask_credentials(tracking_uri)} now "
                    f"({mask_credentials(error)}); try again"
                ) from error
            reason = error
    raise ModelNotFound(f"the files of {model} are gone; {REMEDY}") from reason


def _compare(checkpoint: Path, model: str, digest: str | None) -> None:
    try:
        check_weights(checkpoint, read_spec(checkpoint))
    except ModelNotFound as error:
        raise ModelDamaged(f"the files of {model} are not what was registered: {error}; {REMEDY}") from error
    if digest is not None and weights_digest(checkpoint) != digest:
        raise ModelDamaged(f"the weights of {model} are not what was registered; {REMEDY}")


def _may_be_there(folder: str, tracking_uri: str) -> bool:
    """Return whether files that could not be fetched may come another time: MLflow lists them, or does not answer."""
    try:
        return bool(mlflow.artifacts.list_artifacts(artifact_uri=folder, tracking_uri=tracking_uri))
    except MlflowException as error:
        return error.error_code != "RESOURCE_DOES_NOT_EXIST"
    except BotoCoreError:
        return True
    except ClientError as error:
        return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") != 404
    except OSError as error:
        return getattr(getattr(error, "response", None), "status_code", None) != 404
