"""NNI's own search strategies on a supernet, in experiments."""

from __future__ import annotations

import atexit
import pickle

import pytest
import torch
from nni.nas.evaluator import FunctionalEvaluator
from nni.nas.experiment import NasExperiment
from nni.nas.hub.pytorch import NasBench201
from nni.nas.strategy import TPE, PolicyBasedRL, Random, RandomOneShot, RegularizedEvolution

from nas_dynamic.adapters.nni import (
    SupernetEvaluator,
    activate,
    dynamic,
    extract,
    search_space,
    subnet_parameters,
)
from nas_dynamic.evaluation import score_subnets
from nas_dynamic.experiment.data import batch_loader, calibration_batches
from nas_dynamic.experiment.data_sets import digits
from tests.nni.conftest import HUB
from tests.nni.test_strategies import needs_tianshou

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def batches():
    """Images to score on, and to recalibrate on."""
    data = digits(seed=0)
    return list(batch_loader(data.validation, 128))[:1], calibration_batches(data.train, 64, 1)


@pytest.fixture
def search(tmp_path):
    """Run an experiment to its end."""

    def run(supernet, evaluator, strategy, candidates):
        experiment = NasExperiment(supernet, evaluator, strategy)
        experiment.config.max_trial_number = candidates
        experiment.config.experiment_working_directory = tmp_path
        try:
            experiment.run()
        finally:
            experiment.stop()
            atexit.unregister(experiment.stop)  # it would log to the stream that pytest has closed
        return experiment

    return run


def supernet_of(name="NasBench201"):
    torch.manual_seed(0)
    return RandomOneShot().mutate_model(HUB[name][0]())


def sample_from(model_space):
    sample = {}
    model_space.random(memo=sample)
    return sample


STRATEGIES = {
    "random": lambda: Random(seed=0),
    "evolution": lambda: RegularizedEvolution(population_size=3, sample_size=2, seed=0),
    "tpe": lambda: TPE(seed=0),
    "rl": pytest.param(lambda: PolicyBasedRL(samples_per_update=2), marks=needs_tianshou),
}


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_a_search_ends_in_a_model_with_what_it_scored(strategy, search, batches):
    validation, calibration = batches
    supernet = supernet_of()
    before = {key: value.clone() for key, value in supernet.state_dict().items()}
    evaluator = SupernetEvaluator(validation, calibration=calibration)
    experiment = search(supernet, evaluator, strategy(), 5)
    assert experiment.config.execution_engine.name == "sequential"

    # The candidates got the scores that they get without NNI.
    models = list(experiment.strategy.list_models(sort=False))
    samples = [model.sample for model in models]
    assert len(samples) == 5
    alone = score_subnets(supernet, activate, samples, validation, calibration=calibration)
    by_candidate = {tuple(s.architecture.items()): s for s in alone}
    for model in models:
        assert model.metric == by_candidate[tuple(model.sample.items())].accuracy
    assert len(evaluator.scores) == len(by_candidate)

    (best,) = experiment.export_top_models(formatter="dict")
    (subnet,) = experiment.export_top_models(formatter="instance")
    assert by_candidate[tuple(best.items())].accuracy == max(s.accuracy for s in evaluator.scores)
    assert sum(p.numel() for p in subnet.parameters()) == subnet_parameters(supernet)(best)
    assert len(pickle.dumps(subnet)) < len(pickle.dumps(supernet)) / 2
    supernet.eval()
    activate(supernet, best)
    images = validation[0][0]
    with torch.no_grad():
        assert torch.equal(subnet.eval()(images), supernet(images))
    for key, value in supernet.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_from_training_to_a_found_model(search, batches, classification):
    """As a user goes about it: one experiment trains, the next one searches."""
    validation, calibration = batches
    strategy = dynamic(RandomOneShot())
    search(NasBench201(4, 1, 10), classification(), strategy, 1)
    evaluator = SupernetEvaluator(validation, calibration=calibration)
    evolution = RegularizedEvolution(population_size=3, sample_size=2, mutation_prob=0.3, seed=0)
    experiment = search(strategy.supernet, evaluator, evolution, 6)
    assert len(evaluator.scores) == 6
    (best,) = experiment.export_top_models(formatter="dict")
    subnet = extract(strategy.supernet, best)
    assert evaluator.evaluate(subnet) == max(score.accuracy for score in evaluator.scores)


