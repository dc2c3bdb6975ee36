"""A fused timm supernet in NNI."""

from __future__ import annotations

import atexit
import functools

import pytest

pytest.importorskip("nni")
import nni
import torch
from nni.nas.evaluator import FunctionalEvaluator
from nni.nas.evaluator.pytorch import Classification, DataLoader
from nni.nas.experiment import NasExperiment, NasExperimentConfig
from nni.nas.strategy import RandomOneShot, RegularizedEvolution

from nas_dynamic.adapters.nni import (
    DynamicCallback,
    SupernetEvaluator,
    activate,
    dynamic,
    search_space,
)
from nas_dynamic.adapters.nni import subnet_parameters as nni_subnet_parameters
from nas_dynamic.adapters.timm import elastic_vit
from nas_dynamic.adapters.timm.nni import model_space
from nas_dynamic.evaluation import score_subnets
from tests.timm.loop import GROUP, batches, tiny_supernet

pytestmark = pytest.mark.host


@pytest.fixture
def evaluator(tmp_path):
    data = [(x, y) for xs, ys in batches(3) for x, y in zip(xs, ys, strict=True)]
    return Classification(
        num_classes=4,
        learning_rate=0.05,
        weight_decay=1e-3,
        optimizer=functools.partial(torch.optim.SGD, momentum=0.9),
        train_dataloaders=DataLoader(data, batch_size=4),
        val_dataloaders=DataLoader(data, batch_size=4),
        max_epochs=2,
        accelerator="cpu",
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=False,
    )


def test_spaces_agree():
    supernet = tiny_supernet()
    space = model_space(supernet)
    assert search_space(space) == supernet.space
    x = torch.randn(2, 3, 16, 16)
    supernet.eval()
    for architecture in list(supernet.space)[::57]:
        supernet.activate(architecture)
        with torch.no_grad():
            assert torch.equal(space.freeze(architecture).eval()(x), supernet(x))


def test_dynamic_experiment_and_back_to_timm(evaluator, tmp_path):
    supernet = tiny_supernet()
    space = model_space(supernet)
    strategy = dynamic(RandomOneShot(), group_by=GROUP)
    experiment = NasExperiment(space, evaluator, strategy)
    experiment.config.experiment_working_directory = tmp_path
    experiment.run()
    experiment.stop()
    atexit.unregister(experiment.stop)  # it would log to the stream that pytest has closed
    (callback,) = (c for c in evaluator.trainer.callbacks if isinstance(c, DynamicCallback))
    assert callback.training.updates == 6
    assert callback.training.space == supernet.space

    trained = strategy.supernet
    before = supernet.state_dict()["conv_stem.weight"].clone()
    supernet.load_state_dict(trained.model.state_dict())
    assert not torch.equal(before, supernet.state_dict()["conv_stem.weight"])
    count = nni_subnet_parameters(trained)
    x = torch.randn(2, 3, 16, 16)
    trained.eval()
    supernet.eval()
    for architecture in list(supernet.space)[::57]:
        activate(trained, architecture)
        with torch.no_grad():
            assert torch.equal(supernet.extract(architecture)(x), trained(x))
        assert count(architecture) == supernet.subnet_parameters()(architecture)


@pytest.mark.parametrize("trained", [False, True])
def test_search_strategies_of_nni_run_on_the_space(trained, tmp_path):
    supernet = tiny_supernet()
    space, data = model_space(supernet), batches(2)
    if trained:  # candidates are scored with the weights that they inherit
        space = RandomOneShot().mutate_model(space)
        evaluator = SupernetEvaluator(data, calibration=data, reward=lambda score: -score.loss)
        config = None
    else:  # NNI builds each candidate
        parameters = supernet.subnet_parameters()

        def report(model):
            nni.report_final_result(-sum(p.numel() for p in model.parameters()))

        evaluator = FunctionalEvaluator(report)
        config = NasExperimentConfig(execution_engine="sequential", model_format="raw")
    strategy = RegularizedEvolution(population_size=4, sample_size=2)
    experiment = NasExperiment(space, evaluator, strategy, config)
    experiment.config.max_trial_number = 6
    experiment.config.experiment_working_directory = tmp_path
    experiment.run()
    models = list(strategy.list_models())
    (top,) = experiment.export_top_models(1, formatter="dict")
    experiment.stop()
    atexit.unregister(experiment.stop)  # it would log to the stream that pytest has closed
    assert len(models) >= 5
    best = max(model.metric for model in models)
    supernet.space.validate(top)
    if not trained:
        assert -parameters(top) == best
        return
    supernet.eval()
    (score,) = score_subnets(supernet, type(supernet).activate, [top], data, calibration=data)
    assert -score.loss == best


def test_sliced_supernet_is_refused():
    with pytest.raises(TypeError, match="has no layer choices"):
        model_space(elastic_vit("test_vit", heads=(1, 2)))
