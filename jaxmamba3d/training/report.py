"""What people look at during training: a table, TensorBoard, and a picture of the curves."""

import csv
import io
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from jaxmamba3d.evaluation.figures import OverlayCase, overlay_figure
from jaxmamba3d.evaluation.protocols import dataset_protocol
from jaxmamba3d.files import replacing, write_text
from jaxmamba3d.labels import Labels
from jaxmamba3d.training.epoch import Sample
from jaxmamba3d.training.tensorboard import EventFile

RESULTS = ("learning_rate", "gradient_norm", "train_loss", "validation_loss", "skipped_steps")
SPEED = ("seconds", "patches_per_second", "input_wait", "memory_gib")
PICTURES, PATCHES = 50, 3
MOMENTUM = 0.9
METRICS = "metrics.csv"
DICE, MEAN = "pseudo_dice ", "mean"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EpochMetrics:
    """One finished epoch.

    Args:
        epoch: counted from 0.
        learning_rate: of its last step.
        gradient_norm: largest global norm of a step's gradient, before clipping.
        train_loss, validation_loss: means over the epoch's steps.
        skipped_steps: training steps that were left out, not being finite.
        pseudo_dice: of each foreground class, over the validation patches; NaN where a class is absent.
        seconds: from the end of the epoch before, with validation, checkpoint and pictures.
        patches_per_second: in training.
        input_wait: share of the training's time in which the next batch was not there yet.
        memory_gib: the most that one device has held since the start; NaN where that is not known (CPUs).
    """

    epoch: int
    learning_rate: float
    gradient_norm: float
    train_loss: float
    validation_loss: float
    skipped_steps: int
    pseudo_dice: tuple[float, ...]
    seconds: float
    patches_per_second: float
    input_wait: float
    memory_gib: float

    @property
    def mean_pseudo_dice(self) -> float:
        """Mean over the classes present; NaN where none is."""
        present = [dice for dice in self.pseudo_dice if not math.isnan(dice)]
        return sum(present) / len(present) if present else math.nan


def moving_score(before: float | None, dice: float) -> float:
    """By which the best epoch is chosen: 0.9 of the average before and 0.1 of an epoch's mean pseudo-Dice.

    Args:
        before: None at the first epoch.
        dice: NaN where no class is present: nothing gained.

    Source: nnU-Net, training/logging/nnunet_logger.py (`ema_fg_dice`).
    """
    dice = float(np.nan_to_num(dice))
    return dice if before is None else MOMENTUM * before + (1 - MOMENTUM) * dice


