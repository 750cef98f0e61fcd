"""The registry: an MLflow experiment with its runs, and a registered model with its versions and its champion.

Everything goes through one explicit client; MLflow's global tracking URI is neither read nor set.
"""

import json
import logging
import re
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from mlflow import MlflowClient, MlflowException
from mlflow.entities.model_registry import ModelVersion
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

from bincount.database import TRAININGS, models_page, pages_of
from bincount.errors import ModelNotFound, ServiceUnavailable
from bincount.evaluation.decision import Decision
from bincount.evaluation.intervals import Score
from bincount.reporting import card
from bincount.tracking import approvals, earlier, facts
from bincount.tracking.champion import (
    CHALLENGER,
    CHAMPION,
    PROMOTED_TAG,
    AliasChange,
    ChampionAlias,
    HistoryRun,
    ignore_missing,
)
from bincount.tracking.client import Experiment
from bincount.tracking.download import download_checkpoint
from bincount.tracking.facts import LONGEST_TAG
from bincount.tracking.packaging import MODEL_TAG, upload_model
from bincount.tracking.runs import Runs
from bincount.tracking.self_check import Example, SelfCheck
from bincount.training.spec import read_spec, weights_digest

logger = logging.getLogger(__name__)

MODEL_ID_TAG = "bincount.model_id"
MAJORITY_METRIC = "test/majority_accuracy"  # as recording writes it with names.of_test
REPORT = "report.html"  # of the run of the champion's history: the report over months
CARD = "model_card.md"  # of a run: the card of its model
PAGE = "version_page.md"  # likewise: the page of its version, where MLflow has room for a part of it
DESCRIPTION = """\
**champion** is the version in use, **challenger** the newest beside it. Each version's page says how good it is, how it
compares with the champion of then, and what it was trained on. To use the champion in Python:

    mlflow.pyfunc.load_model("models:/{name}@champion").predict(pandas.DataFrame({{{columns}}}))
"""
COLUMNS = {  # of an input, by task
    "counting": '"image": ["photo.jpg"]',
    "object": '"image": ["photo.jpg"], "references": [["other_bin_with_the_item.jpg"]]',
    "quantity": '"image": ["photo.jpg"], "references": [["other_bin_with_the_item.jpg"]], "asked": [2]',
    "change": '"image": ["after.jpg"], "references": [["before.jpg"]]',
}
LONGEST_DESCRIPTION = 5000
VERSIONS_AT_ONCE = 10_000  # in one answer of a server
NUM_NAMED = 20  # versions in an error


@dataclass(frozen=True)
class Version:
    """One registered model.

    alias is champion, challenger or empty; model_id is MLflow's name of its files; registered is UTC.
    """

    name: str
    version: int
    alias: str
    model_id: str
    run_id: str
    registered: datetime
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.version}"

    def page(self, tracking_uri: str) -> str:
        """Return the address where MLflow shows the version; empty without a server."""
        return models_page(tracking_uri, f"/{self.name}/versions/{self.version}")

    @cached_property
    def scores(self) -> Mapping[str, Score]:
        """The scores on its own test images: of accuracy, errors and average precision those that it has."""
        return facts.read_scores(self.tags)

    @cached_property
    def decision(self) -> Decision | None:
        """The last decision about it, of a version of an earlier release without the numbers; None before the first."""
        return facts.read_decision(self.tags)

    @cached_property
    def approval(self) -> approvals.Approval | None:
        """What people say about its promotion; None where they were not asked."""
        return approvals.read(self.tags)

    @property
    def is_promoted(self) -> bool:
        """Whether it was made champion once."""
        return PROMOTED_TAG in self.tags

    @property
    def snapshot_digest(self) -> str:
        """The digest of the snapshot that it was trained on; empty where nothing says so."""
        return self.tags.get("snapshot", "")

    @property
    def task(self) -> str:
        """What it does, as TrainConfig.task names it."""
        return self.tags.get("task", "counting")

    @property
    def argument(self) -> str:
        """The version as a suggested command names it: `3`, and `3 --model-name bincount-object` where a task has one.

        Pages keep such commands, and without the name the version of that number that counts would be promoted.
        """
        return f"{self.version}" if self.task == "counting" else f"{self.version} --model-name {shlex.quote(self.name)}"

    @property
    def num_images(self) -> int:
        """The number of images of that snapshot, 0 where nothing says so."""
        number = self.tags.get("num_images", "")
        return int(number) if number.isdecimal() else 0


