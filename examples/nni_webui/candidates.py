"""A search on a trained supernet whose trials are candidates; run as a script, one of them.

The supernet is trained once, by the launcher. A candidate is scored with the weights that it
inherits and batch norm statistics of its own, which takes far less time than the start of its
process: on a space of your own, the page is worth that; else use `SupernetEvaluator`.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import nni
import torch
from nni.nas.nn.pytorch import ModelSpace
from nni.nas.strategy import RandomOneShot
from sweep import Size, images, space, train_supernet, trial

from nas_dynamic.adapters.nni import SupernetEvaluator, extract, subnet_parameters
from nas_dynamic.evaluation import digest, evaluate, recalibrate
from nas_dynamic.experiment.data import batch_loader, calibration_batches
from nas_dynamic.storage import checkpoint

TRAINING = {"seed": 0, "sampler": "uniform", "gamma_max": 4, "momentum": "separate"}
"""Of the supernet; see `sweep.SEARCH_SPACE`."""


def search_space(size: Size) -> dict[str, Any]:
    """Return the choices of the model space, in NNI's format for tuners."""
    mutables = space(size, images()).simplify()
    return {str(label): mutable.as_legacy_dict() for label, mutable in mutables.items()}


def supernet(size: Size, out: Path) -> ModelSpace:
    """Return the trained supernet: from its file, or trained and kept there."""
    depends_on = TRAINING | asdict(size) | {"torch": torch.__version__}
    path = out / f"supernet-{digest(depends_on)[:12]}.pt"
    if path.exists():
        model = RandomOneShot().mutate_model(space(size, images()))
        model.load_state_dict(checkpoint.load(path))
    else:
        model = train_supernet(TRAINING, size, images(), [])
        checkpoint.save(path, model.state_dict())
    return model


def score(parameters: dict[str, Any], size: Size, out: Path) -> dict[str, float]:
    """`default`: accuracy of a candidate on the validation images; `parameters`: its size."""
    model, data = supernet(size, out), images()
    evaluator = SupernetEvaluator(
        batch_loader(data.validation, 256), calibration=calibration_batches(data.train, 32, 4)
    )
    return {
        "default": evaluator.score(model, parameters).accuracy,
        "parameters": subnet_parameters(model)(parameters),
    }


def keep_best(results: list[dict[str, Any]], size: Size, out: Path) -> Path:
    """Extract the best candidate, recalibrate and test it, and write its weights to a file."""
    best = max(results, key=lambda result: result["value"]["default"])
    model, data = extract(supernet(size, out), best["parameters"]), images()
    recalibrate(model, calibration_batches(data.train, 32, 4))
    accuracy, _ = evaluate(model, batch_loader(data.test, 256))
    path = out / "found.pt"
    checkpoint.save(path, model.state_dict())
    print(
        f"Best of {len(results)}: {best['parameters']}\n"
        f"accuracy {best['value']['default']:.3f} on the validation images, {accuracy:.3f} on the "
        f"test images, as a model of its own: {path}"
    )
    return path


def main() -> None:
    """One candidate, as NNI's manager starts it."""
    size, out = trial()
    nni.report_final_result(score(nni.get_next_parameter(), size, out))


if __name__ == "__main__":
    main()
