"""Does ENAS's controller condition on past architectures, and does a memory of them help?

    python -m benchmarks.digits.enas_memory run      # half a minute an arm and seed on a CPU core
    python -m benchmarks.digits.enas_memory table

NNI's NasBench201 space on scikit-learn's digits, trained dynamically. Arms:

- `random`: random search with weight sharing, beside a controller that learns nothing.
- `enas`: NNI's ENAS; the controller (PPO) learns from the architectures sampled of late.
- `enas, all past`: from all sampled ones, NNI's `replay_buffer_size`.
- `enas, best past`: from those of late and the 20 of the greatest rewards among earlier ones.

PPO takes replayed architectures as if the present controller had sampled them. ρ is Spearman's,
over pairs of 30 random cells, of the distance of the controller's hidden states and the edit
distance of the cells' graphs. `found` is the best by validation loss of 20 that are drawn from the
controller, at random in `random`; `preferred` the mean validation accuracy of these less that of 40
random ones in the same supernet. All with inherited weights.

Source: Adam and Lorraine, "Understanding Neural Architecture Search Techniques", 2019.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytorch_lightning as pl
import torch
from nni.nas.hub.pytorch import NasBench201
from nni.nas.strategy import ENAS, RandomOneShot
from nni.nas.strategy.rl import TuningTrajectoryGenerator, default_policy_fn
from scipy.stats import spearmanr
from tianshou.data import ReplayBuffer
from tianshou.policy import BasePolicy

from benchmarks.digits.strategies import quiet, train
from nas_dynamic import Architecture
from nas_dynamic.adapters.nni import activate, dynamic, search_space
from nas_dynamic.analysis.paired import Difference, mean_estimate
from nas_dynamic.evaluation import score_subnets
from nas_dynamic.experiment.data import batch_loader, calibration_batches
from nas_dynamic.experiment.data_sets import digits
from nas_dynamic.experiment.run import sample_architectures
from nas_dynamic.storage.rows import common_seeds, complete, read_rows

STEPS = 6  # edges of a cell, and choices of the controller
ARMS = ("random", "enas", "enas, all past", "enas, best past")
# NNI updates the controller in every step whose count of rewards is a multiple, so also in the
# training steps after it: 21 is none at the end of an epoch of 22 rewards.
REWARDS = 21


def replaying(policy: BasePolicy, kept: int = 20) -> BasePolicy:
    """Let a policy learn from the best earlier trajectories beside those that it is given."""
    update = policy.update
    best: dict[tuple[int, ...], ReplayBuffer] = {}
    late: dict[tuple[int, ...], ReplayBuffer] = {}

    def with_best(sample_size: int, buffer: ReplayBuffer, **options: Any) -> Any:
        nonlocal best, late
        given = {}
        for rows in np.arange(len(buffer)).reshape(-1, STEPS):
            trajectory = ReplayBuffer(STEPS)
            for row in rows:
                trajectory.add(buffer[row])
            given[tuple(trajectory.act)] = trajectory
        if given.keys() != late.keys():  # else one of the several updates by the same ones
            ranked = sorted({**best, **late}.items(), key=lambda item: -item[1].rew[-1])
            best, late = dict(ranked[:kept]), given
        earlier = [trajectory for actions, trajectory in best.items() if actions not in given]
        merged = ReplayBuffer(len(buffer) + STEPS * len(earlier))
        for part in (buffer, *earlier):
            merged.update(part)
        return update(sample_size, merged, **options)

    policy.update = with_best
    return policy


def cell_graph(architecture: Architecture) -> nx.DiGraph:
    graph = nx.DiGraph()
    graph.add_nodes_from((n, {"end": n if n in (0, 3) else None}) for n in range(4))
    for label, operation in architecture.items():
        if operation != "none":
            start, end = map(int, label.split("/")[-1].split("_"))
            graph.add_edge(start, end, operation=operation)
    return graph


def edit_distances(cells: Sequence[Architecture]) -> list[float]:
    """Return the edit distance of every pair of cells: operations, edges and inner nodes."""
    return [
        nx.graph_edit_distance(
            a,
            b,
            node_match=lambda u, v: u["end"] == v["end"],
            edge_match=lambda e, f: e["operation"] == f["operation"],
        )
        for a, b in itertools.combinations(map(cell_graph, cells), 2)
    ]


@torch.no_grad()
def hidden_distances(policy: BasePolicy, encodings: np.ndarray) -> np.ndarray:
    """Return distances of the controller's states after the choices of every pair of cells."""
    seen = {
        "action_history": torch.tensor(encodings),
        "cur_step": torch.full((len(encodings),), STEPS),
    }
    states = policy.eval().actor.preprocess(seen)
    return torch.nn.functional.pdist(states).numpy()


