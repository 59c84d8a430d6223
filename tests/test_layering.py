"""A file imports only from layers below its own, or from its own folder (the layers are in the README)."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "jaxmamba3d"

# Part of the package -> layer. The parts of layer 0 may use each other.
LAYERS = {
    "config": 0,
    "config_file": 0,
    "config_json": 0,
    "checks": 0,
    "command": 0,
    "labels": 0,
    "files": 0,
    "machine": 0,
    "terminal": 0,
    "wording": 0,
    "ops": 1,
    "augment": 1,
    "losses": 1,
    "data": 1,
    "nn": 2,
    "evaluation": 2,
    "nets": 3,
    "training": 4,
    "inference": 4,
    "bench": 6,
    "run": 5,
    "experiment": 6,
    "cli": 7,
    "__main__": 8,
}
ARRAY_LIBRARIES = {"jax", "jaxlib", "flax", "optax", "orbax"}
STANDARD_LIBRARY_ONLY = {name for name, layer in LAYERS.items() if layer == 0}
HOST_ONLY = STANDARD_LIBRARY_ONLY | {"data", "evaluation"}

FILES = sorted(p for p in PACKAGE.rglob("*.py") if p.relative_to(PACKAGE) != Path("__init__.py"))


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> set[str]:
    """Dotted names of the modules a file imports, `from a import b` as a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; name the module in full"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_every_part_has_a_layer():
    assert {part_of(p) for p in FILES} <= set(LAYERS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    part = part_of(path)
    for name in imports(path):
        top, *rest = name.split(".")
        if top == "jaxmamba3d":
            target = rest[0]
            assert target in LAYERS, f"{path} imports {name}: import from the layer's own module"
            allowed = target == part or LAYERS[target] < LAYERS[part] or LAYERS[part] == 0
            assert allowed, f"{path} (layer {LAYERS[part]}) imports {name} (layer {LAYERS[target]})"
        if part in HOST_ONLY:
            assert top not in ARRAY_LIBRARIES, f"{path} imports {name}: {part} runs on the host alone"
        if part in STANDARD_LIBRARY_ONLY:
            assert top not in {"numpy", "scipy"}, f"{path} imports {name}: standard library only"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_have_one_subject(path):
    assert len(path.read_text().splitlines()) <= 400, f"{path}: over 400 lines is two subjects"