class MetricsLog:
    """metrics.csv, tensorboard/ and curves.png of a fold, up to date after every epoch, and patches.png.

    Args:
        folder: made if missing.
        labels: of which the structures are those of `EpochMetrics.pseudo_dice`, in this order.
        start_epoch: the epoch that comes next; later rows of an earlier run are dropped.
    """

    def __init__(self, folder: Path, labels: Labels, *, start_epoch: int = 0):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._class_names = folder, tuple(labels.structures)
        self._value_names = dataset_protocol(labels).names
        self._rows = [row for row in _read(folder / METRICS) if row.epoch < start_epoch]
        if missing := start_epoch - len(self._rows):
            logger.warning("%s lacks %d of the %d finished epochs", folder / METRICS, missing, start_epoch)
        self._events = EventFile(folder / "tensorboard", start_epoch)

    def seconds_left(self, epochs: int) -> float:
        """Until that many epochs are done, if they take as long as the latest ten did."""
        latest = [row.seconds for row in self._rows[-10:]]
        return (epochs - 1 - self._rows[-1].epoch) * sum(latest) / len(latest)

    def append(self, metrics: EpochMetrics) -> None:
        """Adds an epoch to the table, to TensorBoard and to the picture."""
        self._rows.append(metrics)
        self._write_table()
        scalars = {
            "loss/train": metrics.train_loss,
            "loss/validation": metrics.validation_loss,
            "learning_rate": metrics.learning_rate,
            "gradient_norm": metrics.gradient_norm,
            "skipped_steps": metrics.skipped_steps,
            "speed/seconds_an_epoch": metrics.seconds,
            "speed/patches_per_second": metrics.patches_per_second,
            "speed/input_wait": metrics.input_wait,
            "memory_gib": metrics.memory_gib,
        }
        scalars |= {
            f"pseudo_dice/{name}": dice
            for name, dice in zip(self._class_names, metrics.pseudo_dice, strict=True)
        }
        scalars["pseudo_dice/mean"] = metrics.mean_pseudo_dice
        for name, value in scalars.items():
            if not math.isnan(value):
                self._events.add_scalar(name, value, metrics.epoch)
        self._events.flush()
        self._draw()

    def wants_a_picture(self, epochs: int) -> bool:
        """Whether the epoch just added is one of about 50, or the last, that patches are shown of.

        Args:
            epochs: of the whole training.
        """
        done = self._rows[-1].epoch + 1
        return done == epochs or done % max(1, epochs // PICTURES) == 0

    def show(self, overlays: Sequence[OverlayCase]) -> None:
        """Draws validation patches as the net sees them after the epoch just added, as patches.png too."""
        path = self._folder / "patches.png"
        overlay_figure(overlays, path, class_names=self._value_names)
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        self._events.add_image("patches", pixels, self._rows[-1].epoch)
        self._events.flush()

    def close(self) -> None:
        """Ends the TensorBoard file."""
        self._events.close()

    def _write_table(self):
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        dice_columns = [f"{DICE}{name}" for name in (*self._class_names, MEAN)]
        writer.writerow(["epoch", *RESULTS, *dice_columns, *SPEED])
        for row in self._rows:
            # Nine digits give float32 back as it was: a resumed run's table is an unbroken one's.
            results = [
                f"{value:.9g}" for value in (*(getattr(row, name) for name in RESULTS), *row.pseudo_dice)
            ]
            speed = [f"{getattr(row, name):.4g}" for name in SPEED]
            writer.writerow([row.epoch, *results, f"{row.mean_pseudo_dice:.12g}", *speed])
        write_text(self._folder / METRICS, text.getvalue())

    def _draw(self):
        figure = Figure(figsize=(11, 3.6), dpi=110, layout="constrained")
        FigureCanvasAgg(figure)
        losses, dice, rate = figure.subplots(1, 3, width_ratios=(3, 3, 2))
        epochs = [row.epoch + 1 for row in self._rows]
        # Dots show a lone epoch and gaps; thin lines keep a thousand noisy epochs apart.
        style = {"marker": "o", "markersize": 3} if len(epochs) < 50 else {"linewidth": 0.9}
        losses.plot(epochs, [row.train_loss for row in self._rows], **style, label="training")
        losses.plot(epochs, [row.validation_loss for row in self._rows], **style, label="validation")
        losses.set_title("loss")
        for i, name in enumerate(self._class_names):
            dice.plot(epochs, [row.pseudo_dice[i] for row in self._rows], **style, label=name)
        dice.set_ylim(-0.02, 1.02)
        dice.set_title("Dice on validation patches")
        rate.plot(epochs, [row.learning_rate for row in self._rows], **style, color="gray")
        rate.set_ylim(0, 1.05 * max(row.learning_rate for row in self._rows))
        rate.ticklabel_format(axis="y", scilimits=(0, 0))
        rate.set_title("learning rate")
        for panel in (losses, dice, rate):
            panel.set_xlabel("epoch")
            panel.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
            panel.grid(alpha=0.3)
            panel.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        losses.legend(frameon=False)
        dice.legend(frameon=False, ncols=1 + len(self._class_names) // 8)
        with replacing(self._folder / "curves.png") as unfinished:
            figure.savefig(unfinished)


def overlays_of(
    sample: Sample,
    case_names: Sequence[str],
    spacing: tuple[float, float, float],
    labels: Labels,
    upside_down: bool,
) -> list[OverlayCase]:
    """Rows of `overlay_figure` for a few patches with foreground, or without where none has any.

    Args:
        sample: of a validation.
        case_names: by number.
        spacing: voxel size of the patches (mm).
        labels: what label values mean.
        upside_down: turn them over along Y.
    """
    turned = -1 if upside_down else 1
    image, truth, segmentation = (
        array[:, :, ::turned] for array in (sample.image, np.maximum(sample.label, 0), sample.segmentation)
    )
    fullest = sorted(range(len(truth)), key=lambda i: not np.isin(truth[i], labels.values[1:]).any())
    return [
        OverlayCase(
            case_names[sample.case[i]],
            image[i],
            truth[i],
            segmentation[i],
            spacing=spacing,
            ignore_label=labels.ignore,
            structures=[*labels.structures.values()],
            extent="patch",
        )
        for i in fullest[:PATCHES]
    ]


def _read(path: Path) -> list[EpochMetrics]:
    """The rows of a table that `MetricsLog` wrote, but for one that was cut off; none if it is not there."""
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            whole = [line for line in file if line.endswith("\n")]
        return [_metrics(row) for row in csv.DictReader(whole)]
    except (TypeError, ValueError, KeyError) as error:
        wanted = "the table that this training wrote (fix it, or remove it to start the curves again)"
        raise ValueError(f"{path} must be {wanted}, got {error}") from error


def _metrics(row: dict[str, str]) -> EpochMetrics:
    # As float32, which they were: the mean of resumed rows is then that of an unbroken run, too.
    columns = [name for name in row if name.startswith(DICE) and name != f"{DICE}{MEAN}"]
    dice = tuple(float(np.float32(row[name])) for name in columns)
    numbers = {name: float(row[name]) for name in (*RESULTS, *SPEED)}
    numbers |= {"epoch": int(row["epoch"]), "skipped_steps": int(row["skipped_steps"])}
    return EpochMetrics(pseudo_dice=dice, **numbers)
