"""A training as an experiment makes it, without its engine, and a record of its updates."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from nni.nas.hub.pytorch import NasBench201

from nas_dynamic.adapters.nni import DynamicCallback
from nas_dynamic.adapters.nni.sampling import Sampling


class Recorder(pl.Callback):
    """The subnets of every batch; what every update used, and which parameters had a gradient."""

    def __init__(self):
        self.steps = []
        self.updates = []
        self.trained = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.trained.append(
            {name for name, p in pl_module.model.named_parameters() if p.grad is not None}
        )

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        for callback in trainer.callbacks:
            if isinstance(callback, Sampling):
                self.steps.append(list(callback.architectures))
        training = training_of(trainer)
        if training is not None and len(self.updates) < training.updates:
            self.updates.append(training.last)


def callback_of(trainer):
    return next((c for c in trainer.callbacks if isinstance(c, DynamicCallback)), None)


def training_of(trainer):
    callback = callback_of(trainer)
    return callback and callback.training


def fit(strategy, evaluator, model_space=None, recorder=None):
    """Train; returns the supernet, the trainer and the record."""
    torch.manual_seed(0)
    supernet = strategy.mutate_model(model_space or NasBench201(4, 1, 10))
    recorder = recorder or Recorder()
    evaluator.trainer.callbacks.append(recorder)
    mutated = strategy.mutate_evaluator(evaluator)
    mutated.evaluate(supernet)
    return supernet, mutated.trainer, recorder


def same_weights(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
