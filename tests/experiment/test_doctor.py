"""`nas-dynamic doctor` on this installation, and on ones that lack something."""

from __future__ import annotations

import platform
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import torch

from nas_dynamic import CaLR
from nas_dynamic.experiment.cli import main
from nas_dynamic.experiment.doctor.installation import PARTS, examine, print_findings

ROOT = Path(__file__).parent.parent.parent


def doctor(first: str = "") -> subprocess.CompletedProcess[str]:
    code = f"import sys; {first}; from nas_dynamic.experiment import cli as c; "
    code += "sys.exit(c.main(['doctor']))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_prints_versions_and_what_works(capsys: pytest.CaptureFixture[str]):
    status = main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    assert status == 0, lines
    version = torch.__version__.split("+")[0]
    assert any(line.startswith(f"works    torch: {version}") for line in lines)
    assert any(line.startswith("works    python: ") for line in lines)
    assert any(line.startswith("works    update: ") for line in lines)


def test_versions_that_are_not_tested_are_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch):
    installed = metadata.version
    old = {"torch": "2.3.0", "numpy": "1.25.2", "setuptools": "82.0", "nni": "3.0"}
    monkeypatch.setattr(metadata, "version", lambda name: old.get(name) or installed(name))
    found = {finding.name: finding for finding in examine()}
    assert found["nni"].state == found["timm"].state == "works"
    assert {found[name].state for name in ("torch", "numpy", "setuptools")} == {"untested"}
    assert found["setuptools"].detail == (
        "82.0, and tested is setuptools<82: pip install 'setuptools<82'"
    )


def test_a_python_that_is_not_tested_is_told(monkeypatch: pytest.MonkeyPatch):
    classifiers = metadata.metadata("nas-dynamic").get_all("Classifier")
    if not any(classifier.endswith(":: 3.13") for classifier in classifiers):
        pytest.skip("installed from sources that named no versions of Python yet")
    monkeypatch.setattr(platform, "python_version_tuple", lambda: ("3", "9", "0"))
    (python,) = (finding for finding in examine() if finding.name == "python")
    assert python.state == "untested"
    assert "tested are 3.11, 3.12, 3.13" in python.detail


@pytest.mark.process
def test_a_missing_framework_is_absent_with_the_remedy():
    result = doctor("sys.modules['timm'] = None")
    assert result.returncode == 0, result.stderr
    (line,) = (x for x in result.stdout.splitlines() if "adapters.timm" in x)
    assert line.startswith("absent")
    assert "pip install 'nas-dynamic[timm]'" in line


@pytest.mark.parametrize(
    ("package", "part", "extra"),
    [
        ("lightgbm", "nas_dynamic.search", "search"),
        ("pymoo", "nas_dynamic.search", "search"),
        ("pyarrow", "nas_dynamic.analysis.architecture_table", "parquet"),
    ],
)
def test_parts_that_lack_a_package_of_their_extra(
    package: str, part: str, extra: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, package, None)
    found = {finding.name: finding for finding in examine()}
    assert found[part].state == "absent"
    assert f"need {package}: pip install 'nas-dynamic[{extra}]'" in found[part].detail


def test_every_extra_is_looked_at():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    looked_at = {extra for *_, extras in PARTS for extra in extras.split(",")}
    # enas is for one strategy of NNI's, accelerate for a loop of one's own, dev and docs for this
    # repository; all and hosts are others.
    without = {"enas", "accelerate", "dev", "docs", "all", "hosts"}
    assert looked_at == project["optional-dependencies"].keys() - without


@pytest.mark.process
def test_a_broken_framework_is_told_with_the_remedy(tmp_path: Path):
    (tmp_path / "timm.py").write_text("raise OSError('libsomething.so is missing')")
    result = doctor(f"sys.path.insert(0, {str(tmp_path)!r})")
    (line,) = (x for x in result.stdout.splitlines() if "adapters.timm" in x)
    assert line.startswith("broken")
    assert "libsomething.so is missing; in a new environment: pip install 'nas-dynamic" in line
    assert result.returncode == 1


def test_wrong_lrs_are_noticed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(CaLR, "factor_of", lambda self, *arguments: 0.25)
    assert not print_findings(examine())
    assert "broken   update: the lrs of two updates are [0.25, 0.25]" in capsys.readouterr().out
    assert main(["doctor"]) == 1


def test_a_filelock_with_which_nni_hangs_is_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch):
    """Newer ones keep what they know in `_context`, and never look at what NNI sets."""
    filelock = pytest.importorskip("filelock")
    pytest.importorskip("nni")
    from nni.nas.strategy import RandomOneShot

    from nas_dynamic.adapters.nni import dynamic

    assert not [f for f in examine() if f.name == "NNI's locks"]
    monkeypatch.setattr(filelock.SoftFileLock, "_context", object(), raising=False)
    (finding,) = [f for f in examine() if f.name == "NNI's locks"]
    assert finding.state == "broken"
    assert "pip install 'filelock<3.12'" in finding.detail
    with pytest.warns(UserWarning, match="NasExperiment hangs before it trains"):
        dynamic(RandomOneShot())
