"""Cross-fitting: the networks of a snapshot's folds, each trained without one fold, and what they make together.

With several members, each fold has as many networks, of seeds from the given one on, and their mean is its network. The
mean of all of them is a model like any other: each bin of train was left out by some of them, and val and test by all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bincount.data.folds import Fold
from bincount.data.packs import Pack
from bincount.data.pictures import DECODER_VERSION
from bincount.data.snapshots import Snapshot
from bincount.settings import ImageConfig, TrainConfig
from bincount.training.run_folder import Trained, folder_of, name_positive, networks_of
from bincount.workspace import Workspace


@dataclass(frozen=True)
class CrossFit:
    """The trainings of a snapshot's folds with these settings, and where they lie in a workspace."""

    workspace: Workspace
    snapshot: Snapshot
    images: ImageConfig
    training: TrainConfig
    num_folds: int

    @property
    def folds(self) -> tuple[Fold, ...]:
        return tuple(Fold(number, self.num_folds) for number in range(1, self.num_folds + 1))

    @property
    def folder(self) -> Path:
        """The folder of the mean of all networks."""
        return self.workspace.run(
            self.snapshot.digest,
            self.images,
            self.training,
            decoder=DECODER_VERSION,
            subset=f"each without one of {self.num_folds} folds{name_positive(self.snapshot, self.training)}",
        )

    def whole(self) -> TrainConfig:
        """Return the settings of the mean of all networks: those of one, with as many members as there are."""
        return self.training.repeat_members(self.num_folds)

    def networks(self) -> list[tuple[Fold, ImageConfig, TrainConfig, Path]]:
        """Return the fold, the settings and the folder of each training, fold by fold."""
        return [
            (fold, images, training, folder_of(self.workspace, self.snapshot, images, training, fold))
            for fold in self.folds
            for images, training in networks_of(self.images, self.training)
        ]

    def average(self, networks: Sequence[Trained], pack: Pack) -> tuple[Trained, list[Trained]]:
        """Return the mean of all networks, which are in the order of `networks`, and for each fold that of its own."""
        members = self.training.num_members
        of_folds = [
            self.average_fold(fold, networks[start : start + members], pack)
            for fold, start in zip(self.folds, range(0, len(networks), members), strict=True)
        ]
        return self.average_all(networks, pack), of_folds

    def average_fold(self, fold: Fold, members: Sequence[Trained], pack: Pack) -> Trained:
        """Return the network of a fold, or the mean of several, written beside them."""
        if len(members) == 1:
            return members[0]
        from bincount.training import ensemble  # here, since torch takes seconds to import

        folder = folder_of(self.workspace, self.snapshot, self.images, self.training, fold)
        return ensemble.combine(members, self.snapshot, pack, folder, self.training.device, fold)

    def average_all(self, networks: Sequence[Trained], pack: Pack) -> Trained:
        """Return the mean of all networks."""
        from bincount.training import ensemble

        return ensemble.combine(networks, self.snapshot, pack, self.folder, self.training.device)
