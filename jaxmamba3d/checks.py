"""Checks of values and shapes; a failure is a ValueError that names argument, wanted and found."""

import math
import numbers
from collections.abc import Collection, Iterator, Sequence
from typing import Any

MEMORY_ADVICE = "set net.remat, raise train.accumulate, or lower data.batch_size or data.patch_size"
"""Against a training that does not fit into the device's memory."""


class UnsupportedError(RuntimeError):
    """This backend or implementation cannot do what was asked; the message says why and what can."""


class InterruptedTraining(Exception):
    """A scheduler ended the training early; its state is saved, and the same command resumes from there."""


def check_that(condition: bool, argument: str, wanted: str, found: Any) -> None:
    """Raises ValueError("<argument> must be <wanted>, got <found>") unless the condition holds."""
    if not condition:
        raise ValueError(f"{argument} must be {wanted}, got {found}")


def check_positive(argument: str, value: float) -> None:
    """Raises ValueError unless value > 0, and finite."""
    check_that(value > 0, argument, "greater than 0", value)
    check_that(value < math.inf, argument, "finite", value)


def check_whole(argument: str, value: int) -> None:
    """Raises ValueError unless value is a whole number."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    check_that(whole, argument, "a whole number", repr(value))


def check_count(argument: str, value: int) -> None:
    """Raises ValueError unless value is a whole number above 0."""
    check_whole(argument, value)
    check_positive(argument, value)


def check_sizes(argument: str, sizes: Sequence[int]) -> None:
    """Raises ValueError unless there are three sizes, along X, Y and Z, whole numbers above 0."""
    three = isinstance(sizes, Sequence) and len(sizes) == 3
    check_that(three, argument, "three sizes, along X, Y, Z", sizes)
    for size in sizes:
        check_count(argument, size)


def check_axes(argument: str, axes: Sequence[int]) -> None:
    """Raises ValueError unless axes are different ones out of 0, 1, 2."""
    for axis in axes:
        check_whole(argument, axis)
    valid = set(axes) <= {0, 1, 2} and len(set(axes)) == len(axes)
    check_that(valid, argument, "different axes out of 0, 1, 2", axes)


def check_seed(argument: str, value: int) -> None:
    """Raises ValueError unless value is a whole number that JAX and NumPy take as a seed."""
    check_whole(argument, value)
    check_that(0 <= value < 2**32, argument, "a number from 0 to 2^32 - 1", value)


def check_choice(argument: str, value: Any, choices: Collection[Any]) -> None:
    """Raises ValueError unless value is one of the choices."""
    check_that(value in choices, argument, f"one of {', '.join(map(str, choices))}", repr(value))


def differences(there: Any, here: Any, name: str = "") -> Iterator[str]:
    """Where nested dictionaries differ, each place in a phrase: "net.name resunet there, segmamba here"."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted(there.keys() | here.keys()):
            yield from differences(there.get(key), here.get(key), f"{name}.{key}".lstrip("."))
    elif there != here:
        yield f"{name} {there} there, {here} here"


def check_shape(argument: str, array: Any, legend: str, shape: tuple[int | None, ...]) -> None:
    """Raises ValueError unless `array.shape` equals `shape`, None standing for any size.

    Args:
        argument: the argument's name.
        array: anything with a `shape`.
        legend: the shape in words of the package's legend, such as "[B, L, D]".
        shape: the sizes wanted.
    """
    found = tuple(array.shape)
    matches = len(found) == len(shape) and all(w is None or w == f for w, f in zip(shape, found, strict=True))
    if not matches:
        wanted = "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"
        raise ValueError(f"{argument} must have shape {legend} = {wanted}, got {list(found)}")
