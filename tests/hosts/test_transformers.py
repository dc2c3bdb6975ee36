"""Hugging Face's Trainer as host: schedules, resuming, what is logged, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from nas_dynamic import UniformSampler
from nas_dynamic.adapters.transformers import DynamicSupernet
from tests.attach.reference import assert_identical
from tests.hosts.in_transformers import Model, train, trainer_of
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
    supernet,
)

pytestmark = [pytest.mark.host, pytest.mark.xdist_group("hosts")]


def test_a_resumed_training_equals_an_unbroken_one(tmp_path: Path):
    """By checkpoints of Trainer's own, one of them within an epoch, each into new objects."""
    task = Task(accumulate=2)
    whole = train(task, tmp_path / "whole", save_strategy="steps", save_steps=20)
    for step in (20, 40):
        resumed = tmp_path / f"resumed{step}"
        net = train(
            task,
            resumed,
            resume=tmp_path / "whole" / f"checkpoint-{step}",
            save_strategy="steps",
            save_steps=UPDATES,
        )
        assert_identical(net.state_dict(), whole.state_dict())
    ends = [
        torch.load(tmp_path / folder / f"checkpoint-{UPDATES}" / "optimizer.pt")
        for folder in ("resumed20", "resumed40")
    ]
    assert_identical(*ends)
    assert [*ends[0]["state"]["dynamic"]] == ["dynamic_training", "dynamic_sampling"]


def test_a_trainer_that_failed_resumes_in_the_same_process(tmp_path: Path):
    class Fails(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            if state.global_step == 33 and not failed:
                failed.append(33)
                raise KeyboardInterrupt

    failed: list[int] = []
    trainer = trainer_of(Task(), tmp_path, save_strategy="steps", save_steps=20)
    trainer.add_callback(Fails())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.train(resume_from_checkpoint=True)
    assert failed
    assert_identical(trainer.model.net.state_dict(), reference(Task()).state_dict())
    assert not trainer.optimizer.optimizer._optimizer_step_pre_hooks, "detached"


def test_a_checkpoint_without_dynamic_training_is_refused(tmp_path: Path):
    plain = trainer_of(
        Task(), tmp_path, [transformers.TrainerCallback()], save_strategy="steps", save_steps=20
    )
    plain.train()
    with pytest.raises(ValueError, match="the checkpoint of step 20 has no dynamic training"):
        train(Task(), tmp_path, resume=tmp_path / "checkpoint-20")


def test_a_checkpoint_of_another_definition_is_refused(tmp_path: Path):
    train(Task(), tmp_path, save_strategy="steps", save_steps=20)
    other = Task(options={"gamma_max": 3.0})
    with pytest.raises(ValueError, match=r"calr.gamma is \[0.25, 4.0\] in the checkpoint"):
        train(other, tmp_path, resume=tmp_path / "checkpoint-20")


@pytest.mark.parametrize(
    ("schedule", "given", "curve"),
    [
        ("linear", {}, "scheduler"),
        ("cosine", {}, "scheduler"),
        ("constant", {}, "polynomial"),
        ("constant_with_warmup", {}, "polynomial"),
        ("constant", {"curve": "cosine"}, "cosine"),
    ],
)
def test_the_curve_is_that_of_the_schedule_where_it_decays(
    schedule: str, given: dict[str, Any], curve: str, tmp_path: Path
):
    dynamic = DynamicSupernet(**given)
    trainer_of(Task(), tmp_path, [dynamic], lr_scheduler_type=schedule, max_steps=2).train()
    assert dynamic.training.calr.curve == curve
    assert dynamic.training.calr.total_steps == (None if curve == "scheduler" else 2)


def test_the_linear_schedule_bent_is_the_polynomial_decay(tmp_path: Path):
    """Trainer's default schedule falls as 1 − t/T: lr · s^γ is what the reference computes."""
    net = train(Task(), tmp_path, lr_scheduler_type="linear")
    torch.testing.assert_close(net.state_dict(), reference(Task()).state_dict())


def test_what_is_logged(tmp_path: Path):
    dynamic = DynamicSupernet(**OPTIONS)
    updates, seen = [], []

    class Record(transformers.TrainerCallback):
        def on_step_end(self, *arguments: Any, **others: Any) -> None:
            updates.append(dynamic.training.last)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any, **others: Any) -> None:
            seen.append({name for name in logs if name.startswith("dynamic/")})

    trainer = trainer_of(
        Task(), tmp_path, [dynamic, Record()], logging_strategy="steps", logging_steps=10
    )
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert [row["step"] for row in rows] == [10, 20, 30, 40, 50]
    for row in rows:
        update = updates[row["step"] - 1]
        assert row["dynamic/lr"] == LR * factor(update.architecture, row["step"] - 1)
        assert row["dynamic/gamma"] == update.gamma
        assert row["dynamic/complexity"] == update.complexity
        assert row["dynamic/group"] == dynamic.training.groups.index(update.group)
    names = {"dynamic/lr", "dynamic/gamma", "dynamic/complexity", "dynamic/group"}
    assert seen == [names] * 5 + [set()], "callbacks that come after it see the same"


