"""Overlay figures: size, proportions, the slice, the window, and the colours that are really drawn."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from jaxmamba3d.evaluation import figures, panels
from jaxmamba3d.evaluation.figures import OverlayCase, overlay_figure

INCH = panels.DPI
SHAPE = (6, 20, 30)


def case(truth=None, prediction=None, image=None, **options):
    image = np.random.default_rng(0).random(SHAPE) if image is None else image
    nothing = np.zeros(image.shape[:3], int)
    truth = nothing if truth is None else truth
    return OverlayCase("case", image, truth, truth if prediction is None else prediction, **options)


def block(label, index=3):
    labels = np.zeros(SHAPE, int)
    labels[index, 2:12, 5:25] = label
    return labels


def drawn(tmp_path, cases, **options):
    overlay_figure(cases, tmp_path / "figure.png", **options)
    assert [p.name for p in tmp_path.iterdir()] == ["figure.png"]
    return imread(tmp_path / "figure.png")[..., :3]


def panel(picture, column):
    """The pixels of a one-row figure's panel."""
    left = (panels.MARGIN + column * (figures.PANEL + panels.GAP)) * INCH
    top = (panels.MARGIN + figures.TITLE) * INCH
    height = picture.shape[0] - (2 * panels.MARGIN + figures.TITLE + panels.LEGEND_LINE) * INCH
    inside = (
        slice(int(top) + 3, int(top + height) - 3),
        slice(int(left) + 3, int(left + figures.PANEL * INCH) - 3),
    )
    return picture[inside]


def share_of(pixels, colour):
    return np.mean(np.abs(pixels - to_rgb(colour)).max(-1) < 0.02)


def test_rows_add_to_the_height_and_keep_proportions(tmp_path):
    one = drawn(tmp_path, [case(block(1))])
    tall = drawn(tmp_path, [case(block(1), spacing=(9, 1.5, 1))])
    three = drawn(tmp_path, [case(block(1))] * 3)
    row = figures.TITLE + figures.PANEL * 20 / 30
    assert tall.shape[0] - one.shape[0] == pytest.approx(figures.PANEL * 20 / 30 * 0.5 * INCH, abs=2)
    assert three.shape[0] - one.shape[0] == pytest.approx(2 * row * INCH, abs=2)
    assert one.shape[1] == three.shape[1]


