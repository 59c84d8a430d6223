"""The least time that a chip needs for a scan: its exponentials, or its bytes, whichever takes longer."""

import re
from typing import NamedTuple

from jaxmamba3d.bench.shapes import ScanShape


class ChipRates(NamedTuple):
    """How fast a GPU is at most: multiprocessors, boost clock (Hz), and bytes per second of the memory."""

    processors: int
    clock: float
    bytes: float

    @property
    def exponentials(self) -> float:
        """A second, of all special-function units: 16 a clock and multiprocessor."""
        return self.processors * 16 * self.clock


# NVIDIA's data sheets.
CHIPS = {
    "B200": ChipRates(148, 1.965e9, 7.7e12),
    "H200": ChipRates(132, 1.98e9, 4.8e12),
    "H100 80GB HBM3": ChipRates(132, 1.98e9, 3.35e12),
    "H100 PCIe": ChipRates(114, 1.755e9, 2.0e12),
    "A100-SXM4-80GB": ChipRates(108, 1.41e9, 2.04e12),
    "A100-SXM4-40GB": ChipRates(108, 1.41e9, 1.56e12),
    "L4": ChipRates(58, 2.04e9, 3.0e11),
    "RTX 4090": ChipRates(128, 2.52e9, 1.008e12),
    "RTX 3090": ChipRates(82, 1.695e9, 9.36e11),
    "Tesla T4": ChipRates(40, 1.59e9, 3.2e11),
}


def chip_rates(device_kind: str) -> ChipRates | None:
    """The rates of a device, by the name that JAX gives it; None: not in the table."""
    named = (rates for name, rates in CHIPS.items() if re.search(rf"\b{name}$", device_kind))
    return next(named, None)


def floor_seconds(shape: ScanShape, rates: ChipRates, *, bytes_per_number: int, backward: bool) -> float:
    """Seconds that no implementation in parallel chunks can undercut.

    Each (token, channel, state) costs one exponential when the chunks are summarised and one when they are
    run; the backward pass again both. Forward, u, delta, z, B and C are read and y is written; backward,
    these are read again with the gradient of y, and the gradients of the five are written.

    Args:
        shape: the scan.
        rates: of the chip.
        bytes_per_number: of the sequences.
        backward: forward and backward, else forward alone.
    """
    batch, length, channels, states, _ = shape
    exponentials = batch * length * channels * states * (4 if backward else 2)
    rows, columns = (4 + 7, 2 + 4) if backward else (4, 2)
    numbers = batch * length * (rows * channels + columns * states)
    return max(exponentials / rates.exponentials, numbers * bytes_per_number / rates.bytes)
