"""Search for the best subnets of a space, over anything that scores them."""

from __future__ import annotations

from nas_dynamic.search.ensembles import Ensemble, EnsemblesResult, search_ensembles
from nas_dynamic.search.evolution import Evolution, RandomSearch
from nas_dynamic.search.objective import Limits, MnasReward, Objective
from nas_dynamic.search.predictors import GradientBoosting, Predictor, PretrainedMLP, Regressor
from nas_dynamic.search.problem import Evaluations, Problem, Strategy
from nas_dynamic.search.result import Evaluation, SearchResult
from nas_dynamic.search.robot import RoBoT
from nas_dynamic.search.run import search
from nas_dynamic.search.supernet import search_supernet
from nas_dynamic.search.surrogate import Surrogate
from nas_dynamic.search.tasks import TasksResult, search_tasks

__all__ = [
    "Ensemble",
    "EnsemblesResult",
    "Evaluation",
    "Evaluations",
    "Evolution",
    "GradientBoosting",
    "Limits",
    "MnasReward",
    "Objective",
    "Predictor",
    "PretrainedMLP",
    "Problem",
    "RandomSearch",
    "Regressor",
    "RoBoT",
    "SearchResult",
    "Strategy",
    "Surrogate",
    "TasksResult",
    "search",
    "search_ensembles",
    "search_supernet",
    "search_tasks",
]
