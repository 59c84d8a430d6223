"""Windows, weights and whole-volume prediction against nnU-Net's records and a naive implementation.

`golden/nnunet/sliding_window_steps.json` and `gaussian_lines.npz` were recorded by running nnU-Net 2.8.1's
`compute_steps_for_sliding_window` and `compute_gaussian` (lines through the centre).
"""

import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import assert_close, rounding

from jaxmamba3d.inference.sliding_window import (
    gaussian_weights,
    make_window_predictor,
    predict_planes,
    predict_volume,
    window_positions,
)

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "nnunet"
STEPS = json.loads((GOLDEN / "sliding_window_steps.json").read_text())
PATCH = (4, 6, 5)
CLASSES = 3


def positional_net(variables, windows):
    """Depends on where in the window a voxel lies, and on its neighbours: no mirroring leaves it alone."""
    x, y, z = (jnp.arange(n, dtype=jnp.float32) for n in windows.shape[1:4])
    ramp = x[:, None, None] + 2 * y[:, None] - 3 * z
    neighbours = windows[..., 0] + 0.5 * jnp.roll(windows[..., -1], 1, axis=2)
    return (neighbours * ramp)[..., None] * variables["scale"] + variables["bias"]


VARIABLES = {"scale": np.float32([0.3, -1, 2]), "bias": np.float32([1, 0, -2])}


