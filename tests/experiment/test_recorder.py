"""What a training records: right, bounded, and whole after a stop."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from nas_dynamic.experiment.config import parse
from nas_dynamic.experiment.nni import recorder as recording
from nas_dynamic.experiment.nni.recorder import TrainingRecorder
from nas_dynamic.experiment.nni.supernet import train_supernet
from nas_dynamic.experiment.run import load_data
from tests.attach.reference import assert_identical

pytestmark = pytest.mark.host


def train(folder=None, progress=lambda *_: None, **changes):
    return trained(folder, progress, **changes).recorder


def trained(folder=None, progress=lambda *_: None, **changes):
    config = parse(
        {
            "space": {
                "name": "NasBench201",
                "kwargs": {"stem_out_channels": 2, "num_modules_per_stack": 1},
            },
            "data": {"name": "digits", "validation": 0.4, "test": 0.8},
            "batch_size": 27,
            "device": "cpu",
            "dynamic": {"momentum": True},
        }
        | changes
    )
    return train_supernet(config, load_data(config.data), 0, progress=progress, folder=folder)


@pytest.fixture
def small_bounds(monkeypatch):
    monkeypatch.setattr(recording, "MAX_ROWS", 8)
    monkeypatch.setattr(recording, "MAX_PAIRS", 6)
    monkeypatch.setattr(recording, "LEAST_PAIR_DISTANCE", 2)


@pytest.mark.parametrize("steps", [5, 31, 90])
def test_record_is_bounded_and_counts_every_update(steps, small_bounds):
    trace = train(steps=steps)
    assert 4 <= len(trace.rows) <= 8
    assert 2 <= len(trace.pairs) <= 6
    assert trace.updates == sum(trace.groups.values()) == steps
    distances = {b["step"] - a["step"] for a, b in zip(trace.rows, trace.rows[1:], strict=False)}
    assert len(distances) == 1
    assert trace.rows[-1]["step"] + distances.pop() >= steps


def test_progress_is_told_of_every_update(small_bounds):
    told = []
    train(progress=lambda done, total, loss: told.append((done, total)), steps=21)
    assert told == [(done, 21) for done in range(1, 22)]


def test_pairs_and_groups_against_all_gradients(monkeypatch):
    monkeypatch.setattr(recording, "LEAST_PAIR_DISTANCE", 3)
    seen = []

    class Reference(TrainingRecorder):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            gradients = {
                name: p.grad.double().flatten().numpy().copy()
                for name, p in pl_module.named_parameters()
                if p.grad is not None
            }
            seen.append(gradients)
            super().on_before_optimizer_step(trainer, pl_module, optimizer)

        def on_train_batch_end(self, trainer, pl_module, *args):
            super().on_train_batch_end(trainer, pl_module, *args)
            seen[-1] = (self.training.last.group, seen[-1])

    monkeypatch.setattr("nas_dynamic.experiment.nni.supernet.TrainingRecorder", Reference)
    trace = train(steps=20)
    assert [pair["step"] for pair in trace.pairs] == [0, 3, 6, 9, 12, 15, 18]
    for pair in trace.pairs:
        (group, first), (other, second) = seen[pair["step"]], seen[pair["step"] + 1]
        shared = sorted(first.keys() & second.keys())
        assert 0 < len(shared) < len(first.keys() | second.keys())
        a, b = (np.concatenate([g[name] for name in shared]) for g in (first, second))
        assert pair["groups"] == [group, other]
        assert pair["cosine"] == pytest.approx(a @ b / np.sqrt((a @ a) * (b @ b)), abs=1e-5)
    assert trace.groups == Counter(group for group, _ in seen)
    assert trace.group_by in ("cell/0_3", "cell/0_1", "cell/0_2")


def test_without_momentum_separation_there_are_no_groups():
    trace = train(steps=12, dynamic={"momentum": False})
    assert (trace.updates, trace.groups, trace.group_by) == (12, {}, None)
    assert [pair["groups"] for pair in trace.pairs] == [[None, None]] * 2


@pytest.mark.parametrize(("options", "start"), [({}, 1), ({"keep_mean_lr": True}, 2)])
def test_the_decay_starts_at_the_lr_of_the_configuration(options, start):
    trace = train(steps=3, dynamic=options)
    for row in trace.rows:
        assert row["lr"] == pytest.approx(0.025 * start * (1 - row["step"] / 3) ** row["gamma"])


class Stop(Exception):
    pass


def test_a_resumed_training_has_the_record_of_an_unbroken_one(tmp_path, small_bounds):
    straight = train(tmp_path / "straight", epochs=4)

    def stop_in_third_epoch(done, total, loss):
        if done > total * 5 // 8:
            raise Stop

    with pytest.raises(Stop):
        train(tmp_path / "stopped", stop_in_third_epoch, epochs=4)
    resumed = train(tmp_path / "stopped", epochs=4)
    for name in ("rows", "updates", "groups", "group_by"):
        assert getattr(resumed, name) == getattr(straight, name), name
    # A pair that the stop divided is lost, and no other one.
    assert all(pair in straight.pairs for pair in resumed.pairs)
    assert len(straight.pairs) - len(resumed.pairs) <= 1

    # All epochs were done, and only the scores were not: nothing is trained or counted again.
    again = train(tmp_path / "stopped", epochs=4)
    assert (again.rows, again.updates, again.group_by) == (
        resumed.rows,
        resumed.updates,
        resumed.group_by,
    )
    assert again.cost.seconds <= resumed.cost.seconds


@pytest.mark.parametrize(
    "scheduler",
    [
        {"name": "StepLR", "kwargs": {"step_size": 1, "gamma": 0.5}, "interval": "epoch"},
        {"name": "LinearLR", "kwargs": {"total_iters": 20}, "interval": "step"},
    ],
    ids=["epoch", "step"],
)
@pytest.mark.parametrize("budget", [{"epochs": 4}, {"steps": 28}, {"steps": 25}], ids=str)
def test_any_budget_is_resumed_to_the_bit(budget, scheduler, tmp_path):
    batches, stop_at = 7, 16
    steps = budget.get("steps", 4 * batches)
    changes = budget | {"scheduler": scheduler}
    unbroken = trained(**changes)
    assert [row["step"] for row in unbroken.recorder.rows] == list(range(steps))

    def stop(done, total, loss):
        assert total == steps
        if done == stop_at:
            raise Stop

    with pytest.raises(Stop):
        trained(tmp_path, stop, **changes)
    told = []
    resumed = trained(tmp_path, lambda done, total, loss: told.append(done), **changes)
    assert told == list(range(2 * batches + 1, steps + 1))
    told.clear()
    again = trained(tmp_path, lambda done, total, loss: told.append(done), **changes)
    assert told == []
    for other in (resumed, again):
        assert other.recorder.rows == unbroken.recorder.rows
        assert_identical(other.supernet.state_dict(), unbroken.supernet.state_dict())


def test_a_loss_that_is_not_finite_is_none():
    optimizer = {"kwargs": {"lr": 1e30, "momentum": 0.9}}
    trace = train(steps=12, optimizer=optimizer, dynamic={"nonfinite": "ignore"})
    assert trace.rows[0]["loss"] > 0
    assert trace.rows[-1]["loss"] is None
    assert all(np.isfinite(pair["cosine"]) for pair in trace.pairs)