@dataclass(frozen=True)
class Registry:
    """An MLflow experiment and a registered model, open for writing. Made by connection.open_registry."""

    client: MlflowClient
    experiment_id: str
    model_name: str

    @classmethod
    def of(cls, experiment: Experiment) -> "Registry":
        """Return the registry of an experiment's models."""
        return cls(experiment.client, experiment.experiment_id, experiment.model_name)

    @property
    def runs(self) -> Runs:
        """The runs of the experiment."""
        return Runs(self.client, self.experiment_id)

    # Versions

    def register(
        self,
        run_id: str,
        checkpoint: Path,
        description: str,
        tags: Mapping[str, str],
        input_example: bytes | Example,
        scores: Mapping[str, Score] = {},
        check: SelfCheck | None = None,
    ) -> Version:
        """Make a version of the model in a checkpoint folder, and the newest one challenger.

        description is Markdown, input_example a small JPEG file, or a question, check what shows whether a loaded copy
        predicts as in its test. The same weights from the same run are one version, however often they are registered.
        A version appears when all its files are there; what an attempt that was killed has left is used, or removed
        where it is half a model.
        """
        digest = weights_digest(checkpoint)
        shown = DESCRIPTION.format(name=self.model_name, columns=COLUMNS[read_spec(checkpoint).task])
        self.champion_alias.history.ensure_model(shown, earlier.DESCRIPTION)
        found = self.client.search_model_versions(
            f"name = '{self.model_name}' and run_id = '{run_id}' and tags.`{MODEL_TAG}` = '{digest}'"
        )
        if found:
            entry = found[0]
        else:
            logged = upload_model(
                self.client, self.experiment_id, self.model_name, run_id, checkpoint, digest, input_example, check
            )
            entry = self.client.create_model_version(
                self.model_name,
                logged.artifact_location,  # models:/<id> would be looked up in MLflow's global tracking URI
                logged.source_run_id,
                tags={**tags, **facts.write_scores(scores), MODEL_TAG: digest, MODEL_ID_TAG: logged.model_id},
                description=_shorten(card.for_mlflow(description, run_id), CARD),
                model_id=logged.model_id,
            )
        link = json.dumps([{"name": entry.name, "version": str(entry.version)}])
        with ignore_missing():  # the files may have been deleted in MLflow's pages, and the version left
            self.client.set_logged_model_tags(entry.tags[MODEL_ID_TAG], {MLFLOW_MODEL_VERSIONS: link})
        newest = self.versions(1)[0]
        version = newest if newest.version == int(entry.version) else self.find(str(entry.version))
        if not found or not self._has_card(version):
            self.client.log_text(run_id, description, CARD)
        if not version.alias and version.version == newest.version:  # an older one had its time
            version = replace(version, alias=CHALLENGER)
            self.client.set_registered_model_alias(version.name, version.alias, str(version.version))
        logger.info("registered %s version %d, %s", version.name, version.version, version.alias or "without alias")
        return version

    def describe(self, version: Version, description: str) -> None:
        """Set what the pages of a version and its run show, in Markdown.

        The run's model_card.md stays the card that was registered.

        What is too long for MLflow's page is whole in the run's version_page.md.
        """
        shown = card.for_mlflow(description, version.run_id)
        if len(shown) > LONGEST_DESCRIPTION:
            self.client.log_text(version.run_id, description, PAGE)
        self.client.update_model_version(version.name, str(version.version), _shorten(shown, PAGE))
        with ignore_missing():  # the run may have been deleted in MLflow's pages
            # Whose page would give all its width to a picture, and shows all of them elsewhere.
            self.runs.describe(version.run_id, _shorten(card.for_mlflow(card.without_pictures(description)), PAGE))

    def card(self, version: Version) -> str:
        """Return the card of a version as it was registered, which does not say how the version compares."""
        if not self._has_card(version):
            return self.client.get_model_version(version.name, str(version.version)).description or ""
        with tempfile.TemporaryDirectory() as folder:
            return Path(self.client.download_artifacts(version.run_id, CARD, folder)).read_text(encoding="utf-8")

    def _has_card(self, version: Version) -> bool:
        return CARD in {file.path for file in self.client.list_artifacts(version.run_id)}

    def majority_accuracy(self, version: Version) -> float | None:
        """Return the accuracy of always predicting the most frequent class on a version's test; None where unknown."""
        with ignore_missing():
            return self.client.get_run(version.run_id).data.metrics.get(MAJORITY_METRIC)
        return None

    def record_decision(self, version: Version, decision: Decision) -> None:
        """Keep with a version what was decided about it last."""
        for tag, value in facts.write_decision(decision).items():
            self.set_tag(version, tag, value)

    def set_tag(self, version: Version, tag: str, value: str) -> None:
        """Set a tag of a version."""
        self.client.set_model_version_tag(version.name, str(version.version), tag, value[:LONGEST_TAG])

    def checkpoint(self, version: Version, folder: Path) -> Path:
        """Fetch the files of a version; return the folder in it that has model.safetensors and model.json.

        Raises ModelNotFound when they are gone, ModelDamaged when they are not what was registered, ServiceUnavailable
        when they are there and cannot be fetched, and DiskFull.
        """
        return download_checkpoint(
            self.client, version.name, version.version, folder, digest=version.tags.get(MODEL_TAG)
        )

    def versions(self, newest: int | None = None) -> list[Version]:
        """Return the registered versions, or so many of them, the newest first; none before the first registration."""
        return self._search(newest=newest)

    def versions_of(self, snapshot: str) -> list[Version]:
        """Return the versions that were trained on the snapshot with this digest, the newest first."""
        return self._search(f"tags.snapshot = '{snapshot}'")

    def _search(self, condition: str = "", newest: int | None = None) -> list[Version]:
        """In as few requests as MLflow allows: each version for itself would take it a minute for some hundreds."""
        aliases = self.champion_alias.aliases()
        names = {aliases[alias]: alias for alias in (CHALLENGER, CHAMPION) if alias in aliases}
        condition = " and ".join(filter(None, [f"name = '{self.model_name}'", condition]))
        found, token = [], None
        while newest is None or len(found) < newest:
            wanted = VERSIONS_AT_ONCE if newest is None else min(newest - len(found), VERSIONS_AT_ONCE)
            page = self.client.search_model_versions(
                condition, max_results=wanted, order_by=["version_number DESC"], page_token=token
            )
            found += page
            token = page.token
            if not token:
                break
        return [_as_version(entry, [names.get(int(entry.version), "")]) for entry in found]

    def find_champion(self) -> Version | None:
        """Return the champion, or None where no version is."""
        return self._find_alias(CHAMPION)

    def find(self, reference: str) -> Version:
        """Return the version with an alias or a number. Raises ModelNotFound naming those there are."""
        if re.fullmatch("[1-9][0-9]{0,8}", reference):
            with ignore_missing():
                entry = self.client.get_model_version(self.model_name, reference)
                return _as_version(entry, entry.aliases)
        elif found := self._find_alias(reference):
            return found
        versions = self.versions(NUM_NAMED + 1)
        there = ", ".join(f"{version.version} {version.alias}".strip() for version in versions[:NUM_NAMED])
        older = " and older ones" if len(versions) > NUM_NAMED else ""
        known = f"there are: {there}{older}" if there else "nothing was registered yet; run `bincount run`"
        if there and reference == CHAMPION:
            raise ModelNotFound(
                f"no version of {self.model_name} is champion; {known}; name one of them, or make it champion with "
                "`bincount promote VERSION --force`"
            )
        raise ModelNotFound(f"{self.model_name} has no version {reference}; {known}")

    def _find_alias(self, alias: str) -> Version | None:
        try:
            entry = self.client.get_model_version_by_alias(self.model_name, alias)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no model, or no alias
                return None
            raise
        return _as_version(entry, entry.aliases) if alias in entry.aliases else None  # MLflow's own is `latest`

    # The champion

    @property
    def champion_alias(self) -> ChampionAlias:
        """The alias with its history."""
        return ChampionAlias(HistoryRun(self.client, self.experiment_id, self.model_name))

    def promote(self, version: Version, over: Version | None, *, by: str, reason: str, flow_run: str = "") -> bool:
        """Make a version champion over the one it was compared with; return False when that is no longer champion.

        Of several who try at once one wins. What was begun is completed by whoever comes next.
        """
        return self.champion_alias.change(
            "promoted", version.version, over.version if over else None, by=by, reason=reason, flow_run=flow_run
        )

    def rollback(self, *, by: str, reason: str, flow_run: str = "") -> Version:
        """Make the champion's predecessor champion again; return it.

        A rollback that was interrupted is completed, and no second one begun. Raises ModelNotFound when the history
        has no predecessor, and ServiceUnavailable when another changes the alias at the same time.
        """
        completed = self.recover_pending()
        if completed and completed.action == "rolled back":
            return self.find(str(completed.version))
        champion = self.find(CHAMPION)
        number = self.champion_alias.history.read().find_predecessor(champion.version)
        if number is None:
            raise ModelNotFound(
                f"{self.model_name} version {champion.version} has no predecessor on record; "
                "`bincount promote VERSION --force` puts any version in its place"
            )
        previous = self.find(str(number))
        if not self.champion_alias.change(
            "rolled back", previous.version, champion.version, by=by, reason=reason, flow_run=flow_run
        ):
            raise ServiceUnavailable("the champion changed meanwhile; look at `bincount models`, and try again")
        return self.find(str(number))

    def history(self) -> tuple[AliasChange, ...]:
        """Return all changes of the champion's alias that were made with this library, the oldest first."""
        return self.champion_alias.history.read().changes

    def keep_report(self, page: str) -> str:
        """Keep the report over months, an HTML page, beside the champion's history, in place of the one before.

        Returns the address where MLflow shows it, empty without a server or where the model has no history yet.
        """
        run_id = self.champion_alias.history.read().run_id
        if not run_id:
            return ""
        self.client.log_text(run_id, page, REPORT)
        if not (pages := pages_of(self.client.tracking_uri)):
            return ""
        experiment_id = self.client.get_run(run_id).info.experiment_id  # the history's may be another than this one
        return f"{pages}/#/experiments/{experiment_id}/runs/{run_id}/artifacts/{REPORT}{TRAININGS}"

    def find_rollback(self, version: Version) -> AliasChange | None:
        """Return the change that rolled a version back, unless it was promoted again since."""
        return self.champion_alias.history.read().find_rollback(version.version)

    def recover_pending(self) -> AliasChange | None:
        """Complete a change of the alias that a killed process has begun; return it where there was one.

        An alias that was set by hand since, in MLflow's pages, stays.
        """
        return self.champion_alias.recover_pending()


def _as_version(entry: ModelVersion, aliases: Sequence[str]) -> Version:
    return Version(
        name=entry.name,
        version=int(entry.version),
        alias=next((alias for alias in (CHAMPION, CHALLENGER) if alias in aliases), ""),
        model_id=entry.tags.get(MODEL_ID_TAG, ""),
        run_id=entry.run_id,
        registered=datetime.fromtimestamp(entry.creation_timestamp / 1000, UTC),
        tags=entry.tags,
    )


def _shorten(description: str, file: str) -> str:
    if len(description) <= LONGEST_DESCRIPTION:
        return description
    ending = f"\n\n… the rest is in the run's {file}"
    return description[: LONGEST_DESCRIPTION - len(ending)].rpartition("\n")[0] + ending
