"""The TPU kernels on a TPU that JAX plays: memory is NaN until it is written, and nothing outside is read."""

import pytest
from jax.experimental.pallas import tpu as pltpu
from scan_contract import OPTIONAL, assert_like_reference, random_arguments
from tolerances import rounding

from jaxmamba3d.ops.selective_scan import pallas_mosaic_tpu
from jaxmamba3d.ops.selective_scan.kernel_scan import differentiable_scan


@pytest.mark.parametrize(
    ("shape", "reverse", "cores", "absent"),
    [((3, 300, 64, 8), False, 2, ()), ((1, 21, 130, 36), True, 1, OPTIONAL)],
)
def test_values_and_gradients(monkeypatch, shape, reverse, cores, absent):
    """Two cores share the sequences, each in an order of its own."""
    passes = pallas_mosaic_tpu._forward_pass, pallas_mosaic_tpu._backward_pass
    monkeypatch.setattr(
        pallas_mosaic_tpu, "scan", differentiable_scan(*passes, interpreter_can_partition=False)
    )
    arguments = {k: v for k, v in random_arguments(*shape).items() if k not in absent}
    tpu = pltpu.InterpretParams(
        num_cores_or_threads=cores, random_seed=0, uninitialized_memory="nan", out_of_bounds_reads="raise"
    )
    tolerance = rounding("float32", shape[1])
    with pltpu.force_tpu_interpret_mode(tpu):
        assert_like_reference(arguments, "pallas_mosaic_tpu", tolerance, delta_softplus=True, reverse=reverse)
