from __future__ import annotations

import atexit
import copy
import dataclasses
import inspect
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from nni.nas.experiment import NasExperiment
from nni.nas.hub.pytorch import NasBench201
from nni.nas.oneshot.pytorch.supermodule.sampling import PathSamplingLayer
from nni.nas.strategy import (
    DARTS,
    GumbelDARTS,
    RandomOneShot,
    RegularizedEvolution,
)
from torch.nn.functional import cross_entropy

from nas_dynamic.adapters.nni import SandwichOneShot, activate, dynamic
from nas_dynamic.host import Options
from tests.nni.runs import callback_of, fit, same_weights, training_of

pytestmark = pytest.mark.host


def test_one_line_in_an_experiment(classification, tmp_path):
    model_space = NasBench201(4, 1, 10)
    evaluator = classification(max_epochs=2)
    strategy = dynamic(RandomOneShot())
    experiment = NasExperiment(model_space, evaluator, strategy)
    experiment.config.experiment_working_directory = tmp_path
    experiment.run()
    experiment.stop()
    atexit.unregister(experiment.stop)  # it would log to the stream that pytest has closed
    training = training_of(evaluator.trainer)
    assert training.updates == training.calr.total_steps == 12
    assert not training.groups, "one momentum is the default"


def test_every_hub_space_trains_the_sampled_subnet(hub, classification):
    build, shape = hub
    evaluator = classification(shape, examples=12)
    supernet, trainer, recorder = fit(dynamic(RandomOneShot()), evaluator, build())
    training = training_of(trainer)
    assert training.updates == 3
    for update, trained in zip(recorder.updates, recorder.trained, strict=True):
        training.space.validate(update.architecture)
        assert training.calr.c_min <= update.complexity <= training.calr.c_max
        for name, module in supernet.named_modules():
            if isinstance(module, PathSamplingLayer):
                others = set(module.names) - {update.architecture[module.label]}
                idle = tuple(f"{name}.{other}." for other in others)
                assert not any(parameter.startswith(idle) for parameter in trained)
    assert len({tuple(u.architecture.items()) for u in recorder.updates}) == 3


@pytest.mark.parametrize(
    ("idle", "options", "start"),
    [("coast", {}, 2), ("freeze", {}, 2), ("coast", {"keep_mean_lr": False}, 1)],
)
def test_equals_one_optimizer_a_group_with_the_formula_written_out(
    classification, idle, options, start
):
    evaluator = classification(max_epochs=3)
    supernet, trainer, recorder = fit(
        dynamic(RandomOneShot(), idle=idle, momentum=True, **options), evaluator
    )
    training = training_of(trainer)
    steps = training.calr.total_steps

    torch.manual_seed(0)
    reference = RandomOneShot().mutate_model(NasBench201(4, 1, 10))
    batches = list(evaluator.train_dataloaders) * 3
    optimizers = {}
    for step, ((x, y), update) in enumerate(zip(batches, recorder.updates, strict=True)):
        reference.train()
        reference.zero_grad(set_to_none=idle == "freeze")
        activate(reference, update.architecture)
        cross_entropy(reference(x), y).backward()
        optimizer = optimizers.setdefault(
            update.architecture["cell/0_3"],
            torch.optim.SGD(
                reference.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=1e-3
            ),
        )
        gamma = training.calr.gamma(update.architecture)
        optimizer.param_groups[0]["lr"] = 0.05 * (start * (1 - step / steps) ** gamma)
        optimizer.step()
    assert len(optimizers) > 1
    assert same_weights(supernet, reference)


def test_seed_decides_and_validation_does_not(classification):
    def architectures(seed, **kwargs):
        evaluator = classification(**kwargs)
        _, _, recorder = fit(dynamic(RandomOneShot(), seed=seed), evaluator)
        return [update.architecture for update in recorder.updates]

    often = architectures(1, val_check_interval=2, num_sanity_val_steps=2)
    assert architectures(1) == often
    assert architectures(2) != often


