"""A picture of what augmentation does to a patch, for eyes."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from jaxmamba3d.checks import check_shape, check_that
from jaxmamba3d.evaluation.figures import BACKGROUND, INK
from jaxmamba3d.evaluation.panels import COLOURS
from jaxmamba3d.files import replacing

PANEL, GAP, TITLE, MARGIN = 2.2, 0.1, 0.26, 0.15  # inches
DPI = 110


def augmentation_figure(
    patches: Mapping[str, tuple[np.ndarray, np.ndarray]],
    path: str | Path,
    *,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    channel: int = 0,
    axis: int = 0,
    columns: int = 5,
) -> None:
    """Draws one slice of each patch as PNG, the labels outlined; all in the window of the first patch.

    Every panel shows the same slice: the one with most foreground in the first patch.

    Args:
        patches: title -> image [X, Y, Z, C] and label [X, Y, Z], all of one shape, such as `effects_alone` of
            `jaxmamba3d.augment.gallery` gives; the first is the patch before augmentation.
        path: the PNG file; its folder must exist.
        spacing: voxel size of each axis in mm.
        channel: the channel of the image to show.
        axis: the axis that slices are taken along.
        columns: panels in a row.

    Raises:
        ValueError: there are no patches, or they differ in shape.
    """
    check_that(len(patches) > 0, "patches", "at least one patch", "none")
    patches = {title: (np.asarray(image), np.asarray(label)) for title, (image, label) in patches.items()}
    first_image, first_label = next(iter(patches.values()))
    for title, (image, label) in patches.items():
        check_shape(f"the image of {title!r}", image, "[X, Y, Z, C] of the first", first_image.shape)
        check_shape(f"the label of {title!r}", label, "[X, Y, Z] of the first", first_image.shape[:3])
    channels = first_image.shape[-1]
    check_that(0 <= channel < channels, "channel", f"below {channels}", channel)

    others = tuple(a for a in range(3) if a != axis)
    index = int(np.count_nonzero(first_label > 0, axis=others).argmax())
    window = np.percentile(np.take(first_image[..., channel], index, axis), (1, 99))
    row_mm, column_mm = (spacing[a] for a in others)
    shape = [first_label.shape[a] for a in others]
    panel_height = PANEL * float(np.clip(shape[0] * row_mm / (shape[1] * column_mm), 0.3, 1.5))
    columns = min(columns, len(patches))
    rows = -(-len(patches) // columns)
    width = 2 * MARGIN + columns * PANEL + (columns - 1) * GAP
    height = 2 * MARGIN + rows * (panel_height + TITLE)
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=BACKGROUND)
    for n, (title, (image, label)) in enumerate(patches.items()):
        row, column = divmod(n, columns)
        left = MARGIN + column * (PANEL + GAP)
        bottom = height - MARGIN - (row + 1) * (panel_height + TITLE)
        panel = figure.add_axes((left / width, bottom / height, PANEL / width, panel_height / height))
        panel.imshow(
            np.take(image[..., channel], index, axis),
            cmap="gray",
            vmin=window[0],
            vmax=window[1],
            origin="lower",
            aspect=row_mm / column_mm,
            interpolation="nearest",  # else noise and resolution would look better than they are
        )
        panel.set_axis_off()
        panel.autoscale(False)
        _outline(panel, np.take(label, index, axis))
        text = panel.set_title(title, loc="left", color=INK, fontsize=8, pad=3)
        text.set_path_effects([withStroke(linewidth=2, foreground=BACKGROUND)])
    with replacing(path) as unfinished:
        FigureCanvasAgg(figure).print_png(unfinished)


def _outline(panel, label):
    rows, columns = (np.arange(-1, n + 1) for n in label.shape)
    for value in np.unique(label[label > 0]):
        padded = np.pad((label == value).astype(float), 1)
        colour = COLOURS[(int(value) - 1) % len(COLOURS)]
        panel.contour(columns, rows, padded, levels=[0.5], colors=[colour], linewidths=1)
