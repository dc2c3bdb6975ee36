"""Archai 1.0: its spaces, its PlTrainer, and its searches over a trained supernet."""

from __future__ import annotations

import doctest
import importlib
import itertools
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

pytest.importorskip("archai", reason="python -m benchmarks.hosts --hosts archai")
import pytorch_lightning as pl
from archai.discrete_search.algos import EvolutionParetoSearch, LocalSearch
from archai.discrete_search.api import ArchaiModel, SearchObjectives
from archai.discrete_search.search_spaces.config import (
    ArchConfig,
    ArchParamTree,
    DiscreteChoice,
    repeat_config,
)
from archai.trainers.cv.pl_trainer import PlTrainer

from nas_dynamic.adapters.archai import (
    ComplexityEvaluator,
    SupernetEvaluator,
    from_param_tree,
    supernet_search_space,
    to_architecture,
    to_config,
)
from nas_dynamic.adapters.lightning import DynamicSupernet
from nas_dynamic.evaluation import score_subnets
from tests.attach.reference import assert_identical
from tests.hosts.by_hand import page, run
from tests.hosts.tiny import Supernet, Task, loss_of, parameters, reference, sgd, supernet

pytestmark = pytest.mark.host


def tree() -> ArchParamTree:
    return ArchParamTree({f"layer{n}": DiscreteChoice([1, 3, 5]) for n in (1, 2, 3)})


def nested() -> ArchParamTree:
    shared = DiscreteChoice(["relu", "gelu"])
    return ArchParamTree(
        {
            "stem": {"kernel": DiscreteChoice([3, 5]), "activation": shared},
            "blocks": repeat_config({"width": DiscreteChoice([8, 16])}, repeat_times=[1, 2]),
            "activation": shared,
            "classes": 10,
        }
    )


def test_a_nested_tree_becomes_a_space_and_configs_go_both_ways():
    space = from_param_tree(nested())
    assert space.choices == {
        "stem.kernel": (3, 5),
        "stem.activation": ("relu", "gelu"),
        "blocks._repeat_times": (1, 2),
        "blocks._configs.0.width": (8, 16),
        "blocks._configs.1.width": (8, 16),
    }
    assert space.size == nested().num_archs
    for architecture in space:
        config = to_config(nested(), architecture)
        assert to_architecture(nested(), config) == architecture
        assert config.pick("activation") == config.pick("stem").pick("activation")
        assert [b.pick("width") for b in config.pick("blocks")] == [
            architecture[f"blocks._configs.{n}.width"]
            for n in range(architecture["blocks._repeat_times"])
        ]
        assert config.pick("classes") == 10
    generator = Random(0)
    for _ in range(20):
        config = nested().sample_config(generator)
        again = to_config(nested(), to_architecture(nested(), config))
        assert again.to_dict() == config.to_dict()


