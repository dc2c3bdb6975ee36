"""Engines: the one that computes here, and what is refused before any other one is asked."""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path

import pytest

from nas_dynamic.experiment.cli import main
from nas_dynamic.experiment.config import parse
from nas_dynamic.experiment.engine import LocalEngine, Place
from nas_dynamic.experiment.engine.worker import read_files
from tests.experiment.configurations import TINY, write


def test_the_local_engine_computes_one_piece_after_the_other_when_it_is_asked_to(tmp_path):
    asked = []

    def piece(argument: int, place: Place) -> tuple[int, Path | None]:
        asked.append(argument)
        return argument**2, place.folder

    results = LocalEngine().map(piece, [3, 1, 2], [tmp_path / name for name in "abc"])
    assert next(results) == (9, tmp_path / "a")
    assert asked == [3]
    assert list(results) == [(1, tmp_path / "b"), (4, tmp_path / "c")]
    assert [folder for _, folder in LocalEngine().map(piece, [1])] == [None]
    with pytest.raises(ValueError, match="zip"):
        list(LocalEngine().map(piece, [1, 2], [tmp_path]))


def test_files_that_were_about_to_be_written_are_not_sent(tmp_path):
    assert read_files(tmp_path / "none") == {}
    (tmp_path / "folder").mkdir()
    for name in ("last.ckpt", "last.ckpt.previous", "last.ckpt.tmp", "result.json.77.tmp"):
        (tmp_path / name).write_bytes(name.encode())
    assert read_files(tmp_path) == {n: n.encode() for n in ("last.ckpt", "last.ckpt.previous")}


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="ray is installed")
@pytest.mark.host
def test_a_missing_ray_is_told_with_its_extra(tmp_path, capsys):
    config = write(tmp_path / "config.yaml", seeds=[0, 1])
    assert main(["train", config, "--out", str(tmp_path / "runs"), "--engine", "ray"]) == 1
    assert "ray is missing: pip install 'nas-dynamic[ray]'" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_configuration_is_refused_before_an_engine_is_asked(tmp_path, capsys):
    config = write(tmp_path / "config.yaml", epochs=0)
    assert main(["train", config, "--out", str(tmp_path / "runs"), "--engine", "ray"]) == 1
    assert "epochs is 0" in capsys.readouterr().err


def test_what_has_no_pieces_takes_no_engine(capsys):
    for command in (["demo"], ["export", "run"], ["report", "run"]):
        with pytest.raises(SystemExit):
            main([*command, "--engine", "ray"])
        assert "unrecognized arguments: --engine" in capsys.readouterr().err


def test_what_a_machine_computes_with_can_be_sent():
    pytest.importorskip("nni")
    from nni.nas.strategy import RandomOneShot

    from nas_dynamic.adapters.nni import Supernet
    from nas_dynamic.experiment.nni.build import build_space
    from nas_dynamic.experiment.run import load_data, sample_architectures
    from nas_dynamic.experiment.scores import SubnetScorer

    config = parse(TINY)
    data = load_data(config.data)
    supernet = Supernet(RandomOneShot().mutate_model(build_space(config, data.classes)))
    here = SubnetScorer(supernet, config, data)
    there = pickle.loads(pickle.dumps(here))
    subnets = sample_architectures(supernet.space, 3, 0)
    scores = [[(s.loss, s.accuracy) for s in scorer(subnets)] for scorer in (here, there)]
    assert scores[0] == scores[1]
    assert len(set(scores[0])) > 1
