"""Does the advice of `nas-dynamic doctor --supernet` agree with what `compare` then finds?

    python -m benchmarks.advice run --data cifar10     # three hours of a core; what is missing
    python -m benchmarks.advice table

Four supernets: NAS-Bench-201 on scikit-learn's digits and on CIFAR-10 (an image folder, read at 16
pixels), a MobileNet space of timm and NNI's AutoFormer on digits. Each is examined by short
trainings, and compared at full length with static training along the same decay of the lr, on
seeds that the examination does not use.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import torch

from nas_dynamic.adapters.nni import space as _nni  # noqa: F401  before timm's adapter
from nas_dynamic.adapters.timm import mobile_supernet
from nas_dynamic.adapters.timm.nni import TimmModelSpace, model_space
from nas_dynamic.analysis.text_table import text_table
from nas_dynamic.experiment.compare import compare
from nas_dynamic.experiment.config import Config, parse
from nas_dynamic.experiment.console import Display
from nas_dynamic.experiment.doctor.pilot import examine_supernet
from nas_dynamic.experiment.engine import LocalEngine
from nas_dynamic.report.measures import PRIMARY
from nas_dynamic.storage.journal import read_json, write_json

RESULTS = Path(__file__).parent / "results" / "advice.json"
UPDATES, SUBNETS = 400, 12
"""Of an examination, as `doctor` has them by default."""

SGD = {"kwargs": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}}
DIGITS = {"name": "digits", "validation": 0.4}
TASKS: dict[str, dict[str, Any]] = {
    "nb201-digits": {
        "space": {
            "name": "NasBench201",
            "kwargs": {"stem_out_channels": 4, "num_modules_per_stack": 1},
        },
        "data": DIGITS,
        "optimizer": SGD,
        "batch_size": 32,
        "epochs": 60,
    },
    "timm-digits": {
        "space": {"name": "benchmarks.advice:mobilenet"},
        "data": DIGITS,
        "optimizer": SGD,
        "batch_size": 32,
        "epochs": 60,
    },
    "autoformer-digits": {
        "space": {
            "name": "AutoFormer",
            "kwargs": {
                "search_embed_dim": [24, 32, 48],
                "search_mlp_ratio": [1.0, 2.0, 4.0],
                "search_num_heads": [2, 4],
                "search_depth": [1, 2, 3],
                "img_size": 8,
                "patch_size": 2,
                "drop_path_rate": 0.0,
                "qkv_bias": True,
            },
        },
        "data": DIGITS,
        "optimizer": {"name": "AdamW", "kwargs": {"lr": 0.002}},
        "batch_size": 32,
        "epochs": 60,
    },
    "nb201-cifar10": {
        "space": {
            "name": "NasBench201",
            "kwargs": {"stem_out_channels": 4, "num_modules_per_stack": 1},
        },
        "data": {"name": "ImageFolder", "size": 16, "augment": False},
        "optimizer": SGD,
        "batch_size": 64,
        "steps": 2000,
    },
}
COMPARED = {"seeds": range(10, 15), "subnets": 30}
STANDALONE_EPOCHS = {"nb201-cifar10": 1}
"""Of a comparison; 15 on digits."""


def mobilenet(num_labels: int) -> TimmModelSpace:
    """Return a small MobileNet space of timm: six layers, kernels and expansions."""
    arch_def = [["ds_r1_k3_s1_e1_c8"], ["ir_r3_k3_s2_e6_c12"], ["ir_r3_k3_s1_e6_c16"]]
    supernet = mobile_supernet(
        arch_def,
        kernel=(3, 5),
        expansion=(1, 3, 6),
        skip=True,
        num_classes=num_labels,
        stem_size=8,
        num_features=64,
    )
    return model_space(supernet)


def configuration(task: str, data: Path) -> Config:
    """Return a task's supernet."""
    content: dict[str, Any] = {
        "name": task,
        "gradient_clip": 5.0,
        "scoring": {"subnets": 60, "calibration_batches": 4},
        "device": "cpu",
        **TASKS[task],
    }
    if content["data"]["name"] == "ImageFolder":
        content["data"] = content["data"] | {"root": str(data)}
    return parse(content)


def run(options: argparse.Namespace) -> None:
    """Examine and compare what the results lack."""
    torch.set_num_threads(1)
    logging.getLogger("nas_dynamic").setLevel(logging.WARNING)
    for task in options.tasks:
        results = read_json(RESULTS, "") if RESULTS.exists() else {}
        if task in results:
            continue
        config = configuration(task, options.data)
        with Display() as display:
            engine = LocalEngine(display.work)
            _, advice = examine_supernet(
                config,
                options.runs / f"{task}-doctor",
                engine,
                updates=UPDATES,
                seeds=range(4),
                subnets=SUBNETS,
            )
            scoring = config.scoring.model_copy(update={"subnets": COMPARED["subnets"]})
            comparison = compare(
                config.model_copy(update={"scoring": scoring}),
                options.runs / f"{task}-compare",
                engine,
                seeds=list(COMPARED["seeds"]),
                standalone_epochs=STANDALONE_EPOCHS.get(task, 15),
                kept=options.runs,
                static_curve=str(config.dynamic.curve),
            )
        signs = read_json(options.runs / f"{task}-doctor" / "doctor.json", "")
        found = comparison.differences[PRIMARY]
        write_json(
            RESULTS,
            results
            | {
                task: {
                    "advice": advice.what,
                    "reason": advice.reason,
                    "signs": signs,
                    "difference": {"value": found.value, "low": found.low, "high": found.high},
                    "seeds": len(comparison.seeds),
                }
            },
        )


def table(options: argparse.Namespace) -> None:
    """Print advice and comparison side by side."""
    rows = []
    for task, row in read_json(RESULTS, "").items():
        found = row["difference"]
        lag = row["signs"]["lag"]
        rows.append(
            [
                task,
                row["advice"],
                f"{lag['value']:.2f} [{lag['low']:.2f}, {lag['high']:.2f}]",
                f"{found['value']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]",
                agreement(row["advice"], found["low"], found["high"]),
            ]
        )
    header = ["supernet", "advice", "lag of large subnets, ρ", "compare: τ", "agree"]
    print(text_table(header, rows, frozenset(range(5))).replace("-0", "−0"))


def agreement(advice: str, low: float, high: float) -> str:
    """Return whether an advice agrees with the interval of what dynamic training gains in τ."""
    if advice == "cannot be told":
        return "says nothing"
    if advice.startswith("CaLR"):
        return "yes" if low > 0 else "no" if high < 0 else "not contradicted"
    return "no" if low > 0 else "not contradicted"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    running = commands.add_parser("run")
    running.add_argument("--data", type=Path, default=Path("data"), help="CIFAR-10: train/CLASS/…")
    running.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    running.add_argument("--runs", type=Path, default=Path("runs/advice"))
    running.set_defaults(command=run)
    commands.add_parser("table").set_defaults(command=table)
    options = parser.parse_args()
    options.command(options)


if __name__ == "__main__":
    main()
