"""Memory of convolutions on TPUs that are not here: pytest -m aot."""

import pytest
from compiled_for_tpus import printed_by

RESIDUAL_BLOCKS = """
import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from jaxmamba3d.nn import ResidualBlock, conv
from jaxmamba3d.ops.backend import compile_for

device = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[0]
place = SingleDeviceSharding(device)
block = nnx.eval_shape(lambda: ResidualBlock(32, 32, (1, 3, 3), dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
graph, params = nnx.split(block)
volume = jax.ShapeDtypeStruct((1, 14, 256, 224, 32), jnp.bfloat16)


def temporaries():
    def gradients(params, x, g):
        return jax.vjp(lambda params, x: nnx.merge(graph, params)(x), params, x)[1](g)

    with compile_for("tpu"):
        step = jax.jit(gradients, in_shardings=place, out_shardings=place)
        memory = step.lower(params, volume, volume).compile().memory_analysis()
    return memory.temp_size_in_bytes / 2**20


print(temporaries())
conv.side_by_side = lambda channels, size: 1
print(temporaries())
"""


@pytest.mark.aot
def test_voxels_side_by_side_save_memory():
    side_by_side, alone = map(float, printed_by(RESIDUAL_BLOCKS))
    print(f"temporaries MB: side by side {side_by_side:.0f}, alone {alone:.0f}")  # noqa: T201
    assert 2 * side_by_side < alone