def test_fill_and_outline_are_the_labels(tmp_path):
    image = np.zeros(SHAPE)
    picture = drawn(tmp_path, [case(block(1), block(2), image)])
    black_under = {label: panels.FILL * np.array(to_rgb(panels.colour_of(label))) for label in (1, 2)}
    filled = 10 * 20 / (20 * 30)
    for column, label, other in ((1, 1, 2), (2, 2, 1)):
        pixels = panel(picture, column)
        # imshow maps a constant image to black; the outline takes a little of the filled area.
        assert share_of(pixels, black_under[label]) == pytest.approx(filled, rel=0.12)
        lower = pixels[len(pixels) // 2 :]  # array rows go up
        assert share_of(lower, black_under[label]) == pytest.approx(filled * 2 * 0.8, rel=0.12)
        assert share_of(pixels, black_under[other]) == 0
        assert share_of(pixels, panels.colour_of(other)) == 0
    assert share_of(panel(picture, 0), "black") > 0.9
    assert share_of(panel(picture, 2), "white") > share_of(panel(picture, 1), "white")


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slice_with_most_truth_is_shown(tmp_path, axis):
    shape = (20, 20, 20)
    truth, image = np.zeros(shape, int), np.zeros(shape)
    box = [slice(5, 15)] * 3
    box[axis] = slice(12, 13)
    truth[tuple(box)] = 1
    others = [slice(0, 3)] * 3  # a second, smaller one elsewhere
    truth[tuple(others)] = 1
    bright = [slice(None)] * 3
    bright[axis] = 12
    image[tuple(bright)] = np.where(np.indices((20, 20))[1] < 10, 0, 1)
    picture = drawn(tmp_path, [case(truth, image=image)], axis=axis)
    pixels = panel(picture, 0)
    assert share_of(pixels, "white") == pytest.approx(0.5, abs=0.06)
    height, width = pixels.shape[:2]
    assert share_of(pixels[:, int(width * 0.6) :], "white") > 0.98
    assert share_of(pixels[: height // 2, : width // 4], "white") < 0.1


def test_array_rows_go_up(tmp_path):
    image = np.broadcast_to(np.linspace(0, 1, 20)[:, None], SHAPE)
    pixels = panel(drawn(tmp_path, [case(block(1), image=image)]), 0)
    assert pixels[:40].mean() > 0.8
    assert pixels[-40:].mean() < 0.2


def test_outliers_do_not_dim_the_window(tmp_path):
    image = np.tile(np.linspace(0, 1, 30), (6, 20, 1))
    image[:, 0, 0] = 1e6
    pixels = panel(drawn(tmp_path, [case(block(1), image=image)]), 0)
    assert pixels[:, -20:].mean() > 0.9


def test_channel_is_chosen(tmp_path):
    image = np.stack([np.zeros(SHAPE), np.tile(np.linspace(0, 1, 30), (6, 20, 1))], -1)
    flat = panel(drawn(tmp_path, [case(block(1), image=image)]), 0)
    ramp = panel(drawn(tmp_path, [case(block(1), image=image, channel=1)]), 0)
    assert flat[60:].std() < 0.02 < 0.2 < ramp[60:].std()


def test_title_scores_the_whole_volume_and_legend_names_labels(tmp_path, legends):
    truth, prediction = block(1) + block(2, 0), block(1)
    drawn(tmp_path, [case(truth, prediction), case()], class_names={2: "rim"})
    ((figure, names),) = legends
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert names == ["label 1", "rim", "outline of the truth"]
    assert titles[0] == "case   slice 1 of 6   mean Dice of the case 0.500"
    assert titles[3] == "case   slice 4 of 6   no foreground"


def test_the_ignored_area_is_hatched(tmp_path, legends):
    truth, image = block(1), np.zeros(SHAPE)
    truth[:, :, 15:] = 2
    picture = drawn(tmp_path, [case(truth, block(1), image, ignore_label=2)])
    for column in (1, 2):
        kept, ignored = np.array_split(panel(picture, column), 2, axis=1)
        assert np.mean(ignored.max(-1) > 0.1) > 0.98
        assert share_of(ignored, panels.IGNORED) > 0.05  # the lines
        assert share_of(ignored, panels.VEIL * np.array(to_rgb(panels.IGNORED))) > 0.4
        assert share_of(kept, panels.FILL * np.array(to_rgb(panels.colour_of(1)))) > 0.3
        assert share_of(kept[:, :-3], panels.IGNORED) < 0.001
    assert share_of(panel(picture, 0), "black") > 0.9
    drawn(tmp_path, [case(truth, block(1), image)])
    drawn(tmp_path, [case(block(1), ignore_label=2)])
    assert [names for _, names in legends] == [
        ["label 1", "outline of the truth", "ignored"],
        ["label 1", "label 2", "outline of the truth"],
        ["label 1", "outline of the truth"],
    ]


def test_scattered_pixels_are_hatched_run_by_run():
    ignored = np.array([[1, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]], bool)
    drawn = Figure().add_subplot()
    panels.veil(drawn, ignored, 1)
    (area,) = drawn.patches
    boxes = [[*corners.min(0), *corners.max(0)] for corners in area.get_path().to_polygons()]
    assert boxes == [[-0.5, -0.5, 1.5, 0.5], [2.5, -0.5, 3.5, 0.5], [-0.5, 1.5, 3.5, 2.5]]


def test_outlines_go_around_pixels():
    mask = np.zeros((4, 5), bool)
    mask[1, 2] = mask[2, 2] = mask[0, 0] = True
    drawn = Figure().add_subplot()
    panels.outline(drawn, mask, "white", 1)
    (lines,) = drawn.collections
    found = {tuple(map(tuple, segment)) for segment in lines.get_segments()}
    of_one = [((-0.5, y), (0.5, y)) for y in (-0.5, 0.5)] + [((x, -0.5), (x, 0.5)) for x in (-0.5, 0.5)]
    of_two = [((1.5, y), (2.5, y)) for y in (0.5, 2.5)]
    of_two += [((x, y), (x, y + 1)) for x in (1.5, 2.5) for y in (0.5, 1.5)]
    assert found == {*of_one, *of_two}


def test_regions_are_scored_as_such():
    """The whole is right, half of the core is taken for rim."""
    truth = block(2)
    prediction = truth.copy()
    prediction[3, 2:7, 5:25] = 1
    row = figures._Row.of(case(truth, prediction, structures=[(1, 2), (2,), (3,)]), 0)
    assert row.title.endswith(f"mean Dice of the case {(1 + 2 / 3) / 2:.3f}")


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 40), (40, 2, 3)])
def test_odd_shapes_are_drawn(tmp_path, shape):
    labels = np.ones(shape, int) * 15
    picture = drawn(tmp_path, [case(labels, image=np.zeros(shape), spacing=(10, 4, 3))])
    assert share_of(panel(picture, 1), panels.FILL * np.array(to_rgb(panels.COLOURS[0]))) > 0.07


def test_errors_name_the_argument(tmp_path):
    with pytest.raises(ValueError, match="cases must be at least one case"):
        overlay_figure([], tmp_path / "figure.png")
    with pytest.raises(ValueError, match=r"prediction must have shape .*\[6, 20, 30\], got \[6, 20, 29\]"):
        case(block(1), block(1)[..., :29])
    with pytest.raises(ValueError, match="channel must be below 1, got 1"):
        case(block(1), channel=1)
