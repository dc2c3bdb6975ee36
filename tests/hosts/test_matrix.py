"""The README's matrix of hosts: every cell names what it says by a test that there is."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
README = (TESTS.parent / "README.md").read_text()
SAME = "hosts/test_same_weights.py::test_every_host_trains_as_one_optimizer_a_group"
SEARCHED = "hosts/test_same_weights.py::test_what_a_host_has_trained_is_searched"
RANKS = "hosts/test_ranks.py::test_two_ranks_equal_one_process_with_both_batches"
ALIKE = dict.fromkeys(("CaLR, MS", "accumulation", "clipping", "AMP"), SAME) | {
    "search after it": SEARCHED
}


def of(file: str) -> dict[str, str]:
    """Return the tests of a host that has a file of its own."""
    return ALIKE | {
        "several subnets an update": f"hosts/{file}.py::test_several_subnets_an_update",
        "DDP": RANKS,
        "resume": f"hosts/{file}.py::test_a_resumed_training_equals_an_unbroken_one",
    }


CELLS = {
    "a loop of your own": ALIKE
    | {
        "several subnets an update": "attach/test_multi_subnet.py::test_equals_the_formula",
        "DDP": "attach/test_distributed.py::test_ranks_equal_one_process_with_the_joined_batch",
        "resume": "storage/test_checkpoint.py::test_a_new_process_continues_to_the_bit",
    },
    "Lightning": of("test_lightning"),
    "Hugging Face Trainer": of("test_transformers"),
    "Accelerate": of("test_loops"),
    "Fabric": of("test_loops"),
    "mmengine": of("test_mmengine")
    | {"AMP": "hosts/test_mmengine.py::test_amp_is_for_gpus_in_the_words_of_mmengine"},
    "NNI": ALIKE
    | {
        "several subnets an update": (
            "nni/test_strategies.py::test_dynamic_equals_the_formulas_written_out"
        ),
        "DDP": (
            "attach/test_distributed.py::"
            "test_lightning_ranks_train_the_same_subnets_stay_equal_and_are_stopped_if_not"
        ),
        "resume": "nni/test_strategies.py::test_stopped_and_resumed_equals_straight",
        "search after it": "nni/test_nni_search.py::test_from_training_to_a_found_model",
    },
    "timm": ALIKE
    | {
        "several subnets an update": (
            "timm/test_training.py::test_sampler_of_several_subnets_is_refused"
        ),
        "DDP": "timm/test_ranks.py::test_ranks_draw_one_subnet_and_stay_equal",
        "resume": (
            "timm/test_training.py::test_equals_one_optimizer_a_group_with_the_formula_written_out"
        ),
    },
}
EXCEPTIONS = {("mmengine", "AMP"): "not tried", ("timm", "several subnets an update"): "no"}


def matrix() -> dict[str, dict[str, str]]:
    """Return the table of the README: host → column → cell."""
    lines = README.split("## Hosts\n")[1].split("\n## ")[0].splitlines()
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in lines if line[:1] == "|"]
    header = rows[0][1:]
    name = lambda cell: re.sub(r"\[(.*)\]\(.*\)", r"\1", cell)  # noqa: E731
    return {name(row[0]): dict(zip(header, row[1:], strict=True)) for row in rows[2:]}


def test_the_matrix_has_the_cells_that_are_listed():
    assert {host: [*cells] for host, cells in matrix().items()} == {
        host: [c for c in next(iter(matrix().values())) if c in cells]
        for host, cells in CELLS.items()
    }
    for host, cells in matrix().items():
        for column, cell in cells.items():
            assert cell == EXCEPTIONS.get((host, column), "yes"), (host, column)


@pytest.mark.parametrize("test", sorted({t for cells in CELLS.values() for t in cells.values()}))
def test_every_cell_has_a_test(test: str):
    file, _, name = test.partition("::")
    tree = ast.parse((TESTS / file).read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_host_is_trained_by_the_test_of_equal_weights():
    tree = ast.parse((TESTS / "hosts/test_same_weights.py").read_text())
    (hosts,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "HOSTS"
    )
    names = {ast.literal_eval(key) for key in hosts.keys}
    renamed = {"a loop of your own": "plain", "Hugging Face Trainer": "transformers"}
    assert names == {renamed.get(host, host) for host in CELLS} | {"pytorch_lightning"}
