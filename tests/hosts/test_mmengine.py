"""mmengine's Runner as host: resuming, what is logged, and what is refused."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapperDict

from nas_dynamic.adapters.mmengine import DynamicSupernetHook
from tests.attach.reference import assert_identical
from tests.hosts.in_mmengine import Model, runner_of, train
from tests.hosts.tiny import (
    LR,
    OPTIONS,
    UPDATES,
    Task,
    factor,
    fair_sampler,
    loss_of,
    reference,
    reference_of_several,
    sgd,
    supernet,
)

pytestmark = [pytest.mark.host, pytest.mark.xdist_group("hosts")]


def saving(interval: int) -> dict[str, Any]:
    return {"checkpoint": {"type": "CheckpointHook", "interval": interval, "by_epoch": True}}


def test_a_resumed_training_equals_an_unbroken_one(tmp_path: Path, monkeypatch: Any):
    # mmengine 0.10 loads its checkpoints as torch before 2.6 did.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    task = Task(accumulate=2)
    whole = train(task, tmp_path / "whole", default_hooks=saving(1))
    resumed = train(
        task,
        tmp_path / "resumed",
        default_hooks=saving(1),
        load_from=str(tmp_path / "whole" / "epoch_1.pth"),
        resume=True,
    )
    assert_identical(resumed.state_dict(), whole.state_dict())
    ends = [torch.load(tmp_path / f / "epoch_2.pth")["optimizer"] for f in ("whole", "resumed")]
    assert_identical(*ends)


def test_iterations_that_no_update_divides(tmp_path: Path):
    """The last update takes what is left; before that there is no subnet of its own."""
    hook = DynamicSupernetHook(**OPTIONS)
    runner = runner_of(
        Task(accumulate=3),
        tmp_path,
        custom_hooks=[hook],
        train_cfg={"by_epoch": False, "max_iters": 10},
    )
    runner.train()
    assert (hook.training.calr.total_steps, hook.training.updates) == (4, 4)


def test_validation_within_an_update_does_not_change_what_is_trained(tmp_path: Path):
    class Validates(Hook):
        def after_train_iter(self, runner: Any, *others: Any, **more: Any) -> None:
            runner.model.net.activate(runner.model.net.space.decode([2, 2, 2]))

    task = Task(accumulate=2)
    hooks = [DynamicSupernetHook(**task.dynamic), Validates()]
    net = train(task, tmp_path, custom_hooks=hooks)
    assert_identical(net.state_dict(), reference(task).state_dict())


def test_an_average_of_the_weights_is_as_that_of_the_reference(tmp_path: Path):
    class Averaged(Hook):
        priority = "LOW"

        def __init__(self) -> None:
            self.weights: dict[str, torch.Tensor] = {}

        def after_train_iter(self, runner: Any, *others: Any, **more: Any) -> None:
            for name, weight in runner.model.net.state_dict().items():
                if name not in self.weights:  # mmengine's first average is the first weights
                    self.weights[name] = weight.clone()
                else:
                    self.weights[name].lerp_(weight, 0.1)

    averaged = Averaged()
    hooks = [
        {"type": "DynamicSupernetHook", **OPTIONS},
        {"type": "EMAHook", "ema_type": "ExponentialMovingAverage", "momentum": 0.1},
        averaged,
    ]
    runner = runner_of(Task(), tmp_path, custom_hooks=hooks)
    runner.train()
    (ema,) = (hook for hook in runner.hooks if type(hook).__name__ == "EMAHook")
    assert_identical(ema.ema_model.module.net.state_dict(), averaged.weights)
    assert_identical(runner.model.net.state_dict(), reference(Task()).state_dict())


def test_what_is_logged(tmp_path: Path):
    hook, updates = DynamicSupernetHook(**OPTIONS), []

    class Record(Hook):
        def after_train_iter(self, *arguments: Any, outputs: Any, **more: Any) -> None:
            updates.append((hook.training.last, outputs["loss"].item()))

    runner = runner_of(
        Task(),
        tmp_path,
        custom_hooks=[hook, Record()],
        default_hooks={"checkpoint": None, "logger": {"type": "LoggerHook", "interval": 5}},
        visualizer={"type": "Visualizer", "vis_backends": [{"type": "LocalVisBackend"}]},
        log_processor={"window_size": 1},
    )
    runner.train()
    (file,) = tmp_path.glob("*/vis_data/scalars.json")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["step"] for row in rows] == [*range(5, UPDATES + 1, 5)]
    for row in rows:
        update, loss = updates[row["step"] - 1]
        assert row["dynamic/lr"] == LR * factor(update.architecture, row["step"] - 1)
        assert row["dynamic/gamma"] == update.gamma
        assert row["dynamic/group"] == hook.training.groups.index(update.group)
        assert row[f"dynamic/loss/layer2={update.group}"] == pytest.approx(loss)


def test_several_subnets_an_update(tmp_path: Path):
    hook = DynamicSupernetHook(**OPTIONS, sampler=fair_sampler(supernet()))

    class Fair(Model):
        def forward(self, images: Any, labels: Any, mode: str = "tensor") -> Any:
            losses = [w * loss_of(self.net, images, labels) for w in hook.weighted_subnets()]
            return {"loss": sum(losses) / len(losses)}

    net = train(Task(), tmp_path, model=Fair(), custom_hooks=[hook])
    assert_identical(net.state_dict(), reference_of_several().state_dict())


def test_amp_is_for_gpus_in_the_words_of_mmengine(tmp_path: Path):
    model = Model()
    wrapper = {"type": "AmpOptimWrapper", "optimizer": sgd(model), "dtype": "bfloat16"}
    runner = runner_of(Task(), tmp_path, model)
    runner.optim_wrapper = wrapper
    with pytest.raises(AssertionError, match="only available"):
        runner.train()


def test_several_optimizers_of_one_supernet_are_refused(tmp_path: Path):
    model = Model()
    runner = runner_of(Task(), tmp_path, model)
    halves = [*model.net.parameters()][:2], [*model.net.parameters()][2:]
    wrappers = {
        name: runner.build_optim_wrapper({"optimizer": torch.optim.SGD(half, lr=LR, momentum=0.9)})
        for name, half in zip("ab", halves, strict=True)
    }
    runner.optim_wrapper = OptimWrapperDict(**wrappers)
    with pytest.raises(ValueError, match="2 optimizers update the supernet net"):
        runner.train()


def test_a_run_without_training_attaches_nothing(tmp_path: Path):
    hook = DynamicSupernetHook(**OPTIONS)
    runner = runner_of(Task(), tmp_path, custom_hooks=[hook])
    runner.call_hook("before_run")
    assert hook.training is None
    runner.train()
    training = hook.training
    runner.call_hook("before_run")  # as a test after the training does
    assert hook.training is training


def test_options_are_checked_where_they_are_given():
    with pytest.raises(TypeError, match="did you mean gamma_max"):
        DynamicSupernetHook(gama_max=3)
    assert copy.deepcopy(DynamicSupernetHook(gamma_max=3.0)).options.gamma_max == 3
