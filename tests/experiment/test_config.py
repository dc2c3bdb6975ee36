from __future__ import annotations

import math

import pytest

from nas_dynamic.experiment.config import ConfigError, load, parse
from nas_dynamic.host.options import Options

LEAST = {"space": {"name": "NasBench201"}, "data": {"name": "digits"}, "epochs": 3}


def test_defaults_are_filled_in():
    config = parse(LEAST)
    assert config.dynamic.gamma_max == 4.0
    assert config.optimizer.kwargs == {"lr": 0.025, "momentum": 0.9}
    assert config.scheduler is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochz": 3}, "epochz is not a key; did you mean epochs?"),
        ({"dynamic": {"gama_max": 3}}, "dynamic.gama_max is not a key; did you mean gamma_max?"),
        (
            {"scheduler": {"name": "StepLR", "kwarg": {}}},
            "scheduler.kwarg is not a key; did you mean kwargs?; keys here are name, kwargs",
        ),
        ({"optimizer": {"name": "SDG"}}, "'SDG' is not in torch.optim; did you mean SGD?"),
        (
            {"optimizer": {"kwargs": {"momentun": 1}}},
            "SGD has no argument 'momentun'; did you mean momentum?",
        ),
        ({"scheduler": {"name": "Cosine"}}, "CosineAnnealingLR"),
        ({"steps": 4}, "give one of epochs and steps"),
        ({"epochs": None}, "give one of epochs and steps"),
        ({"epochs": 0}, "epochs is 0: should be greater than or equal to 1"),
        ({"epochs": "3"}, "epochs is '3': should be a valid integer"),
        ({"seeds": []}, "seeds is []"),
        ({"seeds": [1, 1]}, "seeds is [1, 1]: seeds are different numbers"),
        ({"seeds": [1, -1]}, "seeds.1 is -1: should be greater than or equal to 0"),
        ({"seeds": [2**32]}, "seeds.0 is 4294967296: should be less than or equal to 4294967295"),
        ({"data": {"name": "digits", "seed": 2**32}}, "should be less than or equal to 4294967295"),
        ({"data": {"name": "mnist"}}, "data.name is 'mnist': should be 'digits', 'CIFAR10'"),
        ({"data": {}}, "data.name is missing"),
        ({"data": {"name": "digits", "validation": 1.0}}, "data.validation is 1.0"),
        ({"data": {"name": "digits", "seed": -1}}, "data.seed is -1: should be greater than or"),
        ({"scoring": {"seed": -1}}, "scoring.seed is -1: should be greater than or equal to 0"),
        ({"gradient_clip": math.inf}, "gradient_clip is inf: should be a finite number"),
        ({"device": "gpu"}, "device is 'gpu'"),
        ({"precision": 16}, "precision is 16: should be '32', 'bf16-mixed' or '16-mixed'"),
        ({"name": "../elsewhere"}, "name is '../elsewhere'"),
        ({"name": ".."}, "name is '..'"),
        ({"dynamic": {"curve": "scheduler"}}, "give scheduler"),
        (
            {"dynamic": {"curve": "linear"}},
            "dynamic is {'curve': 'linear', 'nonfinite': 'raise'}: unknown curve",
        ),
        ({"dynamic": {"gamma_max": 0.5}}, "gamma_min must lie in 0 < gamma_min <= "),
        ({"dynamic": {"complexity": "flops"}}, "dynamic.complexity is 'flops': should be"),
        ({"dynamic": {"group_by": 3}}, "dynamic.group_by is 3: should be a valid string"),
        ({"dynamic": {"calr": 1}}, "dynamic.calr is 1: should be a valid boolean"),
        ({"dynamic": {"max_groups": 0}}, "max_groups"),
        (
            {"dynamic": {"total_steps": 9}},
            "dynamic.total_steps is that of the run: give epochs or steps",
        ),
        ({"dynamic": None}, "dynamic is None: should be an object"),
        ({"space": None}, "space is None"),
    ],
)
def test_errors_name_the_key_its_value_and_what_is_allowed(change, message):
    with pytest.raises(ConfigError) as caught:
        parse(LEAST | change)
    assert message in str(caught.value)


def test_options_are_those_of_dynamic_training():
    config = parse(LEAST | {"dynamic": {"bounds": [1, 9], "gamma_by": "complexity"}})
    expected = Options(bounds=(1.0, 9.0), gamma_by="complexity", nonfinite="raise")
    assert config.dynamic == expected
    assert parse(LEAST).dynamic == Options(nonfinite="raise")
    assert parse(LEAST | {"dynamic": {"nonfinite": "skip"}}).dynamic == Options(nonfinite="skip")


def test_every_fault_is_reported_at_once():
    with pytest.raises(ConfigError) as caught:
        parse(LEAST | {"epochs": -1, "precision": "8", "name": ""})
    assert all(f"\n  {key} is " in str(caught.value) for key in ("epochs", "precision", "name"))


@pytest.fixture
def write(tmp_path):
    def write(text: str):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return path

    return write


YAML = "space: {name: NasBench201}\ndata: {name: digits}\nepochs: 3\n"


def test_numbers_without_a_point_are_numbers(write):
    config = load(
        write(YAML + "optimizer: {kwargs: {lr: 1e-3, weight_decay: 5E-4, eps: 1.e-8}, name: Adam}")
    )
    assert config.optimizer.kwargs == {"lr": 0.001, "weight_decay": 0.0005, "eps": 1e-8}


def test_given_overrides_replace_keys(write):
    config = load(write(YAML + "seeds: [3]\nprecision: 32"), seeds=[1, 2], device=None)
    assert (config.seeds, config.device, config.precision) == ([1, 2], "auto", "32")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (YAML + "epochs: 4", "the key 'epochs' stands twice"),
        ("- a\n- b", "must hold keys and values"),
        ("", "must hold keys and values"),
        ("a: [", "is not valid YAML"),
        ("a: !!python/object/apply:os.getcwd []", "is not valid YAML"),
    ],
)
def test_what_is_no_configuration_file_is_refused(write, text, message):
    with pytest.raises(ConfigError, match=message):
        load(write(text))


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        load(tmp_path / "nowhere.yaml")
