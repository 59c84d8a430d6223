"""What pictures of segmentations are made of: a page of panels, slices of images, labels drawn over them."""

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path as Outline

from jaxmamba3d.files import replacing

# Bright on grey, neighbours far apart in hue; label values beyond the list start over.
COLOURS = (
    "#ff5a5f", "#3fa7ff", "#ffd23f", "#42d392", "#c77dff", "#ff9f43", "#2ee6d6",
    "#ff7ac6", "#a3e635", "#8f9bff", "#e8a87c", "#c2255c", "#b08968", "#7fb8a4",
)  # fmt: skip
FILL = 0.35
# Of the area that an ignore label leaves out: grey as no class is, hatched as no image is.
IGNORED, HATCH, VEIL = "#c4c9d1", "////", 0.2
# What the legend has for the image beneath.
BENEATH = "#5b6068"
# Inches.
GAP, MARGIN, LEGEND_LINE = 0.08, 0.15, 0.28
DPI = 130


def page(
    heights: Sequence[float], *, columns: int, panel: float, title: float, legend_lines: int, background: str
) -> tuple[Figure, list[list[Axes]]]:
    """An empty page of rows of panels, with room for titles over them and for a legend at the bottom.

    Args:
        heights: of the panels of each row, inches.
        columns: panels a row.
        panel: their width, inches.
        title: room above each row, inches.
        legend_lines: room at the bottom, in lines.
        background: colour.

    Returns:
        The figure, and the panels of each row, without axes.
    """
    width = 2 * MARGIN + columns * panel + (columns - 1) * GAP
    height = MARGIN + sum(title + row for row in heights) + LEGEND_LINE * legend_lines + MARGIN
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=background)
    rows, top = [], height - MARGIN
    for row in heights:
        top -= title + row
        lefts = [MARGIN + column * (panel + GAP) for column in range(columns)]
        boxes = [(left / width, top / height, panel / width, row / height) for left in lefts]
        rows.append([figure.add_axes(box) for box in boxes])
    for axes in itertools.chain.from_iterable(rows):
        axes.set_axis_off()
    return figure, rows


def add_legend(figure: Figure, handles: Sequence[Artist], *, per_line: int, ink: str) -> None:
    """A legend at the bottom of the page, so many handles a line."""
    figure.legend(
        handles=list(handles),
        loc="lower center",
        ncols=min(per_line, len(handles)),
        frameon=False,
        labelcolor=ink,
        fontsize=9,
        borderaxespad=0.3,
    )


def save_page(figure: Figure, path: str | Path) -> None:
    """Writes a figure as PNG, whole or not at all; its folder must exist."""
    with replacing(path) as unfinished:
        FigureCanvasAgg(figure).print_png(unfinished)


def panel_height(shape: Sequence[int], pixel: tuple[float, float], width: float) -> float:
    """Height (inches) of a panel of this width that shows a slice in its proportions.

    Very long or flat slices are shown smaller instead of stretching the page.

    Args:
        shape: rows and columns of the slice.
        pixel: see `pixel_size`.
        width: of the panel, inches.
    """
    return width * float(np.clip(shape[0] * pixel[0] / (shape[1] * pixel[1]), 0.3, 1.5))


def fullest_slice(segmentations: Iterable[np.ndarray], axis: int) -> int:
    """The slice with most foreground in the first labels [X, Y, Z] that have any; else the middle one."""
    others = tuple(a for a in range(3) if a != axis)
    for labels in segmentations:
        voxels = np.count_nonzero(labels > 0, axis=others)
        if voxels.any():
            return int(voxels.argmax())
    return labels.shape[axis] // 2


def pixel_size(spacing: Sequence[float], axis: int) -> tuple[float, float]:
    """Height and width (mm) of the pixels of slices across an axis."""
    height, width = (spacing[a] for a in range(3) if a != axis)
    return height, width


def show_image(
    panel: Axes,
    image: np.ndarray,
    aspect: float,
    window: tuple[float, float] | None = None,
    interpolation: str = "bilinear",
) -> None:
    """Draws a slice in grey, its first row at the bottom.

    The axes of most files point to the front of the body and up, so that it belongs there; `upright` turns
    those of others.

    Args:
        panel: where.
        image: [rows, columns].
        aspect: height of a pixel by its width.
        window: values of black and white; None: the 1st and 99th percentile of the slice.
        interpolation: matplotlib's, between pixels.
    """
    low, high = np.percentile(image, (1, 99)) if window is None else window
    panel.imshow(
        image, cmap="gray", vmin=low, vmax=high, origin="lower", aspect=aspect, interpolation=interpolation
    )
    panel.autoscale(False)  # outlines reach beyond the picture


def fill(panel: Axes, masks: Iterable[tuple[np.ndarray, str]], aspect: float, opacity: float = FILL) -> None:
    """Tints the pixels of masks [rows, columns], each in its colour; the last on top."""
    tint = None
    for mask, colour in masks:
        tint = np.zeros((*mask.shape, 4)) if tint is None else tint
        tint[mask] = to_rgba(colour, opacity)
    if tint is not None:
        panel.imshow(tint, origin="lower", aspect=aspect, interpolation="nearest")


def outline(panel: Axes, mask: np.ndarray, colour: str, linewidth: float) -> None:
    """Lines along the pixel edges of a mask [rows, columns], through its border with the picture too."""
    padded = np.pad(mask, 1)
    # The edge before pixel i, whose centre is i, lies at i - 0.5.
    above = np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1]) - 0.5
    beside = np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1]) - 0.5
    lines = [[(x, y), (x + 1, y)] for y, x in above] + [[(x, y), (x, y + 1)] for y, x in beside]
    panel.add_collection(LineCollection(lines, colors=colour, linewidths=linewidth, capstyle="projecting"))


def veil(panel: Axes, ignored: np.ndarray, aspect: float) -> None:
    """Tints and hatches the pixels of a mask [rows, columns] that count for nothing."""
    fill(panel, [(ignored, IGNORED)], aspect, VEIL)
    edges = np.diff(np.pad(ignored.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    starts, ends = (np.argwhere(edges == step) - 0.5 for step in (1, -1))  # of each row's runs
    if len(starts):
        runs = [
            Outline([(left, y), (right, y), (right, y + 1), (left, y + 1), (left, y)], closed=True)
            for (y, left), (_, right) in zip(starts, ends, strict=True)
        ]
        area = Outline.make_compound_path(*runs)
        panel.add_patch(PathPatch(area, fill=False, hatch=HATCH, edgecolor=IGNORED, linewidth=0))


def ignored_handle() -> Patch:
    """What stands for a `veil` in the legend."""
    return Patch(facecolor=BENEATH, edgecolor=IGNORED, hatch=HATCH, linewidth=0, label="ignored")


def colour_of(label: int) -> str:
    """The colour of a label value."""
    return COLOURS[(label - 1) % len(COLOURS)]
