"""One NNI experiment with its web page: started, watched, stopped cleanly, resumed, viewed."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from nni.experiment import Experiment
from nni.runtime.log import silence_stdout

from nas_dynamic.storage.journal import write_json

__all__ = ["Page", "Study", "resume", "run", "settings", "view"]

HERE = Path(__file__).resolve().parent
POLL_SECONDS = 1.0
STRAGGLER_SECONDS = 20.0

Result = dict[str, Any]
"""Of a trial that succeeded: its `parameters` and its `value`, as it was reported."""


@dataclass(frozen=True)
class Study:
    """What is tried.

    Attributes:
        name: shown on the page.
        script: of a trial, in this folder; its argument is the path of the settings.
        settings: plain data, kept in the experiment's folder.
        search_space: in NNI's format.
        tuner: NNI's name of it.
        tuner_options: its arguments.
        concurrency: trials at a time.
    """

    name: str
    script: str
    settings: dict[str, Any]
    search_space: dict[str, Any]
    tuner: str
    tuner_options: dict[str, Any]
    concurrency: int = 1


@dataclass(frozen=True)
class Page:
    """Where an experiment is shown and kept.

    Attributes:
        port: of the web page, on 127.0.0.1.
        out: folder of all experiments.
        stay: keep the page after the last trial, until Ctrl-C.
    """

    port: int
    out: Path
    stay: bool = True


class _Stop(BaseException):
    """Ctrl-C, SIGTERM or SIGHUP. Not KeyboardInterrupt, which NNI catches in some places."""


def run(study: Study, page: Page, trials: int) -> list[Result] | None:
    """Make the trials of a study; return their results, or None if it was stopped early."""
    experiment = Experiment("local")
    settings = _settings_file(experiment.id, page)
    config = experiment.config
    config.experiment_name = study.name
    config.experiment_working_directory = page.out
    config.trial_command = shlex.join([sys.executable, study.script, str(settings)])
    config.trial_code_directory = HERE
    config.trial_concurrency = study.concurrency
    config.max_trial_number = trials
    config.search_space = study.search_space
    config.tuner.name = study.tuner
    config.tuner.class_args = study.tuner_options
    config.training_service.use_active_gpu = False
    with _stopped_at_the_end(experiment, page):
        write_json(settings, study.settings)
        experiment.start(page.port)
        return _watch(experiment, page)
    return None


def resume(experiment_id: str, page: Page, trials: int | None) -> list[Result] | None:
    """Go on with an experiment that was stopped, to another number of trials in all; as `run`."""
    experiment = Experiment(None, id=experiment_id)
    with _stopped_at_the_end(experiment, page):
        experiment.resume(page.port, wait_completion=False)
        if trials is not None:
            experiment.update_max_trial_number(trials)
        return _watch(experiment, page)
    return None


def view(experiment_id: str, page: Page) -> None:
    """Show an experiment that was stopped, without running anything, until Ctrl-C."""
    experiment = Experiment(None, id=experiment_id)
    with _stopped_at_the_end(experiment, page):
        experiment.view(page.port, non_blocking=True)
        _say_where(experiment, page)
        _stay()


def settings(experiment_id: str, page: Page) -> dict[str, Any]:
    """Read what an experiment was started with.

    Raises:
        SystemExit: there is no such experiment.
    """
    path = _settings_file(experiment_id, page)
    if not path.exists():
        known = ", ".join(sorted(path.parent.name for path in page.out.glob("*/settings.json")))
        raise SystemExit(
            f"no experiment {experiment_id!r} in {page.out}; there are: {known or 'none'}"
        )
    return json.loads(path.read_text())


def _settings_file(experiment_id: str, page: Page) -> Path:
    return page.out / experiment_id / "settings.json"


def _watch(experiment: Experiment, page: Page) -> list[Result]:
    """Tell the progress until there is no more to do."""
    _say_where(experiment, page)
    told: dict[str, str] = {}
    while True:
        status = experiment.get_status()
        for job in experiment.list_trial_jobs():
            if told.get(job.trialJobId) != job.status:
                told[job.trialJobId] = job.status
                _tell(job)
        if status in ("DONE", "ERROR", "STOPPED"):
            break
        time.sleep(POLL_SECONDS)
    if status != "DONE":
        raise RuntimeError(
            f"experiment {experiment.id} ended with status {status}; "
            f"see {page.out / experiment.id / 'log'}"
        )
    results = [
        {"parameters": trial.parameter, "value": _plain(trial.value)}
        for trial in experiment.export_data()
    ]
    if page.stay:
        print("All trials are done. The page stays until Ctrl-C.", flush=True)
        with contextlib.suppress(_Stop):
            _stay()
    return results


def _stay() -> None:
    while True:
        time.sleep(POLL_SECONDS)


def _say_where(experiment: Experiment, page: Page) -> None:
    print(
        f"Experiment {experiment.id}: http://127.0.0.1:{page.port}\nCtrl-C stops it; afterwards "
        f"--resume {experiment.id} goes on, --view {experiment.id} shows it.",
        flush=True,
    )


def _tell(job: Any) -> None:
    text = f"trial {job.sequenceId}: {job.status.lower()}"
    if job.hyperParameters:
        chosen = job.hyperParameters[0].parameters
        text += "  " + ", ".join(f"{name} {value}" for name, value in chosen.items())
    if job.finalMetricData:
        metrics = _plain(job.finalMetricData[0].data)
        text += "  → " + ", ".join(f"{name} {value:.3g}" for name, value in metrics.items())
    if job.status == "FAILED":
        text += f"\n  why: {job.logPath}/trial.stderr"
    print(text, flush=True)


def _plain(metric: Any) -> Any:
    """Read a metric: NNI has it as JSON, some of it twice."""
    while isinstance(metric, str):
        metric = json.loads(metric)
    return metric


@contextlib.contextmanager
def _stopped_at_the_end(experiment: Experiment, page: Page) -> Iterator[None]:
    """Stop the experiment whatever happens, and leave no process of it behind."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", page.port)) == 0:
            raise SystemExit(f"port {page.port} is taken; choose another one by --port")

    def stop(number: int, frame: Any) -> None:
        raise _Stop

    os.environ["NODE_OPTIONS"] = f'--require "{HERE / "loopback.js"}"'
    silence_stdout()  # NNI's messages are in its log, and name addresses that do not answer
    before = {number: signal.signal(number, stop) for number in _signals()}
    started = set(psutil.Process().children(recursive=True))
    try:
        yield
    except _Stop:
        pass
    finally:
        for number in before:
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C would leave processes behind
        _say("Stopping …")
        processes = set(psutil.Process().children(recursive=True)) - started
        experiment.stop()
        _, alive = psutil.wait_procs(processes, STRAGGLER_SECONDS)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for number, handler in before.items():
            signal.signal(number, handler)
        _say("Stopped.")


def _signals() -> list[signal.Signals]:
    """Those that stop an experiment; that of a terminal that is closed, but not under nohup."""
    signals = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signals.append(signal.SIGHUP)
    return signals


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # its reader may be gone: Ctrl-C ends `| tee` too
        print(text, flush=True)
