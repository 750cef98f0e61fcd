import pytest
from prefect.states import Failed

from bincount import errors
from tasks.retry import transient


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
    assert transient(None, None, Failed(data=error)) is again


def test_a_registration_is_tried_again_when_mlflow_failed():
    from mlflow.exceptions import MlflowException

    from tasks.registration import server_may_return

    assert server_may_return(None, None, Failed(data=MlflowException("the server went away")))
    assert not server_may_return(None, None, Failed(data=TypeError("a mistake in the code")))
