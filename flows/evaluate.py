"""A model on the test images of a snapshot, without training or registering anything."""

import tempfile
from pathlib import Path

from prefect import flow

from bincount import forms, preflight
from bincount.data import snapshots
from bincount.evaluation.evaluate import Evaluation
from bincount.settings import DEFAULT_WORKSPACE, DataConfig, Device, Job, RegistryConfig
from bincount.training.spec import model_digest, read_spec
from bincount.workspace import Workspace
from flows.naming import name_run
from tasks import data as data_tasks
from tasks import evaluation as evaluation_tasks


@flow(name="evaluate", flow_run_name=name_run, persist_result=False)
def evaluate(
    model: str = "champion",
    *,
    data: DataConfig = DataConfig(),
    registry: RegistryConfig = RegistryConfig(),
    workspace: forms.WorkspacePath = DEFAULT_WORKSPACE,
    device: Device = "auto",
) -> Evaluation:
    """Score a model on the test images of the last prepared snapshot.

    Args:
        model: champion, challenger, a version's number, or a folder with model.safetensors
        device: device to compute on
    """
    job = Job(data=data, registry=registry, workspace=workspace)
    preflight.check_evaluate(job, device)
    folders = Workspace(root=workspace)
    snapshot = snapshots.latest(folders.dataset(data))
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint = evaluation_tasks.fetch_model(job, model, Path(temporary))
        spec = read_spec(checkpoint)
        bins, snapshot = snapshot, data_tasks.ask_questions(snapshot, spec.task)
        pack = data_tasks.pack_snapshot(snapshot, spec.images)
        folder = folders.evaluation(snapshot.digest, model_digest(checkpoint))
        evaluation = evaluation_tasks.evaluate_model(snapshot, pack, checkpoint, folder, device, bins)
        evaluation_tasks.write_page(evaluation, snapshot, pack, model)
        return evaluation
