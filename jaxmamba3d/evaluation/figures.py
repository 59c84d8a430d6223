"""Pictures of segmentations over their images, for eyes: truth and prediction side by side."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from jaxmamba3d.checks import check_shape, check_that
from jaxmamba3d.evaluation.metrics import dice
from jaxmamba3d.files import replacing

# Bright on grey, neighbours far apart in hue; label values beyond the list start over.
COLOURS = (
    "#ff5a5f", "#3fa7ff", "#ffd23f", "#42d392", "#c77dff", "#ff9f43", "#2ee6d6",
    "#ff7ac6", "#a3e635", "#8f9bff", "#e8a87c", "#c2255c", "#b08968", "#7fb8a4",
)  # fmt: skip
BACKGROUND, INK = "#101216", "#e8eaed"
FILL = 0.35
# Inches.
PANEL, GAP, MARGIN, TITLE, LEGEND_LINE = 3.0, 0.08, 0.15, 0.34, 0.28
DPI = 130


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
        ignore_label: voxels of this label in the truth are shown and scored as background.
    """

    name: str
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    channel: int = 0
    ignore_label: int | None = None

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
    cases: Sequence[OverlayCase],
    path: str | Path,
    *,
    class_names: Mapping[int, str] | None = None,
    axis: int = 0,
) -> None:
    """Draws a row a case as PNG: image, truth over it, prediction over it with the truth's outline in white.

    Each row shows the slice with most foreground in the truth (else in the prediction, else the middle one),
    windowed to the 1st and 99th percentile of the slice and in the proportions of the voxel size. The Dice in
    the title is of the whole volume, the mean over the labels that occur.

    Args:
        cases: the rows, at least one.
        path: the PNG file; its folder must exist.
        class_names: label value -> name for the legend; None: "label 1" and so on.
        axis: the axis that slices are taken along.

    Raises:
        ValueError: there are no cases.
    """
    check_that(len(cases) > 0, "cases", "at least one case", "none")
    rows = [_Row.of(case, axis) for case in cases]
    labels = sorted({label for row in rows for label in row.labels})
    names = {label: (class_names or {}).get(label, f"label {label}") for label in labels}

    width = 2 * MARGIN + 3 * PANEL + 2 * GAP
    per_line = 5
    legend = LEGEND_LINE * -(-(len(labels) + 1) // per_line)
    height = MARGIN + sum(TITLE + row.height for row in rows) + legend + MARGIN
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=BACKGROUND)
    top = height - MARGIN
    for row in rows:
        panels = []
        for column in range(3):
            left, bottom = MARGIN + column * (PANEL + GAP), top - TITLE - row.height
            box = (left / width, bottom / height, PANEL / width, row.height / height)
            panels.append(figure.add_axes(box))
        _draw(row, panels)
        top -= TITLE + row.height
    handles = [Patch(facecolor=_colour(label), label=name) for label, name in names.items()]
    handles.append(Line2D([], [], color="white", linewidth=1, label="outline of the truth"))
    figure.legend(
        handles=handles,
        loc="lower center",
        ncols=min(per_line, len(handles)),
        frameon=False,
        labelcolor=INK,
        fontsize=9,
        borderaxespad=0.3,
    )
    with replacing(path) as unfinished:
        FigureCanvasAgg(figure).print_png(unfinished)


@dataclasses.dataclass(frozen=True)
class _Row:
    """The slice of a case that is shown, and how."""

    title: str
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    labels: tuple[int, ...]
    aspect: float
    height: float

    @classmethod
    def of(cls, case: OverlayCase, axis: int) -> "_Row":
        counted = case.truth != case.ignore_label
        truth, prediction = case.truth * counted, case.prediction * counted
        labels = tuple(int(n) for n in np.union1d(np.unique(truth), np.unique(prediction)) if n > 0)
        scores = [dice(prediction == label, truth == label) for label in labels]
        score = f"mean Dice {np.mean(scores):.3f}" if scores else "no foreground"
        index = _fullest_slice(truth, prediction, axis)
        volume = case.image[..., case.channel] if case.image.ndim == 4 else case.image
        image, truth, prediction = (np.take(array, index, axis) for array in (volume, truth, prediction))
        row_mm, column_mm = (case.spacing[a] for a in range(3) if a != axis)
        proportion = image.shape[0] * row_mm / (image.shape[1] * column_mm)
        return cls(
            title=f"{case.name}   slice {index + 1} of {case.truth.shape[axis]}   {score}",
            image=image,
            truth=truth,
            prediction=prediction,
            labels=labels,
            aspect=row_mm / column_mm,
            # Very long or flat slices are shown smaller instead of stretching the page.
            height=PANEL * float(np.clip(proportion, 0.3, 1.5)),
        )


def _fullest_slice(truth: np.ndarray, prediction: np.ndarray, axis: int) -> int:
    others = tuple(a for a in range(3) if a != axis)
    for labels in (truth, prediction):
        voxels = np.count_nonzero(labels > 0, axis=others)
        if voxels.any():
            return int(voxels.argmax())
    return truth.shape[axis] // 2


def _draw(row: _Row, panels: Sequence[Axes]) -> None:
    low, high = np.percentile(row.image, (1, 99))
    for panel, heading in zip(panels, ("image", "truth", "prediction"), strict=True):
        # NIfTI's axes point to the front of the body and up: the first row belongs at the bottom.
        panel.imshow(
            row.image,
            cmap="gray",
            vmin=low,
            vmax=high,
            origin="lower",
            aspect=row.aspect,
            interpolation="bilinear",
        )
        panel.set_axis_off()
        panel.autoscale(False)  # outlines reach beyond the picture
        text = panel.text(0.02, 0.98, heading, transform=panel.transAxes, va="top", color=INK, fontsize=8)
        text.set_path_effects([withStroke(linewidth=2, foreground=BACKGROUND)])
    panels[0].set_title(row.title, loc="left", color=INK, fontsize=10)
    for panel, labels in ((panels[1], row.truth), (panels[2], row.prediction)):
        overlay = np.zeros((*labels.shape, 4))
        for label in row.labels:
            overlay[labels == label] = to_rgba(_colour(label), FILL)
        panel.imshow(overlay, origin="lower", aspect=row.aspect, interpolation="nearest")
        for label in row.labels:
            _outline(panel, labels == label, _colour(label), 1.2)
    for label in row.labels:
        _outline(panels[2], row.truth == label, "white", 0.7)


def _outline(panel: Axes, mask: np.ndarray, colour: str, linewidth: float) -> None:
    """Lines along the pixel edges of a mask, through its border with the picture too."""
    if mask.any():
        padded = np.pad(mask.astype(float), 1)
        rows, columns = (np.arange(-1, n + 1) for n in mask.shape)
        panel.contour(columns, rows, padded, levels=[0.5], colors=[colour], linewidths=linewidth)


def _colour(label: int) -> str:
    return COLOURS[(label - 1) % len(COLOURS)]
