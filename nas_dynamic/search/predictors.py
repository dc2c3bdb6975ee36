"""Models that predict an objective from the one-hot encoding of a subnet, and from measures."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import nn

from nas_dynamic._extras import extra
from nas_dynamic.search.problem import Problem

with extra("search"):
    import lightgbm

__all__ = ["GradientBoosting", "Predictor", "PretrainedMLP", "Regressor"]


class Regressor(Protocol):
    """Predicts one number from a one-hot encoding."""

    def fit(self, x: np.ndarray, y: np.ndarray) -> object:
        """Fit x, (subnets, candidates), to y, (subnets,), and forget earlier data."""
        ...

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Return values of shape (subnets,)."""
        ...


class Predictor(Protocol):
    """Makes the regressor of one search."""

    def __call__(self, problem: Problem, seed: int) -> Regressor:
        """Return a regressor for encodings of the problem's space."""
        ...


@dataclass(frozen=True)
class GradientBoosting:
    """LightGBM on one-hot encodings.

    Args:
        trees: boosting rounds.
        leaves: greatest number of leaves of a tree.
        lr: shrinkage of each tree.
        leaf_size: least number of subnets in a leaf.
        features: measures of the search that it learns from beside the encodings, such as
            training-free metrics. They are computed for all subnets that it predicts: all of a
            space that can be listed.

    Source: Luo et al., "Accuracy Prediction with Non-neural Model for Neural Architecture
    Search" (GBDT-NAS), 2020, arXiv 2007.04785.
    """

    trees: int = 100
    leaves: int = 15
    lr: float = 0.1
    leaf_size: int = 3
    features: Sequence[str] = ()

    def __call__(self, problem: Problem, seed: int) -> Regressor:
        """Return the regressor of a search.

        Raises:
            ValueError: a feature is no measure of the search.
        """
        if unknown := sorted(set(self.features) - set(problem.measures)):
            raise ValueError(
                f"{unknown} is no measure of the search; measures are {sorted(problem.measures)}"
            )
        return _Boosted(self, problem, seed)


