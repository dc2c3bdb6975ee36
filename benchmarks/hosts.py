"""Adapters of packages that want an environment of their own, each tested in a fresh one.

`python -m benchmarks.hosts` makes an environment for each host, and for the engine ray, with its
extra and nothing else but what runs the tests, runs `tests/hosts/test_<host>.py` there, and writes
the versions and the outcomes. torch and torchvision, with what torch requires, are lent by the
environment that runs this; all else is installed by pip, by its rules.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import tempfile
import time
import venv
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from packaging.requirements import Requirement

from nas_dynamic.storage.journal import write_json

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "hosts.json"
LENT = ("torch", "torchvision")
TOOLS = (
    "hypothesis>=6.100",
    "pytest>=8,<9.2",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.5",
    "pyyaml",
)
HOSTS = {
    "modelopt": ["-e.[modelopt]", "nvidia-modelopt==0.47.0"],
    "archai": ["-e.[archai]", "archai==1.0.0"],
    "whittle": ["-e.[whittle]", "whittle==0.6.0"],
    "ray": ["-e.[ray,nni,experiment,search]", "ray==2.60.0"],
    "ofa": ["-e.", "ofa==0.1.0.post202307202001"],
}
"""Host → what pip installs for it: the extra, and the version that is tried."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hosts", description=__doc__)
    parser.add_argument("--hosts", nargs="*", choices=HOSTS, default=list(HOSTS))
    parser.add_argument("--folder", type=Path, help="keep the environments there")
    options = parser.parse_args()
    failed = []
    for host in options.hosts:
        with tempfile.TemporaryDirectory() as temporary:
            folder = (options.folder or Path(temporary)) / host
            python = make_environment(host, folder)
            result = run_tests(host, python, folder)
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        write_json(RESULTS, dict(sorted((results | {host: result}).items())))
        failed += [f"{host}: {name}" for name, end in result["outcomes"].items() if end != "ok"]
        print(host, result["outcomes"], flush=True)
    if failed:
        raise SystemExit(f"not ok: {', '.join(failed)}")


def make_environment(host: str, folder: Path) -> Path:
    """Make an environment for a host, or bring one up to date; return its Python."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    lent = lend(folder / "lent")
    (packages / "lent.pth").write_text(f"{folder / 'lent'}\n")
    constraints = folder / "constraints.txt"
    constraints.write_text("".join(f"{name}=={lent[name]}\n" for name in LENT))
    command = [python, "-m", "pip", "install", "-q", "-c", constraints, *LENT, *TOOLS, *HOSTS[host]]
    subprocess.run(command, cwd=ROOT, check=True)
    return python


def lend(folder: Path) -> dict[str, str]:
    """Link torch, and what it requires, into a folder; return the versions by name."""
    folder.mkdir(exist_ok=True)
    versions: dict[str, str] = {}
    wanted = [Requirement(name) for name in LENT]
    while wanted:
        requirement = wanted.pop()
        distribution = metadata.distribution(requirement.name)
        # numpy and pillow are the host's choice, and every environment has a setuptools.
        lines = [] if requirement.name == "torchvision" else distribution.requires or []
        for extra in ("", *requirement.extras):
            found = [Requirement(line) for line in lines]
            wanted += [
                r
                for r in found
                if r.name not in (*versions, "setuptools")
                and (r.marker is None or r.marker.evaluate({"extra": extra}))
            ]
        versions[requirement.name] = distribution.version
        for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            link = folder / top
            if not link.exists():
                link.symlink_to(str(distribution.locate_file(top)))
    return versions


def run_tests(host: str, python: Path, folder: Path) -> dict[str, Any]:
    """Run the tests of a host in its environment; return the versions and the outcomes."""
    report, start = folder / "report.xml", time.monotonic()
    report.unlink(missing_ok=True)
    tests = f"tests/hosts/test_{host}.py"
    command = [python, "-m", "pytest", "-n", "0", tests, f"--junitxml={report}"]
    subprocess.run(command, cwd=ROOT, check=False)
    cases = list(ElementTree.parse(report).iter("testcase"))
    if not cases:
        raise SystemExit(f"{tests} has run no test")
    outcomes = {case.get("name", ""): next(iter(case)).tag if len(case) else "ok" for case in cases}
    frozen = subprocess.check_output(
        [python, "-m", "pip", "freeze", "--exclude-editable"], text=True
    )
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "seconds": round(time.monotonic() - start),
        "outcomes": outcomes,
        "packages": dict(line.split("==") for line in frozen.split() if "==" in line),
    }


if __name__ == "__main__":
    main()