def random_image(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def naive_prediction(net, variables, image, tile_step, mirror_axes):
    """The definition in float64: every window and every mirrored copy on its own."""
    lacks = [max(0, p - n) for p, n in zip(PATCH, image.shape[:3], strict=True)]
    padded = np.pad(image, [(n // 2, n - n // 2) for n in lacks] + [(0, 0)])
    total, weight_sum = 0.0, 0.0
    gauss = gaussian_weights(PATCH).astype(np.float64)
    for corner in itertools.product(*window_positions(padded.shape[:3], PATCH, tile_step)):
        box = tuple(slice(c, c + p) for c, p in zip(corner, PATCH, strict=True))
        copies = []
        for count in range(len(mirror_axes) + 1):
            for axes in itertools.combinations(mirror_axes, count):
                logits = np.asarray(net(variables, jnp.asarray(np.flip(padded[box], axes)[None])))[0]
                copies.append(np.flip(logits, axes).astype(np.float64))
        placed, weight = np.zeros((*padded.shape[:3], CLASSES)), np.zeros(padded.shape[:3])
        placed[box] = np.mean(copies, 0) * gauss[..., None]
        weight[box] = gauss
        total, weight_sum = total + placed, weight_sum + weight
    logits = total / weight_sum[..., None]
    return logits[tuple(slice(k // 2, k // 2 + n) for k, n in zip(lacks, image.shape[:3], strict=True))]


@pytest.mark.parametrize(
    "record", STEPS, ids=lambda r: f"{r['image_size']}-{r['tile']}-{r['tile_step_size']}"
)
def test_window_positions_are_nnunets(record):
    positions = window_positions(record["padded_image_size"], record["tile"], record["tile_step_size"])
    assert [list(axis) for axis in positions] == record["steps"]


@pytest.mark.parametrize("patch", [(40, 56, 40), (14, 256, 224)])
def test_gaussian_weights_are_nnunets(patch):
    weights = gaussian_weights(patch)
    assert weights.dtype == np.float32
    assert weights.min() > 0
    centre = tuple(n // 2 for n in patch)
    with np.load(GOLDEN / "gaussian_lines.npz") as lines:
        for axis in range(3):
            line = weights[tuple(slice(None) if a == axis else centre[a] for a in range(3))]
            name = f"g_{'x'.join(map(str, patch))}_scale10_float32_axis{axis}"
            np.testing.assert_array_equal(line, lines[name])


@pytest.mark.parametrize("mirror_axes", [(), (1,), (2, 0), (0, 1, 2)])
@pytest.mark.parametrize(("window_batch", "devices"), [(1, 1), (4, 1), (1, 4), (1, 6), (2, 8)])
def test_volume_is_the_weighted_mean_of_mirrored_windows(mirror_axes, window_batch, devices):
    """However many devices share out copies or windows."""
    image = random_image(9, 7, 11, 2)
    predictor = make_window_predictor(
        positional_net,
        PATCH,
        CLASSES,
        mirror_axes=mirror_axes,
        window_batch=window_batch,
        devices=jax.devices()[:devices],
    )
    logits = predict_volume(predictor, VARIABLES, image)
    assert logits.dtype == np.float32
    expected = naive_prediction(positional_net, VARIABLES, image, 0.5, mirror_axes)
    assert_close(logits, expected, rounding("float32", 8))


@pytest.mark.parametrize("shape", [(3, 3, 2), (1, 9, 4), (4, 6, 5), (2, 7, 9)])
@pytest.mark.parametrize("tile_step", [0.3, 1.0])
def test_padding_of_small_volumes(shape, tile_step):
    image = random_image(*shape, 1)
    predictor = make_window_predictor(positional_net, PATCH, CLASSES, mirror_axes=(0,), window_batch=2)
    logits = predict_volume(predictor, VARIABLES, image, tile_step=tile_step)
    expected = naive_prediction(positional_net, VARIABLES, image, tile_step, (0,))
    assert_close(logits, expected, rounding("float32", 8))


def test_a_pointwise_net_sees_no_windows():
    def net(variables, windows):
        return jnp.tanh(windows @ variables)

    matrix = random_image(2, CLASSES, seed=1)
    image = random_image(13, 8, 6, 2)
    logits = predict_volume(make_window_predictor(net, PATCH, CLASSES), matrix, image)
    assert_close(logits, np.tanh(image.astype(np.float64) @ matrix), rounding("float32", 4))


def test_bfloat16_logits_are_summed_in_float32():
    def net(variables, windows):
        return jnp.broadcast_to(variables, (*windows.shape[:4], CLASSES)).astype(jnp.bfloat16)

    values = np.float32([0.5, 1.0078125, -3])  # exact in bfloat16, whose sums of eight copies are not
    logits = predict_volume(make_window_predictor(net, PATCH, CLASSES), values, random_image(9, 9, 9, 1))
    assert_close(logits, np.broadcast_to(values, logits.shape), rounding("float32", 4))


def test_one_program_for_all_volumes_and_weights():
    traces = []

    def net(variables, windows):
        traces.append(windows.shape)
        return positional_net(variables, windows)

    predictor = make_window_predictor(net, PATCH, CLASSES, window_batch=3)
    first = predict_volume(predictor, VARIABLES, random_image(9, 7, 11, 1))
    for seed, shape in enumerate([(4, 6, 5), (2, 2, 2), (12, 20, 7)]):
        predict_volume(predictor, VARIABLES, random_image(*shape, 1, seed=seed))
    fold = {name: value * 2 for name, value in VARIABLES.items()}
    other = predict_volume(predictor, fold, random_image(9, 7, 11, 1))
    assert traces == [(3, *PATCH, 1)]
    assert_close(other, first * 2, rounding("float32", 8))


@pytest.mark.parametrize(("mirror_axes", "windows"), [((), 12), ((0,), 6), ((0, 1), 3), ((0, 1, 2), 3)])
def test_devices_share_the_work_out(mirror_axes, windows):
    """Copies, and windows where devices are left: each device has three."""
    devices = jax.devices()[2:6]
    predictor = make_window_predictor(
        positional_net, PATCH, CLASSES, mirror_axes=mirror_axes, window_batch=3, devices=devices
    )
    assert predictor.window_batch == windows
    placed = predictor.place(VARIABLES)
    assert all(leaf.devices() == set(devices) for leaf in jax.tree.leaves(placed))
    crops = random_image(windows, *PATCH, 1)
    logits = predictor.weighted_logits(placed, crops)
    assert logits.devices() == set(devices)
    assert logits.shape == (windows, *PATCH, CLASSES)


def test_progress_counts_windows(capsys):
    predictor = make_window_predictor(positional_net, PATCH, CLASSES, mirror_axes=())
    image = random_image(8, 6, 5, 1)
    predict_volume(predictor, VARIABLES, image, progress=True)
    assert "0/3" in capsys.readouterr().err
    predict_volume(predictor, VARIABLES, image)
    assert capsys.readouterr().err == ""


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="mirror_axes must be different axes out of 0, 1, 2"):
        make_window_predictor(positional_net, PATCH, CLASSES, mirror_axes=(0, 3))
    with pytest.raises(ValueError, match="patch_size must be three sizes"):
        make_window_predictor(positional_net, (4, 4), CLASSES)
    with pytest.raises(ValueError, match="window_batch"):
        make_window_predictor(positional_net, PATCH, CLASSES, window_batch=0)
    predictor = make_window_predictor(positional_net, PATCH, CLASSES + 1)
    with pytest.raises(
        ValueError, match=r"net's logits must have shape \[B, X, Y, Z, K\] = \[1, 4, 6, 5, 4\]"
    ):
        predict_volume(predictor, VARIABLES, random_image(8, 8, 8, 1))
    with pytest.raises(ValueError, match=r"image must have shape \[X, Y, Z, C\]"):
        predict_volume(predictor, VARIABLES, random_image(8, 8, 8))
    with pytest.raises(ValueError, match="tile_step must be a share"):
        window_positions((8, 8, 8), PATCH, 0)
    with pytest.raises(ValueError, match="image_size must be at least the window's"):
        window_positions((3, 8, 8), PATCH, 0.5)


def test_folds_are_averaged():
    def net(variables, windows):
        return windows[..., :1] * variables

    predictor = make_window_predictor(net, (4, 4, 4), 3, mirror_axes=())
    image = np.random.default_rng(0).normal(size=(5, 4, 6, 1)).astype(np.float32)
    folds = [np.float32([1, 2, 3]), np.float32([3, 0, -9])]
    found = np.stack([*predict_planes(predictor, folds, image)])
    np.testing.assert_allclose(
        found, np.mean([predict_volume(predictor, f, image) for f in folds], 0), rtol=1e-5, atol=1e-6
    )
