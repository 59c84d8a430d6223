"""How a call is laid out over devices.

Sequences are independent, which JAX cannot see in a kernel (`on_devices`): a sharded batch stays where it is,
and each device runs its part. A batch is shared out by `jax.shard_map` over the explicit axes of its type, or
over the batch axes of the mesh that `jax.set_mesh` set; without either by `custom_partitioning`, which TPUs
lack (github.com/jax-ml/jax/issues/38196). Inside of another `jax.shard_map` a call is one device's already.
"""

import itertools
import math

import jax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from jaxmamba3d.ops.backend import batch_axes, target_backend
from jaxmamba3d.ops.selective_scan.arguments import ScanArguments


def on_devices(function, batched, parameters):
    """function(batched, parameters) on each device's part of the batch.

    All leaves of `batched` and of the result have [B] in front, those of `parameters` [G]: sequence b has the
    parameters b % G.
    """
    mesh, axes = _explicit_mesh(batched)
    if mesh.explicit_axes:
        return _over_mesh(function, mesh, axes, *split_by_sequence(batched, parameters))
    mesh, axes = jax.sharding.get_abstract_mesh(), batch_axes()
    if axes:
        return _over_mesh(function, mesh, axes, batched, parameters)
    if mesh.manual_axes or target_backend() == "tpu":
        return function(batched, parameters)
    return _partitioned(function, batched, parameters)


def sequences_a_device(array) -> int:
    """How many of the sequences of an array [B, ...] each device gets, as far as that is known in advance."""
    mesh, axes = _explicit_mesh(array)
    if not mesh.explicit_axes:
        mesh, axes = jax.sharding.get_abstract_mesh(), batch_axes()
    batch, devices = array.shape[0], _devices(mesh, axes)
    return batch if batch % devices else batch // devices


def split_by_sequence(batched, parameters):
    """Arrays over explicit axes with `batched` split along the batch alone, and parameters whole."""
    mesh, axes = _explicit_mesh(batched)
    if not mesh.explicit_axes:
        return batched, parameters
    split, whole = (NamedSharding(mesh, PartitionSpec(*parts)) for parts in ([axes], []))
    return jax.sharding.reshard(batched, split), jax.sharding.reshard(parameters, whole)


def laid_out_as_u(arguments: ScanArguments) -> ScanArguments:
    """Arrays over explicit axes, which plain XLA takes only where they agree: split as u is along the batch
    and the channels, whose parts are independent, and along nothing else."""
    where = jax.typeof(arguments.u).sharding
    if not where.mesh.explicit_axes:
        return arguments
    batch, _, channels = where.spec
    sequence, column, row = (batch, None, channels), (batch, None, None), (channels,)
    splits = ScanArguments(
        u=sequence,
        delta=sequence,
        A=(channels, None),
        B=column,
        C=column,
        D=row,
        z=sequence,
        delta_bias=row,
        h0=(batch, channels, None),
    )

    def placed(array, split):
        target = NamedSharding(where.mesh, PartitionSpec(*split))
        return None if array is None else jax.sharding.reshard(array, target)

    return ScanArguments(*map(placed, arguments, splits))


def _explicit_mesh(batched) -> tuple[AbstractMesh, tuple[str, ...]]:
    """The mesh in the type of an array, empty without explicit axes, and the axes that split the batch."""
    sharding = jax.typeof(jax.tree.leaves(batched)[0]).sharding
    return sharding.mesh, _batch_axes_of(sharding)


def _batch_axes_of(sharding: NamedSharding) -> tuple[str, ...]:
    axes = sharding.spec[0] if sharding.spec else None
    return () if axes is None else axes if isinstance(axes, tuple) else (axes,)


def _devices(mesh: Mesh | AbstractMesh, axes: tuple[str, ...]) -> int:
    return math.prod(mesh.shape[axis] for axis in axes)


def _over_mesh(function, mesh: AbstractMesh, axes: tuple[str, ...], batched, parameters):
    """The call with the batch split along axes of a mesh; along its others every device does the same."""
    devices = _devices(mesh, axes)
    batch, groups = (jax.tree.leaves(x)[0].shape[0] for x in (batched, parameters))
    whole = PartitionSpec()
    split = whole if batch % (devices * groups) else PartitionSpec(axes)
    names = {*mesh.auto_axes, *mesh.explicit_axes}
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(split, whole),
        out_specs=split,
        axis_names=names,
        check_vma=False,
    )(batched, parameters)


def _partitioned(function, batched, parameters):
    """The call, telling the partitioner that the first axis of `batched` and of the result may be split."""
    leaves, tree = jax.tree.flatten((batched, parameters))
    count = len(jax.tree.leaves(batched))
    shapes, result_tree = jax.tree.flatten(jax.eval_shape(function, batched, parameters))

    def flat(*leaves):
        return tuple(jax.tree.leaves(function(*jax.tree.unflatten(tree, leaves))))

    batch = leaves[0].shape[0]
    groups = jax.tree.leaves(parameters)[0].shape[0]

    def partition(mesh, arguments, results):
        # Whatever else the arrays were split along, kernels get them split along the batch alone, and that
        # not within a group of sequences that have parameters of their own.
        axes = _batch_axes_of(arguments[0].sharding)
        together = NamedSharding(mesh, PartitionSpec())
        splits = batch % (_devices(mesh, axes) * groups) == 0
        split = NamedSharding(mesh, PartitionSpec(axes)) if splits else together
        placements = tuple(split if n < count else together for n in range(len(arguments)))
        return mesh, flat, (split,) * len(results), placements

    names = (f"x{n}" for n in itertools.count())
    whole = []

    def factors(array, is_batched):
        rest = list(itertools.islice(names, array.ndim - is_batched))
        whole.extend(rest)
        return " ".join(["b"] * is_batched + rest)

    inputs = ", ".join(factors(leaf, n < count) for n, leaf in enumerate(leaves))
    outputs = ", ".join(factors(shape, True) for shape in shapes)
    call = custom_partitioning(flat)
    call.def_partition(
        partition=partition, sharding_rule=f"{inputs} -> {outputs}", need_replication_factors=tuple(whole)
    )
    return jax.tree.unflatten(result_tree, call(*leaves))