class _Boosted:
    def __init__(self, options: GradientBoosting, problem: Problem, seed: int) -> None:
        self.trees, self.features, self.problem = options.trees, options.features, problem
        self.known: dict[bytes, list[float]] = {}
        self.parameters = {
            "objective": "regression",
            "num_leaves": options.leaves,
            "learning_rate": options.lr,
            "min_data_in_leaf": options.leaf_size,
            "min_data_in_bin": 1,
            "seed": seed,
            "deterministic": True,  # a search that is resumed repeats its fits
            "force_row_wise": True,
            "num_threads": 1,
            "verbosity": -1,
        }

    def fit(self, x: np.ndarray, y: np.ndarray) -> None:
        data = lightgbm.Dataset(self._featured(x), y, params={"verbosity": -1})
        self.model = lightgbm.train(self.parameters, data, self.trees)

    def predict(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(self.model.predict(self._featured(x), num_threads=1))

    def _featured(self, x: np.ndarray) -> np.ndarray:
        """Return encodings, shape (subnets, candidates), with a column for each feature."""
        if not self.features:
            return x
        ends = np.cumsum(self.problem.widths)[:-1]
        encodings = np.stack([block.argmax(1) for block in np.split(x, ends, axis=1)], axis=1)
        return np.hstack([x, np.array([self._of(row) for row in encodings])])

    def _of(self, encoding: np.ndarray) -> list[float]:
        key = encoding.tobytes()
        if key not in self.known:
            architecture = self.problem.space.decode(encoding)
            measures = [self.problem.measures[name] for name in self.features]
            self.known[key] = [float(measure(architecture)) for measure in measures]
        return self.known[key]


@dataclass(frozen=True)
class PretrainedMLP:
    """A perceptron that learns free measures of many subnets before the first evaluation.

    The measures (parameters, MACs, …) cost nothing, so its hidden layers know what candidates
    have in common before accuracies come in. Each fit then starts from the pre-trained layers
    with a new head.

    A measure that is not finite, such as a training-free metric that failed, counts as the least
    finite one, +∞ as the greatest.

    Args:
        subnets: random subnets to pre-train on, without regard to limits.
        width: of the two hidden layers.
        steps: updates of the pre-training, of 256 subnets each.
        fine_tuning: updates of a fit, of all evaluated subnets each.
        lr: of AdamW.
        weight_decay: of AdamW.

    Source: Dai et al., "FBNetV3: Joint Architecture-Recipe Search using Predictor Pretraining",
    CVPR 2021.
    """

    subnets: int = 2000
    width: int = 64
    steps: int = 300
    fine_tuning: int = 150
    lr: float = 5e-3
    weight_decay: float = 1e-2

    def __call__(self, problem: Problem, seed: int) -> Regressor:
        """Return a regressor that is pre-trained on the measures of a search.

        Raises:
            ValueError: the problem has no free measures.
        """
        if not problem.measures:
            raise ValueError(
                "a pre-trained predictor learns free measures, and the search has none; "
                "give measures={'parameters': …}, or use GradientBoosting"
            )
        return _PretrainedRegressor(self, problem, seed)


class _PretrainedRegressor:
    def __init__(self, options: PretrainedMLP, problem: Problem, seed: int) -> None:
        self.options, self.seed = options, seed
        generator = np.random.default_rng([seed, 1])
        encodings = generator.integers(
            problem.widths, size=(options.subnets, len(problem.widths)), dtype=np.int64
        )
        measured = [problem.measured(problem.space.decode(row)) for row in encodings]
        statistics = _standardized(np.array([list(values.values()) for values in measured]))
        x = torch.from_numpy(problem.one_hot(encodings))
        y = torch.from_numpy(statistics.astype(np.float32))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.trunk = nn.Sequential(
                nn.Linear(x.shape[1], options.width),
                nn.SiLU(),
                nn.Linear(options.width, options.width),
                nn.SiLU(),
            )
            head = nn.Linear(options.width, y.shape[1])
            batches = [torch.randint(len(x), (256,)) for _ in range(options.steps)]
        self._train(nn.Sequential(self.trunk, head), ((x[rows], y[rows]) for rows in batches))

    def fit(self, x: np.ndarray, y: np.ndarray) -> None:
        self.mean, self.scale = float(y.mean()), float(y.std()) or 1.0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            head = nn.Linear(self.options.width, 1)
        self.model = nn.Sequential(copy.deepcopy(self.trunk), head)
        targets = torch.from_numpy(((y - self.mean) / self.scale).astype(np.float32))[:, None]
        data = torch.from_numpy(x), targets
        self._train(self.model, [data] * self.options.fine_tuning)

    @torch.inference_mode()
    def predict(self, x: np.ndarray) -> np.ndarray:
        predicted: torch.Tensor = self.model(torch.from_numpy(x))[:, 0]
        return predicted.numpy() * self.scale + self.mean

    def _train(
        self, model: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]
    ) -> None:
        options = self.options
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=options.lr, weight_decay=options.weight_decay
        )
        with torch.enable_grad():
            for x, y in batches:
                optimizer.zero_grad()
                torch.autograd.backward(nn.functional.mse_loss(model(x), y))
                optimizer.step()


def _standardized(values: np.ndarray) -> np.ndarray:
    values = np.stack([_finite(column) for column in values.T], axis=1)
    spread = values.std(0)
    standardized: np.ndarray = (values - values.mean(0)) / np.where(spread > 0, spread, 1)
    return standardized


def _finite(column: np.ndarray) -> np.ndarray:
    known = column[np.isfinite(column)]
    low, high = (known.min(), known.max()) if len(known) else (0.0, 0.0)
    finite: np.ndarray = np.nan_to_num(column, nan=low, posinf=high, neginf=low)
    return finite
