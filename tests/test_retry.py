import pytest
from prefect.states import Failed

from bincount import errors
from tasks.retry import is_transient, may_be_back


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (errors.SourceUnavailable("time-out"), True),
        (errors.ServiceUnavailable("away"), True),
        (errors.TrainingFailed("killed"), True),
        (ConnectionResetError(), True),
        (errors.TrainingDiverged("not a number"), False),
        (errors.SourceError("no such bucket"), False),
        (errors.SettingsError("cannot work"), False),
        (errors.DatasetError("disk full"), False),
        (TypeError("a mistake in the code"), False),
    ],
)
def test_only_what_another_try_may_mend_is_tried_again(error, again):
    assert is_transient(None, None, Failed(data=error)) is again


def test_a_registration_is_tried_again_when_mlflow_failed():
    from mlflow.exceptions import MlflowException

    assert may_be_back(None, None, Failed(data=MlflowException("the server went away")))
    assert not may_be_back(None, None, Failed(data=TypeError("a mistake in the code")))
