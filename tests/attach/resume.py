"""A training that can be cut in two: `python -m tests.attach.resume DIRECTORY` resumes it."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm.optim
import torch
from torch.optim import lr_scheduler

from nas_dynamic import CaLR, ComplexityBins, DynamicTraining, MomentumSeparation
from tests.attach.reference import (
    C_MAX,
    C_MIN,
    Mixed,
    backward,
    batches,
    complexity,
    make_model,
    param_groups,
)

CUT, END = 5, 12

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd-nesterov": functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    "adamw": torch.optim.AdamW,
    "fused-adam": functools.partial(torch.optim.Adam, fused=True),
    "adagrad": torch.optim.Adagrad,
    "adan": timm.optim.Adan,
    "lamb": timm.optim.Lamb,
    "adafactor": timm.optim.Adafactor,
}
SCHEDULES: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "constant": lambda o: lr_scheduler.ConstantLR(o, factor=1.0),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=END),
    "one_cycle": lambda o: lr_scheduler.OneCycleLR(
        o,
        max_lr=0.01,
        total_steps=END + 1,
        cycle_momentum=bool({"momentum", "betas"} & o.defaults.keys()),
    ),
}
GROUP_BY = {
    "label": "layer1",
    "bins": ComplexityBins(complexity, edges=[4.0, 7.0]),
    "tuple": lambda a: (a["layer1"], a["layer2"]),
}


class Run:
    """One training, by its name "optimizer idle schedule rule"; further words are ignored."""

    def __init__(self, name: str, attach: bool = True) -> None:
        optimizer, self.idle, schedule, self.rule = name.split()[:4]
        self.schedule = schedule
        self.model = make_model(Mixed)
        groups = param_groups(self.model, 0.01, 0.05)
        self.optimizer = OPTIMIZERS[optimizer](groups, lr=0.01)
        self.scheduler = SCHEDULES[schedule](self.optimizer)
        self.sampled: dict[str, str] = {}
        if attach:
            self.attach()

    def attach(self) -> None:
        steps = None if self.schedule == "one_cycle" else END + 3
        curve = "scheduler" if self.schedule == "one_cycle" else "polynomial"
        self.dynamic = DynamicTraining(
            self.optimizer,
            architecture=lambda: self.sampled,
            calr=CaLR(complexity, total_steps=steps, bounds=(C_MIN, C_MAX), curve=curve),
            momentum=MomentumSeparation(GROUP_BY[self.rule]),
            idle=self.idle,
        )

    def train(self, start: int, end: int) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*decayed the lr")
            for x, y, architecture in batches(END)[start:end]:
                self.optimizer.zero_grad()
                self.sampled = architecture
                backward(self.model, x, y, architecture, graph=False)
                self.optimizer.step()
                self.scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])


def main(directory: Path) -> None:
    """Continue every checkpoint of a directory to its end."""
    torch.set_num_threads(1)
    for path in sorted(directory.glob("*.cut")):
        run = Run(path.stem)
        # No code is run by the load: a checkpoint holds plain data.
        run.load_state_dict(torch.load(path, weights_only=True))
        run.train(CUT, END)
        torch.save(run.state_dict(), path.with_suffix(".end"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
