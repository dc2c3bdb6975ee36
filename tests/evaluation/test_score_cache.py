from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from nas_dynamic.evaluation.score_cache import digest, kept_scores
from nas_dynamic.evaluation.scoring import Score
from nas_dynamic.experiment.cli import main
from nas_dynamic.storage.journal import RunError
from tests.experiment.configurations import CONFIG, write

ARCHITECTURES = [{"layer": number, "pair": (number, 0)} for number in range(6)]


BAD = [float("nan"), float("inf"), -float("inf")]


def score(architectures):
    for architecture in reversed(architectures):
        yield Score(architecture, architecture["layer"] / 10, 1.5)


def unexpected(architectures):
    raise AssertionError(f"{architectures} are scored again")


def test_the_loss_of_a_network_that_diverged_is_nan_again(tmp_path):
    def diverged(architectures):
        return [Score(a, 0.1, loss) for a, loss in zip(architectures, BAD, strict=True)]

    for _ in range(2):
        found = kept_scores(tmp_path / "scores.jsonl", {}, ARCHITECTURES[:3], diverged)
        scores = list(found)
        assert [score.accuracy for score in scores] == [0.1] * 3
        diverged = unexpected
    assert all(math.isnan(score.loss) for score in scores)
    lines = (tmp_path / "scores.jsonl").read_text().splitlines()[1:]
    assert [json.loads(line)["loss"] for line in lines] == [None] * 3


def test_a_stopped_scoring_goes_on_with_what_is_missing(tmp_path):
    path, asked = tmp_path / "scores.jsonl", []

    def stopping(architectures):
        asked.extend(architectures)
        yield from list(score(architectures))[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(kept_scores(path, {"supernet": "a"}, ARCHITECTURES, stopping))
    assert asked == ARCHITECTURES
    with path.open("ab") as file:  # as after a power cut
        file.write(b'{"architecture": {"lay')

    asked.clear()

    def rest(architectures):
        asked.extend(architectures)
        return score(architectures)

    found = list(kept_scores(path, {"supernet": "a"}, ARCHITECTURES, rest))
    assert asked == ARCHITECTURES[:4]
    assert sorted(s.architecture["layer"] for s in found) == list(range(6))
    assert all(s.accuracy == s.architecture["layer"] / 10 for s in found)
    again = list(kept_scores(path, {"supernet": "a"}, ARCHITECTURES, unexpected))
    assert [s.architecture for s in again] == ARCHITECTURES
    assert len(path.read_text().splitlines()) == 7


def test_an_architecture_that_is_asked_for_twice_is_scored_once(tmp_path):
    path, (first, second, *_) = tmp_path / "scores.jsonl", ARCHITECTURES
    turned = dict(reversed(first.items()))
    found = list(kept_scores(path, {}, [first, second, turned], score))
    assert [scored.architecture["layer"] for scored in found] == [1, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"supernet": "b"}\n', "another scoring: supernet was b, is a"),
        ("no JSON\n", "does not hold a scoring: Expecting value"),
        ("[1]\n", "does not hold a scoring"),
    ],
)
def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path, content, message):
    path = tmp_path / "scores.jsonl"
    path.write_text(content + "half a line")
    with pytest.raises(RunError, match=message):
        list(kept_scores(path, {"supernet": "a"}, ARCHITECTURES, unexpected))
    assert path.read_text() == content + "half a line"


def test_digest_is_of_every_weight_and_buffer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    seen = {digest(model)}
    for tensor in model.state_dict().values():
        tensor.view(-1)[0] += 1
        seen.add(digest(model))
    assert len(seen) == 1 + len(model.state_dict())
    model.to(memory_format=torch.channels_last)
    assert digest(model) in seen
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})


@pytest.mark.host
@pytest.mark.process
def test_a_killed_scoring_resumes_and_scores_nothing_twice(tmp_path):
    config = write(tmp_path / "config.yaml", CONFIG, epochs=1, scoring={"subnets": 60})
    assert main(["train", config, "--out", str(tmp_path / "straight")]) == 0

    arguments = ["train", config, "--out", str(tmp_path / "killed")]
    process = subprocess.Popen(
        [sys.executable, "-m", "nas_dynamic", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    path = tmp_path / "killed/small/seed-0/scores.jsonl"
    while process.poll() is None and not (path.exists() and path.read_bytes().count(b"\n") > 5):
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = path.read_bytes()
    kept = kept[: kept.rfind(b"\n") + 1]
    assert 5 < kept.count(b"\n") < 61

    assert main([*arguments, "--resume"]) == 0
    assert path.read_bytes().startswith(kept)
    lines = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    assert len({json.dumps(line["architecture"]) for line in lines}) == len(lines) == 60
    results = [
        json.loads((tmp_path / run / "small/results.json").read_text())["seeds"][0]["subnets"]
        for run in ("straight", "killed")
    ]
    assert results[0] == results[1]
