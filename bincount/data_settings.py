"""The settings of data: where images come from, what is read of them, and on which machines."""

from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, field_validator

from bincount.errors import SettingsError, holds_credentials, mask_address
from bincount.frozen import Frozen, accept_earlier_names
from bincount.model_settings import MAX_PIXELS
from bincount.problem import DEFAULT_CLASSES, Classes, Problem, find_description, read_description


class DataConfig(Frozen, json_schema_extra=accept_earlier_names):
    """Where the images come from and what is read from them."""

    source: str = Field(
        "s3://aft-vbi-pds",
        description="bucket as s3://NAME[/PREFIX], or a folder: of bins with records, or of one folder a class",
    )
    layout: Literal["auto", "bins", "folders", "splits"] = Field(
        "auto",
        description="bins: bin-images/ID.jpg with metadata/ID.json; folders: one folder a class; splits: train/, val/ "
        "and test/ above such folders; auto: detect which",
    )
    keep_splits: bool = Field(
        False, description="keep the splits that the folders train/, val/ and test/ define [default: one pool]"
    )
    follow_links: bool = Field(False, description="read files outside the folder that links in it point to")
    limit: int | None = Field(
        None,
        ge=1,
        description="use only this many bins, always the same first ones, neighbours together [default: all]",
    )
    only_listed: Path | None = Field(
        None,
        description="use only the bins that this file lists: one id, key or file name a line, a table with a column "
        "image_id or id, or JSON lists",
    )
    retry_quarantined: bool = Field(
        False,
        validation_alias=AliasChoices("retry_quarantined", "retry_set_aside"),
        description="fetch quarantined bins again, although they have not changed",
    )
    problem: Path | None = Field(
        None,
        description="TOML file that describes what is photographed and predicted: nouns, classes, licence, limits "
        "[default: problem.toml in the folder of the source; else bins]",
    )
    classes: str = Field(
        default_factory=lambda settings: _description(settings).classes or DEFAULT_CLASSES,
        description="counts as a range, the smaller first (0..5), or two class names or more (good,defective) "
        "[default: those of the problem, else 0..5]",
        json_schema_extra=Classes.RULE,
    )
    ordered: bool | None = Field(
        default_factory=lambda settings: _description(settings).ordered,
        description="whether classes are counts or grades, so that RMSE is meaningful [default: if all are numbers]",
    )
    extra_counts: int = Field(
        10,
        ge=0,
        description="where classes are counts: train also on bins whose count is no class, up to this many items",
    )
    region: str | None = Field(
        None, description="AWS region of the bucket [default: AWS_REGION or AWS_DEFAULT_REGION, else us-east-1]"
    )
    endpoint: str | None = Field(
        None, description="URL of another S3-compatible server [default: AWS_ENDPOINT_URL_S3, else AWS]"
    )
    unsigned: bool = Field(True, description="read the bucket without credentials, as public buckets allow")
    requester_pays: bool = Field(
        False, description="pay for the requests, which are then signed, as a requester-pays bucket demands"
    )
    concurrency: int = Field(32, ge=1, le=512, description="requests in flight at once")
    max_pixels: int = Field(
        MAX_PIXELS, ge=1, le=178_000_000, description="larger images are quarantined without being decoded, pixels"
    )

    @field_validator("source", "endpoint")
    @classmethod
    def _without_credentials(cls, url: str | None) -> str | None:
        if url and holds_credentials(url):
            raise SettingsError(  # not ValueError, which pydantic shows with the value
                f"{mask_address(url)} holds credentials, which would be seen in logs and pages; give it without "
                "them, and them as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or as a profile by AWS_PROFILE"
            )
        return url

    @field_validator("classes")
    @classmethod
    def _readable(cls, text: str) -> str:
        try:
            Classes.parse(text)
        except SettingsError as error:
            raise ValueError(str(error)) from None
        return text

    @property
    def class_set(self) -> Classes:
        return Classes.parse(self.classes, self.ordered)

    @property
    def description(self) -> Problem:
        """Return the words of the problem, without the classes, which are settings by now."""
        path = self.problem or find_description(self.source)
        if path is None:
            return Problem.of(self.class_set)
        return read_description(path).model_copy(update={"classes": None, "ordered": None})

    @property
    def extra_names(self) -> tuple[str, ...]:
        """Return the counts that are no class, but are trained on all the same."""
        classes = self.class_set
        if not (classes.ordered and all(map(str.isdecimal, classes.names))):
            return ()
        return tuple(str(n) for n in range(self.extra_counts + 1) if str(n) not in classes.names)


def _description(settings: dict) -> Problem:
    """Return what describes the problem of settings of data, from which classes follow that are not set."""
    path = settings.get("problem") or find_description(settings.get("source", ""))
    return read_description(path) if path else Problem()


class RunnerConfig(Frozen):
    """On which threads or machines batches of bins are fetched."""

    runner: Literal["threads", "dask"] = Field(
        "threads", description="threads of this process, or a Dask cluster (pip install 'bincount-pipeline[dask]')"
    )
    workers: int = Field(
        2, ge=1, description="batches at once; with dask, processes of the cluster that is started here"
    )
    dask_address: str | None = Field(
        None,
        description="tcp://HOST:PORT of a Dask scheduler whose workers share the workspace [default: one started here]",
    )

    @field_validator("dask_address")
    @classmethod
    def _without_credentials(cls, url: str | None) -> str | None:
        if url and holds_credentials(url):
            raise SettingsError(  # not ValueError, which pydantic shows with the value
                f"--dask-address {mask_address(url)} holds credentials, which a scheduler does not ask for and others "
                "would see; write tcp://HOST:PORT, or tls://HOST:PORT with the certificates in Dask's configuration"
            )
        return url