def test_several_subnets_an_update(tmp_path: Path):
    dynamic = DynamicSupernet(**OPTIONS, sampler=fair_sampler(supernet()))

    class Fair(Model):
        def forward(self, images: torch.Tensor, labels: torch.Tensor) -> Any:
            losses = [w * loss_of(self.net, images, labels) for w in dynamic.weighted_subnets()]
            return {"loss": sum(losses) / len(losses)}

    trainer = trainer_of(Task(), tmp_path, [dynamic], model=Fair())
    trainer.train()
    assert_identical(trainer.model.net.state_dict(), reference_of_several().state_dict())


def test_the_optimizer_that_trainer_makes_itself(tmp_path: Path):
    """AdamW, the norm clipped at 1: its defaults, a fused optimizer among them."""
    task = Task()
    trainer = trainer_of(task, tmp_path, max_grad_norm=1.0, weight_decay=0.01)
    trainer = transformers.Trainer(
        copy.deepcopy(trainer.model),
        trainer.args,
        train_dataset=trainer.train_dataset,
        callbacks=[DynamicSupernet(**task.dynamic)],
    )
    net, optimizers = supernet(), {}
    trainer.train()
    made = trainer.optimizer.optimizer
    assert type(made) is torch.optim.AdamW

    sampler = UniformSampler(net.space, OPTIONS["seed"])
    names = dict(net.named_parameters())
    decayed = [p for n, p in names.items() if not n.endswith("bias")]
    rest = [p for n, p in names.items() if n.endswith("bias")]
    for step, (x, y) in enumerate([*task.loader()] * 2):
        architecture = sampler.sample()
        group = architecture["layer2"]
        if group not in optimizers:
            optimizers[group] = torch.optim.AdamW(
                [{"params": decayed, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0}],
                **{k: made.defaults[k] for k in ("lr", "betas", "eps", "fused")},
            )
        for g in optimizers[group].param_groups:
            g["lr"] = LR * factor(architecture, step)
        net.activate(architecture)
        net.zero_grad()
        loss_of(net, x, y).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizers[group].step()
    assert_identical(trainer.model.net.state_dict(), net.state_dict())


def test_a_model_without_a_supernet_is_refused(tmp_path: Path):
    trainer = trainer_of(Task(), tmp_path)
    trainer.model.net.space = None
    with pytest.raises(ValueError, match="Model has no supernet that the optimizer updates"):
        trainer.train()


def test_options_are_checked_where_they_are_given():
    with pytest.raises(TypeError, match="did you mean gamma_max"):
        DynamicSupernet(gama_max=3)
    with pytest.raises(ValueError, match="unknown curve 'cubic'"):
        DynamicSupernet(curve="cubic")
