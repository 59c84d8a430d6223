"""The finished epochs of a fold, as metrics.csv has them."""

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jaxmamba3d.training.report import DICE, MEAN, METRICS, moving_score

BEST_BY = f"{DICE}{MEAN}"


@dataclass(frozen=True)
class Epochs:
    """Finished epochs, which here, as in file names and pictures, are counted from 1.

    Args:
        columns: of the numbers, without the epoch, in the file's order.
        rows: epoch -> column -> number, NaN where there is none.
    """

    columns: tuple[str, ...]
    rows: Mapping[int, Mapping[str, float]]

    @property
    def done(self) -> int:
        """The number of the last one."""
        return max(self.rows)

    @property
    def seconds(self) -> float:
        """How long they took together."""
        return sum(row.get("seconds", math.nan) for row in self.rows.values())

    @property
    def best(self) -> int | None:
        """The first of the highest moving average of the mean pseudo-Dice; None where no epoch has any."""
        scores, score = {}, None
        for epoch in sorted(self.rows):
            dice = self.rows[epoch].get(BEST_BY, math.nan)
            score = moving_score(score, dice)
            if not math.isnan(dice):
                scores[epoch] = score
        return max(scores, key=scores.__getitem__, default=None)

    @property
    def best_score(self) -> float:
        """The mean pseudo-Dice of the best epoch; NaN without one."""
        return math.nan if self.best is None else self.rows[self.best][BEST_BY]


def read_epochs(folder: Path) -> Epochs | None:
    """The epochs of a fold's folder; None before the first is finished, and where weights were imported.

    Columns whose entries are not numbers are left out.

    Raises:
        ValueError: the file has no column of epochs.
    """
    path = folder / METRICS
    if not path.is_file():
        return None
    with path.open(newline="", encoding="utf-8") as file:
        entries = list(csv.DictReader(file))
    if not entries:
        return None
    try:
        epochs = [int(entry["epoch"]) + 1 for entry in entries]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} must hold epochs as training writes them, got {error!r}") from error
    numbers = {
        column: [_number(entry[column]) for entry in entries]
        for column in entries[0]
        if column not in ("epoch", None)
    }
    columns = tuple(column for column, found in numbers.items() if None not in found)
    rows = {epoch: {column: numbers[column][i] for column in columns} for i, epoch in enumerate(epochs)}
    return Epochs(columns, rows)


def _number(text: str | None) -> float | None:
    """NaN for nothing, None for what is no number."""
    try:
        return float(text) if text else math.nan
    except ValueError:
        return None