def test_static_options_leave_the_training_alone(classification):
    """Replaying the subnets through plain RandomOneShot gives the same weights."""
    static = dynamic(RandomOneShot(), calr=False, momentum=False, idle="freeze")
    supernet, _, recorder = fit(static, classification())
    assert all(update.lr == (0.05,) for update in recorder.updates)

    torch.manual_seed(0)
    plain = RandomOneShot()
    evaluator = classification(limit_val_batches=0)
    reference = plain.mutate_model(NasBench201(4, 1, 10))
    mutated = plain.mutate_evaluator(evaluator)
    sequence = iter([update.architecture for update in recorder.updates])
    mutated.module.resample = lambda: activate(reference, next(sequence))
    mutated.evaluate(reference)
    assert same_weights(supernet, reference)


def test_accumulated_batches_share_one_subnet(classification):
    evaluator = classification(accumulate_grad_batches=4, max_epochs=2)  # 6 batches: 4 + 2
    _, trainer, recorder = fit(dynamic(RandomOneShot()), evaluator)
    assert training_of(trainer).updates == 4
    # A second subnet in the same update would leave gradients outside of the recorded one.
    for update, trained in zip(recorder.updates, recorder.trained, strict=True):
        labels = {"layers.0.0": "cell/0_1", "layers.1.0": "cell/0_2", "layers.2.0": "cell/0_3"}
        for position, label in labels.items():
            touched = {n.split(".")[5] for n in trained if n.startswith(f"cells.0.{position}.")}
            assert touched <= {update.architecture[label]}


def test_checkpoint_is_plain_data(classification, tmp_path):
    evaluator = classification(enable_checkpointing=True)
    _, trainer, _ = fit(dynamic(RandomOneShot()), evaluator)
    trainer.save_checkpoint(tmp_path / "last.ckpt", weights_only=False)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["optimizer_states"][0]["dynamic_training"]["updates"] == 6


def test_checkpoint_of_another_definition_is_refused(classification, tmp_path):
    evaluator = classification(enable_checkpointing=True)
    _, trainer, _ = fit(dynamic(RandomOneShot()), evaluator)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    other = classification(max_epochs=2)
    other.fit_kwargs["ckpt_path"] = str(tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"calr\.total_steps is 6 in the checkpoint and 12 here"):
        fit(dynamic(RandomOneShot()), other)


def test_checkpoint_of_a_decay_that_started_elsewhere_is_refused(classification, tmp_path):
    evaluator = classification(enable_checkpointing=True)
    _, trainer, _ = fit(dynamic(RandomOneShot(), keep_mean_lr=False), evaluator)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    other = classification()
    other.fit_kwargs["ckpt_path"] = str(tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match=r"calr\.start is None .* 2\.0 here.*by keep_mean_lr"):
        fit(dynamic(RandomOneShot()), other)


def test_logs_what_the_updates_used(classification, tmp_path):
    logger = pl.loggers.CSVLogger(tmp_path, name="", version="")
    evaluator = classification(logger=logger, log_every_n_steps=2)
    _, _, recorder = fit(dynamic(RandomOneShot()), evaluator)
    logger.save()
    header, *lines = (tmp_path / "metrics.csv").read_text().splitlines()
    rows = [dict(zip(header.split(","), line.split(","), strict=True)) for line in lines]
    rows = [row for row in rows if row["dynamic/lr"]]
    assert [int(row["step"]) for row in rows] == [1, 3, 5]
    for row in rows:
        update = recorder.updates[int(row["step"])]
        assert float(row["dynamic/lr"]) == pytest.approx(update.lr[0])
        assert float(row["dynamic/gamma"]) == pytest.approx(update.gamma)
        assert float(row["dynamic/complexity"]) == update.complexity


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_precision(classification, precision):
    supernet, trainer, _ = fit(dynamic(RandomOneShot()), classification(precision=precision))
    assert training_of(trainer).updates == 6
    assert all(torch.isfinite(p).all() for p in supernet.parameters())


