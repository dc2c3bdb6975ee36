"""NNI's own resume equals an unbroken experiment, to the bit, however that was stopped."""

from __future__ import annotations

import atexit
import signal
import uuid

import pytest

pytest.importorskip("nni")
import pytorch_lightning as pl
import torch
from nni.nas.evaluator.pytorch import DataLoader
from nni.nas.experiment import NasExperiment
from nni.nas.hub.pytorch import NasBench201
from nni.nas.strategy import RandomOneShot
from pytorch_lightning.callbacks import ModelCheckpoint

from nas_dynamic.adapters.nni import SandwichOneShot, dynamic
from tests.nni.runs import same_weights, training_of

pytestmark = pytest.mark.host


class Killed(BaseException):
    """Leaves what a kill leaves: NNI does not come to write a state again."""


class Interrupt(pl.Callback):
    def __init__(self, step, how):
        self.step, self.how = step, how

    def on_train_batch_end(self, trainer, *arguments):
        if trainer.global_step == self.step:
            raise self.how


class Epochs(pl.Callback):
    def __init__(self):
        self.seen = []

    def on_train_epoch_start(self, trainer, module):
        self.seen.append(trainer.current_epoch)


@pytest.fixture
def experiment(classification, tmp_path):
    """Build an experiment of this test, in new objects, and run it or resume it."""
    handler, name = signal.getsignal(signal.SIGINT), uuid.uuid4().hex[:8]

    def start(
        how,
        *,
        folder="run",
        until=None,
        strategy=RandomOneShot,
        checkpoint=True,
        ckpt=None,
        **options,
    ):
        torch.manual_seed(0)
        shuffled = classification().train_dataloaders.dataset
        epochs = Epochs()
        callbacks = [epochs, *([Interrupt(*until)] if until else [])]
        if checkpoint == "folder of the user's":
            callbacks.append(ModelCheckpoint(tmp_path / folder / "user", save_last=True))
        defaults = {
            "max_epochs": 3,
            "train_dataloaders": DataLoader(shuffled, 4, shuffle=True),
            "enable_checkpointing": bool(checkpoint),
            "logger": checkpoint == "folder of the logger",
            "default_root_dir": str(tmp_path / folder),
            "callbacks": callbacks,
        }
        evaluator = classification(**(defaults | options))
        evaluator.fit_kwargs["ckpt_path"] = ckpt
        built = NasExperiment(
            NasBench201(4, 1, 10), evaluator, dynamic(strategy()), id=f"{name}-{folder}"
        )
        built.config.experiment_working_directory = tmp_path / folder
        try:
            getattr(built, how)()
        except SystemExit:  # of Lightning, after Ctrl-C; NNI stops the experiment at exit then
            pass
        except Killed:
            return epochs.seen, None, evaluator
        finally:
            atexit.unregister(built.stop)
        built.stop()
        return epochs.seen, built.strategy.supernet, evaluator

    yield start
    signal.signal(signal.SIGINT, handler)  # which Lightning takes away


@pytest.mark.parametrize(
    ("how", "checkpoint"),
    [
        (Killed(), "folder of the logger"),
        (Killed(), "folder of the user's"),
        (Killed(), True),
        (KeyboardInterrupt(), "folder of the logger"),
    ],
)
def test_resume_equals_an_unbroken_experiment(how, checkpoint, experiment):
    options = {"checkpoint": checkpoint}
    _, unbroken, _ = experiment("run", folder="unbroken", **options)
    experiment("run", until=(8, how), **options)
    seen, _, _ = experiment("resume", until=(15, how), **options)
    assert seen == [1, 2]
    seen, resumed, evaluator = experiment("resume", **options)
    assert seen == [2]
    assert training_of(evaluator.trainer).updates == 18
    assert same_weights(resumed, unbroken)


def test_resume_of_a_sampler_of_several_subnets(experiment):
    options = {"strategy": SandwichOneShot}
    _, unbroken, _ = experiment("run", folder="unbroken", **options)
    experiment("run", until=(8, Killed()), **options)
    seen, resumed, _ = experiment("resume", **options)
    assert seen == [1, 2]
    assert same_weights(resumed, unbroken)


def test_resume_takes_no_other_training_and_no_part_of_a_file(experiment, tmp_path, caplog):
    _, unbroken, _ = experiment("run", folder="unbroken")
    experiment("run", until=(8, Killed()))
    folder = tmp_path / "run" / "checkpoints"
    (other,) = (tmp_path / "unbroken" / "checkpoints").glob("*.ckpt")
    (folder / "other.ckpt").write_bytes(other.read_bytes())
    (folder / "part.ckpt").write_bytes(other.read_bytes()[:1000])
    seen, resumed, _ = experiment("resume")
    assert seen == [1, 2]
    assert "part.ckpt cannot be read, and is passed over" in caplog.text
    assert same_weights(resumed, unbroken)


def test_resume_of_a_finished_training_trains_nothing_and_reports(experiment):
    _, finished, _ = experiment("run")
    seen, resumed, evaluator = experiment("resume")
    assert not seen
    assert evaluator.trainer.callback_metrics["val_acc"] >= 0
    assert same_weights(resumed, finished)


def test_resume_without_a_checkpoint_says_so(experiment, caplog):
    experiment("run", until=(8, Killed()), checkpoint=False)
    seen, _, _ = experiment("resume", checkpoint=False)
    assert seen == [0, 1, 2]
    assert "no checkpoint of this experiment is there (in no folder)" in caplog.text
    assert "enable_checkpointing" in caplog.text


def test_the_checkpoint_of_the_user_goes_first(experiment, tmp_path, caplog):
    experiment("run", until=(15, Killed()))
    (given,) = (tmp_path / "run" / "checkpoints").glob("*.ckpt")
    experiment("run", folder="other", until=(8, Killed()))
    seen, _, _ = experiment("resume", folder="other", ckpt=given)
    assert seen == [2]
    assert f"goes on from {given}, the ckpt_path that is given" in caplog.text
