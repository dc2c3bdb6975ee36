"""The example with NNI's web page: its trials without the manager, and a real experiment."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from scipy.stats import kendalltau

pytest.importorskip("nni")
pytest.importorskip("sklearn")
import requests

from nas_dynamic.adapters.nni import activate, extract
from nas_dynamic.evaluation import evaluate, recalibrate, score_subnets
from nas_dynamic.experiment.data import batch_loader, calibration_batches
from nas_dynamic.experiment.data_sets import digits
from nas_dynamic.storage import checkpoint

pytestmark = pytest.mark.host

FOLDER = Path(__file__).parents[2] / "examples" / "nni_webui"
MODULES = ("run", "sweep", "candidates", "webui")


@pytest.fixture
def example(monkeypatch):
    """Import the example's modules, as attributes."""
    monkeypatch.syspath_prepend(str(FOLDER))
    run = importlib.import_module("run")
    for module in (run.sweep, run.candidates):  # 108 images to train on
        monkeypatch.setattr(module, "images", lambda: digits(validation=0.8, test=0.7))
    yield run
    for name in MODULES:
        sys.modules.pop(name)


def nothing(*progress):
    """No progress bar."""


@pytest.mark.parametrize(
    ("sampler", "gamma_max", "momentum"),
    [("uniform", 0, "one"), ("fair", 4, "separate"), ("sandwich", 2, "one")],
)
def test_a_trial_of_the_sweep(example, sampler, gamma_max, momentum):
    size, sweep = example.TINY, example.sweep
    parameters = {"seed": 1, "sampler": sampler, "gamma_max": gamma_max, "momentum": momentum}
    for name, spec in sweep.SEARCH_SPACE.items():
        assert parameters[name] in spec["_value"]
    standalone = [0.4, 0.3, 0.2, 0.1]
    reports = []
    last = sweep.train(parameters, size, standalone, reports.append)
    assert len(reports) == size.epochs
    assert reports[-1] == last

    # The same training again, and its panel scored outside of it.
    data = sweep.images()
    supernet = sweep.train_supernet(parameters, size, data, [])
    scores = score_subnets(
        supernet,
        activate,
        sweep.panel(size, data),
        list(batch_loader(data.validation, 256)),
        calibration=calibration_batches(data.train, 32, 4),
    )
    accuracies = [score.accuracy for score in scores]
    assert last["default"] == pytest.approx(sum(accuracies) / 4)
    tau = kendalltau(accuracies, standalone).statistic
    assert last["tau"] == pytest.approx(0.0 if tau != tau else tau)
    assert last["best"] == standalone[accuracies.index(max(accuracies))]


def test_standalone_accuracies_are_measured_once(example, tmp_path, monkeypatch):
    sweep = example.sweep
    first = sweep.standalone_accuracies(example.TINY, tmp_path, nothing)
    assert len(first) == example.TINY.panel
    monkeypatch.setattr(sweep, "train_standalone", None)
    assert sweep.standalone_accuracies(example.TINY, tmp_path, nothing) == first


def test_candidates_of_a_supernet(example, tmp_path, monkeypatch, capsys):
    size, candidates = example.TINY, example.candidates
    space = candidates.search_space(size)
    results = []
    for choose in (min, max):
        parameters = {label: choose(spec["_value"]) for label, spec in space.items()}
        value = candidates.score(parameters, size, tmp_path)
        results.append({"parameters": parameters, "value": value})
        monkeypatch.setattr(candidates, "train_supernet", None)  # trained once
    path = candidates.keep_best(results, size, tmp_path)
    assert str(path) in capsys.readouterr().out

    best = max(results, key=lambda result: result["value"]["default"])
    data = candidates.images()
    subnet = extract(candidates.supernet(size, tmp_path), best["parameters"])
    recalibrate(subnet, calibration_batches(data.train, 32, 4))
    accuracy, _ = evaluate(subnet, batch_loader(data.validation, 256))
    assert accuracy == best["value"]["default"]
    assert sum(p.numel() for p in subnet.parameters()) == best["value"]["parameters"]
    found = checkpoint.load(path)
    assert all(torch.equal(found[key], tensor) for key, tensor in subnet.state_dict().items())


