"""Chips that are not here, for which XLA can compile."""

import dataclasses
import importlib.util
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax.experimental import topologies

from jaxmamba3d.bench.floors import chip_rates
from jaxmamba3d.checks import UnsupportedError, check_that

WISH = "TPUs such as v5e:2x4, v5p:2x2x1 or v6e:2x4, or GPUs such as t4, a100, h100:8 or rtx4090"

LIBTPU = (
    ("TPU_SKIP_MDS_QUERY", "1"),
    ("TPU_WORKER_HOSTNAMES", "localhost"),
    ("TPU_ACCELERATOR_TYPE", "v5litepod-4"),
    ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),  # no chip is taken, so others may compile beside
)
"""Makes libtpu a compiler alone."""

CUDA = (("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1"),)
"""Lets JAX's plugin for CUDA do without a driver."""

CUBLAS_ALONE = "--xla_gpu_enable_triton_gemm=false"
"""A flag of XLA's: which products Triton computes better is found out on a GPU; without one XLA may choose
tiles that its compiler refuses."""

MEMORY_SHARE, USUAL_MEMORY_SHARE = "XLA_PYTHON_CLIENT_MEM_FRACTION", 0.75
"""The variable that says how much of a GPU's memory JAX takes, and what it takes by itself."""

VERSIONED = ("driver", "runtime", "compile_time_toolkit")
"""What of CUDA the compiler asks the version of."""


class Gpu(NamedTuple):
    """What XLA's compiler wants to know of a GPU in addition to its `ChipRates`.

    Args:
        name: as CUDA gives it.
        capability: compute capability.
        cores, threads: of a multiprocessor, for float32 and at once.
        shared: shared memory of a multiprocessor, bytes; a block gets 1024 less.
        l2: cache, bytes.
        memory: bytes.

    Source: CUDA's device properties.
    """

    name: str
    capability: tuple[int, int]
    cores: int
    threads: int
    shared: int
    l2: int
    memory: int

    @property
    def memory_for_jax(self) -> int:
        """Bytes that JAX takes.

        Raises:
            ValueError: `MEMORY_SHARE` is set to no share.
        """
        found = os.environ.get(MEMORY_SHARE) or str(USUAL_MEMORY_SHARE)
        is_share = re.fullmatch(r"0?\.\d*[1-9]\d*|1(\.0*)?", found)
        check_that(bool(is_share), MEMORY_SHARE, "a number above 0 and at most 1", repr(found))
        return int(float(found) * self.memory)

    def target_config(self) -> str:
        """XLA's `GpuTargetConfigProto` as text."""
        rates = chip_rates(self.name)
        major, minor = self.capability
        extension = "ACCELERATED_FEATURES" if major >= 9 else "NONE"  # code for sm_90a, and for sm_80
        versions = " ".join(f'{kind}_version: "12.9.0"' for kind in VERSIONED)
        return f"""
            platform_name: "CUDA"
            device_description_str: "{self.name}"
            dnn_version_info {{ major: 9 minor: 10 }}
            gpu_device_info {{
                name: "{self.name}"
                cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {extension} }}
                {versions} dnn_version: "9.10.0"
                core_count: {rates.processors} fpus_per_core: {self.cores} clock_rate_ghz: {rates.clock / 1e9}
                shared_memory_per_core: {self.shared} shared_memory_per_block: 49152
                shared_memory_per_block_optin: {self.shared - 1024}
                l2_cache_size: {self.l2} device_memory_size: {self.memory}
                memory_bandwidth: {round(rates.bytes)} device_address_bits: 64
                registers_per_core_limit: 65536 registers_per_block_limit: 65536
                threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: {self.threads}
                thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
                block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
            }}"""


GPUS = {
    "t4": Gpu("Tesla T4", (7, 5), 64, 1024, 65_536, 4_194_304, 15_835_660_288),
    "a100": Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 64, 2048, 167_936, 41_943_040, 85_100_068_864),
    "rtx3090": Gpu("NVIDIA GeForce RTX 3090", (8, 6), 128, 1536, 102_400, 6_291_456, 25_447_170_048),
    "l4": Gpu("NVIDIA L4", (8, 9), 128, 1536, 102_400, 50_331_648, 23_612_293_120),
    "rtx4090": Gpu("NVIDIA GeForce RTX 4090", (8, 9), 128, 1536, 102_400, 75_497_472, 25_393_692_672),
    "h100": Gpu("NVIDIA H100 80GB HBM3", (9, 0), 128, 2048, 233_472, 52_428_800, 84_942_979_072),
    "h200": Gpu("NVIDIA H200", (9, 0), 128, 2048, 233_472, 52_428_800, 150_754_820_096),
    "b200": Gpu("NVIDIA B200", (10, 0), 128, 2048, 233_472, 132_644_864, 191_514_411_008),
}


@dataclasses.dataclass(frozen=True)
class Chips:
    """Chips to compile for.

    Args:
        platform: of theirs, as JAX calls it.
        devices: of the topology.
        memory: bytes of each that JAX may use; None where the compiler refuses what does not fit itself.
    """

    platform: str
    devices: Sequence[jax.Device]
    memory: int | None


def use_compiler_for(wanted: str) -> None:
    """Sets up the compiler for chips alone; to be called before JAX starts.

    Args:
        wanted: see `chips_elsewhere`.

    Raises:
        UnsupportedError: the compiler is not installed.
        ValueError: neither TPUs nor GPUs are called so.
    """
    for_gpus = _gpus(wanted) is not None
    check_that(for_gpus or bool(re.fullmatch(r"\w+:\d+(x\d+)+", wanted)), "aot", WISH, repr(wanted))
    modules = ("jax_cuda12_plugin", "jax_cuda13_plugin") if for_gpus else ("libtpu",)
    if not any(importlib.util.find_spec(module) for module in modules):
        kind, install = ("GPUs", "'jax[cuda12]'") if for_gpus else ("TPUs", "libtpu")
        raise UnsupportedError(f"compiling for {kind} needs their compiler: pip install {install}")
    for name, value in CUDA if for_gpus else LIBTPU:
        os.environ.setdefault(name, value)
    if for_gpus:
        os.environ["XLA_FLAGS"] = f"{CUBLAS_ALONE} {os.environ.get('XLA_FLAGS', '')}"
    jax.config.update("jax_platforms", "cpu")


def chips_elsewhere(wanted: str) -> Chips:
    """The chips of a topology, none of which need be here.

    Args:
        wanted: of TPUs as libtpu names it, such as v5e:2x4; or one of GPUS, with a number such as h100:8.

    Raises:
        ValueError: there is no such topology.
    """
    gpus = _gpus(wanted)
    try:
        if gpus is None:
            found = topologies.get_topology_desc(platform="tpu", topology_name=wanted)
            return Chips("tpu", found.devices, None)
        gpu, count = gpus
        found = topologies.get_topology_desc(
            platform="cuda", topology=f"1x1x{count}", target_config=gpu.target_config()
        )
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"aot must be {WISH}, got {wanted!r} ({str(error).splitlines()[0]})") from error
    return Chips("gpu", found.devices, gpu.memory_for_jax)


def _gpus(wanted: str) -> tuple[Gpu, int] | None:
    """Which and how many, if GPUs are wanted."""
    found = re.fullmatch(rf"({'|'.join(GPUS)})(?::([1-9]\d*))?", wanted)
    return found and (GPUS[found[1]], int(found[2] or 1))
