"""Sweeps and searches with NNI's web page; see README.md.

python examples/nni_webui/run.py sweep
"""

from __future__ import annotations

import argparse
import logging
import warnings
from dataclasses import asdict
from pathlib import Path

import candidates
import sweep
import torch
import webui

from nas_dynamic.experiment.console import Display

TRIALS = {"sweep": 12, "search": 40}
SIZES = {"sweep": sweep.Size(), "search": sweep.Size(epochs=40)}
TINY = sweep.Size(epochs=2, standalone_epochs=2, panel=4, channels=4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", nargs="?", choices=TRIALS, help="what to start")
    parser.add_argument("--resume", metavar="ID", help="go on with a stopped experiment")
    parser.add_argument("--view", metavar="ID", help="show a stopped experiment")
    parser.add_argument("--trials", type=int, help="number of trials in all")
    parser.add_argument("--port", type=int, default=8080, help="of the page, on 127.0.0.1")
    parser.add_argument("--out", type=Path, default=Path("runs/nni_webui"))
    parser.add_argument("--tiny", action="store_true", help="seconds a trial, to see the page")
    parser.add_argument("--exit", action="store_true", help="end with the last trial")
    options = parser.parse_args()
    if sum(map(bool, (options.study, options.resume, options.view))) != 1:
        parser.error("give one of: sweep, search, --resume ID, --view ID")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)

    page = webui.Page(options.port, options.out.resolve(), stay=not options.exit)
    if options.view:
        webui.settings(options.view, page)
        webui.view(options.view, page)
        return
    if options.resume:
        settings = webui.settings(options.resume, page)
        name, size = settings["study"], sweep.Size(**settings["size"])
        results = webui.resume(options.resume, page, options.trials)
    else:
        name = options.study
        size = TINY if options.tiny else SIZES[name]
        with Display() as display:
            study = (sweep_of if name == "sweep" else search_of)(size, page.out, display)
        results = webui.run(study, page, options.trials or TRIALS[name])
    if results == []:
        raise SystemExit("no trial succeeded; their tracebacks are in the files above")
    if results and name == "search":
        candidates.keep_best(results, size, page.out)


def sweep_of(size: sweep.Size, out: Path, display: Display) -> webui.Study:
    """Compare ways of training; the stand-alone accuracies are measured before it, once."""
    sweep.standalone_accuracies(size, out, display.work("train stand-alone subnets"))
    return webui.Study(
        name="nas-dynamic: ways of training",
        script="sweep.py",
        settings={"study": "sweep", "size": asdict(size)},
        search_space=sweep.SEARCH_SPACE,
        tuner="GridSearch",
        tuner_options={},
    )


def search_of(size: sweep.Size, out: Path, display: Display) -> webui.Study:
    """Search among the candidates of a supernet, which is trained before it, once."""
    progress = display.work("train the supernet")
    candidates.supernet(size, out)
    progress(1, 1)
    return webui.Study(
        name="nas-dynamic: candidates of a supernet",
        script="candidates.py",
        settings={"study": "search", "size": asdict(size)},
        search_space=candidates.search_space(size),
        tuner="TPE",
        # No seed: a resumed experiment would begin with the same candidates.
        tuner_options={"optimize_mode": "maximize", "tpe_args": {"n_ei_candidates": 2}},
    )


if __name__ == "__main__":
    main()