def test_macs_and_latency_like_complexities(classification):
    macs = dynamic(RandomOneShot(), complexity="macs", group_by="cell/0_1")
    _, trainer, _ = fit(macs, classification())
    training = training_of(trainer)
    assert training.momentum.group_by == "cell/0_1"
    assert training.calr.c_max > 2 * training.calr.c_min

    convolutions = dynamic(
        RandomOneShot(),
        complexity=lambda a: 1 + sum("conv" in op for op in a.values()),
        gamma_by="complexity",
    )
    _, trainer, _ = fit(convolutions, classification())
    calr = training_of(trainer).calr
    assert (calr.c_min, calr.c_max) == (1, 7)


def test_filter_of_the_strategy_holds(classification):
    strategy = dynamic(RandomOneShot(filter=lambda sample: sample["cell/0_1"] == "conv_3x3"))
    _, _, recorder = fit(strategy, classification())
    assert {update.architecture["cell/0_1"] for update in recorder.updates} == {"conv_3x3"}


class Stop(pl.Callback):
    def on_train_batch_end(self, trainer, *arguments):
        trainer.should_stop = trainer.global_step >= 12


@pytest.mark.parametrize("end", [{"max_epochs": 2}, {"max_epochs": -1, "callbacks": [Stop()]}])
def test_scheduler_of_the_evaluator_is_bent(end, classification):
    evaluator = classification(**end)
    module = evaluator.module
    build = type(module).configure_optimizers

    def with_cosine():
        optimizer = build(module)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    module.configure_optimizers = with_cosine
    _, _, recorder = fit(dynamic(RandomOneShot(), curve="scheduler"), evaluator)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(
        torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.05), 12
    )
    assert len(recorder.updates) == 12
    for update in recorder.updates:
        ratio = cosine.get_last_lr()[0] / 0.05
        assert update.lr[0] == pytest.approx(0.05 * ratio**update.gamma)
        cosine.optimizer.step()
        cosine.step()


def test_strategy_keeps_its_class_and_pickles():
    original = RandomOneShot()
    strategy = pickle.loads(pickle.dumps(dynamic(original, seed=3)))
    assert type(strategy) is RandomOneShot
    assert "mutate_evaluator" not in vars(original)
    assert strategy.mutate_evaluator.strategy is strategy
    assert copy.deepcopy(strategy).mutate_evaluator.seed == 3


@pytest.mark.parametrize("strategy", [DARTS, GumbelDARTS, RegularizedEvolution])
def test_strategy_without_one_sampled_subnet_is_refused(strategy):
    with pytest.raises(TypeError, match=strategy.__name__):
        dynamic(strategy())


def test_second_fit_starts_anew(classification):
    evaluator = classification()
    _, trainer, _ = fit(dynamic(RandomOneShot()), evaluator)
    callback = callback_of(trainer)
    first = callback.training
    assert "resample" not in vars(callback.sampling.module)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(callback.sampling.module, evaluator.train_dataloaders, evaluator.val_dataloaders)
    assert callback.training is not first
    assert not first.optimizer._optimizer_step_pre_hooks
    assert callback.training.updates == 6


