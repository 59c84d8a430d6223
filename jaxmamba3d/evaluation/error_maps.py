"""Pictures of several models' segmentations side by side, their errors marked."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from jaxmamba3d.checks import check_shape, check_that
from jaxmamba3d.evaluation.panels import (
    add_legend,
    colour_of,
    fill,
    fullest_slice,
    ignored_handle,
    outline,
    page,
    panel_height,
    pixel_size,
    save_page,
    show_image,
    veil,
)

PAPER, INK = "white", "#101216"
# Far from all colours of classes, and apart in brightness, for any colour vision.
FALSE_POSITIVE, FALSE_NEGATIVE, WRONG_CLASS = "#ff00ff", "#3333ff", "#00ff33"
ERROR_OPACITY = 0.85
# Inches.
PANEL, TITLE = 2.2, 0.4
# Points, and how many letters of them fit over a panel.
HEADING, HEADING_LETTERS, MOST_LETTERS = 10, 24, 40
# Of the foreground's larger side: what is shown around it.
SURROUNDINGS = 0.25


@dataclasses.dataclass(frozen=True)
class ComparisonCase:
    """One row of a comparison figure; arrays as the package reads them, slice axis first.

    Args:
        name: the case's name.
        image: [X, Y, Z].
        truth: labels [X, Y, Z], whole numbers.
        predictions: model -> labels [X, Y, Z], whole numbers.
        dice: model -> the Dice that is written over its panel.
        spacing: voxel size of each axis in mm.
        ignore_label: voxels of this label in the truth are hatched, and no error.
    """

    name: str
    image: np.ndarray
    truth: np.ndarray
    predictions: Mapping[str, np.ndarray]
    dice: Mapping[str, float]
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    ignore_label: int | None = None

    def __post_init__(self):
        check_shape("image", self.image, "[X, Y, Z]", (None,) * 3)
        for name, labels in {"truth": self.truth, **self.predictions}.items():
            check_shape(name, labels, "[X, Y, Z] of the image", self.image.shape)
        check_that(self.dice.keys() == self.predictions.keys(), "dice", "of each model", list(self.dice))


def comparison_figure(
    cases: Sequence[ComparisonCase],
    path: str | Path,
    *,
    class_names: Mapping[int, str] | None = None,
    axis: int = 0,
) -> None:
    """Draws a row per case as PNG: the image, the truth over it, and each model's errors in a column.

    Each row shows the slice with most foreground in the truth, cut to the foreground of all segmentations and
    what surrounds it. A model's panel has the outlines of what it predicts in white, and tints what it makes
    up, misses, and takes for another class.

    Args:
        cases: the rows, at least one, with the same models.
        path: the PNG file; its folder must exist.
        class_names: label value -> name for the legend; None: "label 1" and so on.
        axis: the axis that slices are taken along.

    Raises:
        ValueError: there are no cases or models, or the cases have different models.
    """
    check_that(len(cases) > 0, "cases", "at least one case", "none")
    models = list(cases[0].predictions)
    check_that(bool(models), "predictions", "of at least one model", "none")
    for case in cases:
        check_that(
            list(case.predictions) == models, f"models of {case.name}", str(models), list(case.predictions)
        )
    rows = [_Row.of(case, axis) for case in cases]
    labels = sorted({int(label) for row in rows for label in row.labels})
    handles = [
        Patch(facecolor=colour_of(label), label=(class_names or {}).get(label, f"label {label}"))
        for label in labels
    ]
    errors = {
        FALSE_POSITIVE: "false positive",
        FALSE_NEGATIVE: "false negative",
        WRONG_CLASS: "another class",
    }
    handles += [Patch(facecolor=colour, edgecolor=INK, label=name) for colour, name in errors.items()]
    handles.append(Line2D([], [], color="#b0b0b0", linewidth=1, label="outline of the prediction (white)"))
    if any(row.ignored.any() for row in rows):
        handles.append(ignored_handle())
    columns = 2 + len(models)
    figure, panels = page(
        [row.height for row in rows],
        columns=columns,
        panel=PANEL,
        title=TITLE,
        legend_lines=-(-len(handles) // columns),
        background=PAPER,
    )
    for number, (row, its_panels) in enumerate(zip(rows, panels, strict=True)):
        _draw(row, its_panels, headings=number == 0)
    add_legend(figure, handles, per_line=columns, ink=INK)
    save_page(figure, path)


@dataclasses.dataclass(frozen=True)
class _Row:
    """The part of a slice of a case that is shown, and how; arrays [rows, columns]."""

    name: str
    image: np.ndarray
    window: tuple[float, float]
    truth: np.ndarray
    predictions: dict[str, np.ndarray]
    ignored: np.ndarray
    dice: Mapping[str, float]
    labels: tuple[int, ...]
    aspect: float
    height: float

    @classmethod
    def of(cls, case: ComparisonCase, axis: int) -> "_Row":
        index = fullest_slice(
            (case.truth * (case.truth != case.ignore_label), *case.predictions.values()), axis
        )
        image, truth = (np.take(array, index, axis) for array in (case.image, case.truth))
        counted = truth != case.ignore_label
        truth = truth * counted
        predictions = {
            model: np.take(labels, index, axis) * counted for model, labels in case.predictions.items()
        }
        pixel = pixel_size(case.spacing, axis)
        foreground = np.any([labels > 0 for labels in (truth, *predictions.values())], axis=0)
        part = _surroundings(foreground, pixel)
        labels = np.unique([labels[part] for labels in (truth, *predictions.values())])
        return cls(
            name=f"{case.name}, slice {index + 1}",
            image=image[part],
            window=tuple(np.percentile(image, (1, 99))),
            truth=truth[part],
            predictions={model: labels[part] for model, labels in predictions.items()},
            ignored=~counted[part],
            dice=case.dice,
            labels=tuple(labels[labels > 0]),
            aspect=pixel[0] / pixel[1],
            height=panel_height(image[part].shape, pixel, PANEL),
        )


def _surroundings(foreground: np.ndarray, pixel: tuple[float, float]) -> tuple[slice, slice]:
    """The box of a mask [rows, columns] and some millimetres around it; everything where it is empty."""
    if not foreground.any():
        return slice(None), slice(None)
    ends = [(found[0], found[-1] + 1) for found in (np.flatnonzero(foreground.any(a)) for a in (1, 0))]
    margin_mm = SURROUNDINGS * max(
        (end - start) * size for (start, end), size in zip(ends, pixel, strict=True)
    )
    margins = [int(np.ceil(margin_mm / size)) for size in pixel]
    return tuple(
        slice(max(start - margin, 0), end + margin)
        for (start, end), margin in zip(ends, margins, strict=True)
    )


def _draw(row: _Row, panels: Sequence[Axes], *, headings: bool) -> None:
    scores = [(model, "-" if np.isnan(dice) else f"Dice {dice:.3f}") for model, dice in row.dice.items()]
    for panel, (heading, title) in zip(panels, [("input", row.name), ("truth", ""), *scores], strict=True):
        show_image(panel, row.image, row.aspect, row.window)
        panel.text(0.5, 1.02, title, transform=panel.transAxes, ha="center", color=INK, fontsize=8)
        if headings:
            heading = _shortened(heading)
            size = HEADING * min(1, HEADING_LETTERS / len(heading))
            panel.set_title(heading, pad=14, color=INK, fontsize=size, fontweight="bold")
    for panel in panels[1:]:
        veil(panel, row.ignored, row.aspect)
    fill(panels[1], [(row.truth == label, colour_of(label)) for label in row.labels], row.aspect)
    for label in row.labels:
        outline(panels[1], row.truth == label, colour_of(label), 1.2)
    for panel, prediction in zip(panels[2:], row.predictions.values(), strict=True):
        fill(panel, _errors(prediction, row.truth), row.aspect, ERROR_OPACITY)
        # In the classes' colours they would look like errors, or errors like them.
        for label in row.labels:
            outline(panel, prediction == label, "white", 0.8)


def _shortened(heading: str) -> str:
    """Long names begin alike and end differently: what is cut out lies between."""
    half = MOST_LETTERS // 2
    return heading if len(heading) <= MOST_LETTERS else f"{heading[:half]}…{heading[1 - half :]}"


def _errors(prediction: np.ndarray, truth: np.ndarray) -> list[tuple[np.ndarray, str]]:
    wrong = prediction != truth
    return [
        (wrong & (truth == 0), FALSE_POSITIVE),
        (wrong & (prediction == 0), FALSE_NEGATIVE),
        (wrong & (truth > 0) & (prediction > 0), WRONG_CLASS),
    ]
