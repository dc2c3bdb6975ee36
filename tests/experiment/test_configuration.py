"""Whatever a configuration file holds, it is read as plain data or refused with a message."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pydantic")
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from nas_dynamic.experiment.config import Config, ConfigError, load, parse

SOUND = {
    "name": "run",
    "space": {"name": "NasBench201", "kwargs": {"stem_out_channels": 4}},
    "data": {"name": "digits", "validation": 0.4},
    "optimizer": {"name": "SGD", "kwargs": {"lr": 0.05, "momentum": 0.9}},
    "scheduler": {"name": "CosineAnnealingLR", "kwargs": {"T_max": 3}, "interval": "step"},
    "dynamic": {"curve": "scheduler", "gamma_max": 3.0},
    "scoring": {"subnets": 5},
    "epochs": 3,
    "seeds": [0, 1],
}

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)
MALFORMED = {
    "aliases that grow": (LAUGHS + "space: {name: *a9}", "aliases .* are not taken"),
    "a value inside itself": ("space: &a\n  name: *a", "aliases .* are not taken"),
    "too deep": ("space: " + "[" * 900 + "]" * 900, "maximum recursion depth"),
    "too deep in blocks": (
        "\n".join(" " * n + "a:" for n in range(2000)),
        "maximum recursion depth",
    ),
    "deep": (
        "space: " + "[" * 190 + "]" * 190,
        r"space is \[\[\[\[\[\[\[\.\.\.\].*: should be an object",
    ),
    "keys that are no text": ("space: {name: DARTS, kwargs: {(1, 2): 3, 2001-01-01: 1}}", "keys"),
    "code": ("space: !!python/object/apply:os.system [exit]", "could not determine a constructor"),
    "a module": ("space: !!python/module:os ", "could not determine a constructor"),
    "no such date": ("epochs: 2001-13-01", "month must be in 1..12"),
    "a number of 5,000 digits": ("epochs: " + "9" * 5000, "digits"),
    "a wrong tag": ("epochs: !!int three", "invalid literal"),
    "an open bracket": ("space: {name: [", "expected the node content"),
    "a tab": ("\tepochs: 3", "cannot start any token"),
    "a zero byte": ("epochs: \x00", "special characters are not allowed"),
    "a mapping as key": ("{a: 1}: 2", "unhashable key"),
    "no mapping": ("- 1", "must hold keys and values"),
    "nothing": ("", "must hold keys and values"),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_yaml_is_refused_at_once(kind: str, tmp_path: Path):
    text, message = MALFORMED[kind]
    path = tmp_path / "config.yaml"
    path.write_text(text)
    started = time.process_time()
    with pytest.raises(ConfigError, match=message) as error:
        load(path)
    assert time.process_time() - started < 5
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 1000


def test_bytes_that_are_no_text(tmp_path: Path):
    (tmp_path / "config.yaml").write_bytes(b"epochs: \xff\xfe")
    with pytest.raises(ConfigError, match=r"not valid YAML.*utf-8"):
        load(tmp_path / "config.yaml")


@settings(max_examples=150, derandomize=True)
@given(st.text(alphabet="ab:-[]{}&*!|>'\"#%@,? \n\t0.1~<=", max_size=40))
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError):  # no text this short is a whole configuration
        load(path)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)


@settings(max_examples=300, derandomize=True)
@given(data=st.data())
def test_values_of_wrong_types_name_their_key(data: st.DataObject):
    changed: dict[str, Any] = copy.deepcopy(SOUND)
    key = data.draw(st.sampled_from(list(SOUND)), label="key")
    value = data.draw(PLAIN, label="value")
    parent = changed
    if isinstance(SOUND[key], dict) and data.draw(st.booleans(), label="inside"):
        parent = changed[key]
        key = data.draw(st.sampled_from([*parent, "unknown"]), label="inner key")
    parent[key] = value
    try:
        config = parse(changed)
    except ConfigError as error:
        message = str(error)
    else:
        again = yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))
        assert isinstance(parse(again), Config)
        return
    assert any(name in message for name in (key, *SOUND))
