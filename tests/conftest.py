"""Eight CPU devices for every test, set before jax starts its backend, unless JAX_PLATFORMS asks for others.

Tests compile much and compute little: the lowest optimisation of machine code saves a third of their time.
"""

import os

os.environ.setdefault("MPLBACKEND", "Agg")
if os.environ.setdefault("JAX_PLATFORMS", "cpu") == "cpu":
    os.environ["XLA_FLAGS"] = " ".join(
        (
            os.environ.get("XLA_FLAGS", ""),
            "--xla_force_host_platform_device_count=8",
            "--xla_backend_optimization_level=0",
        )
    )
