"""What this machine offers."""

import os


def core_count() -> int:
    """CPU cores that this process may use, at least 1."""
    if hasattr(os, "sched_getaffinity"):  # a scheduler may grant fewer cores than the machine has
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
