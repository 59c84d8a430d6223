"""Fresh weights: drawn in few lengths, yet those of the exact length."""

import jax
import numpy as np
import pytest

from jaxmamba3d.nn.initializers import he_normal, uniform


@pytest.mark.parametrize("shape", [(1,), (3, 5), (4096,), (4097,), (7, 11, 13, 17)])
def test_numbers_drawn_beyond_the_shape_change_nothing(shape):
    key = jax.random.key(3)
    expected = jax.random.uniform(key, shape, minval=-0.5, maxval=0.5)
    np.testing.assert_array_equal(uniform(0.5)(key, shape), expected)


def test_sizes_may_be_numpys_integers():
    key, shape = jax.random.key(3), (3, 5)
    found = uniform(0.5)(key, tuple(np.array(shape)))
    np.testing.assert_array_equal(found, uniform(0.5)(key, shape))


def test_the_deviation_is_that_of_the_shape():
    kernel = np.asarray(he_normal()(jax.random.key(0), (3, 3, 3, 8, 100)))
    assert kernel.std() == pytest.approx(np.sqrt(2 / 1.0001 / (27 * 8)), rel=0.02)