def test_archai_tells_subnets_apart_that_differ_in_what_they_use():
    theirs, space = supernet_search_space(nested(), seed=0), from_param_tree(nested())
    ids: dict[str, set[Any]] = {}
    for architecture in space:
        config = to_config(nested(), architecture)
        model = theirs.model_cls(config, **theirs.model_kwargs)
        used = {k: v for k, v in architecture.items() if architecture["blocks._repeat_times"] == 2
                or k != "blocks._configs.1.width"}  # fmt: skip
        ids.setdefault(theirs.get_archid(config), set()).add(tuple(sorted(used.items(), key=str)))
        assert model.architecture == architecture
    assert all(len(used) == 1 for used in ids.values()), "one id, one network"
    assert len(ids) == 2 * 2 * (2 + 4)


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = supernet()

    def training_step(self, batch: Any, number: int) -> torch.Tensor:
        return loss_of(self.net, *batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return sgd(self.net)


def train(task: Task, folder: Path, epochs: int = 2, resume: Path | None = None) -> Supernet:
    module = Module()
    assert module.net.space == from_param_tree(tree())
    trainer = PlTrainer(
        max_epochs=epochs,
        accumulate_grad_batches=task.accumulate,
        callbacks=[DynamicSupernet(total_steps=50, **task.dynamic)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        default_root_dir=folder,
    )
    trainer.train(module, task.loader(), ckpt_path=resume)
    trainer.save_checkpoint(folder / "last.ckpt")
    return module.net


@pytest.mark.parametrize("accumulate", [1, 3])
def test_pl_trainer_equals_one_optimizer_a_group(accumulate: int, tmp_path: Path):
    task = Task(accumulate=accumulate)
    assert_identical(train(task, tmp_path).state_dict(), reference(task).state_dict())


def test_resume_under_pl_trainer_is_exact(tmp_path: Path):
    train(Task(), tmp_path, epochs=1)
    net = train(Task(), tmp_path, resume=tmp_path / "last.ckpt")
    assert_identical(net.state_dict(), reference(Task()).state_dict())


@pytest.fixture(scope="module")
def trained() -> Supernet:
    return reference(Task())


def batches() -> list[Any]:
    return list(Task().loader())[:4]


def objectives(net: Supernet) -> SearchObjectives:
    found = SearchObjectives()
    loss = SupernetEvaluator(net, batches(), reward=lambda s: s.loss, batch_norm="running")
    found.add_objective("loss", loss, higher_is_better=False)
    found.add_objective(
        "parameters",
        ComplexityEvaluator(parameters),
        higher_is_better=False,
        compute_intensive=False,
    )
    return found


def test_evolution_pareto_search_over_the_trained_supernet(trained: Supernet, tmp_path: Path):
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    search = EvolutionParetoSearch(
        supernet_search_space(tree(), seed=0),
        objectives(trained),
        output_dir=str(tmp_path),
        num_iters=4,
        init_num_models=8,
        save_pareto_model_weights=False,
        seed=0,
    )
    frame = search.search().get_search_state_df()
    assert len(frame) > 12
    space = trained.space
    true = {
        tuple(s.architecture.items()): s.loss
        for s in score_subnets(
            trained, lambda n, a: n.activate(a), space, batches(), batch_norm="running"
        )
    }
    known = {(round(v, 6), parameters(dict(k))) for k, v in true.items()}
    assert {(round(r.loss, 6), r.parameters) for r in frame.itertuples()} <= known
    front = frame[frame["is_pareto"]]
    for a, b in itertools.permutations(front.itertuples(), 2):
        assert not (a.loss < b.loss and a.parameters < b.parameters)
    assert_identical(trained.state_dict(), before)

    path = next(tmp_path.glob("pareto_models_iter_*/*"))  # what the search saved, loads
    config = ArchConfig.from_file(str(path))
    trained.activate(to_architecture(tree(), config))
    assert tuple(trained.active.items()) in true


def test_local_search_too(trained: Supernet, tmp_path: Path):
    search = LocalSearch(
        supernet_search_space(tree(), seed=0),
        objectives(trained),
        output_dir=str(tmp_path),
        num_iters=2,
        init_num_models=3,
        save_pareto_model_weights=False,
        seed=0,
    )
    assert len(search.search().get_search_state_df()) >= 3


def test_no_subnet_is_scored_twice(trained: Supernet, monkeypatch: pytest.MonkeyPatch):
    evaluator = SupernetEvaluator(trained, batches(), batch_norm="running")
    model = supernet_search_space(tree(), seed=0).random_sample()
    first = evaluator.evaluate(model)
    monkeypatch.setattr(trained, "forward", None)
    assert evaluator.evaluate(model) == first


def test_refusals(trained: Supernet):
    evaluator = SupernetEvaluator(trained, batches(), batch_norm="running")
    with pytest.raises(TypeError, match="Linear is no subnet of the supernet: search in"):
        evaluator.evaluate(ArchaiModel(torch.nn.Linear(1, 1), "id"))
    models = [supernet_search_space(tree(), seed=0).random_sample()]
    with pytest.raises(ValueError, match="scored without training, whatever the budget"):
        objectives(trained).eval_all_objs(models, budgets={"loss": [2.0]})
    with pytest.raises(ValueError, match="calibration"):
        SupernetEvaluator(trained, batches()).evaluate(
            supernet_search_space(tree(), seed=0).random_sample()
        )


def test_the_page_runs_as_written_before_and_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Net(torch.nn.Module):  # that of docs/hosts.md
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleDict(
                {
                    label: torch.nn.ModuleDict(
                        {
                            str(w): torch.nn.Sequential(
                                torch.nn.Linear(16, w), torch.nn.ReLU(), torch.nn.Linear(w, 16)
                            )
                            for w in (8, 32)
                        }
                    )
                    for label in ("layer1", "layer2")
                }
            )
            self.activate({"layer1": 8, "layer2": 8})

        def activate(self, architecture: Any) -> None:
            self.active = architecture

        def subnet_parameters(self) -> Any:
            return lambda architecture: sum(33 * width + 16 for width in architecture.values())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for label, width in self.active.items():
                x = x + self.layers[label][str(width)](x)
            return x

    monkeypatch.chdir(tmp_path)
    assert "nas_dynamic" not in page("archai", "-")
    before = run(page("archai", "-"), Supernet=Net)
    after = run(page("archai"), Supernet=Net)
    (callback,) = [c for c in after["trainer"].callbacks if isinstance(c, DynamicSupernet)]
    assert callback.training.updates == callback.training.calr.total_steps == 24
    assert {*after["found"]["parameters"]} <= {2 * (33 * 8 + 16), 33 * 40 + 32, 2 * (33 * 32 + 16)}
    assert after["found"]["is_pareto"].any()
    weights = [[*names["module"].parameters()] for names in (before, after)]
    assert any(not torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_examples_of_the_docstrings():
    result = doctest.testmod(importlib.import_module("nas_dynamic.adapters.archai"))
    assert result.attempted
    assert not result.failed
