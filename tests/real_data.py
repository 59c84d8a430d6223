"""Where tests of real data find it: `JAXMAMBA3D_TEST_DATA`, else `../shared/data` beside the repository."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
AUTHORS = ROOT / "configs" / "authors"


def real_dataset(name: str) -> Path:
    """The folder of a real dataset; skips the test where it is absent."""
    data = Path(os.environ.get("JAXMAMBA3D_TEST_DATA", ROOT.parent / "shared" / "data"))
    folder = data / name
    if not folder.is_dir():
        pytest.skip(f"real data {name} is not at {data}; set JAXMAMBA3D_TEST_DATA to run this test")
    return folder
