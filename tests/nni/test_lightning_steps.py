"""T of CaLR is the number of updates that a trainer makes, or it is refused, or said."""

from __future__ import annotations

import warnings

import pytest

pytest.importorskip("nni")
import pytorch_lightning as pl
import torch
from nni.nas.evaluator.pytorch import DataLoader, Lightning, Trainer
from nni.nas.hub.pytorch import NasBench201
from nni.nas.strategy import RandomOneShot
from pytorch_lightning.callbacks import GradientAccumulationScheduler
from pytorch_lightning.plugins import MixedPrecision
from pytorch_lightning.utilities import CombinedLoader
from torch.utils.data import IterableDataset, TensorDataset

from nas_dynamic.adapters.nni import dynamic
from tests.nni.runs import fit, training_of

pytestmark = pytest.mark.host


def images(count):
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, 3, 8, 8, generator=generator), torch.arange(count) % 10


def loader(batches):
    return DataLoader(TensorDataset(*images(4 * batches)), 4)


class Stream(IterableDataset):
    """Six batches of four, and no length."""

    def __iter__(self):
        return iter(zip(*images(24), strict=True))


def stream():
    return DataLoader(Stream(), 4)


def trained(evaluator, strategy=None):
    """Fit; return the training, and the warnings of a decay that did not come to its end."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, trainer, _ = fit(strategy or dynamic(RandomOneShot()), evaluator, NasBench201(4, 1, 10))
    said = [str(w.message) for w in caught if "CaLR's decay is planned for" in str(w.message)]
    return training_of(trainer), said


def first_of_several(evaluator):
    """Train on the first of the batches that several loaders give."""
    module = evaluator.module
    step = type(module).training_step
    module.training_step = lambda batch, number: step(module, batch[0], number)
    return evaluator


@pytest.mark.parametrize(
    ("updates", "options"),
    [
        (12, lambda: {"max_epochs": 2}),
        (12, lambda: {"max_epochs": 2, "min_epochs": 3}),
        (12, lambda: {"max_epochs": 2, "min_steps": 20}),
        (12, lambda: {"max_epochs": 2, "max_time": {"hours": 1}}),
        (7, lambda: {"max_epochs": None, "max_steps": 7}),
        (7, lambda: {"max_epochs": -1, "max_steps": 7}),
        (7, lambda: {"max_epochs": 2, "max_steps": 7}),
        (6, lambda: {"max_epochs": 1, "max_steps": 7}),
        (8, lambda: {"max_epochs": 2, "limit_train_batches": 4}),
        (6, lambda: {"max_epochs": 2, "limit_train_batches": 0.5}),
        (6, lambda: {"max_epochs": 3, "overfit_batches": 2}),
        (3, lambda: {"max_epochs": 9, "fast_dev_run": 3}),
        (4, lambda: {"max_epochs": 2, "accumulate_grad_batches": 4}),
        (10, lambda: {"max_epochs": 3, "callbacks": [GradientAccumulationScheduler({1: 4})]}),
        (
            7,
            lambda: {
                "max_epochs": 3,
                "max_steps": 7,
                "callbacks": [GradientAccumulationScheduler({1: 4})],
            },
        ),
        (12, lambda: {"max_epochs": -1, "max_steps": 12, "train_dataloaders": stream()}),
        (
            8,
            lambda: {"max_epochs": 2, "limit_train_batches": 4, "train_dataloaders": stream()},
        ),
    ],
)
def test_total_steps_are_the_updates_that_the_trainer_makes(updates, options, classification):
    training, said = trained(classification(**options()))
    assert training.calr.total_steps == training.updates == updates
    assert not said


@pytest.mark.parametrize(
    ("updates", "combine"),
    [
        (12, lambda *loaders: list(loaders)),
        (12, lambda *loaders: CombinedLoader(list(loaders), "max_size")),
        (6, lambda *loaders: CombinedLoader(list(loaders), "min_size")),
    ],
)
def test_total_steps_of_several_loaders(updates, combine, classification):
    evaluator = classification(max_epochs=2, train_dataloaders=combine(loader(6), loader(3)))
    training, said = trained(first_of_several(evaluator))
    assert training.calr.total_steps == training.updates == updates
    assert not said


@pytest.mark.parametrize(
    ("reason", "options"),
    [
        ("it ends by max_time", lambda: {"max_epochs": None, "max_time": {"hours": 1}}),
        ("max_epochs is -1", lambda: {"max_epochs": -1}),
        ("its data set has no length", lambda: {"train_dataloaders": stream()}),
    ],
)
def test_a_training_without_an_end_is_refused_with_the_remedies(reason, options, classification):
    with pytest.raises(ValueError, match=rf"{reason}\. .*max_steps.*total_steps=…, or an lr sched"):
        trained(classification(**options()))
    training, _ = trained(
        classification(**options(), callbacks=[StopAt(3)]),
        dynamic(RandomOneShot(), total_steps=5),
    )
    assert training.calr.total_steps == 5


class StopAt(pl.Callback):
    def __init__(self, step, how=None):
        self.step, self.how = step, how

    def on_train_batch_end(self, trainer, *arguments):
        if trainer.global_step >= self.step:
            if self.how is not None:
                raise self.how
            trainer.should_stop = True


def test_a_fit_that_is_stopped_early_says_so_once(classification):
    training, said = trained(classification(max_epochs=2, callbacks=[StopAt(3)]))
    assert training.updates == 3
    (text,) = said
    assert "ended after 3 updates" in text
    assert "planned for 12: the lr is still at 75% of its start" in text


@pytest.mark.parametrize("options", [{"calr": False}, {"total_steps": 3}])
def test_a_fit_that_reaches_the_end_of_its_decay_says_nothing(options, classification):
    evaluator = classification(max_epochs=2, callbacks=[StopAt(3)])
    training, said = trained(evaluator, dynamic(RandomOneShot(), **options))
    assert training.updates == 3
    assert not said


def test_an_interrupted_fit_says_nothing(classification):
    evaluator = classification(max_epochs=2, callbacks=[StopAt(3, KeyboardInterrupt())])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the training has ended")
        with pytest.raises(SystemExit):  # of Lightning
            fit(dynamic(RandomOneShot()), evaluator)


def test_updates_that_grad_scaler_skips_are_not_missing(classification):
    plugin = MixedPrecision("bf16-mixed", "cpu")
    plugin.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    evaluator = classification(max_epochs=2, plugins=[plugin])
    step = type(evaluator.module).training_step
    evaluator.module.training_step = lambda *batch: 100 * step(evaluator.module, *batch)
    training, said = trained(evaluator)
    assert training.updates < training.calr.total_steps == 12  # the first steps overflow
    assert not said


def test_another_fit_of_a_trainer_is_planned_from_where_it_stands(classification):
    evaluator = classification()
    _, trainer, _ = fit(dynamic(RandomOneShot()), evaluator)
    trainer.fit_loop.max_epochs = 3
    module = trainer.lightning_module
    trainer.fit(module, evaluator.train_dataloaders, evaluator.val_dataloaders)
    training = training_of(trainer)
    assert training.calr.total_steps == training.updates == 12


def test_a_resumed_fit_has_the_total_steps_of_the_whole_training(classification, tmp_path):
    def options():
        return {"callbacks": [GradientAccumulationScheduler({1: 4})], "enable_checkpointing": True}

    _, trainer, _ = fit(
        dynamic(RandomOneShot(), total_steps=10), classification(max_epochs=2, **options())
    )
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    evaluator = classification(max_epochs=3, **options())
    evaluator.fit_kwargs["ckpt_path"] = tmp_path / "two.ckpt"
    training, said = trained(evaluator)
    assert training.calr.total_steps == training.updates == 10
    assert not said


class Remade(pl.LightningDataModule):
    """A loader for each epoch, of as many batches as are told."""

    def __init__(self, *batches):
        super().__init__()
        self.batches = batches

    def train_dataloader(self):
        return loader(self.batches[self.trainer.current_epoch])

    def val_dataloader(self):
        return loader(1)


@pytest.fixture
def remade(classification):
    def build(*batches):
        given = classification()
        options = given.trainer.trace_kwargs | {
            "max_epochs": len(batches),
            "reload_dataloaders_every_n_epochs": 1,
        }
        return Lightning(given.module, Trainer(**options), datamodule=Remade(*batches))

    return build


def test_loaders_that_are_made_anew(remade):
    training, said = trained(remade(4, 4, 4))
    assert training.calr.total_steps == training.updates == 12
    assert not said


def test_loaders_that_grow_are_refused_when_they_have_grown(remade):
    evaluator = remade(4, 4, 6, 6)
    with pytest.raises(ValueError, match=r"20 updates are to be made in all.*planned for 16"):
        trained(evaluator)
    assert evaluator.trainer.global_step == 8
    training, _ = trained(remade(4, 6), dynamic(RandomOneShot(), total_steps=10))
    assert training.updates == 10


def test_loaders_that_are_made_anew_without_an_end_do_not_matter_to_a_static_training(remade):
    evaluator = remade(4, 6)
    evaluator.trainer.fit_loop.max_epochs = -1
    evaluator.trainer.callbacks.append(StopAt(10))
    training, _ = trained(evaluator, dynamic(RandomOneShot(), calr=False))
    assert training.updates == 10


def test_loaders_that_shrink_are_told_of_at_the_end(remade):
    _, said = trained(remade(4, 2))
    assert "after 6 updates" in said[0]
    assert "planned for 8" in said[0]


def test_curve_scheduler_needs_a_scheduler(classification):
    evaluator = classification()
    with pytest.raises(ValueError, match=r"there is none here.*from configure_optimizers"):
        fit(dynamic(RandomOneShot(), curve="scheduler"), evaluator)
    assert evaluator.trainer.global_step == 0
    fit(dynamic(RandomOneShot(), curve="scheduler", calr=False), classification())


def test_any_scheduler_will_do_for_curve_scheduler(classification):
    def of_the_trainer(optimizer):
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"scheduler": plateau, "monitor": "train_loss"}

    def stepped_by_hand(optimizer):
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)

    for schedule in (of_the_trainer, stepped_by_hand):
        evaluator = classification()
        module = evaluator.module

        def configure(module=module, schedule=schedule):
            optimizer = type(module).configure_optimizers(module)
            config = schedule(optimizer)
            return {"optimizer": optimizer} | ({"lr_scheduler": config} if config else {})

        module.configure_optimizers = configure
        fit(dynamic(RandomOneShot(), curve="scheduler"), evaluator)
