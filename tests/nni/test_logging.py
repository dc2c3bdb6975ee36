"""What dynamic training sends to Lightning's loggers, held against the formulas written out."""

from __future__ import annotations

import csv
import math
from collections import defaultdict

import pytest
import pytorch_lightning as pl
import torch
import yaml
from nni.nas.hub.pytorch import NasBench201
from nni.nas.strategy import RandomOneShot
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn.functional import cross_entropy

from nas_dynamic.adapters import lightning
from nas_dynamic.adapters.nni import (
    FairOneShot,
    activate,
    dynamic,
    search_space,
    subnet_parameters,
)
from tests.nni.runs import Recorder, fit

pytestmark = pytest.mark.host

UPDATES = 12


class WeightsRecorder(Recorder):
    """Weights before every update as well."""

    def __init__(self):
        super().__init__()
        self.weights = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx % trainer.accumulate_grad_batches == 0:
            state = pl_module.model.state_dict()
            self.weights.append({name: value.clone() for name, value in state.items()})


def recorded(strategy, evaluator):
    return fit(strategy, evaluator, recorder=WeightsRecorder())[2]


def logged_by_tensorboard(folder):
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: {event.step: event.value for event in events.Scalars(tag)}
        for tag in events.Tags()["scalars"]
        if tag.startswith("dynamic/")
    }


def logged_in_csv(folder):
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    tags = [tag for tag in rows[0] if tag.startswith("dynamic/")]
    return {
        tag: {int(row["step"]): float(row[tag]) for row in rows if row[tag] != ""} for tag in tags
    }


LOGGERS = {
    "tensorboard": (pl.loggers.TensorBoardLogger, logged_by_tensorboard),
    "csv": (pl.loggers.CSVLogger, logged_in_csv),
}


def losses(recorder, windows):
    """Mean loss of the subnets of every update, from its weights, by torch's own functions."""
    supernet = RandomOneShot().mutate_model(NasBench201(4, 1, 10)).train()
    values = []
    for weights, update, window in zip(recorder.weights, recorder.updates, windows, strict=True):
        found = []
        for subnet in update.subnets:
            supernet.load_state_dict(weights)  # running statistics as well
            activate(supernet, subnet.architecture)
            with torch.no_grad():
                found += [cross_entropy(supernet(x), y).item() for x, y in window]
        values.append(sum(found) / len(found))
    return values


def expected(recorder, values, every):
    """Compute by the formulas: lr, γ, and the mean loss of each group since the last logging."""
    supernet = RandomOneShot().mutate_model(NasBench201(4, 1, 10))
    parameters = subnet_parameters(supernet)
    sizes = [parameters(architecture) for architecture in search_space(supernet)]
    least, greatest = min(sizes), max(sizes)
    tags = defaultdict(dict)
    groups, pending = [], defaultdict(list)
    for t, (update, loss) in enumerate(zip(recorder.updates, values, strict=True)):
        group = update.subnets[0].architecture["cell/0_3"]
        groups += [group] if group not in groups else []
        pending[group].append(loss)
        if (t + 1) % every:
            continue
        complexities = [parameters(subnet.architecture) for subnet in update.subnets]
        gammas = [
            4 - (4 - 1 / 4) * math.log(size / least) / math.log(greatest / least)
            for size in complexities
        ]
        factor = sum((1 - t / UPDATES) ** gamma for gamma in gammas) / len(gammas)
        tags["dynamic/lr"][t] = 0.05 * factor
        tags["dynamic/gamma"][t] = sum(gammas) / len(gammas)
        tags["dynamic/complexity"][t] = sum(complexities) / len(complexities)
        tags["dynamic/group"][t] = groups.index(group)
        for name, its in pending.items():
            tags[f"dynamic/loss/cell/0_3={name}"][t] = sum(its) / len(its)
        pending.clear()
    return dict(tags)


