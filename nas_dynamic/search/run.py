"""Search for the best subnets of a space, over anything that scores them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nas_dynamic.search.evolution import Evolution
from nas_dynamic.search.objective import Limits, Objective, described
from nas_dynamic.search.problem import Encoding, Evaluations, Problem, Strategy, as_keys
from nas_dynamic.search.result import Evaluation, SearchResult, extended_front
from nas_dynamic.space import Architecture, SearchSpace, candidate_text
from nas_dynamic.storage.journal import Journal

__all__ = ["Scorer", "search"]

Scorer = Callable[[list[Architecture]], Iterable[Mapping[str, float]]]


def search(
    space: SearchSpace,
    score: Scorer,
    objectives: Sequence[Objective],
    *,
    budget: int,
    strategy: Strategy | None = None,
    measures: Mapping[str, Callable[[Architecture], float]] | None = None,
    at_most: Mapping[str, float] | None = None,
    at_least: Mapping[str, float] | None = None,
    patience: int | None = None,
    until: Callable[[Evaluation], bool] | None = None,
    path: str | Path | None = None,
    depends_on: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
    seed: int = 0,
) -> SearchResult:
    """Search a space; no architecture is scored twice.

    With `path` every evaluation is appended to a file as soon as it is there. A search that is
    started again with the same definition repeats its decisions with the values of the file, and
    goes on where it was stopped, whatever stopped it.

    Args:
        space: the architectures.
        score: architectures → for each, in order, name → value, such as the accuracy. A generator
            is best: values are kept as they come.
        objectives: what to minimise and maximise, of scored values and measures.
        budget: greatest number of evaluations, those in the file included.
        strategy: what to evaluate next; `Evolution()` by default.
        measures: name → architecture → value, for what is known without scoring.
        at_most: name → greatest value. Subnets beyond a limit of a measure are never scored;
            those beyond a limit of a scored value count as infeasible.
        at_least: name → least value.
        patience: stop after so many evaluations that left the Pareto set (the best) unchanged.
        until: stop with the first evaluation for which this holds.
        path: of the JSON-lines file: the definition, then one evaluation a line.
        depends_on: whatever else decides the scores, as plain data, such as the
            `nas_dynamic.evaluation.digest` of a supernet: the file of another one is refused.
        progress: called with the number of evaluations made, and the budget.
        seed: of the strategy.

    Raises:
        ValueError: no objective, a budget below 1, limits that no architecture meets, or scores
            that are too few, lack a name, or are not finite where an objective or a limit
            reads them. Or a measure is NaN where one reads it.
        RunError: the file holds another search.
    """
    if not objectives or budget < 1:
        raise ValueError(f"need objectives and a budget ≥ 1; got {objectives} and {budget}")
    strategy = strategy or Evolution()
    problem = Problem(space, objectives, measures or {}, Limits(at_most or {}, at_least or {}))
    definition = {
        "space": {k: [candidate_text(c) for c in cs] for k, cs in space.choices.items()},
        "objectives": [objective.description for objective in objectives],
        "measures": sorted(problem.measures),
        "limits": repr(problem.limits),
        "strategy": described(strategy),
        "seed": seed,
        **(depends_on or {}),
    }
    with Journal(path, definition, "search") if path else nullcontext() as journal:
        run = _Run(problem, score, journal, budget, patience, until, progress)
        run.follow(strategy, seed)
    return SearchResult(objectives, list(run.evaluations.values()))


@dataclass(eq=False)
class _Run:
    """Evaluates what a strategy proposes; scores of the file are not made again."""

    problem: Problem
    score: Scorer
    journal: Journal | None
    budget: int
    patience: int | None
    until: Callable[[Evaluation], bool] | None
    progress: Callable[[int, int], None] | None
    evaluations: dict[Encoding, Evaluation] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # A score that no objective reads may be NaN, which JSON has null for.
        self._scores: dict[Encoding, dict[str, float]] = {
            tuple(line["encoding"]): {
                name: math.nan if score is None else score for name, score in line["scores"].items()
            }
            for line in (self.journal.lines if self.journal else ())
        }
        self._front = np.empty((0, len(self.problem.objectives)))
        self._unchanged = 0

    def follow(self, strategy: Strategy, seed: int) -> None:
        """Evaluate what the strategy proposes, until something ends the search."""
        proposals = strategy(self.problem, seed)
        encodings = next(proposals, None)
        while encodings is not None:
            self.problem.mark(encodings)
            evaluations = self._evaluate(as_keys(encodings))
            if evaluations is None:
                break
            try:
                encodings = proposals.send(evaluations)
            except StopIteration:
                break
        proposals.close()
        # On another machine a strategy may decide otherwise; what was paid for still counts.
        for key, scores in self._scores.items():
            if key not in self.evaluations:
                self.evaluations[key] = self._evaluation(key, scores)

    def _evaluate(self, keys: list[Encoding]) -> Evaluations | None:
        """Evaluate subnets; return None if the search is over."""
        costs, violations = [], []
        for key, scores in self._scored(keys):
            evaluation = self.evaluations[key] = self._evaluation(key, scores)
            self._keep(key, scores)
            costs.append([o.cost(evaluation.values) for o in self.problem.objectives])
            violations.append(self.problem.limits.violation(evaluation.values))
            if self.progress:
                self.progress(len(self.evaluations), self.budget)
            if self._over(evaluation, np.array(costs[-1])):
                return None
        spent = len(costs) < len(keys)
        return None if spent else Evaluations(np.array(costs), np.array(violations))

    def _scored(self, keys: list[Encoding]) -> Iterator[tuple[Encoding, dict[str, float]]]:
        """Yield subnets with their scores, of the file or new, as far as the budget goes."""
        unknown = [key for key in keys if key not in self._scores]
        new = unknown[: max(0, self.budget - len(self._scores))]
        made = iter(self.score([self.problem.space.decode(key) for key in new]) if new else ())
        for key in keys:
            if key in self._scores:
                yield key, self._scores[key]
            elif len(self._scores) >= self.budget:
                return
            elif (scores := next(made, None)) is None:
                raise ValueError(
                    f"score gave fewer values than the {len(new)} subnets it was given"
                )
            else:
                yield key, {name: float(value) for name, value in scores.items()}

    def _keep(self, key: Encoding, scores: dict[str, float]) -> None:
        if key not in self._scores:
            self._scores[key] = scores
            if self.journal:
                chosen = {k: str(v) for k, v in self.problem.space.decode(key).items()}
                self.journal.append({"architecture": chosen, "encoding": key, "scores": scores})

    def _evaluation(self, key: Encoding, scores: Mapping[str, float]) -> Evaluation:
        architecture = self.problem.space.decode(key)
        values = {**scores, **self.problem.measured(architecture)}
        objectives, limited = self.problem.objectives, self.problem.limits.names
        read = {o.name for o in objectives if o.value is None} | limited
        missing = read - set(values)
        if missing:
            raise ValueError(
                f"neither the scores nor the measures give {sorted(missing)}; "
                f"they give {sorted(values)}"
            )
        unusable = {
            name: values[name]
            for name in read
            if math.isnan(values[name]) or (name in scores and math.isinf(values[name]))
        }
        unusable |= {o.name: math.nan for o in objectives if math.isnan(o.cost(values))}
        if unusable:
            raise ValueError(
                f"what objectives and limits read must be finite numbers, got {unusable} "
                f"for {architecture}"
            )
        return Evaluation(architecture, values, self.problem.limits.violation(values) == 0)

    def _over(self, evaluation: Evaluation, costs: np.ndarray) -> bool:
        extended = extended_front(self._front, costs) if evaluation.feasible else None
        if extended is None:
            self._unchanged += 1
        else:
            self._front, self._unchanged = extended, 0
        impatient = self.patience is not None and self._unchanged >= self.patience
        return impatient or (self.until is not None and self.until(evaluation))
