"""Config files: Python that describes an experiment."""

import contextlib
import inspect
import runpy
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxmamba3d.checks import check_that
from jaxmamba3d.config import ExperimentConfig


def load_config(argument: str | Path) -> ExperimentConfig:
    """What a config file's `get_config()` returns; it may import its siblings.

    Args:
        argument: the file, or FILE.py:WORD for its `get_config(WORD)`, such as configs/acdc.py:segmamba.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it cannot be run, has no get_config() that returns an ExperimentConfig, or none that takes
            such a word.
    """
    path, words = _split(str(argument))
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such config file")
    try:
        with _importing_from(path.parent.resolve()):
            config = _run(path, words)
    except (SyntaxError, ImportError, NameError, AttributeError, LookupError, TypeError) as error:
        frames = traceback.extract_tb(error.__traceback__)
        place = next((frame for frame in reversed(frames) if Path(frame.filename) == path), frames[-1])
        where = f"{place.filename}, line {place.lineno}"
        raise ValueError(
            f"{path} must be a config file, got {type(error).__name__}: {error} ({where})"
        ) from error
    wanted = "a get_config() that returns an ExperimentConfig"
    check_that(isinstance(config, ExperimentConfig), str(path), wanted, type(config).__name__)
    return config


def _run(path: Path, words: Sequence[str]) -> object:
    namespace = runpy.run_path(str(path))
    check_that("get_config" in namespace, str(path), "a file that defines get_config()", "none")
    get_config = namespace["get_config"]
    takes = len(words) <= len(inspect.signature(get_config).parameters)
    check_that(takes, f"{path}'s get_config()", "called without a word after a colon", ":".join(words))
    return get_config(*words)


@contextlib.contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """Its modules are forgotten afterwards: another config's folder may have others of the same names."""
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in sys.modules.keys() - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file and Path(file).parent == folder:
                del sys.modules[name]


def _split(argument: str) -> tuple[Path, tuple[str, ...]]:
    """The file, and the word after it if there is one; other colons, as in C:\\, are part of the path."""
    path, _, word = argument.rpartition(":")
    return (Path(path), (word,)) if path.endswith(".py") else (Path(argument), ())
