"""The selective scan of Mamba: one definition, several implementations behind one function."""

from jaxmamba3d.ops.selective_scan.api import IMPLEMENTATIONS, selective_scan, unsupported_reason

__all__ = ["IMPLEMENTATIONS", "selective_scan", "unsupported_reason"]
