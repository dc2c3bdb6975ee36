"""The small supernet in Lightning, automatic and manual optimization."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nas_dynamic.adapters.lightning import DynamicSupernet
from tests.hosts.tiny import EPOCHS, Supernet, Task, loss_of, sgd, supernet

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def module_of(L: Any, manual: int = 0) -> Any:
    """A module of `lightning.pytorch` or `pytorch_lightning`; `manual` batches make an update."""

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = supernet()
            self.automatic_optimization = not manual

        def training_step(self, batch: Any, number: int) -> Any:
            loss = loss_of(self.net, *batch)
            if not manual:
                return loss
            optimizer = self.optimizers()
            if number % manual == 0:
                optimizer.zero_grad()
            self.manual_backward(loss / manual)
            if (number + 1) % manual == 0:
                optimizer.step()
            return None

        def configure_optimizers(self) -> Any:
            return sgd(self)

    return Module()


def train(
    L: Any,
    task: Task,
    folder: Path,
    *,
    manual: int = 0,
    epochs: int = EPOCHS,
    checkpoint: Path | None = None,
    callback: Any = None,
    **trainer: Any,
) -> Supernet:
    """Train, and write `folder/last.ckpt` at the end."""
    module = module_of(L, manual)
    callback = callback or DynamicSupernet(**task.dynamic)
    precision = {"precision": "bf16-mixed"} if task.bf16 else {}
    callbacks = [callback, *trainer.pop("callbacks", [])]
    made = L.Trainer(
        callbacks=callbacks,
        accumulate_grad_batches=1 if manual else task.accumulate,
        gradient_clip_val=task.clip,
        default_root_dir=folder,
        **{"max_epochs": epochs} | QUIET | precision | trainer,
    )
    made.fit(module, task.loader(), ckpt_path=checkpoint)
    made.save_checkpoint(folder / "last.ckpt")
    return module.net
