"""The settings of where models are registered, and of when one becomes champion."""

import math
from typing import Literal, get_args

from pydantic import Field, field_validator

from bincount import database
from bincount.errors import SettingsError
from bincount.frozen import Frozen
from bincount.model_settings import Task

DEFAULT_CLASS_LOSS = 5.0  # points of accuracy


class RegistryConfig(Frozen):
    """Where runs and models are recorded."""

    tracking_uri: str | None = Field(
        None,
        description="MLflow server or database URI, without a password "
        "[default: MLFLOW_TRACKING_URI, else SQLite in the workspace]",
    )
    experiment: str = Field("bincount", min_length=1, description="MLflow experiment of the runs")
    model_name: str = Field(
        "bincount", pattern=r"^[^/:%'\"`]+$", max_length=100, description="name of the registered model"
    )

    @field_validator("tracking_uri")
    @classmethod
    def _without_password(cls, uri: str | None) -> str | None:
        """Refuse secrets, which flow runs, process lists and shell histories would show to everybody."""
        if not uri or not database.has_secret(uri):
            return uri
        remedy = (
            "put it into MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, in the "
            "environment"
            if database.is_server(uri)
            else "put the whole URI into MLFLOW_TRACKING_URI in the environment, and leave it out here"
        )
        # Not ValueError, of which pydantic would make an error that shows the value.
        raise SettingsError(f"--tracking-uri has a password in it, which others could read; {remedy}")

    @property
    def answers(self) -> Task | None:
        """The task of the questions that models of the name answer, by its ending; None where they count.

        No other model is trained under such a name: preflight.check_name.
        """
        tasks = (task for task in get_args(Task) if task != "counting")
        return next((task for task in tasks if self.of_task(task) is self), None)

    def of_task(self, task: Task) -> "RegistryConfig":
        """Return where the models of a task are recorded: those that answer questions under names of their own.

        It is the name of the counting model with the task behind it, as bincount-object; a name that ends so stays.
        """
        ending = f"-{task}"
        if task == "counting" or self.model_name.endswith(ending):
            return self
        return self.model_copy(update={"model_name": f"{self.model_name}{ending}"})


class PromotionConfig(Frozen):
    """When a new model becomes the champion; the first one has to beat predicting the most frequent class of train."""

    metric: Literal[
        "accuracy", "rmse", "rmse_of_expectation", "macro_f1", "balanced_accuracy", "average_precision", "cost"
    ] = Field(
        "accuracy",
        description="what a challenger must be significantly better at; no other metric that is compared may get "
        "significantly worse. average_precision is of the positive of two classes, cost that of its misses "
        "(`miss_cost`) and false alarms",
    )
    confidence: float = Field(
        0.95,
        gt=0.5,
        lt=1,
        description="confidence level of the interval of the gain, which must lie above zero as a whole",
    )
    min_gain: float = Field(
        0.0,
        ge=0,
        description="smallest gain worth a change: points of a share, items of RMSE, or false alarms per image of cost",
    )
    max_class_loss: float | None = Field(
        None,
        ge=0,
        description="points of accuracy that a class may lose at most, whatever the others gain [default: 5; any "
        "number where `metric` is cost, which says what each kind of mistake is worth]",
    )
    force: bool = Field(False, description="promote whatever the comparison says, which is recorded all the same")
    approval: Literal["none", "required"] = Field(
        "none",
        description="required: a version that is to be promoted, also with `force`, waits until somebody approves it, "
        "with `bincount approve` or in MLflow",
    )

    @property
    def class_loss_allowed(self) -> float:
        """Points of accuracy that a class may lose; infinite for any."""
        if self.max_class_loss is not None:
            return self.max_class_loss
        return math.inf if self.metric == "cost" else DEFAULT_CLASS_LOSS
