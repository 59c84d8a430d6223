"""What tests of the kernels share."""

import pytest

from jaxmamba3d.ops.selective_scan.blocks import override_blocks


@pytest.fixture
def small_steps():
    """Kernels unroll fewer tokens than they would, for the interpreter compiles each one anew."""
    with override_blocks(stride=2):
        yield
