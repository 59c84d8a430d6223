"""Measurements: what `jaxmamba3d bench` runs."""