def test_choices_of_several_values(search):
    """Samples of DARTS have lists, where architectures have tuples."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, *HUB["DARTS"][1], generator=generator)
    batch = [(images, torch.arange(8))]
    supernet = supernet_of("DARTS")
    evaluator = SupernetEvaluator(batch, calibration=batch)
    experiment = search(supernet, evaluator, Random(seed=0), 3)
    (subnet,) = experiment.export_top_models(formatter="instance")
    assert evaluator.evaluate(subnet) == max(score.accuracy for score in evaluator.scores)
    for score in evaluator.scores:
        search_space(supernet).validate(score.architecture)


def test_reward(search, batches):
    validation, calibration = batches
    supernet = supernet_of()
    parameters = subnet_parameters(supernet)
    evaluator = SupernetEvaluator(
        validation,
        calibration=calibration,
        reward=lambda score: -parameters(score.architecture),
    )
    experiment = search(supernet, evaluator, Random(seed=0), 5)
    (best,) = experiment.export_top_models(formatter="dict")
    assert parameters(best) == min(parameters(score.architecture) for score in evaluator.scores)


@pytest.mark.parametrize("batch_norm", ["batch", "running"])
def test_other_statistics(batch_norm, batches):
    validation, _ = batches
    supernet = supernet_of()
    sample = sample_from(supernet)
    score = SupernetEvaluator(validation, batch_norm=batch_norm).score(supernet, sample)
    (alone,) = score_subnets(supernet, activate, [sample], validation, batch_norm=batch_norm)
    assert (score.accuracy, score.loss) == (alone.accuracy, alone.loss)


def test_candidates_are_scored_once(batches, monkeypatch):
    validation, calibration = batches
    supernet = supernet_of()
    evaluator = SupernetEvaluator(validation, calibration=calibration)
    sample = sample_from(supernet)
    first = evaluator.score(supernet, sample)
    monkeypatch.setattr(supernet, "forward", None)
    assert evaluator.score(supernet, dict(reversed(sample.items()))) is first


def test_another_supernet_is_scored_anew(batches):
    validation, calibration = batches
    first = supernet_of()
    torch.manual_seed(1)
    second = RandomOneShot().mutate_model(HUB["NasBench201"][0]())
    evaluator = SupernetEvaluator(validation, calibration=calibration)
    sample = sample_from(first)
    before = evaluator.score(first, sample)
    (alone,) = score_subnets(second, activate, [sample], validation, calibration=calibration)
    assert evaluator.score(second, sample).loss == alone.loss != before.loss
    assert len(evaluator.scores) == 1


def test_evaluator_pickles(batches):
    validation, calibration = batches
    supernet = supernet_of()
    evaluator = SupernetEvaluator(validation, calibration=calibration)
    copied = pickle.loads(pickle.dumps(evaluator))
    sample = sample_from(supernet)
    one, other = copied.score(supernet, sample), evaluator.score(supernet, sample)
    assert (one.accuracy, one.loss) == (other.accuracy, other.loss)


def test_refusals(search, batches):
    validation, calibration = batches
    with pytest.raises(ValueError, match="give calibration"):
        SupernetEvaluator(validation)
    with pytest.raises(ValueError, match="must be 'recalibrate', 'batch' or 'running', got 'own'"):
        SupernetEvaluator(validation, batch_norm="own")
    evaluator = SupernetEvaluator(validation, calibration=calibration)
    experiment = NasExperiment(NasBench201(4, 1, 10), evaluator, Random())
    space = experiment.executable_model_factory(experiment.config.model_format)
    sample = sample_from(NasBench201(4, 1, 10))
    with pytest.raises(TypeError, match=r"NasExperiment\(strategy\.supernet"):
        evaluator._execute(space.freeze(sample))


def test_a_supernet_is_searched_by_its_own_evaluator_only():
    """What the adapter relies on: NNI hands candidates to `_execute`, without building them."""
    supernet = supernet_of()
    experiment = NasExperiment(supernet, FunctionalEvaluator(len), Random())
    space = experiment.executable_model_factory(experiment.config.canonical_copy().model_format)
    assert space.freeze(sample_from(supernet)).model_space is supernet