def test_messages(example, tmp_path):
    webui = example.webui
    port = free_port()
    page = webui.Page(port, tmp_path)
    (tmp_path / "abc").mkdir()
    (tmp_path / "abc" / "settings.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"no experiment 'xyz' in .*; there are: abc"):
        webui.settings("xyz", page)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(SystemExit, match=f"port {port} is taken; choose another one"):
            webui.view("abc", page)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def start(tmp_path):
    """Start the example in a home of its own; (process, what it printed), ended at the end."""
    processes = []

    def run(*arguments, port):
        log = (tmp_path / f"log{len(processes)}").open("w+")
        command = [sys.executable, "-W", "ignore", str(FOLDER / "run.py"), *arguments]
        process = subprocess.Popen(
            [*command, "--port", str(port), "--out", str(tmp_path / "out")],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=tmp_path,
            env=os.environ | {"HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
            # Under nohup a hang-up is ignored, by what is started from there as well.
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        )
        processes.append(process)

        def printed():
            return Path(log.name).read_text()

        return process, printed

    yield run
    for process in processes:
        process.terminate()
        process.wait(60)


def until(condition, process, seconds=400):
    """Wait for a condition while a process runs."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "it has ended"
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(1)


def processes_of(folder):
    """Those whose home is a folder: the example, the manager, its tuner, its trials."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("HOME") == str(folder):
                found.append(process)
    return found


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_real_experiment_is_shown_stopped_resumed_and_viewed(start, tmp_path):
    port = free_port()
    url = f"http://127.0.0.1:{port}/api/v1/nni"

    def get(path):
        with contextlib.suppress(requests.RequestException):  # it is starting
            response = requests.get(url + path, timeout=20)
            if response.ok:
                return response.json()
        return []

    def succeeded():
        return [trial for trial in get("/trial-jobs") if trial["status"] == "SUCCEEDED"]

    def nothing_is_left():
        assert processes_of(tmp_path) == []
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0

    process, printed = start("sweep", "--tiny", "--trials", "3", port=port)
    until(lambda: len(succeeded()) >= 2, process)
    listening = {
        connection.laddr.ip
        for found in psutil.Process(process.pid).children(recursive=True)
        for connection in found.net_connections()
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}
    metrics = get("/metric-data")
    for trial in succeeded()[:2]:
        of_trial = [m for m in metrics if m["trialJobId"] == trial["trialJobId"]]
        values = {
            kind: [json.loads(json.loads(m["data"])) for m in of_trial if m["type"] == kind]
            for kind in ("PERIODICAL", "FINAL")
        }
        assert len(values["PERIODICAL"]) == 2  # epochs
        assert values["FINAL"] == values["PERIODICAL"][-1:]
        assert set(values["FINAL"][0]) == {"default", "tau", "best"}

    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 0
    assert printed().rstrip().endswith("Stopped.")
    nothing_is_left()

    experiment = printed().split("Experiment ")[1].split(":")[0]
    process, printed = start("--resume", experiment, "--trials", "4", "--exit", port=port)
    until(lambda: "Stopped." in printed(), process)
    assert process.wait(60) == 0
    assert printed().count("succeeded") == 4
    nothing_is_left()

    process, printed = start("--view", experiment, port=port)
    until(lambda: len(succeeded()) == 4, process)
    process.send_signal(signal.SIGHUP)
    assert process.wait(120) == 0
    assert printed().rstrip().endswith("Stopped.")
    nothing_is_left()

    process, printed = start("--view", experiment, port=port)
    until(lambda: len(succeeded()) == 4, process)
    parameters = [json.loads(t["hyperParameters"][0])["parameters"] for t in succeeded()]
    # NNI's grid search may propose the trial that was interrupted once more.
    assert len({json.dumps(p, sort_keys=True) for p in parameters}) >= 3
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 0
    nothing_is_left()
