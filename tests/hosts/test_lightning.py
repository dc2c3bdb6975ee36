"""Lightning as host: manual optimization, resuming, what is logged, and what is refused."""

from __future__ import annotations

import copy
import csv
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from nas_dynamic.adapters.lightning import DynamicSupernet
from tests.attach.reference import assert_identical
from tests.hosts.in_lightning import QUIET, module_of, train
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


def test_manual_optimization_with_two_batches_an_update(tmp_path: Path):
    task = Task(accumulate=2, options={"total_steps": UPDATES})
    net = train(pl, task, tmp_path, manual=2)
    assert_identical(net.state_dict(), reference(task).state_dict())


def test_manual_optimization_needs_to_be_told_the_number_of_updates(tmp_path: Path):
    with pytest.raises(ValueError, match=r"does not know their number; give total_steps="):
        train(pl, Task(accumulate=2), tmp_path, manual=2)
    net = train(pl, Task(), tmp_path, manual=1, epochs=-1, max_steps=UPDATES)
    assert_identical(net.state_dict(), reference(Task()).state_dict())


def test_two_updates_of_one_batch_are_refused_until_the_second_is_drawn(tmp_path: Path):
    class Twice(module_of(pl, manual=1).__class__):
        def training_step(self, batch: Any, number: int) -> None:
            super().training_step(batch, number)
            if drawn:
                callback.draw()
            super().training_step(batch, number)

    trainings = []
    for drawn in (False, True):
        module, callback = Twice(), DynamicSupernet(total_steps=4)
        trainer = pl.Trainer(max_steps=4, callbacks=[callback], **QUIET)
        if not drawn:
            with pytest.raises(RuntimeError, match="a training step made two; call draw"):
                trainer.fit(module, Task().loader())
        else:
            trainer.fit(module, Task().loader())
        trainings.append(callback.training)
    assert [training.updates for training in trainings] == [1, 4]


def test_a_resumed_training_equals_an_unbroken_one(tmp_path: Path):
    task = Task(accumulate=2)
    whole = train(pl, task, tmp_path)
    # T is that of the whole training, as it would be of one that was killed.
    half = Task(accumulate=2, options={"total_steps": UPDATES})
    train(pl, half, tmp_path / "half", epochs=1)
    resumed = train(pl, task, tmp_path / "resumed", checkpoint=tmp_path / "half" / "last.ckpt")
    assert_identical(resumed.state_dict(), whole.state_dict())
    states = [torch.load(tmp_path / f / "last.ckpt")["optimizer_states"] for f in ("", "resumed")]
    assert_identical(*states)


def test_a_checkpoint_without_dynamic_training_is_refused(tmp_path: Path):
    plain = pl.Trainer(max_epochs=1, default_root_dir=tmp_path, **QUIET)
    plain.fit(module_of(pl), Task().loader())
    plain.save_checkpoint(tmp_path / "plain.ckpt")
    with pytest.raises(ValueError, match="written without dynamic training"):
        train(pl, Task(), tmp_path, checkpoint=tmp_path / "plain.ckpt")


def test_validation_within_an_update_does_not_change_what_is_trained(tmp_path: Path):
    class Validated(module_of(pl).__class__):
        def validation_step(self, batch: Any, number: int) -> None:
            self.net.activate(self.net.space.decode([2, 2, 2]))
            self.net(batch[0])

    task = Task(accumulate=2)
    module = Validated()
    trainer = pl.Trainer(
        max_epochs=2,
        callbacks=[DynamicSupernet(**task.dynamic)],
        accumulate_grad_batches=2,
        val_check_interval=3,
        default_root_dir=tmp_path,
        **QUIET,
    )
    trainer.fit(module, task.loader(), Task().loader())
    assert_identical(module.net.state_dict(), reference(task).state_dict())


@pytest.mark.skipif(
    not hasattr(pl.callbacks, "EMAWeightAveraging"), reason="Lightning has it since 2.6"
)
def test_an_average_of_the_weights_is_as_that_of_the_reference(tmp_path: Path):
    averaging = pl.callbacks.EMAWeightAveraging(decay=0.9)
    net = train(pl, Task(), tmp_path, callbacks=[averaging])
    # Lightning hands the average over at the end of the fit.
    expected = torch.optim.swa_utils.AveragedModel(
        supernet(), avg_fn=torch.optim.swa_utils.get_ema_avg_fn(0.9)
    )

    class Averaged(pl.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, *others: Any) -> None:
            expected.update_parameters(module.net)

    trained = train(pl, Task(), tmp_path, callbacks=[Averaged()])
    assert_identical(net.state_dict(), expected.module.state_dict())
    assert not torch.equal(net.head.weight, trained.head.weight)


def test_several_subnets_an_update(tmp_path: Path):
    callback = DynamicSupernet(**OPTIONS, sampler=fair_sampler(supernet()))

    class Module(module_of(pl).__class__):
        def training_step(self, batch: Any, number: int) -> torch.Tensor:
            losses = [w * loss_of(self.net, *batch) for w in callback.weighted_subnets()]
            return sum(losses) / len(losses)

    module = Module()
    trainer = pl.Trainer(max_epochs=2, callbacks=[callback], **QUIET)
    trainer.fit(module, Task().loader())
    assert_identical(module.net.state_dict(), reference_of_several().state_dict())


