"""One training of a search, as a flow that a worker of a pool runs."""

from typing import Any

from prefect import flow, tags

from bincount import preflight
from bincount.environment import TAG
from bincount.settings import Job
from bincount.training.run_folder import folder_of
from bincount.tuning.outcomes import OF_A_TRIAL, Outcome, TrialFile
from bincount.tuning.trial import Trial
from bincount.workspace import Workspace
from tasks import data as data_tasks
from tasks import training as training_tasks
from tasks import trials as trial_tasks


@flow(name="trial", persist_result=False)
@tags(TAG)  # the runs of its parts inherit none from a deployment
def trial(*, job: Job, search: str, number: int, values: dict[str, Any], snapshot: str, parent: str) -> None:
    """Train a trial for `bincount tune --on-pool`, which starts this and reads the result from the workspace.

    Args:
        job: the settings of the trial, with the seed of this training
        search: name of the search
        number: of the trial in the search
        values: of the searched settings
        snapshot: digest of the snapshot to train on
        parent: id of the search's run in MLflow
    """
    trained_on = preflight.find_snapshot(job, snapshot)
    job = job.replace(training=training_tasks.choose_arithmetic(job.training))
    workspace, asked = Workspace(root=job.workspace), Trial(number, job, values)
    folder = folder_of(workspace, trained_on, job.images, job.training)
    path, file = TrialFile.path(workspace.tuning / search, asked), TrialFile(folder.name)
    file.write(path)
    pack = data_tasks.pack_snapshot(trained_on, job.images)
    state = trial_tasks.train_trial(asked, trained_on, pack, folder, parent, return_state=True)
    result = state.result(raise_on_failure=False)
    if isinstance(result, Exception):
        file.with_error(result).write(path)
    if not isinstance(result, OF_A_TRIAL):  # which make a failed trial, and no failed run
        Outcome.of(result)
