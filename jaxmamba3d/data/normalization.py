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

    Returns:
        [Z, Y, X] float32.

    Raises:
        ValueError: an unknown scheme, CT without intensities, or RGB values outside 0..255.

    Numerics: float32 throughout, as nnU-Net; means are numpy's, so their last bits follow the memory order.

    Source: nnU-Net, preprocessing/normalization/default_normalization_schemes.py.
    """
    check_choice("normalization scheme", scheme, SCHEMES)
    return SCHEMES[scheme](channel, mask, intensities)


def _z_score(channel, mask, intensities):
    if mask is None:
        return _standardize(channel)
    normalized = channel.copy()
    normalized[mask] = _standardize(channel[mask])
    return normalized


def _standardize(values):
    return (values - values.mean()) / max(values.std(), EPSILON)


def _ct(channel, mask, intensities):
    check_that(intensities is not None, "intensities", "the plans' intensity properties for CT", None)
    clipped = np.clip(channel, intensities["percentile_00_5"], intensities["percentile_99_5"])
    return (clipped - intensities["mean"]) / max(intensities["std"], EPSILON)


def _unchanged(channel, mask, intensities):
    return channel


def _rescale_to_01(channel, mask, intensities):
    shifted = channel - channel.min()
    return shifted / max(shifted.max(), EPSILON)


def _rgb_to_01(channel, mask, intensities):
    low, high = channel.min(), channel.max()
    check_that(low >= 0 and high <= 255, "an RGB channel", "from 0 to 255", f"{low} to {high}")
    return channel / 255


SCHEMES = {
    "ZScoreNormalization": _z_score,
    "CTNormalization": _ct,
    "NoNormalization": _unchanged,
    "RescaleTo01Normalization": _rescale_to_01,
    "RGBTo01Normalization": _rgb_to_01,
}
