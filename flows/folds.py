"""The networks of a snapshot's folds: what an audit and cross-fitted scores rest on."""

from dataclasses import dataclass

from bincount.data.packs import Pack
from bincount.data.snapshots import Snapshot
from bincount.evaluation import crossfit
from bincount.evaluation.audit import Scorer
from bincount.settings import Job
from bincount.training.crossfit import CrossFit
from bincount.training.run_folder import Trained
from bincount.workspace import Workspace
from tasks import data as data_tasks
from tasks import training as training_tasks


@dataclass(frozen=True)
class Folds:
    """The networks of the folds, each the mean of its members, and the mean of all."""

    cross_fit: CrossFit
    whole: Trained
    of_folds: list[Trained]

    @classmethod
    def train(cls, job: Job, snapshot: Snapshot, pack: Pack, num_folds: int) -> "Folds":
        """Train them, one after another; those that are there, for whatever purpose, are not trained again."""
        cross_fit = CrossFit(Workspace(root=job.workspace), snapshot, job.images, job.training, num_folds)
        packs = data_tasks.pack_members(snapshot, pack, job.training.networks(job.images))
        networks = [
            training_tasks.train_without_fold(
                job.replace(images=images, training=training), packs[images], folder, fold, cross_fit
            )
            for fold, images, training, folder in cross_fit.networks()
        ]
        return cls(cross_fit, *training_tasks.average_folds(job, cross_fit, networks, pack))

    def scorers(self, model: tuple[Scorer, ...] = ()) -> tuple[Scorer, ...]:
        """Return a model, by default the mean of all networks, and the network of each fold, as scorers of bins."""
        mean, *of_folds = crossfit.scorers(self.cross_fit, self.whole, self.of_folds)
        return *(model or (mean,)), *of_folds
