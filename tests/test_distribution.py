"""What a user installs: the wheel that is built from the source distribution."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = [pytest.mark.process, pytest.mark.xdist_group("distribution")]

ROOT = Path(__file__).parents[1]


def run(*command: str | Path, cwd: Path) -> str:
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel of the source distribution of a copy, so that the checkout stays clean."""
    source = tmp_path_factory.mktemp("distribution") / "source"
    leave = shutil.ignore_patterns(".*", "*.egg-info", "build", "dist", "runs", "__pycache__")
    shutil.copytree(ROOT, source, ignore=leave)
    run(sys.executable, "-m", "build", "--no-isolation", cwd=source)
    assert list(source.glob("dist/nas_dynamic-*.tar.gz"))
    (built,) = source.glob("dist/nas_dynamic-*.whl")
    return built


def test_wheel_has_every_file(wheel: Path):
    files = set(zipfile.ZipFile(wheel).namelist())
    for folder, package in (("nas_dynamic", "nas_dynamic"), ("adapters", "nas_dynamic/adapters")):
        for path in (ROOT / folder).rglob("*.*"):
            if "__pycache__" not in path.parts:
                assert f"{package}/{path.relative_to(ROOT / folder).as_posix()}" in files
    assert "nas_dynamic/py.typed" in files
    assert any(name.startswith("nas_dynamic/report/templates/") for name in files)
    assert {name.split("/")[0] for name in files if ".dist-info" not in name} == {"nas_dynamic"}


def test_installed_package_runs(wheel: Path, tmp_path: Path):
    pytest.importorskip("nni")
    pytest.importorskip("timm")
    venv.create(tmp_path / "venv", symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run(python, "-c", where, cwd=tmp_path).strip())
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--no-deps", "--no-index", "--no-compile", wheel, cwd=tmp_path)
    # Dependencies are those of this environment, without the editable installation in it.
    (site / "dependencies.pth").write_text("\n".join(p for p in sys.path if "site-packages" in p))
    imports = (
        "import nas_dynamic.adapters.nni, nas_dynamic.adapters.timm; print(nas_dynamic.__file__)"
    )
    used = run(python, "-c", imports, cwd=tmp_path).strip()
    assert used == str(site / "nas_dynamic" / "__init__.py")
    assert "usage: nas-dynamic" in run(python.with_name("nas-dynamic"), "--help", cwd=tmp_path)
