"""Which subnets are drawn, against NNI's own drawing, and how often one is activated for it."""

from __future__ import annotations

import pickle
from collections import Counter

import numpy as np
import pytest
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from nni.nas.strategy import RandomOneShot

from nas_dynamic.adapters.nni import FairOneShot, dynamic
from nas_dynamic.adapters.nni.sampling import Sampling, SeededSampling
from nas_dynamic.adapters.nni.space import architecture_of
from tests.nni.conftest import HUB
from tests.nni.runs import fit, training_of

pytestmark = pytest.mark.host


def every_other(sample):
    """Hold for about half of the subnets of any space."""
    return sum(map(ord, str(sorted((str(k), v) for k, v in sample.items())))) % 2 == 0


def drawn_by_nni(supernet, count, seed, stream, valid):
    """Draw by NNI's own `random` of every choice, asked anew for each draw."""
    generator = np.random.RandomState(np.random.SeedSequence([seed, stream]).generate_state(4))
    drawn = []
    while len(drawn) < count:
        sample = {}
        for choice in supernet.simplify().values():
            choice.random(memo=sample, random_state=generator)
        if valid is None or valid(sample):
            drawn.append(architecture_of(sample, supernet))
    return drawn


@pytest.mark.parametrize("valid", [None, every_other], ids=["all", "filter"])
@pytest.mark.parametrize(
    "hub", ["NasBench201", "ShuffleNet", "MobileNetV3", "DARTS", "tuples"], indirect=True
)
def test_a_seed_draws_what_nni_draws(hub, valid, classification, monkeypatch):
    drawn = {True: [], False: []}
    resample = SeededSampling.resample

    def recorded(self):
        sample = resample(self)
        drawn[self.module.trainer.training].append(architecture_of(sample, self.module.model))
        return sample

    monkeypatch.setattr(SeededSampling, "resample", recorded)
    build, shape = hub
    evaluator = classification(shape, examples=12, batch=2, val_check_interval=2)
    supernet, _, recorder = fit(dynamic(RandomOneShot(filter=valid), seed=5), evaluator, build())
    assert drawn[True] == drawn_by_nni(supernet, 6, 5, 0, valid)
    assert drawn[False] == drawn_by_nni(supernet, 3, 5, 1, valid)
    assert [update.architecture for update in recorder.updates] == drawn[True]


def count_activations(supernet):
    """Count the activations from now on, for each supernet module."""
    counts = Counter()
    for name, module in supernet.named_modules():
        if isinstance(module, BaseSuperNetModule):

            def counted(memo, name=name, resample=module.resample):
                counts[name] += 1
                return resample(memo=memo)

            module.resample = counted
    return counts


@pytest.mark.parametrize(
    ("strategy", "an_update"),
    [
        (RandomOneShot, 1),
        (lambda: RandomOneShot(filter=every_other), 1),
        (FairOneShot, 5),
    ],
    ids=["random", "filter", "fair"],
)
def test_a_subnet_is_activated_once(strategy, an_update, classification):
    strategy = dynamic(strategy())
    supernet = strategy.mutate_model(HUB["NasBench201"][0]())
    counts = count_activations(supernet)
    evaluator = strategy.mutate_evaluator(classification(val_check_interval=3))
    evaluator.evaluate(supernet)
    assert training_of(evaluator.trainer).updates == 6
    assert len(counts) > 6
    assert set(counts.values()) == {6 * an_update + 2}, "and one for each validation"


def test_a_filter_that_nothing_passes_is_given_up(classification):
    with pytest.raises(RuntimeError, match="after 100 attempts"):
        fit(
            dynamic(RandomOneShot(filter=lambda sample: False), gamma_by="complexity"),
            classification(),
        )


def test_a_second_supernet_is_sampled_from_its_own_space(classification):
    strategy = dynamic(RandomOneShot())
    evaluator = strategy.mutate_evaluator(classification())
    evaluator.evaluate(strategy.mutate_model(HUB["NasBench201"][0]()))
    evaluator.trainer.fit_loop.max_epochs = 2
    other = strategy.mutate_model(HUB["tuples"][0]())
    evaluator.evaluate(other)
    training = training_of(evaluator.trainer)
    assert training.updates == 6
    training.space.validate(training.last.architecture)
    assert "depth" in training.last.architecture


@pytest.mark.parametrize("strategy", [RandomOneShot, FairOneShot])
def test_a_sampling_pickles_with_its_module(strategy, classification):
    """As a trainer that starts processes by spawning needs it."""
    strategy = dynamic(strategy())
    supernet = strategy.mutate_model(HUB["NasBench201"][0]())
    mutated = strategy.mutate_evaluator(classification())
    mutated.module.set_model(supernet)
    (sampling,) = (c for c in mutated.trainer.callbacks if isinstance(c, Sampling))
    copied = pickle.loads(pickle.dumps(sampling))
    assert type(copied) is type(sampling)
    assert copied.module.model is not supernet
    assert copied.space == sampling.space
