"""Imports run down only, from floor to floor, and no room is too full to be read."""

from __future__ import annotations

import ast
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
FLOORS = (
    {"space", "_extras", "_checkout"},
    {"calr", "complexity_scale", "momentum", "sampling", "storage"},
    {"complexity", "mean_lr", "grouping", "evaluation", "analysis"},
    {"attach", "search"},
    {"host", "__init__"},
    {"report", "adapters"},
    {"experiment", "__main__"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FRAMEWORKS = {"nni", "timm", "lightning", "pytorch_lightning", "transformers", "mmengine"}


def modules(folder: str, package: str) -> dict[str, Path]:
    """Return the files below a folder by the names that they are imported by."""
    found = {}
    for path in (ROOT / folder).rglob("*.py"):
        parts = path.relative_to(ROOT / folder).with_suffix("").parts
        found[".".join((package, *parts)).removesuffix(".__init__")] = path
    return found


HOUSE = modules("nas_dynamic", "nas_dynamic") | modules("adapters", "nas_dynamic.adapters")


def imports(name: str, path: Path) -> Iterator[str]:
    """Yield what a module imports, also inside of functions and for type checkers."""
    package = name.split(".")[: None if path.name == "__init__.py" else -1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            origin = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                submodule = f"{origin}.{alias.name}"
                yield submodule if submodule in HOUSE else origin


def room(name: str) -> str:
    """Return the part of the package that a module belongs to: each framework has its own."""
    parts = [*name.split("."), "__init__"]
    return ".".join(parts[1:3]) if parts[1] == "adapters" else parts[1]


def floor(name: str) -> int:
    return FLOOR[room(name).split(".")[0]]


ARROWS = [
    (name, imported)
    for name, path in HOUSE.items()
    for imported in imports(name, path)
    if imported.split(".")[0] == "nas_dynamic" and room(imported) != room(name)
]


def test_imports_run_down_only():
    assert not [(name, imported) for name, imported in ARROWS if floor(name) < floor(imported)]
    below = defaultdict(set)
    for name, imported in ARROWS:
        below[room(name)].add(room(imported))
    TopologicalSorter(below).prepare()  # raises where rooms of one floor go round in a circle


def test_adapters_are_imported_by_experiments_alone():
    importers = {room(name) for name, imported in ARROWS if "adapters" in room(imported)}
    assert {importer.split(".")[0] for importer in importers} <= {"experiment", "adapters"}


def test_core_knows_no_framework():
    for name, path in HOUSE.items():
        if floor(name) < FLOOR["experiment"] and "adapters" not in room(name):
            assert not FRAMEWORKS & {i.split(".")[0] for i in imports(name, path)}, name


def test_benchmarks_and_examples_import_no_tests():
    for folder in ("benchmarks", "examples"):
        for name, path in modules(folder, folder).items():
            assert "tests" not in {i.split(".")[0] for i in imports(name, path)}, name


def test_rooms_and_files_can_be_taken_in():
    assert not [str(path) for path in HOUSE.values() if path.read_text().count("\n") > 400]
    files = Counter(path.parent for path in HOUSE.values())
    assert not [str(folder) for folder, count in files.items() if count > 20]


def test_every_folder_is_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = {
        ".".join(n.split(".")[: None if p.stem == "__init__" else -1]) for n, p in HOUSE.items()
    }
    assert folders == {
        package
        for package in project["tool"]["setuptools"]["packages"]
        if package != "nas_dynamic.report.templates"  # data only
    }
