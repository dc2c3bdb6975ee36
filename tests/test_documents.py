"""The documents name what exists: files, commands, and what their examples import."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

from nas_dynamic.experiment.arguments import build_parser
from nas_dynamic.experiment.cli import COMMANDS

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "examples/*/*.md")
    for path in sorted(ROOT.glob(pattern))
    if path.name != "CHANGELOG.md"  # it names what has gone
]


def source(module: str) -> Path:
    """Find the file of a module, without an import, which would take its framework."""
    path = ROOT / module.replace(".", "/").replace("nas_dynamic/adapters", "adapters", 1)
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def names_in(file: Path) -> set[str]:
    """Return what can be imported from a module: its own names, what it imports, its submodules.

    What it imports for type checkers counts: that is how names are declared that come late.
    """
    names = {path.stem for path in file.parent.iterdir()} if file.stem == "__init__" else set()
    body = ast.parse(file.read_text()).body
    body += [node for block in body if isinstance(block, ast.If) for node in block.body]
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            names |= {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
    return names


@pytest.mark.parametrize("document", DOCUMENTS)
def test_imports_of_the_examples(document: str):
    text = (ROOT / document).read_text()
    for module, names in re.findall(r"^from (nas_dynamic[\w.]*) import ([\w, ]+)", text, re.M):
        missing = {name.strip() for name in names.split(",")} - names_in(source(module))
        assert not missing, f"{module} has no {', '.join(missing)}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_modules_files_and_commands(document: str):
    text = (ROOT / document).read_text()
    for name in re.findall(r"`(nas_dynamic\.[\w.]+)", text):
        module, _, last = name.rpartition(".")
        if not source(name).exists():
            assert last in names_in(source(module)), name
    for path in re.findall(r"`((?:\w+/)+\w+\.(?:py|md|yaml|json|csv))`", text):
        if not path.startswith("runs/"):
            assert (ROOT / path).exists() or (ROOT / "tests" / path).exists(), path
    for module in re.findall(r"python -m ((?:benchmarks|tests)[\w.]*)", text):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
    for path in re.findall(r"python3? ((?:benchmarks|examples)/\S+?\.py)", text):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("document", DOCUMENTS)
def test_command_lines_are_those_of_the_parser(document: str):
    parser = build_parser(COMMANDS)
    text = (ROOT / document).read_text()
    for block in re.findall(r"^ *```sh\n(.*?)^ *```$", text, re.M | re.S):
        for command in re.findall(r"nas-dynamic (?!\S*\])([^#\n&]*)", block):
            try:
                parser.parse_args(shlex.split(command))
            except SystemExit:
                pytest.fail(f"{document}: nas-dynamic {command}")
