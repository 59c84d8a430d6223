"""A run folder as it lies there: what a network was trained as, and where its folds are."""

import contextlib
import logging
from dataclasses import dataclass
from pathlib import Path

import jax
from flax import nnx

from jaxmamba3d.augment import AugmentationPlan
from jaxmamba3d.config import ExperimentConfig, NetConfig
from jaxmamba3d.config_json import read_json
from jaxmamba3d.data import (
    Configuration,
    Plans,
    Split,
    load_plans,
    load_splits,
)
from jaxmamba3d.data.workspace import PLANS, SPLITS
from jaxmamba3d.evaluation import Postprocessing
from jaxmamba3d.files import folder_lock, in_use, load_json
from jaxmamba3d.labels import Labels
from jaxmamba3d.nets import UNet3D, abstract_net, build_net
from jaxmamba3d.training import (
    CHECKPOINTS,
    Task,
    has_checkpoint,
)
from jaxmamba3d.training.processes import are_apart

logger = logging.getLogger(__name__)

CONFIG, NET, LABELS = "config.json", "net.json", "labels.json"
POSTPROCESSING, VERSIONS, ORIENTATIONS = "postprocessing.json", "versions.json", "orientations.json"
DEVICES = "devices"
"""Of VERSIONS, beside the packages."""


@dataclass(frozen=True)
class Run:
    """A run folder: the config, the net and the plans that its folds share.

    Holds config.json, net.json, nnUNetPlans.json, labels.json, splits_final.json, orientations.json and
    versions.json, unless the config says otherwise work/, and for each fold `fold_K/` with metrics.csv,
    curves.png, patches.png, tensorboard/, checkpoints/, validation/, scores/, overlays.png,
    postprocessing.json and summary.json; the run's postprocessing.json is decided on
    the validation cases of all its folds, whose scores together are in scores/ as soon as there are several.
    Where post-processing changes anything, validation_postprocessed/ and scores_postprocessed/ lie beside
    scores/.
    """

    folder: Path
    config: ExperimentConfig
    net: NetConfig
    plans: Plans
    labels: Labels

    @property
    def configuration(self) -> Configuration:
        """The plans' configuration that this run trains."""
        return self.plans.configurations[self.config.data.configuration]

    def fold_folder(self, fold: int) -> Path:
        """Results of one fold."""
        return self.folder / f"fold_{fold}"

    def checkpoints(self, fold: int) -> Path:
        """The checkpoints of one fold."""
        return self.fold_folder(fold) / CHECKPOINTS

    def fold_lock(self, fold: int) -> contextlib.AbstractContextManager[None]:
        """Keeps other processes from training a fold.

        Raises:
            ValueError: one does already.
        """
        return folder_lock(self.fold_folder(fold), lambda: self._refuse(fold))

    def check_free(self, fold: int) -> None:
        """Raises ValueError if a process trains a fold."""
        if in_use(self.fold_folder(fold)):
            self._refuse(fold)

    def _refuse(self, fold: int):
        advice = "set train.distributed for processes that belong together" if are_apart() else "wait for it"
        raise ValueError(
            f"output must be a run that no other process trains, got {self.folder}: {self.fold_folder(fold)} "
            f"is in use; {advice}, or name another output"
        )

    def begun_folds(self) -> tuple[int, ...]:
        """The folds that have a finished checkpoint or are being trained."""
        trained = self.trained_folds()
        return tuple(n for n in self.folds() if n in trained or in_use(self.fold_folder(n)))

    def folds(self) -> tuple[int, ...]:
        """The folds that have a folder, trained or not."""
        numbers = (path.name.removeprefix("fold_") for path in self.folder.glob("fold_*") if path.is_dir())
        return tuple(sorted(int(number) for number in numbers if number.isdigit()))

    def trained_folds(self) -> tuple[int, ...]:
        """The folds that have a finished checkpoint."""
        return tuple(n for n in self.folds() if has_checkpoint(self.checkpoints(n)))

    def validated_folds(self) -> tuple[int, ...]:
        """The trained folds whose validation cases are predicted and scored."""
        return tuple(n for n in self.trained_folds() if (self.fold_folder(n) / POSTPROCESSING).is_file())

    def postprocessing(self, fold: int | None = None) -> Postprocessing | None:
        """What was decided on the validation cases of all folds, or of one; None where none is validated."""
        path = (self.folder if fold is None else self.fold_folder(fold)) / POSTPROCESSING
        if not path.is_file():
            return None
        return Postprocessing.from_json(load_json(path, "a post-processing"))

    def splits(self) -> list[Split]:
        """For each fold the case names `train` and `val`; empty where weights were imported."""
        path = self.folder / SPLITS
        return load_splits(path) if path.is_file() else []

    def orientations(self) -> tuple[str, ...]:
        """How the images that it was planned for are stored, such as RAS; empty if that is not known."""
        path = self.folder / ORIENTATIONS
        if not path.is_file():
            return ()
        return tuple(load_json(path, "how many cases have each orientation"))

    def task(self) -> Task:
        """What its training steps learn."""
        plan, train = self.configuration, self.config.train
        augmentation = AugmentationPlan.for_patches(
            plan.patch_size,
            plan.use_mask_for_norm,
            mirror_axes=train.mirror_axes,
            rotate_and_scale=train.rotate_and_scale,
            vary_intensities=train.vary_intensities,
        )
        return Task(
            batch_size=plan.batch_size,
            in_channels=self.net.in_channels,
            labels=self.labels,
            batch_dice=plan.batch_dice,
            augmentation=augmentation,
        )

    def build_net(self) -> UNet3D:
        """The net, freshly initialised from the config's seed."""
        return build_net(self.net, rngs=nnx.Rngs(self.config.train.seed))

    def abstract_params(self) -> nnx.State:
        """Shapes and dtypes of the net's parameters."""
        return nnx.state(abstract_net(self.net), nnx.Param)

    def parameter_count(self) -> int:
        """How many numbers the net learns; no device is touched to count them."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.abstract_params()))

    def versions(self) -> dict[str, str]:
        """Of the packages, when the run was last described; empty if that is not known."""
        return {name: version for name, version in self._made_with().items() if name != DEVICES}

    def devices(self) -> str | None:
        """Those of the machine that last described the run; None if that is not known."""
        return self._made_with().get(DEVICES)

    def _made_with(self) -> dict[str, str]:
        path = self.folder / VERSIONS
        return load_json(path, "the versions of packages") if path.is_file() else {}


def run_lock(folder: str | Path) -> contextlib.AbstractContextManager[None]:
    """Keeps other processes from writing what the folds of a run share; waits for one that does."""
    return folder_lock(Path(folder), lambda: logger.info("waiting: another process writes %s", folder))


def open_run(folder: str | Path) -> Run:
    """The run folder that an earlier call described.

    Raises:
        FileNotFoundError: it is not one, or lacks a file.
    """
    folder = Path(folder)
    if lacking := lacking_files(folder):
        remedy = "train.py makes one, and restores one that lost a file"
        raise FileNotFoundError(f"{folder}: not a run folder (it has no {', '.join(lacking)}); {remedy}")
    return Run(
        folder,
        read_json(ExperimentConfig, folder / CONFIG),
        read_json(NetConfig, folder / NET),
        load_plans(folder / PLANS),
        Labels.from_json(load_json(folder / LABELS, "the labels")),
    )


def lacking_files(folder: Path) -> list[str]:
    """Which of the files that describe a run are not there."""
    return [name for name in (CONFIG, NET, PLANS, LABELS) if not (folder / name).is_file()]