def test_missing_momentum_warns_with_the_remedy(classification):
    evaluator = classification(optimizer=torch.optim.SGD)
    with pytest.warns(UserWarning, match=r"functools\.partial\(SGD, momentum=0\.9\)"):
        _, trainer, _ = fit(dynamic(RandomOneShot(), momentum=True), evaluator)
    assert training_of(trainer).momentum is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"complexity": "flops"}, "'parameters', 'macs' or a function"),
        ({"gamma_max": -1.0}, "gamma_max must be a positive number"),
        ({"curve": "linear"}, "choose one of polynomial"),
        ({"bounds": (5, 2), "gamma_by": "complexity"}, "reversed"),
        ({"gamma_by": "size"}, "gamma_by must be 'rank' or 'complexity'"),
        ({"bounds": (1, 9)}, "bounds are for γ by complexity"),
        ({"idle": "sleep"}, "idle must be"),
        ({"anneal": "momentum"}, "anneal must be 'lr' or 'loss'"),
        ({"max_groups": 0}, "max_groups must be at least 1"),
        ({"check_ranks_every": 0}, "must be 1 or more, got 0"),
    ],
)
def test_bad_options_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        dynamic(RandomOneShot(), **options)


def test_every_option_is_documented():
    table = (Path(__file__).parents[2] / "docs" / "nni.md").read_text()
    for option in dataclasses.fields(Options):
        assert f"`{option.name}`" in table, option.name
        assert option.name in inspect.signature(dynamic).parameters


def test_an_option_that_there_is_not_is_refused_at_once():
    with pytest.raises(TypeError, match="no option 'gama_max'; did you mean gamma_max"):
        dynamic(RandomOneShot(), gama_max=3.0)


def test_a_label_that_there_is_not_is_refused_before_the_training(classification):
    with pytest.raises(ValueError, match="labels are 'cell/0_1'"):
        fit(dynamic(RandomOneShot(), group_by="layer9"), classification())


def test_gamma_by_rank_leaves_the_mean_of_log_gamma_at_0(classification):
    _, trainer, recorder = fit(dynamic(RandomOneShot()), classification())
    training = training_of(trainer)
    generator = np.random.default_rng(1)
    gammas = [training.calr.gamma(training.space.sample(generator)) for _ in range(2000)]
    assert np.mean(np.log(gammas)) == pytest.approx(0, abs=0.1)
    assert min(gammas) < 0.3 < 3 < max(gammas)
    for update in recorder.updates:
        assert update.gamma == training.calr.gamma(update.architecture)


def test_gamma_by_rank_is_by_the_rank_among_subnets_that_pass_the_filter(classification):
    def valid(sample):
        return "conv_3x3" not in sample.values()

    strategy = dynamic(RandomOneShot(filter=valid))
    _, trainer, recorder = fit(strategy, classification())
    training = training_of(trainer)
    subnets = [a for a in training.space if valid(a)]
    gammas = [training.calr.gamma(architecture) for architecture in subnets]
    assert len(subnets) == 4**6
    assert np.mean(np.log(gammas)) == pytest.approx(0, abs=0.1)
    assert all(valid(update.architecture) for update in recorder.updates)


def test_gamma_by_rank_counts_the_subnets_of_a_sampler_as_often_as_it_draws_them(classification):
    strategy = dynamic(SandwichOneShot(randoms=2), momentum=False)
    _, trainer, _ = fit(strategy, classification())
    calr = training_of(trainer).calr
    # A quarter of all subnets is the largest, so that the middle of them has the rank 7/8.
    assert calr.gamma_of(calr.c_max) == pytest.approx(4 ** (1 - 2 * 7 / 8), rel=0.01)


def test_endless_trainer_is_refused(classification):
    with pytest.raises(ValueError, match="total_steps"):
        fit(dynamic(RandomOneShot()), classification(max_epochs=-1))


@pytest.mark.process
def test_strategies_work_when_imported_after_the_adapter():
    """NNI puts a placeholder for its strategies if its internals are imported first."""
    code = (
        "from nas_dynamic.adapters.nni import dynamic\n"
        "from nni.nas.strategy import RandomOneShot\n"
        "print(type(dynamic(RandomOneShot())).__name__)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "RandomOneShot", result.stderr


@pytest.mark.process
def test_missing_nni_names_the_extra():
    code = "import sys; sys.modules['nni'] = None; import nas_dynamic.adapters.nni"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'nas-dynamic[nni]'" in result.stderr
