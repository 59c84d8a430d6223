"""Prediction of whole volumes by overlapping windows with Gaussian weights, nnU-Net's way.

Source: nnU-Net v2, `nnunetv2/inference/sliding_window_prediction.py` and `predict_from_raw_data.py`; sums are
float32 here, where nnU-Net's are float16.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from scipy.ndimage import gaussian_filter1d
from tqdm import tqdm

from jaxmamba3d.checks import check_axes, check_count, check_shape, check_sizes, check_that
from jaxmamba3d.config import Triple
from jaxmamba3d.data.patches import cut_into
from jaxmamba3d.inference.rolling_sums import RollingSums
from jaxmamba3d.ops.backend import BATCH_AXES

Net = Callable[[Any, jax.Array], jax.Array]

GAUSSIAN_PEAK = 10.0
SIGMA_SHARE = 1 / 8


@dataclasses.dataclass(frozen=True)
class WindowPredictor:
    """A net compiled for batches of windows of one size; made by `make_window_predictor`.

    Args:
        patch_size: window size [X, Y, Z] in voxels.
        num_classes: classes K of the logits, background included.
        window_batch: windows B a call.
        place: variables -> the same on every device that takes part; nothing is copied that is there already.
        weighted_logits: (placed variables, windows [B, X, Y, Z, C]) -> mirrored-mean logits times
            `gaussian_weights`, [B, X, Y, Z, K] float32.
        lower: (variables or their shapes, channels C) -> that function, ready to be compiled.
        mesh: of the devices that take part.
    """

    patch_size: Triple
    num_classes: int
    window_batch: int
    place: Callable[[Any], Any]
    weighted_logits: Callable[[Any, np.ndarray], jax.Array]
    lower: Callable[[Any, int], jax.stages.Lowered]
    mesh: Mesh


def make_window_predictor(
    net: Net,
    patch_size: Triple,
    num_classes: int,
    *,
    mirror_axes: Sequence[int] = (0, 1, 2),
    window_batch: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> WindowPredictor:
    """Compiles a net, on first use, into the one program that serves every volume and every set of weights.

    Make one predictor and keep it: volumes of any size, and folds whose variables have the same shapes,
    then share its compiled program. Mirrored copies run one after the other on a device, so they cost time
    but no memory.

    Args:
        net: (variables, windows [B, X, Y, Z, C]) -> logits [B, X, Y, Z, K] of the highest resolution.
        patch_size: window size [X, Y, Z] in voxels.
        num_classes: classes K of the logits, background included.
        mirror_axes: axes out of 0, 1, 2; logits are averaged over all combinations of them, () for none.
        window_batch: windows that a device predicts at once.
        devices: of this process, which share out the mirrored copies of windows and, where there are more of
            them or they do not divide by the devices, the windows; None: JAX's first one.

    Raises:
        ValueError: an argument is out of range; at the first call, the net's logits have the wrong shape.
    """
    patch_size = tuple(patch_size)
    check_sizes("patch_size", patch_size)
    check_axes("mirror_axes", mirror_axes)
    check_count("num_classes", num_classes)
    check_count("window_batch", window_batch)
    mirrorings = np.array(list(itertools.product((False, True), repeat=len(mirror_axes))), bool)
    # The mean over the copies is part of the weights.
    weights = gaussian_weights(patch_size)[..., None] / len(mirrorings)
    devices = devices or jax.local_devices()[:1]
    # As many copies at once as go, for a volume may have too few windows, but never lacks copies.
    at_once = math.gcd(len(mirrorings), len(devices))
    mirrorings = mirrorings.reshape(len(mirrorings) // at_once, at_once, len(mirror_axes))
    shape = (at_once, len(devices) // at_once)
    mesh = jax.make_mesh(shape, BATCH_AXES, (AxisType.Auto,) * 2, devices=devices)
    # The axes of a training's mesh, which the scan knows for batches: here of copies and of windows.
    specs = PartitionSpec(), PartitionSpec(BATCH_AXES[1]), PartitionSpec(BATCH_AXES)
    everywhere, by_window, shared_out = (NamedSharding(mesh, spec) for spec in specs)

    @functools.partial(jax.jit, in_shardings=(everywhere, by_window), out_shardings=by_window)
    def weighted_logits(variables, windows):
        def add_copies(total, mirrored):
            copies = jax.vmap(_flip, (None, None, 0))(windows, mirror_axes, mirrored)
            copies = lax.with_sharding_constraint(copies.reshape(-1, *windows.shape[1:]), shared_out)
            logits = net(variables, copies)
            shape = (len(copies), *windows.shape[1:4], num_classes)
            check_shape("the net's logits", logits, "[B, X, Y, Z, K]", shape)
            logits = logits.astype(jnp.float32).reshape(len(mirrored), *total.shape)
            return total + jnp.sum(jax.vmap(_flip, (0, None, 0))(logits, mirror_axes, mirrored), 0), None

        # A scan over traced flags holds the net once: compile time and memory do not grow eightfold.
        nothing = jnp.zeros((*windows.shape[:4], num_classes), jnp.float32)
        return lax.scan(add_copies, nothing, mirrorings)[0] * weights

    def on_the_mesh(variables, windows):
        with jax.set_mesh(mesh):
            return weighted_logits(variables, jax.device_put(windows, by_window))

    def lower(variables, channels):
        windows = jax.ShapeDtypeStruct((windows_a_call, *patch_size, channels), jnp.float32)
        with jax.set_mesh(mesh):
            return weighted_logits.lower(variables, windows)

    windows_a_call = window_batch * shape[1]
    return WindowPredictor(
        patch_size,
        num_classes,
        windows_a_call,
        place=functools.partial(jax.device_put, device=everywhere),
        weighted_logits=on_the_mesh,
        lower=lower,
        mesh=mesh,
    )


def predict_volume(
    predictor: WindowPredictor,
    variables: Any,
    image: np.ndarray,
    *,
    tile_step: float = 0.5,
    progress: bool = False,
) -> np.ndarray:
    """Logits of a whole volume: the Gaussian-weighted mean of the windows that cover each voxel.

    logits[v] = sum_w g[v - w] net(window at w)[v - w] / sum_w g[v - w]

    Args:
        predictor: see `make_window_predictor`.
        variables: the net's weights, as `net` takes them; `predictor.place` puts them on the devices once,
            not for each volume.
        image: preprocessed volume [X, Y, Z, C] of any size; smaller than a window, it is padded with 0.
        tile_step: distance of neighbouring windows as a share of the window, in (0, 1].
        progress: show a progress bar.

    Returns:
        Logits [X, Y, Z, K], float32, on the host.

    Raises:
        ValueError: the image is not [X, Y, Z, C], or tile_step is out of range.
    """
    check_shape("image", image, "[X, Y, Z, C]", (None,) * 4)
    logits = np.empty((*image.shape[:3], predictor.num_classes), np.float32)
    planes = predict_planes(predictor, [variables], image, tile_step=tile_step, progress=progress)
    for x, plane in enumerate(planes):
        logits[x] = plane
    return logits


def predict_planes(
    predictor: WindowPredictor,
    folds: Sequence[Any],
    image: np.ndarray,
    *,
    tile_step: float = 0.5,
    progress: bool = False,
) -> Iterator[np.ndarray]:
    """The mean over folds of `predict_volume`, plane by plane along X, each as soon as it is complete.

    Windows advance along X; the sums over the planes that a batch of them covers are all that the host holds,
    and each device its windows of one batch, however large the volume is. The next batch is computed while
    the last is added.

    Args:
        folds: variables of one net or several.
        predictor, image, tile_step, progress: see `predict_volume`.

    Yields:
        Logits [Y, Z, K], float32, X planes.
    """
    check_shape("image", image, "[X, Y, Z, C]", (None,) * 4)
    patch_size, window_batch = predictor.patch_size, predictor.window_batch
    padding = _padding(image.shape[:3], patch_size)
    folds = [predictor.place(variables) for variables in folds]
    padded = [before + size + after for (before, after), size in zip(padding, image.shape[:3], strict=True)]
    corners = list(itertools.product(*window_positions(padded, patch_size, tile_step)))
    batches = [corners[i : i + window_batch] for i in range(0, len(corners), window_batch)]

    def predict_batch(batch):
        crops = np.zeros((window_batch, *patch_size, image.shape[3]), np.float32)
        for crop, corner in zip(crops, batch, strict=False):  # a last, incomplete batch keeps zeros
            inside = [start - before for start, (before, _) in zip(corner, padding, strict=True)]
            cut_into(crop, image, inside, fill=0)
        return batch, sum(predictor.weighted_logits(variables, crops) for variables in folds)

    weights = gaussian_weights(patch_size) * np.float32(len(folds))
    sums = RollingSums(padded, weights, predictor.num_classes)
    (first, _), *others = padding
    kept = slice(first, first + image.shape[0])
    inside = tuple(slice(before, before + n) for (before, _), n in zip(others, image.shape[1:3], strict=True))
    with tqdm(total=len(corners), desc="windows", leave=False, disable=not progress) as bar:
        for batch, weighted in _one_ahead(map(predict_batch, batches)):
            for corner, values in zip(batch, np.asarray(weighted), strict=False):
                yield from (plane[inside] for x, plane in sums.planes_before(corner[0]) if _is_in(x, kept))
                sums.add(corner, values)
            bar.update(len(batch))
    yield from (plane[inside] for x, plane in sums.planes_before(padded[0]) if _is_in(x, kept))


def _is_in(x: int, planes: slice) -> bool:
    return planes.start <= x < planes.stop


def window_positions(
    image_size: Sequence[int], patch_size: Sequence[int], tile_step: float
) -> tuple[tuple[int, ...], ...]:
    """First voxels of the windows along each axis: evenly spread, as few as `tile_step` allows.

    Args:
        image_size: voxels of each axis, after padding to at least one window.
        patch_size: window size of each axis (voxels).
        tile_step: the largest distance of neighbouring windows as a share of the window, in (0, 1].

    Returns:
        For each axis the ascending positions; windows lie at all their combinations.
    """
    check_that(0 < tile_step <= 1, "tile_step", "a share in (0, 1]", tile_step)
    positions = []
    for size, patch in zip(image_size, patch_size, strict=True):
        check_that(size >= patch, "image_size", f"at least the window's {tuple(patch_size)}", image_size)
        last = size - patch
        steps = int(np.ceil(last / (patch * tile_step)))
        positions.append(tuple(int(np.round(last / steps * i)) for i in range(steps + 1)) if steps else (0,))
    return tuple(positions)


def gaussian_weights(patch_size: Sequence[int]) -> np.ndarray:
    """Importance of a window's voxels: a Gaussian of sigma size / 8 around voxel size // 2, peak 10.

    Every weight is above 0: the farthest corner's, about 4e-10, is far from float32's underflow.

    Args:
        patch_size: window size [X, Y, Z] in voxels.

    Returns:
        Weights [X, Y, Z], float32.
    """
    weights = np.ones(())
    for size in patch_size:
        peak = np.zeros(size)
        peak[size // 2] = 1
        weights = weights[..., None] * gaussian_filter1d(peak, size * SIGMA_SHARE, mode="constant")
    return (weights / (weights.max() / GAUSSIAN_PEAK)).astype(np.float32)


def _padding(image_size: Sequence[int], patch_size: Sequence[int]) -> list[tuple[int, int]]:
    """Voxels before and after each axis that make the image at least a window large, the odd one after."""
    missing = [max(0, patch - size) for size, patch in zip(image_size, patch_size, strict=True)]
    return [(n // 2, n - n // 2) for n in missing]


def _flip(volumes: jax.Array, axes: Sequence[int], mirrored: jax.Array) -> jax.Array:
    """Mirrors volumes [B, X, Y, Z, C] along those of the axes whose flag, which is traced, is set."""
    for i, axis in enumerate(axes):
        volumes = jnp.where(mirrored[i], jnp.flip(volumes, axis + 1), volumes)
    return volumes


def _one_ahead(items: Iterator) -> Iterator:
    """The items, each handed out only when the next has been started, which keeps the device busy."""
    held = next(items)
    for item in items:
        yield held
        held = item
    yield held
