"""Eight CPU devices for every test, set before jax starts its backend."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["JAX_PLATFORMS"] = "cpu"