def run(options: argparse.Namespace) -> None:
    """Train what the results lack: every arm of a seed before the next seed."""
    quiet()
    data, space = digits(seed=0), NasBench201(8, 1, 10)
    choices = search_space(space)
    cells, uniform = (sample_architectures(choices, count, 0) for count in (30, 40))
    encodings = np.array([choices.encode(cell) for cell in cells])
    edits = edit_distances(cells)

    def row(arm: str, seed: int) -> dict[str, Any]:
        pl.seed_everything(seed, verbose=False)
        policies: list[BasePolicy] = []

        def controller(env: Any) -> BasePolicy:
            policy = default_policy_fn(env, lr=options.lr)
            policies.append(replaying(policy) if arm == "enas, best past" else policy)
            return policies[-1]

        every = options.epochs * 22 * STEPS if arm == "enas, all past" else None
        enas = ENAS(
            batches_per_update=REWARDS,
            replay_buffer_size=every,
            reward_metric_name="val_acc",
            policy_fn=controller,
        )
        strategy = RandomOneShot() if arm == "random" else enas
        attached = dynamic(strategy, keep_mean_lr=False)
        supernet = train(
            attached,
            NasBench201(8, 1, 10),
            data,
            epochs=options.epochs,
            seed=seed,
            validation_batch=16,
        )
        generator = TuningTrajectoryGenerator(space, policies[0] if policies else controller)
        policy = generator.policy.eval()
        with torch.no_grad():
            drawn = [dict(generator.next_sample()) for _ in range(20)]
        drawn = sample_architectures(choices, 20, seed + 1) if arm == "random" else drawn

        def scores(subnets: Sequence[Architecture], part: Any) -> list[Any]:
            batches = list(batch_loader(part, 256))
            calibration = calibration_batches(data.train, 128, 4)
            options = {"calibration": calibration}
            return list(score_subnets(supernet, activate, subnets, batches, **options))

        of_drawn = scores(drawn, data.validation)
        best = min(of_drawn, key=lambda score: score.loss).architecture
        (found,) = scores([best], data.test)
        others = [score.accuracy for score in scores(uniform, data.validation)]
        made = {
            "found": found.accuracy,
            "preferred": float(np.mean([s.accuracy for s in of_drawn]) - np.mean(others)),
            "distinct": len({tuple(subnet.values()) for subnet in drawn}),
            "rho": float(spearmanr(hidden_distances(policy, encodings), edits).statistic),
        }
        return {name: round(value, 4) for name, value in made.items()}

    jobs = ((arm, seed) for seed in range(options.seeds) for arm in ARMS)
    complete(options.results, jobs, row)


def table(options: argparse.Namespace) -> None:
    """Print means over the seeds, with intervals, and differences to ENAS and to random search."""
    rows = read_rows(options.results)
    for arm, measure in itertools.product(ARMS, ("found", "preferred", "distinct", "rho")):
        if not (seeds := common_seeds(rows, [arm])):
            continue
        line = f"{arm}: {measure} {mean_estimate([rows[arm, s][measure] for s in seeds]):.3f}"
        for other in ("random", "enas"):
            paired = common_seeds(rows, [arm, other])
            if other == arm or not paired:
                continue
            values = [rows[arm, s][measure] - rows[other, s][measure] for s in paired]
            line += f"; less {other} {Difference(np.array(values)):+.3f}"
        print(f"{line} ({len(seeds)} seeds)")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.digits.enas_memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--lr", type=float, default=1e-3, help="of the controller")
    parser.add_argument("--seeds", type=int, default=3)
    default = Path("benchmarks/results/enas_memory.jsonl")
    parser.add_argument("--results", type=Path, default=default)
    options = parser.parse_args(arguments)
    {"run": run, "table": table}[options.command](options)


if __name__ == "__main__":
    main()
