"""The configuration of a run: what may stand in the YAML file of `nas-dynamic train`."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import inspect
import json
import re
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import torch

from nas_dynamic._extras import extra
from nas_dynamic.host.options import Options
from nas_dynamic.storage.journal import RunError

with extra("experiment"):
    import yaml
    from pydantic import (
        BaseModel,
        ConfigDict,
        Field,
        ValidationError,
        field_validator,
        model_validator,
    )

__all__ = [
    "FOREIGN",
    "Config",
    "ConfigError",
    "Data",
    "Optimizer",
    "Scheduler",
    "Scoring",
    "Space",
    "kwargs_of",
    "load",
    "parse",
    "refusing",
]

Kwargs = dict[str, Any]
Share = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
"""Of the generators of NumPy's older kind, which Lightning and scikit-learn seed."""


class ConfigError(RunError):
    """A configuration is not valid; the message names every key that is at fault."""


FOREIGN = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError)
"""What torch and NNI raise as well, where a value does not suit them."""


@contextlib.contextmanager
def refusing(key: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turn what a value of the configuration raises where it is used into an error with its key.

    For the calls alone that take values as they are in the file: elsewhere a TypeError is a bug.

    Args:
        key: the beginning of the message.
        kinds: of error, beside TypeError and ValueError.

    Raises:
        ConfigError: instead of those.
    """
    refused: tuple[type[Exception], ...] = (TypeError, ValueError, *kinds)
    try:
        yield
    except ConfigError:
        raise
    except refused as error:
        # A KeyError's text is the key alone, and an assertion may have none.
        said = repr(error) if isinstance(error, KeyError) else str(error) or repr(error)
        raise ConfigError(f"{key}: {said.splitlines()[0]}") from error


def _check_call(module: Any, name: str, base: type, kwargs: Kwargs) -> None:
    """Check that a class exists and takes the arguments."""
    names = [n for n, c in vars(module).items() if inspect.isclass(c) and issubclass(c, base)]
    names = sorted(n for n in names if getattr(module, n) is not base and n[0].isupper())
    if name not in names:
        raise ValueError(
            f"{name!r} is not in {module.__name__}{_close(name, names)}; it has {', '.join(names)}"
        )
    parameters = list(inspect.signature(getattr(module, name)).parameters)[1:]
    for key in kwargs:
        if key not in parameters:
            raise ValueError(
                f"{name} has no argument {key!r}{_close(key, parameters)}; "
                f"it takes {', '.join(parameters)}"
            )


def _close(name: Any, names: list[str]) -> str:
    matches = difflib.get_close_matches(str(name), names, 1)
    return f"; did you mean {matches[0]}?" if matches else ""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Space(_Section):
    """The model space: a name of NNI's hub or `module:callable`, and its arguments."""

    name: str
    kwargs: Kwargs = {}


class Data(_Section):
    """The images, and how they are split.

    `validation` is the share of the training images that is taken to score subnets on. `test`, a
    share of all images, is for `digits` only, which have no official test images; `root` and
    `augment` are for the others, `download` for torchvision's sets, `size` for `ImageFolder`.
    """

    name: Literal["digits", "CIFAR10", "CIFAR100", "FashionMNIST", "ImageFolder"]
    root: str = "data"
    size: Annotated[int, Field(ge=8)] = 32
    validation: Share = 0.1
    test: Share = 0.25
    augment: bool = True
    download: bool = False
    workers: Annotated[int, Field(ge=0)] = 0
    seed: Seed = 0


class Optimizer(_Section):
    """A class of `torch.optim`, and its arguments."""

    name: str = "SGD"
    kwargs: Kwargs = {}

    @model_validator(mode="after")
    def _known(self) -> Optimizer:
        _check_call(torch.optim, self.name, torch.optim.Optimizer, self.kwargs)
        return self


class Scheduler(_Section):
    """A class of `torch.optim.lr_scheduler`, its arguments, and when it steps."""

    name: str
    kwargs: Kwargs = {}
    interval: Literal["step", "epoch"] = "epoch"

    @model_validator(mode="after")
    def _known(self) -> Scheduler:
        base = torch.optim.lr_scheduler.LRScheduler
        _check_call(torch.optim.lr_scheduler, self.name, base, self.kwargs)
        return self


def kwargs_of(section: str, chosen: Space | Optimizer | Scheduler) -> str:
    """Return the beginning of a message on arguments that do not suit what they are for."""
    return f"{section}.kwargs are {chosen.kwargs}, which do not suit {chosen.name}"


class Scoring(_Section):
    """Which subnets are scored after training, and how."""

    subnets: Annotated[int, Field(ge=2)] = 100
    seed: Annotated[int, Field(ge=0)] = 0
    batch_size: Count = 256
    batch_norm: Literal["recalibrate", "batch", "running"] = "recalibrate"
    calibration_batches: Count = 8


class Config(_Section):
    """One run: a supernet trained once for each seed, and its subnets scored."""

    name: Annotated[str, Field(pattern=r"^[\w-][\w.-]*$")] = "supernet"
    space: Space
    data: Data
    optimizer: Optimizer = Optimizer(kwargs={"lr": 0.025, "momentum": 0.9})
    scheduler: Scheduler | None = None
    dynamic: Options = Options(nonfinite="raise")
    scoring: Scoring = Scoring()
    epochs: Count | None = None
    steps: Count | None = None
    batch_size: Count = 64
    gradient_clip: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    seeds: Annotated[list[Seed], Field(min_length=1)] = [0]
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"
    precision: Literal["32", "bf16-mixed", "16-mixed"] = "32"

    @property
    def torch_device(self) -> torch.device:
        """The device that is meant; `auto` is an accelerator if there is one."""
        if self.device != "auto":
            return torch.device(self.device)
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")

    @field_validator("precision", mode="before")
    @classmethod
    def _precision_name(cls, value: Any) -> Any:
        return "32" if value == 32 else value

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, value: list[int]) -> list[int]:
        if len(set(value)) != len(value):
            raise ValueError("seeds are different numbers")
        return value

    @model_validator(mode="after")
    def _one_budget(self) -> Config:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give one of epochs and steps, the length of the training")
        if self.dynamic.total_steps is not None:
            raise ValueError("dynamic.total_steps is that of the run: give epochs or steps")
        if self.dynamic.curve == "scheduler" and self.scheduler is None:
            raise ValueError("dynamic.curve 'scheduler' bends an lr scheduler: give scheduler")
        return self


