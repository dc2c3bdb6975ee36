"""Search over a supernet of NNI, with inherited weights."""

from __future__ import annotations

import pytest
from nni.nas.hub.pytorch import NasBench201
from nni.nas.strategy import RandomOneShot

from nas_dynamic.adapters.nni import activate, search_space, subnet_parameters
from nas_dynamic.evaluation import score_subnets
from nas_dynamic.experiment.data import batch_loader, calibration_batches
from nas_dynamic.experiment.data_sets import digits
from nas_dynamic.search import Evolution, Objective, search

pytestmark = pytest.mark.host


def test_a_search_keeps_what_scoring_alone_gives(tmp_path):
    data = digits(seed=0)
    supernet = RandomOneShot().mutate_model(NasBench201(4, 1, data.classes))
    parameters, space = subnet_parameters(supernet), search_space(supernet)
    limit = parameters(space.largest(parameters)) - 1
    batches = list(batch_loader(data.validation, 128))[:1]
    calibration = calibration_batches(data.train, 64, 1)

    def score(architectures):
        for scored in score_subnets(
            supernet,
            activate,
            architectures,
            batches,
            calibration=calibration,
        ):
            yield {"accuracy": scored.accuracy, "loss": scored.loss}

    options = {
        "strategy": Evolution(population=6, offspring=3),
        "measures": {"parameters": parameters},
        "at_most": {"parameters": limit},
        "path": tmp_path / "search.jsonl",
    }
    objectives = [Objective("loss"), Objective("parameters")]
    search(space, score, objectives, budget=5, **options)
    result = search(space, score, objectives, budget=12, **options)
    assert len(result.evaluations) == 12
    alone = list(score([evaluation.architecture for evaluation in result.evaluations]))
    for evaluation, scored in zip(result.evaluations, alone, strict=True):
        size = parameters(evaluation.architecture)
        assert evaluation.values == scored | {"parameters": size}
        assert size <= limit
    smallest = min(result.evaluations, key=lambda e: e.values["parameters"])
    assert smallest.values["parameters"] in [e.values["parameters"] for e in result.pareto]
