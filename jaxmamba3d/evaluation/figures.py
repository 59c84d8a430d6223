"""Pictures of segmentations over their images, for eyes: truth and prediction side by side."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from jaxmamba3d.checks import check_shape, check_that
from jaxmamba3d.evaluation.metrics import dice
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

BACKGROUND, INK = "#101216", "#e8eaed"
# Inches.
PANEL, TITLE = 3.0, 0.34


@dataclasses.dataclass(frozen=True)
class OverlayCase:
    """One row of an overlay figure; arrays as the package reads them, slice axis first.

    Args:
        name: the case's name.
        image: [X, Y, Z] or [X, Y, Z, C].
        truth: labels [X, Y, Z], int.
        prediction: labels [X, Y, Z], int.
        spacing: voxel size of each axis in mm.
        channel: the channel of the image to show.
        ignore_label: voxels of this label in the truth are hatched, and scored as background.
        structures: the label values of each structure that is scored, as regions have several; None: each
            label is one.
        extent: what the arrays hold, a case or a patch, for the title.
    """

    name: str
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    channel: int = 0
    ignore_label: int | None = None
    structures: Sequence[tuple[int, ...]] | None = None
    extent: str = "case"

    def __post_init__(self):
        check_that(self.image.ndim in (3, 4), "image", "[X, Y, Z] or [X, Y, Z, C]", self.image.shape)
        for name in ("truth", "prediction"):
            check_shape(name, getattr(self, name), "[X, Y, Z] of the image", self.image.shape[:3])
        channels = self.image.shape[3] if self.image.ndim == 4 else 1
        check_that(0 <= self.channel < channels, "channel", f"below {channels}", self.channel)
        check_that(
            len(self.spacing) == 3 and min(self.spacing) > 0, "spacing", "three sizes > 0", self.spacing
        )


def overlay_figure(
    cases: Iterable[OverlayCase],
    path: str | Path,
    *,
    class_names: Mapping[int, str] | None = None,
    axis: int = 0,
) -> None:
    """Draws a row per case as PNG: image, truth over it, prediction over it with the truth outlined in white.

    Each row shows the slice with most foreground in the truth (else in the prediction, else the middle one),
    windowed to the 1st and 99th percentile of the slice and in the proportions of the voxel size. The Dice in
    the title is of the whole volume, the mean over the structures that occur.

    Args:
        cases: the rows, at least one; of each only a slice is kept.
        path: the PNG file; its folder must exist.
        class_names: label value -> name for the legend; None: "label 1" and so on.
        axis: the axis that slices are taken along.

    Raises:
        ValueError: there are no cases.
    """
    rows = [_Row.of(case, axis) for case in cases]
    check_that(bool(rows), "cases", "at least one case", "none")
    labels = sorted({label for row in rows for label in row.labels})
    names = {label: (class_names or {}).get(label, f"label {label}") for label in labels}
    handles: list[Artist] = [Patch(facecolor=colour_of(label), label=name) for label, name in names.items()]
    handles.append(Line2D([], [], color="white", linewidth=1, label="outline of the truth"))
    if any(row.ignored.any() for row in rows):
        handles.append(ignored_handle())

    per_line = 5
    figure, panels = page(
        [row.height for row in rows],
        columns=3,
        panel=PANEL,
        title=TITLE,
        legend_lines=-(-len(handles) // per_line),
        background=BACKGROUND,
    )
    for row, its_panels in zip(rows, panels, strict=True):
        _draw(row, its_panels)
    add_legend(figure, handles, per_line=per_line, ink=INK)
    save_page(figure, path)


@dataclasses.dataclass(frozen=True)
class _Row:
    """The slice of a case that is shown, and how."""

    title: str
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    ignored: np.ndarray
    labels: tuple[int, ...]
    aspect: float
    height: float

    @classmethod
    def of(cls, case: OverlayCase, axis: int) -> "_Row":
        counted = case.truth != case.ignore_label
        truth, prediction = case.truth * counted, case.prediction * counted
        labels = tuple(int(n) for n in np.union1d(np.unique(truth), np.unique(prediction)) if n > 0)
        structures = [(label,) for label in labels] if case.structures is None else case.structures
        masks = [[np.isin(x, values) for x in (prediction, truth)] for values in structures]
        scores = [dice(*pair) for pair in masks if np.any(pair)]
        score = f"mean Dice of the {case.extent} {np.mean(scores):.3f}" if scores else "no foreground"
        index = fullest_slice((truth, prediction), axis)
        volume = case.image[..., case.channel] if case.image.ndim == 4 else case.image
        image, truth, prediction, ignored = (
            np.take(array, index, axis) for array in (volume, truth, prediction, ~counted)
        )
        pixel = pixel_size(case.spacing, axis)
        return cls(
            title=f"{case.name}   slice {index + 1} of {case.truth.shape[axis]}   {score}",
            image=image,
            truth=truth,
            prediction=prediction,
            ignored=ignored,
            labels=labels,
            aspect=pixel[0] / pixel[1],
            height=panel_height(image.shape, pixel, PANEL),
        )


def _draw(row: _Row, panels: Sequence[Axes]) -> None:
    for panel, heading in zip(panels, ("image", "truth", "prediction"), strict=True):
        show_image(panel, row.image, row.aspect)
        text = panel.text(0.02, 0.98, heading, transform=panel.transAxes, va="top", color=INK, fontsize=8)
        text.set_path_effects([withStroke(linewidth=2, foreground=BACKGROUND)])
    panels[0].set_title(row.title, loc="left", color=INK, fontsize=10)
    for panel, labels in ((panels[1], row.truth), (panels[2], row.prediction)):
        veil(panel, row.ignored, row.aspect)
        fill(panel, [(labels == label, colour_of(label)) for label in row.labels], row.aspect)
        for label in row.labels:
            outline(panel, labels == label, colour_of(label), 1.2)
    for label in row.labels:
        outline(panels[2], row.truth == label, "white", 0.7)
