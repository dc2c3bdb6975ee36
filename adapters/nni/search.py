"""NNI's search strategies on a trained supernet: candidates are scored, none is trained."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import nni
from nni.nas.evaluator import Evaluator
from nni.nas.oneshot.pytorch.strategy import is_supernet
from nni.nas.space import RawFormatModelSpace
from torch import nn

from nas_dynamic.adapters.nni.extract import extract
from nas_dynamic.adapters.nni.space import activate, architecture_of
from nas_dynamic.evaluation.batch_norm import BatchNormMode, check_batch_norm
from nas_dynamic.evaluation.inference import Batches, placed
from nas_dynamic.evaluation.scoring import Score, score_subnets
from nas_dynamic.space import Architecture, Key, key

__all__ = ["SupernetEvaluator"]


class SupernetEvaluator(Evaluator):
    """Scores the candidates of a search strategy with the weights that they inherit.

    For `NasExperiment(supernet, SupernetEvaluator(…), strategy)`, whose strategy is one of NNI's
    multi-trial ones: `Random`, `RegularizedEvolution`, `TPE`, `PolicyBasedRL`. A candidate is
    activated in the supernet and scored by `nas_dynamic.evaluation.score_subnets`; no candidate is
    scored twice, so make a new evaluator after further training. Weights and buffers of the
    supernet stay as they are. Its `freeze` becomes `extract`, so that
    `export_top_models(formatter="instance")` gives stand-alone models.

    Args:
        batches: (images, labels) to score on; they are read once and kept in memory.
        batch_norm: as in `score_subnets`, as are the next two.
        calibration: training batches to recalibrate BN statistics on.
        precision: of the scoring.
        reward: what the strategy maximises, of a score; its accuracy by default.

    Raises:
        ValueError: an unknown mode, or no calibration batches to recalibrate on.

    Example:
        >>> import torch
        >>> from nni.nas.hub.pytorch import NasBench201
        >>> from nni.nas.strategy import RandomOneShot
        >>> supernet = RandomOneShot().mutate_model(NasBench201(4, 1, 10))
        >>> batches = [(torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.long))]
        >>> evaluator = SupernetEvaluator(batches, calibration=batches)
        >>> sample = {f"cell/{edge}": "conv_1x1" for edge in ("0_1", "0_2", "1_2")}
        >>> sample |= {f"cell/{edge}": "none" for edge in ("0_3", "1_3", "2_3")}
        >>> evaluator.score(supernet, sample).accuracy in (0, 1)  # all images are alike
        True
    """

    def __init__(
        self,
        batches: Batches,
        *,
        batch_norm: BatchNormMode = "recalibrate",
        calibration: Batches | None = None,
        precision: str = "32",
        reward: Callable[[Score], float] | None = None,
    ) -> None:
        check_batch_norm(batch_norm, calibration)
        self.batches = list(batches)
        self.batch_norm = batch_norm
        self.calibration = None if calibration is None else list(calibration)
        self.precision = precision
        self.reward = reward
        self._supernet: nn.Module | None = None
        self._scores: dict[Key, Score] = {}

    @property
    def scores(self) -> list[Score]:
        """Of the candidates of the last supernet so far, each once, in the order of the search."""
        return list(self._scores.values())

    def score(self, supernet: nn.Module, sample: Architecture) -> Score:
        """Return the score of a subnet, looked up if it has one already."""
        if supernet is not self._supernet:
            self._supernet, self._scores = supernet, {}
        architecture = architecture_of(sample, supernet)
        subnet = key(architecture)
        if subnet not in self._scores:
            self._scores[subnet] = self._score(supernet, activate, architecture)
        return self._scores[subnet]

    def evaluate(self, model: nn.Module) -> float:
        """Return the reward of a stand-alone model, such as `extract` gives, scored likewise."""
        return self._report(self._score(model, lambda module, architecture: None, {}))

    def _execute(self, model: Any) -> float:
        # Where NNI would build the candidate, for `evaluate`.
        supernet: Any = getattr(model, "model_space", None)
        if not isinstance(model, RawFormatModelSpace) or not is_supernet(supernet):
            raise TypeError(
                "SupernetEvaluator scores subnets of a trained supernet: give it as the model "
                "space, NasExperiment(strategy.supernet, evaluator, …), and leave engine and "
                "model format as they are"
            )
        supernet.freeze = functools.partial(extract, supernet)
        return self._report(self.score(supernet, model.sample))

    def _score(
        self,
        module: nn.Module,
        activate: Callable[[Any, Architecture], None],
        architecture: Architecture,
    ) -> Score:
        device = next(module.parameters()).device
        self.batches = placed(self.batches, device)  # copied for the first candidate only
        if self.calibration is not None:
            self.calibration = placed(self.calibration, device)
        (score,) = score_subnets(
            module,
            activate,
            [architecture],
            self.batches,
            batch_norm=self.batch_norm,
            calibration=self.calibration,
            precision=self.precision,
        )
        return score

    def _report(self, score: Score) -> float:
        value = score.accuracy if self.reward is None else float(self.reward(score))
        nni.report_final_result(value)
        return value
