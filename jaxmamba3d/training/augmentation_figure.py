"""A picture of what augmentation does to a patch, for eyes."""

import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxmamba3d.checks import check_shape, check_that
from jaxmamba3d.evaluation.figures import BACKGROUND, INK
from jaxmamba3d.evaluation.panels import (
    colour_of,
    fullest_slice,
    outline,
    page,
    panel_height,
    pixel_size,
    save_page,
    show_image,
)

PANEL, TITLE = 2.2, 0.26  # inches


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

    index = fullest_slice([first_label], axis)
    window = tuple(np.percentile(np.take(first_image[..., channel], index, axis), (1, 99)))
    pixel = pixel_size(spacing, axis)
    columns = min(columns, len(patches))
    height = panel_height(np.take(first_label, index, axis).shape, pixel, PANEL)
    figure, rows = page(
        [height] * -(-len(patches) // columns),
        columns=columns,
        panel=PANEL,
        title=TITLE,
        legend_lines=0,
        background=BACKGROUND,
    )
    panels = itertools.chain.from_iterable(rows)
    for panel, (title, (image, label)) in zip(panels, patches.items(), strict=False):  # the last row has gaps
        image, label = np.take(image[..., channel], index, axis), np.take(label, index, axis)
        # Not smoothed, else noise and resolution would look better than they are.
        show_image(panel, image, pixel[0] / pixel[1], window, interpolation="nearest")
        for value in np.unique(label[label > 0]):
            outline(panel, label == value, colour_of(int(value)), 1)
        panel.set_title(title, loc="left", color=INK, fontsize=8, pad=3)
    save_page(figure, path)
