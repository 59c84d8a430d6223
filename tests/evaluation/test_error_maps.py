"""Comparison figures: what is marked and how it is headed."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from jaxmamba3d.evaluation import ComparisonCase, comparison_figure, error_maps, panels

SHAPE = (5, 24, 24)


def square(label, rows, columns, index=2):
    labels = np.zeros(SHAPE, np.uint8)
    labels[index, slice(*rows), slice(*columns)] = label
    return labels


TRUTH = square(1, (8, 16), (8, 16))


def drawn(tmp_path, predictions, truth=TRUTH, image=None, **options):
    """The pixels of the panels of one row, black image."""
    image = np.zeros(SHAPE) if image is None else image
    case = ComparisonCase("case", image, truth, predictions, dict.fromkeys(predictions, 0.5), **options)
    comparison_figure([case], tmp_path / "figure.png")
    picture = imread(tmp_path / "figure.png")[..., :3]
    top = int((panels.MARGIN + error_maps.TITLE) * panels.DPI)
    width = int(error_maps.PANEL * panels.DPI)
    columns = [n * (error_maps.PANEL + panels.GAP) for n in range(2 + len(predictions))]
    lefts = [int((panels.MARGIN + column) * panels.DPI) for column in columns]
    return [picture[top + 3 : top + width - 3, left + 3 : left + width - 3] for left in lefts]


def share_of(pixels, colour):
    """Of pixels tinted by an error, over black."""
    return np.mean(np.abs(pixels - error_maps.ERROR_OPACITY * np.array(to_rgb(colour))).max(-1) < 0.02)


def test_errors_are_marked_by_kind(tmp_path):
    """The panels show the 8 x 8 square and 2 voxels around it: 144 voxels."""
    predictions = {
        "right": TRUTH,
        "half": square(1, (8, 12), (8, 16)),
        "none": square(1, (0, 0), (0, 0)),
        "confused": np.where(TRUTH, 2, 0).astype(np.uint8),
    }
    image, truth, *found = drawn(tmp_path, predictions)
    missed, confused = error_maps.FALSE_NEGATIVE, error_maps.WRONG_CLASS
    expected = {"right": {}, "half": {missed: 32}, "none": {missed: 64}, "confused": {confused: 64}}
    for pixels, marks in zip(found, expected.values(), strict=True):
        for colour in (error_maps.FALSE_POSITIVE, error_maps.FALSE_NEGATIVE, error_maps.WRONG_CLASS):
            # The outline of the prediction takes a little of the area.
            assert share_of(pixels, colour) == pytest.approx(marks.get(colour, 0) / 144, rel=0.12)
    upper_half = found[1][: len(found[1]) // 2]
    # Array rows go up: what the half lacks is on top.
    assert share_of(upper_half, error_maps.FALSE_NEGATIVE) == pytest.approx(32 / 72, rel=0.12)
    assert share_of(image, error_maps.FALSE_NEGATIVE) == share_of(truth, error_maps.FALSE_NEGATIVE) == 0
    filled = np.abs(truth - panels.FILL * np.array(to_rgb(panels.colour_of(1)))).max(-1) < 0.02
    assert np.mean(filled) == pytest.approx(64 / 144, rel=0.12)


def test_what_is_made_up_far_away_is_shown(tmp_path):
    made_up = TRUTH + square(1, (0, 4), (0, 4))
    *_, found = drawn(tmp_path, {"model": made_up})
    # From voxel 0 to the square's end at 16, and a quarter of that more.
    assert share_of(found, error_maps.FALSE_POSITIVE) == pytest.approx(16 / 20**2, rel=0.15)
    assert share_of(found[len(found) * 3 // 4 :, : len(found) // 4], error_maps.FALSE_POSITIVE) > 0.5


def test_ignored_voxels_are_no_error(tmp_path):
    truth = TRUTH.copy()
    truth[:, :12] = 3
    *_, found = drawn(tmp_path, {"model": np.zeros(SHAPE, np.uint8)}, truth, ignore_label=3)
    # What is left is 4 x 8, and 2 voxels around it.
    assert share_of(found, error_maps.FALSE_NEGATIVE) > 0.2
    *_, found = drawn(tmp_path, {"model": TRUTH}, truth, ignore_label=3)
    assert share_of(found, error_maps.FALSE_POSITIVE) == share_of(found, error_maps.FALSE_NEGATIVE) == 0


def test_the_ignored_area_is_hatched(tmp_path, legends):
    truth = TRUTH.copy()
    truth[:, :12] = 3
    image, *marked = drawn(tmp_path, {"model": TRUTH}, truth, ignore_label=3)
    drawn(tmp_path, {"model": TRUTH}, TRUTH, ignore_label=3)
    assert ["ignored" in names for _, names in legends] == [True, False]
    veil = panels.VEIL * np.array(to_rgb(panels.IGNORED))
    for pixels in marked:
        pixels = pixels[: len(pixels) * 2 // 3 - 4]  # 8 rows of 12 voxels
        # Array rows go up: the two ignored ones are below.
        above, below = np.split(pixels, [len(pixels) * 3 // 4 - 3])
        assert np.mean(np.abs(below - veil).max(-1) < 0.02) > 0.4
        assert np.mean(np.abs(above - veil).max(-1) < 0.02) == 0
    assert np.mean(np.abs(image - veil).max(-1) < 0.02) < 0.01


def test_long_names_keep_their_beginnings_and_ends():
    name = "nnunet_" + 60 * "x" + "_fold_0"
    heading = error_maps._shortened(name)
    assert len(heading) == error_maps.MOST_LETTERS
    assert heading.startswith("nnunet_xxx")
    assert heading.endswith("xxx_fold_0")
    assert error_maps._shortened("nnunet") == "nnunet"


def test_headings_are_models_and_scores(tmp_path, legends):
    predictions, dice = {"ours": TRUTH, "x": TRUTH}, {"ours": 0.12345, "x": np.nan}
    case = ComparisonCase("c1", np.zeros(SHAPE), TRUTH, predictions, dice)
    comparison_figure([case, case], tmp_path / "figure.png", class_names={1: "rim"})
    ((figure, names),) = legends
    texts = [[axes.get_title(), *(text.get_text() for text in axes.texts)] for axes in figure.axes]
    assert names[:4] == ["rim", "false positive", "false negative", "another class"]
    assert texts[:4] == [["input", "c1, slice 3"], ["truth", ""], ["ours", "Dice 0.123"], ["x", "-"]]
    assert texts[4:6] == [["", "c1, slice 3"], ["", ""]]


def test_models_may_be_named_as_the_other_columns(tmp_path):
    assert len(drawn(tmp_path, {"input": TRUTH, "truth": TRUTH, "a" * 60: TRUTH})) == 5


def test_errors_are_of_other_colours_than_classes():
    """By the distance of two colours in CIELAB, of which a difference of 2 can be seen."""
    errors = [
        cielab(c) for c in (error_maps.FALSE_POSITIVE, error_maps.FALSE_NEGATIVE, error_maps.WRONG_CLASS)
    ]
    for error in errors:
        assert min(np.linalg.norm(error - cielab(colour)) for colour in panels.COLOURS) > 35
    assert np.diff(sorted(error[0] for error in errors)).min() > 15  # brightness


def cielab(colour):
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(np.array(to_xyz) @ linear / [0.9505, 1, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_errors_name_the_argument(tmp_path):
    with pytest.raises(ValueError, match="cases must be at least one case, got none"):
        comparison_figure([], tmp_path / "figure.png")
    with pytest.raises(ValueError, match=r"model must have shape \[X, Y, Z\] of the image"):
        ComparisonCase("c", np.zeros(SHAPE), TRUTH, {"model": TRUTH[1:]}, {"model": 1.0})
    one, other = (ComparisonCase(n, np.zeros(SHAPE), TRUTH, {n: TRUTH}, {n: 1.0}) for n in "ab")
    with pytest.raises(ValueError, match=r"models of b must be \['a'\], got \['b'\]"):
        comparison_figure([one, other], tmp_path / "figure.png")
