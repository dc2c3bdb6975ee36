"""Search for the best subnets of a space, over anything that scores them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from nas_dynamic.search.evolution import Evolution
from nas_dynamic.search.problem import Evaluations, Limits, Objective, Problem, Strategy, described
from nas_dynamic.search.result import Evaluation, SearchResult
from nas_dynamic.space import Architecture, SearchSpace
from nas_dynamic.storage.journal import Journal

__all__ = ["Evaluation", "SearchResult", "search"]

Scorer = Callable[[list[Architecture]], Iterable[Mapping[str, float]]]
Key = tuple[int, ...]


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
        progress: is told how many evaluations are done, and the budget.
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
        "space": {label: [str(c) for c in cs] for label, cs in space.choices.items()},
        "objectives": [objective.description for objective in objectives],
        "measures": sorted(problem.measures),
        "limits": repr(problem.limits),
        "strategy": described(strategy),
        "seed": seed,
    }
    with Journal(path, definition, "search") if path else nullcontext() as journal:
        records = _Records(journal, problem)
        run = _Run(problem, score, records, budget, patience, until, progress)
        run.ask(strategy, seed)
    return SearchResult(objectives, run.evaluations)


class _Run:
    """The loop between a strategy and the scores."""

    def __init__(
        self,
        problem: Problem,
        score: Scorer,
        records: _Records,
        budget: int,
        patience: int | None,
        until: Callable[[Evaluation], bool] | None,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.problem, self.score, self.records = problem, score, records
        self.budget, self.patience, self.until, self.progress = budget, patience, until, progress
        self.evaluations: list[Evaluation] = []
        self._told: set[Key] = set()
        self._front = np.empty((0, len(problem.objectives)))
        self._unchanged = 0

    def ask(self, strategy: Strategy, seed: int) -> None:
        """Evaluate what the strategy asks for, until something ends the search."""
        proposals = strategy(self.problem, seed)
        encodings = next(proposals, None)
        while encodings is not None:
            self.problem.mark(encodings)
            outcome = self._evaluate([tuple(row) for row in encodings.tolist()])
            if outcome is None:
                break
            try:
                encodings = proposals.send(outcome)
            except StopIteration:
                break
        proposals.close()
        # On another machine a strategy may decide otherwise; what was paid for still counts.
        for key, scored in self.records.scores.items():
            if key not in self._told:
                self.evaluations.append(self._evaluation(key, scored))

    def _evaluate(self, keys: list[Key]) -> Evaluations | None:
        """Evaluations of a batch; None if the search is over."""
        known, costs, violations = self.records.scores, [], []
        new = [key for key in keys if key not in known][: max(0, self.budget - len(known))]
        scores = iter(self.score([self.problem.space.decode(key) for key in new]) if new else ())
        new_keys = set(new)
        for key in keys:
            if key not in new_keys and key not in known:
                return None
            scored = self._scored(scores, len(new)) if key in new_keys else known[key]
            evaluation = self._evaluation(key, scored)
            if key in new_keys:
                self.records.add(key, scored)
            self.evaluations.append(evaluation)
            self._told.add(key)
            costs.append([o.cost(evaluation.values) for o in self.problem.objectives])
            violations.append(self.problem.limits.violation(evaluation.values))
            if self.progress:
                self.progress(len(self.evaluations), self.budget)
            if self._over(evaluation, np.array(costs[-1])):
                return None
        return Evaluations(np.array(costs), np.array(violations))

    def _scored(self, scores: Iterator[Mapping[str, float]], asked: int) -> dict[str, float]:
        try:
            return {name: float(value) for name, value in next(scores).items()}
        except StopIteration:
            raise ValueError(f"score gave fewer values than the {asked} subnets asked") from None

    def _evaluation(self, key: Key, scored: Mapping[str, float]) -> Evaluation:
        architecture = self.problem.space.decode(key)
        values = {**scored, **self.problem.measured(architecture)}
        objectives = self.problem.objectives
        read = {o.name for o in objectives if o.value is None} | self.problem.limits.names
        missing = read - set(values)
        if missing:
            raise ValueError(
                f"neither the scores nor the measures give {sorted(missing)}; "
                f"they give {sorted(values)}"
            )
        unusable = {
            name: scored[name] for name in read & set(scored) if not math.isfinite(scored[name])
        }
        limited = self.problem.limits.names
        unusable |= {name: math.nan for name in limited if math.isnan(values[name])}
        unusable |= {o.name: math.nan for o in objectives if math.isnan(o.cost(values))}
        if unusable:
            raise ValueError(
                f"what objectives and limits read must be finite numbers, got {unusable} "
                f"for {architecture}"
            )
        return Evaluation(architecture, values, self.problem.limits.violation(values) == 0)

    def _over(self, evaluation: Evaluation, costs: np.ndarray) -> bool:
        if evaluation.feasible and not (self._front <= costs).all(1).any():
            self._front = np.vstack([self._front[~(costs <= self._front).all(1)], costs])
            self._unchanged = 0
        else:
            self._unchanged += 1
        impatient = self.patience is not None and self._unchanged >= self.patience
        return impatient or (self.until is not None and self.until(evaluation))


class _Records:
    """Scores by encoding, in memory and, if there is one, in a journal."""

    def __init__(self, journal: Journal | None, problem: Problem) -> None:
        self.journal, self.problem = journal, problem
        lines = journal.lines if journal else []
        # A score that no objective reads may be NaN, which JSON has null for.
        self.scores: dict[Key, dict[str, float]] = {
            tuple(line["encoding"]): {
                name: math.nan if score is None else score for name, score in line["scores"].items()
            }
            for line in lines
        }

    def add(self, key: Key, scores: dict[str, float]) -> None:
        """Keep one evaluation."""
        self.scores[key] = scores
        if self.journal:
            architecture = {k: str(v) for k, v in self.problem.space.decode(key).items()}
            self.journal.append({"architecture": architecture, "encoding": key, "scores": scores})