def test_several_subnets_that_were_not_computed_are_refused(tmp_path: Path):
    callback = DynamicSupernet(**OPTIONS, sampler=fair_sampler(supernet()), calr=False)
    with pytest.raises(RuntimeError, match=r"the sampler drew 3 subnets .* took one forward pass"):
        train(pl, Task(), tmp_path, callback=callback)


def test_what_is_logged(tmp_path: Path):
    logger = CSVLogger(tmp_path, name="", version="")
    losses = []

    class Losses(pl.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *others: Any) -> None:
            training = callback.training
            losses.append((training.last, outputs["loss"].item() * 2))

    task = Task(accumulate=2)
    callback = DynamicSupernet(**task.dynamic)
    train(pl, task, tmp_path, callback=callback, logger=logger, log_every_n_steps=10,
          callbacks=[Losses()])  # fmt: skip
    with (tmp_path / "metrics.csv").open() as file:
        rows = {int(row["step"]): row for row in csv.DictReader(file)}
    assert [*rows] == [9, 19, 29, 39, 49]
    updates = [update for update, _ in losses][1::2]
    groups = callback.training.groups
    for step, row in rows.items():
        update = updates[step]
        assert float(row["dynamic/lr"]) == LR * factor(update.architecture, step)
        assert float(row["dynamic/gamma"]) == update.gamma
        assert float(row["dynamic/group"]) == groups.index(update.group)
        seen: dict[Any, list[float]] = {}
        for number in range(step - 9, step + 1):
            both = [loss for _, loss in losses[2 * number : 2 * number + 2]]
            seen.setdefault(updates[number].group, []).append(sum(both) / 2)
        for group in groups:
            text = row[f"dynamic/loss/layer2={group}"]
            assert (group in seen) == bool(text)
            if text:
                expected = sum(seen[group]) / len(seen[group])
                assert float(text) == pytest.approx(expected, rel=1e-5)


def test_modules_without_a_supernet_or_with_two_are_refused(tmp_path: Path):
    class Two(module_of(pl).__class__):
        def __init__(self) -> None:
            super().__init__()
            self.second = copy.deepcopy(self.net)

    class Copy(Two):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.net.parameters(), lr=LR, momentum=0.9)

    class Optimizers(module_of(pl, manual=1).__class__):
        def configure_optimizers(self) -> Any:
            halves = [*self.net.parameters()][:2], [*self.net.parameters()][2:]
            return [torch.optim.SGD(half, lr=LR, momentum=0.9) for half in halves]

    def fit(module: Any) -> DynamicSupernet:
        callback = DynamicSupernet(total_steps=4)
        trainer = pl.Trainer(max_steps=2, callbacks=[callback], **QUIET)
        trainer.fit(module, Task().loader())
        return callback

    with pytest.raises(ValueError, match="Two has 2 supernets, net, second"):
        fit(Two())
    with pytest.raises(ValueError, match="2 optimizers update the supernet net: SGD, SGD"):
        fit(Optimizers())
    bare = module_of(pl)
    bare.net.space = None
    with pytest.raises(ValueError, match="has no supernet that the optimizer updates"):
        fit(bare)
    assert fit(Copy()).training.updates == 2, "a copy that no optimizer updates does not count"


def test_options_are_checked_where_they_are_given():
    with pytest.raises(TypeError, match="did you mean gamma_max"):
        DynamicSupernet(gama_max=3)
    with pytest.raises(ValueError, match="idle must be"):
        DynamicSupernet(idle="sleep")
    assert "gamma_max" in str(DynamicSupernet.__init__.__signature__)


def test_a_complexity_that_the_supernet_does_not_tell_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"needs Supernet\.subnet_macs\(\)"):
        train(pl, Task(options={"complexity": "macs"}), tmp_path)


def test_updates_are_counted_as_the_accumulation_of_each_epoch_makes_them(tmp_path: Path):
    callback = DynamicSupernet()
    schedule = pl.callbacks.GradientAccumulationScheduler({0: 1, 1: 2})
    train(pl, Task(), tmp_path, callback=callback, callbacks=[schedule])
    batches = UPDATES // 2  # of an epoch
    made = batches + -(-batches // 2)
    assert callback.training.updates == callback.training.calr.total_steps == made


def test_a_fit_that_is_stopped_says_how_far_the_decay_came(tmp_path: Path):
    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *batch: Any) -> None:
            trainer.should_stop = trainer.global_step == UPDATES // 2

    with pytest.warns(UserWarning, match=f"ended after {UPDATES // 2} updates.* for {UPDATES}"):
        train(pl, Task(), tmp_path, callbacks=[Stop()])


def test_loaders_that_have_grown_are_refused_before_the_decay_ends(tmp_path: Path):
    class Growing(module_of(pl).__class__):
        def train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(Task(accumulate=1 + self.current_epoch).dataset(), 4)

    module = Growing()
    trainer = pl.Trainer(
        callbacks=[DynamicSupernet()], max_epochs=2, reload_dataloaders_every_n_epochs=1, **QUIET
    )
    with pytest.raises(ValueError, match=r"the training data has grown: 75 updates .* for 50"):
        trainer.fit(module)
    assert trainer.global_step == UPDATES // 2