def load(path: str | Path, **overrides: Any) -> Config:
    """Return the configuration in a YAML file; `overrides` that are not None replace its keys.

    Raises:
        ConfigError: the file cannot be read, is no YAML, or is not valid.
    """
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
        raise ConfigError(f"{path}{place}, is not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # not UTF-8, a month 13, too deep
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold keys and values, such as 'epochs: 10'")
    return parse(content | {k: v for k, v in overrides.items() if v is not None}, str(path))


def parse(content: dict[str, Any], source: str = "the configuration") -> Config:
    """Return a configuration from plain data.

    Raises:
        ConfigError: names each key at fault, its value, and what it may be.
    """
    if isinstance(content.get("dynamic"), dict):
        # A run that diverges is to end, where a training of one's own goes on.
        content = content | {"dynamic": {"nonfinite": "raise"} | content["dynamic"]}
    try:
        # As JSON, of whose kinds of values a configuration is; it has no dates, say.
        return Config.model_validate_json(json.dumps(content, default=str))
    except ValidationError as error:
        lines = dict.fromkeys(_sentence(dict(fault)) for fault in error.errors())
        raise ConfigError(f"{source} is not valid:\n  " + "\n  ".join(lines)) from None
    except (TypeError, ValueError, RecursionError) as error:  # keys that are no text; too deep
        raise ConfigError(f"{source} is not valid: {error}") from error


class _Loader(yaml.SafeLoader):
    """Plain data only; 5e-4 is a number, as in YAML 1.2, and a key may stand only once."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):  # by which a short file can be of any size
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(
                None, None, "aliases (*name) are not taken; write the value out", mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", node.value[position][0].start_mark
                )
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _sentence(fault: dict[str, Any]) -> str:
    # Of an option that may be a function as well, in code, the place has the kind that was tried.
    place = [p for p in fault["loc"] if not re.fullmatch(r"str|callable|literal\[.*\]", str(p))]
    key, message = ".".join(map(str, place)), fault["msg"]
    if fault["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        keys = _keys(place[:-1])
        return f"{key} is not a key{_close(place[-1], keys)}; keys here are {', '.join(keys)}"
    if fault["type"] == "missing":
        return f"{key} is missing"
    message = message.removeprefix("Value error, ").removeprefix("Input ")
    return f"{key} is {reprlib.repr(fault['input'])}: {message}" if key else str(message)


def _keys(place: list[Any]) -> list[str]:
    """Return the keys of a section."""
    section: Any = Config
    for part in place:
        annotation = section.model_fields[part].annotation
        section = getattr(annotation, "__args__", (annotation,))[0]  # of X | None, X
    if dataclasses.is_dataclass(section):
        return [option.name for option in dataclasses.fields(section)]
    return list(section.model_fields)
