"""What four newcomers see in their first ten minutes: `python -m benchmarks.first_minutes`.

In a clone of this commit, with an environment made by README's own command, each does what README
and the page of their host say first: the commands and scripts are read from there. Everything that
they see is written to `benchmarks/results/first_minutes/NAME.txt`, with the seconds that it took.
A newcomer stops after ten minutes, in the middle of a command too. Needs git, and 7 GB for a while.
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "first_minutes"
LIMIT = 600.0
NEWCOMERS = {
    "command_line": "README.md",
    "pytorch": "README.md",
    "nni": "docs/nni.md",
    "timm": "docs/timm.md",
}
"""Name → where they read."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("newcomers", nargs="*", metavar="NAME", help=", ".join(NEWCOMERS))
    chosen = parser.parse_args().newcomers or list(NEWCOMERS)
    if unknown := set(chosen) - set(NEWCOMERS):
        parser.error(f"there is no {', '.join(sorted(unknown))}; choose of {', '.join(NEWCOMERS)}")
    RESULTS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "nas-dynamic"
        subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
        installing, _, demo = _blocks(clone / "README.md", "sh")[0].rpartition(" && ")
        seconds, said = _see(installing, clone, LIMIT * 3)
        installed = f"$ {installing}\n{_last(said, 1)}\n({seconds:.0f} s)\n"
        print(installed, flush=True)
        for name in chosen:
            shutil.rmtree(clone / "runs", ignore_errors=True)
            lines = [installed]
            left = LIMIT
            for command in _commands(name, clone, demo.strip()):
                seconds, said = _see(f". .venv/bin/activate && {command}", clone, left)
                left -= seconds
                lines.append(f"$ {command}\n{said}\n({seconds:.0f} s)\n")
                print(lines[-1], flush=True)
                if left <= 0:
                    lines.append("(stopped here, after ten minutes)\n")
                    break
            (RESULTS / f"{name}.txt").write_text("\n".join(lines))


def _commands(name: str, clone: Path, demo: str) -> Iterator[str]:
    page = clone / NEWCOMERS[name]
    if name == "command_line":
        yield demo
        of_a_run = next(b for b in _blocks(page, "sh") if b.startswith("nas-dynamic train"))
        for line in of_a_run.splitlines():
            yield line.partition("#")[0].strip()
    elif name == "pytorch":
        yield from re.findall(r"&& (python examples/\w+\.py)`", page.read_text())[:1]
    else:
        script = clone / f"{name}_script.py"
        script.write_text(_blocks(page, "python")[0])
        yield f"python {script.name}"


def _blocks(page: Path, language: str) -> list[str]:
    found: list[str] = re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)
    return [block.strip() for block in found]


def _see(command: str, folder: Path, limit: float) -> tuple[float, str]:
    """Run a command; return its seconds, and what one sees of it. Over the limit, press Ctrl-C."""
    started = time.perf_counter()
    process = subprocess.Popen(
        ["bash", "-c", command],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # Whoever runs this in the background ignores Ctrl-C, and what it starts would as well.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        said, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        subprocess.run(["pkill", "-INT", "-s", str(process.pid)], check=False)
        try:
            said, _ = process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            subprocess.run(["pkill", "-KILL", "-s", str(process.pid)], check=False)
            said, _ = process.communicate()
        said += "^C"
    if process.returncode:
        said += f"\n(exit status {process.returncode})"
    said = said.replace(str(folder), "~/nas-dynamic").replace(str(Path.home()), "~")
    return time.perf_counter() - started, re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", said.strip())


def _last(said: str, lines: int) -> str:
    return "\n".join(said.splitlines()[-lines:])


if __name__ == "__main__":
    main()
