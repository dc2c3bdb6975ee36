"""Every code block of docs/hosts.md runs as written, before the change and after it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

PAGE = (Path(__file__).parents[2] / "docs" / "hosts.md").read_text()
pytestmark = [pytest.mark.host, pytest.mark.xdist_group("hosts")]
BLOCKS = dict(re.findall(r"<!-- (\w+) -->\n\n```\w+\n(.*?)```", PAGE, re.S))


def side(diff: str, dropped: str) -> str:
    """Return a text of a diff: that with `-` dropped is the new one."""
    return "\n".join(line[1:] for line in diff.splitlines() if not line.startswith(dropped))


def run(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "page"}
    torch.manual_seed(0)
    exec(compile(BLOCKS["shared"], "docs/hosts.md", "exec"), names)
    exec(compile(code, "docs/hosts.md", "exec"), names)
    return names


def weights(names: dict[str, Any]) -> torch.Tensor:
    model = next(names[n] for n in ("net", "trainer", "runner") if n in names)
    model = getattr(model, "model", model)  # of a Trainer, a Runner, Lightning's Trainer
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def training_of(names: dict[str, Any]) -> Any:
    if "dynamic" in names:
        return names["dynamic"]
    if "runner" in names:
        callbacks = names["runner"].hooks
    else:
        trainer = names["trainer"]
        callbacks = getattr(trainer, "callbacks", None) or trainer.callback_handler.callbacks
    (training,) = (c.training for c in callbacks if hasattr(c, "weighted_subnets"))
    return training


def test_all_blocks_are_run():
    assert PAGE.count("```") == 2 * len(BLOCKS)
    assert [*BLOCKS] == ["shared", *UPDATES]


UPDATES = {"lightning": 24, "transformers": 24, "accelerate": 12, "fabric": 24, "mmengine": 24}


@pytest.mark.parametrize("host", UPDATES)
def test_a_page_runs_before_and_after(host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    before = run(side(BLOCKS[host], "+"))
    assert "nas_dynamic.adapters" not in side(BLOCKS[host], "+")
    after = run(side(BLOCKS[host], "-"))
    training = training_of(after)
    assert training.updates == UPDATES[host]
    assert training.calr.total_steps in (UPDATES[host], None)
    assert not training.groups, "one momentum is the default"
    assert not torch.equal(weights(before), weights(after))
