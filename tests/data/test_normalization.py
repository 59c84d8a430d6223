"""The five schemes, against their definitions written out in float64."""

import numpy as np
import pytest
from tolerances import assert_close, rounding

from jaxmamba3d.data.normalization import SCHEMES, normalize

CT = {"mean": 40.0, "std": 25.0, "percentile_00_5": -10.0, "percentile_99_5": 90.0}


@pytest.fixture
def channel() -> np.ndarray:
    return np.random.default_rng(0).normal(30, 60, (5, 6, 7)).astype(np.float32)


def test_z_score_is_of_the_population(channel):
    wide = channel.astype(np.float64)
    expected = (wide - wide.mean()) / wide.std()
    normalized = normalize(channel, "ZScoreNormalization")
    assert_close(normalized, expected, rounding("float32", channel.size))
    assert normalized.dtype == np.float32


def test_masked_z_score_leaves_the_outside(channel):
    mask = np.random.default_rng(1).random(channel.shape) < 0.4
    channel = np.where(mask, channel, np.float32(0))
    inside = channel[mask].astype(np.float64)
    expected = np.zeros(channel.shape)
    expected[mask] = (inside - inside.mean()) / inside.std()
    normalized = normalize(channel, "ZScoreNormalization", mask=mask)
    assert_close(normalized, expected, rounding("float32", channel.size))
    assert (normalized[~mask] == 0).all()


@pytest.mark.filterwarnings("error")
def test_an_image_of_nothing_but_the_outside_stays_as_it_is():
    nothing = np.zeros((2, 3, 4), np.float32)
    normalized = normalize(nothing, "ZScoreNormalization", mask=nothing > 0)
    np.testing.assert_array_equal(normalized, nothing)


def test_z_score_of_a_constant_is_zero():
    assert (normalize(np.full((2, 3, 4), 7, np.float32), "ZScoreNormalization") == 0).all()


@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-8])
def test_small_numbers_are_normalised_like_large_ones(size):
    signs = np.float32([1, -1]).repeat(6).reshape(2, 2, 3)
    np.testing.assert_allclose(normalize(signs * np.float32(size), "ZScoreNormalization"), signs, rtol=1e-6)


def test_what_lies_outside_a_mask_keeps_its_values(channel):
    mask = channel > 20
    np.testing.assert_array_equal(normalize(channel, "ZScoreNormalization", mask=mask)[~mask], channel[~mask])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_constants_stay_finite(scheme):
    constant = np.full((2, 3, 4), 7, np.float32)
    intensities = {"mean": 7.0, "std": 0.0, "percentile_00_5": 7.0, "percentile_99_5": 7.0}
    assert np.isfinite(normalize(constant, scheme, intensities=intensities)).all()


def test_ct_clips_first(channel):
    expected = (np.clip(channel.astype(np.float64), -10, 90) - 40) / 25
    assert expected.max() == 2, "the example must reach the bound"
    normalized = normalize(channel, "CTNormalization", mask=channel > 0, intensities=CT)
    assert_close(normalized, expected, rounding("float32", 1))
    assert normalized.dtype == np.float32


def test_no_normalization(channel):
    np.testing.assert_array_equal(normalize(channel, "NoNormalization"), channel)


def test_rescale_to_01(channel):
    normalized = normalize(channel, "RescaleTo01Normalization")
    expected = (channel - channel.min()) / (channel.max() - channel.min())
    assert_close(normalized, expected, rounding("float32", 1))
    assert normalized.min() == 0
    assert normalized.max() == 1
    assert normalized.dtype == np.float32


def test_rgb_to_01(channel):
    colours = np.clip(np.abs(channel), 0, 255)
    np.testing.assert_array_equal(normalize(colours, "RGBTo01Normalization"), colours / np.float32(255))
    for outside in (colours - 300, colours + 250):
        with pytest.raises(ValueError, match="from 0 to 255"):
            normalize(outside, "RGBTo01Normalization")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_input_is_not_written_to(channel, scheme):
    channel = np.clip(channel, 0, 255)
    before = channel.copy()
    normalize(channel, scheme, mask=channel > 20, intensities=CT)
    np.testing.assert_array_equal(channel, before)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_in_place_is_the_same(channel, scheme):
    channel = np.clip(channel, 0, 255)
    mask = channel > 20
    expected = normalize(channel, scheme, mask=mask, intensities=CT)
    assert normalize(channel, scheme, mask=mask, intensities=CT, out=channel) is channel
    np.testing.assert_array_equal(channel, expected)


def test_bad_arguments(channel):
    with pytest.raises(ValueError, match="one of ZScoreNormalization, CTNormalization"):
        normalize(channel, "zscore")
    with pytest.raises(ValueError, match="intensity properties for CT"):
        normalize(channel, "CTNormalization")
