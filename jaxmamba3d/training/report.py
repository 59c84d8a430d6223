"""What people look at during training: a table, TensorBoard, and a picture of the curves."""

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tensorboardX import SummaryWriter

from jaxmamba3d.files import replacing, write_text


@dataclass(frozen=True)
class EpochMetrics:
    """One finished epoch.

    Args:
        epoch: counted from 0.
        seconds: its duration.
        learning_rate: of its last step.
        gradient_norm: largest global norm of a step's gradient, before clipping.
        train_loss, validation_loss: means over the epoch's steps.
        pseudo_dice: of each foreground class, over the validation patches; NaN where a class is absent.
    """

    epoch: int
    seconds: float
    learning_rate: float
    gradient_norm: float
    train_loss: float
    validation_loss: float
    pseudo_dice: tuple[float, ...]

    @property
    def mean_pseudo_dice(self) -> float:
        """Mean over the classes present; NaN where none is."""
        present = [dice for dice in self.pseudo_dice if not math.isnan(dice)]
        return sum(present) / len(present) if present else math.nan


class MetricsLog:
    """metrics.csv, tensorboard/ and curves.png of one fold, brought up to date after every epoch.

    Args:
        folder: made if missing.
        class_names: the foreground classes, in the order of `EpochMetrics.pseudo_dice`.
        start_epoch: the epoch that comes next; later rows of an earlier run are dropped.
    """

    def __init__(self, folder: Path, class_names: tuple[str, ...], *, start_epoch: int = 0):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._class_names = folder, class_names
        self._rows = [row for row in _read(folder / "metrics.csv") if row.epoch < start_epoch]
        self._writer = SummaryWriter(
            str(folder / "tensorboard"),
            purge_step=start_epoch,  # TensorBoard hides what an interrupted run wrote at or after it
            filename_suffix=f".{start_epoch}",  # runs started in the same second would share a file
            flush_secs=1,  # SummaryWriter.flush() would not wait for the thread that writes
        )

    def append(self, metrics: EpochMetrics) -> None:
        """Adds an epoch to the table, to TensorBoard and to the picture."""
        self._rows.append(metrics)
        self._write_table()
        scalars = {
            "loss/train": metrics.train_loss,
            "loss/validation": metrics.validation_loss,
            "learning_rate": metrics.learning_rate,
            "gradient_norm": metrics.gradient_norm,
            "seconds_an_epoch": metrics.seconds,
        }
        scalars |= {
            f"pseudo_dice/{name}": dice
            for name, dice in zip(self._class_names, metrics.pseudo_dice, strict=True)
        }
        scalars["pseudo_dice/mean"] = metrics.mean_pseudo_dice
        for name, value in scalars.items():
            if not math.isnan(value):
                self._writer.add_scalar(name, value, metrics.epoch)
        self._draw()

    def close(self) -> None:
        """Ends the TensorBoard file."""
        self._writer.close()

    def _write_table(self):
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        dice_columns = [f"pseudo_dice {name}" for name in (*self._class_names, "mean")]
        numbers = ("seconds", "learning_rate", "gradient_norm", "train_loss", "validation_loss")
        writer.writerow(["epoch", *numbers, *dice_columns])
        for row in self._rows:
            losses = (row.train_loss, row.validation_loss)
            numbers = (row.learning_rate, row.gradient_norm, *losses, *row.pseudo_dice)
            # Nine digits give float32 back as it was: a resumed run's table is an unbroken one's.
            exact = (f"{value:.9g}" for value in numbers)
            writer.writerow([row.epoch, f"{row.seconds:.3f}", *exact, f"{row.mean_pseudo_dice:.6g}"])
        write_text(self._folder / "metrics.csv", text.getvalue())

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


def _read(path: Path) -> list[EpochMetrics]:
    """The rows of a table that `MetricsLog` wrote; none if it is not there."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    # The last column is the mean of the classes before it.
    return [EpochMetrics(int(row[0]), *map(float, row[1:6]), tuple(map(float, row[6:-1]))) for row in rows]
