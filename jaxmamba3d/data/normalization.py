"""Intensity normalisation: nnU-Net's five schemes, under the names that its plans use."""

from collections.abc import Mapping

import numpy as np

from jaxmamba3d.checks import check_choice, check_that

EPSILON = 1e-8


def normalize(
    channel: np.ndarray,
    scheme: str,
    *,
    mask: np.ndarray | None = None,
    intensities: Mapping[str, float] | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """One image channel, normalised by a scheme of the plans.

    | scheme | result |
    |---|---|
    | ZScoreNormalization | (x - mean) / max(std, 1e-8), population std; only over and inside a mask |
    | CTNormalization | x clipped to the fingerprint's 0.5 and 99.5 percentiles, then its mean and std |
    | NoNormalization | x |
    | RescaleTo01Normalization | (x - min) / max(max - min, 1e-8) |
    | RGBTo01Normalization | x / 255 |

    Args:
        channel: [Z, Y, X] float32.
        scheme: a name of the table.
        mask: [Z, Y, X] bool; read by ZScoreNormalization alone, None: everywhere.
        intensities: the plans' intensity properties of this channel; read by CTNormalization alone.
        out: [Z, Y, X] float32 that the result is written to, may be the channel itself; None: a new array.

    Returns:
        [Z, Y, X] float32, `out` where that is given.

    Raises:
        ValueError: an unknown scheme, CT without intensities, or RGB values outside 0..255.

    Numerics: float32 throughout, as nnU-Net; means are numpy's, so their last bits follow the memory order.

    Source: nnU-Net, preprocessing/normalization/default_normalization_schemes.py.
    """
    check_choice("normalization scheme", scheme, SCHEMES)
    out = np.empty_like(channel) if out is None else out
    SCHEMES[scheme](channel, mask, intensities, out)
    return out


def _z_score(channel, mask, intensities, out):
    if mask is None:
        _standardize(channel, out)
        return
    inside = channel[mask]
    if out is not channel:
        np.copyto(out, channel)
    if inside.size:
        _standardize(inside, inside)
    out[mask] = inside


def _standardize(values, out):
    mean, deviation = values.mean(), values.std()
    np.subtract(values, mean, out=out)
    out /= max(deviation, EPSILON)


def _ct(channel, mask, intensities, out):
    check_that(intensities is not None, "intensities", "the plans' intensity properties for CT", None)
    np.clip(channel, intensities["percentile_00_5"], intensities["percentile_99_5"], out=out)
    out -= intensities["mean"]
    out /= max(intensities["std"], EPSILON)


def _unchanged(channel, mask, intensities, out):
    if out is not channel:
        np.copyto(out, channel)


def _rescale_to_01(channel, mask, intensities, out):
    np.subtract(channel, channel.min(), out=out)
    out /= max(out.max(), EPSILON)


def _rgb_to_01(channel, mask, intensities, out):
    low, high = channel.min(), channel.max()
    check_that(low >= 0 and high <= 255, "an RGB channel", "from 0 to 255", f"{low} to {high}")
    np.divide(channel, 255, out=out)


SCHEMES = {
    "ZScoreNormalization": _z_score,
    "CTNormalization": _ct,
    "NoNormalization": _unchanged,
    "RescaleTo01Normalization": _rescale_to_01,
    "RGBTo01Normalization": _rgb_to_01,
}