@pytest.mark.parametrize("logger", LOGGERS)
@pytest.mark.parametrize("strategy", [RandomOneShot, FairOneShot])
def test_values_are_those_of_the_formulas(logger, strategy, classification, tmp_path):
    build, read = LOGGERS[logger]
    evaluator = classification(
        logger=build(tmp_path, name="", version=""), log_every_n_steps=4, max_epochs=2
    )
    recorder = recorded(dynamic(strategy(), gamma_by="complexity", momentum=True), evaluator)
    values = losses(recorder, [[batch] for batch in evaluator.train_dataloaders] * 2)
    wanted = expected(recorder, values, every=4)
    found = read(tmp_path)
    assert sum(tag.startswith("dynamic/loss/") for tag in wanted) > 2
    assert found.keys() == wanted.keys()
    for tag, points in wanted.items():
        assert found[tag] == pytest.approx(points, rel=1e-5), tag
    hyperparameters = yaml.safe_load((tmp_path / "hparams.yaml").read_text())
    assert hyperparameters["dynamic/group_by"] == "cell/0_3"


def losses_of_updates(folder):
    """Step → loss, of a log with one line an update."""
    of_updates = {}
    for tag, points in logged_in_csv(folder).items():
        if tag.startswith("dynamic/loss/"):
            assert not of_updates.keys() & points.keys()
            of_updates |= points
    return of_updates


def test_loss_of_an_update_of_several_batches(classification, tmp_path):
    logger = pl.loggers.CSVLogger(tmp_path, name="", version="")
    evaluator = classification(
        logger=logger, log_every_n_steps=1, max_epochs=2, accumulate_grad_batches=4
    )
    recorder = recorded(dynamic(RandomOneShot(), momentum=True), evaluator)
    batches = list(evaluator.train_dataloaders)
    values = losses(recorder, [batches[:4], batches[4:]] * 2)
    assert losses_of_updates(tmp_path) == pytest.approx(dict(enumerate(values)), rel=1e-5)


def test_the_loss_of_a_step_without_an_update_is_dropped(classification, tmp_path):
    class Skip(pl.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            if trainer.fit_loop.batch_idx == 1:
                optimizer.zero_grad()

    logger = pl.loggers.CSVLogger(tmp_path, name="", version="")
    evaluator = classification(logger=logger, log_every_n_steps=1, callbacks=[Skip()])
    recorder = recorded(dynamic(RandomOneShot(), momentum=True), evaluator)
    assert len(recorder.updates) == 5
    del recorder.weights[1]
    batches = [[batch] for batch in evaluator.train_dataloaders]
    values = losses(recorder, batches[:1] + batches[2:])
    assert losses_of_updates(tmp_path) == pytest.approx(dict(enumerate(values)), rel=1e-5)


def test_static_options_log_what_there_is(classification, tmp_path):
    logger = pl.loggers.CSVLogger(tmp_path, name="", version="")
    evaluator = classification(logger=logger, log_every_n_steps=3)
    recorded(dynamic(RandomOneShot(), calr=False, momentum=False), evaluator)
    assert logged_in_csv(tmp_path) == {"dynamic/lr": {2: 0.05, 5: 0.05}}


@pytest.mark.parametrize("every", [0, 1000])
def test_losses_are_read_at_logging_steps_only(every, classification, tmp_path, monkeypatch):
    """A tensor on the meta device has no value: reading it raises."""

    def fit_without_values(every):
        logger = pl.loggers.CSVLogger(tmp_path, name="", version="")
        return recorded(
            dynamic(RandomOneShot(), momentum=True),
            classification(logger=logger, log_every_n_steps=every),
        )

    unreadable = torch.zeros((), device="meta")
    monkeypatch.setattr(lightning, "unweighted_loss", lambda outputs, trainer: unreadable)
    assert len(fit_without_values(every).updates) == 6
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        fit_without_values(3)


def test_without_a_logger_losses_are_not_looked_at(classification, monkeypatch):
    monkeypatch.delattr(lightning, "unweighted_loss")
    assert len(recorded(dynamic(RandomOneShot()), classification(logger=False)).updates) == 6
