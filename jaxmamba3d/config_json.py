"""The dataclasses of a configuration, to and from JSON."""

import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from jaxmamba3d.checks import check_that
from jaxmamba3d.config import with_tuples
from jaxmamba3d.files import load_json

SCALARS = {bool: (bool,), int: (int,), float: (float, int), str: (str,)}
"""Types of fields, and which of JSON's each takes."""

T = TypeVar("T")


def to_json(config: Any) -> str:
    """Any of these dataclasses as JSON text."""
    return json.dumps(dataclasses.asdict(config), indent=2, default=str) + "\n"


def read_json(cls: type[T], path: str | Path) -> T:
    """The dataclass `cls` from a file that `to_json` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not JSON, or a field is unknown, missing or out of range.
    """
    content = load_json(path, f"a {cls.__name__}")
    try:
        return from_dict(cls, content)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def from_dict(cls: type[T], data: dict[str, Any]) -> T:
    """The dataclass `cls` from nested dictionaries; lists become tuples.

    Raises:
        ValueError: a field is unknown, missing or out of range.
    """
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(data) - set(hints))
    check_that(not unknown, cls.__name__, f"only the fields {sorted(hints)}", f"also {unknown}")
    required = {
        f.name
        for f in dataclasses.fields(cls)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    missing = sorted(required - set(data))
    check_that(not missing, cls.__name__, f"the fields {sorted(required)}", f"none for {missing}")
    return cls(**{name: _convert(name, hints[name], value) for name, value in data.items()})


def _convert(name: str, hint: Any, value: Any) -> Any:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        if value is None:
            return None
        hint, *others = (member for member in typing.get_args(hint) if member is not type(None))
        if others:
            return value
    if dataclasses.is_dataclass(hint):
        check_that(isinstance(value, dict), hint.__name__, "an object of fields", repr(value))
        return from_dict(hint, value)
    if hint in SCALARS:
        check_that(type(value) in SCALARS[hint], name, f"of type {hint.__name__}", repr(value))
    elif typing.get_origin(hint) is tuple and typing.get_args(hint)[0] in SCALARS:
        check_that(isinstance(value, list | tuple), name, "a list", repr(value))
        return tuple(_convert(f"an entry of {name}", typing.get_args(hint)[0], entry) for entry in value)
    return with_tuples(value)
