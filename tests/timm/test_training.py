"""`attach` in a loop of the shape of timm's train.py."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest

pytest.importorskip("timm")
import torch
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3, NativeScaler
from torch import nn

from nas_dynamic import SearchSpace
from nas_dynamic.adapters.timm import attach, elastic_vit
from nas_dynamic.sampling import FairSampler, UniformSampler
from tests.timm.loop import (
    GROUP,
    Options,
    batches,
    optimizer_for,
    tiny_supernet,
    train,
    train_by_hand,
)

pytestmark = pytest.mark.host

SWITCHES = {
    "sched_on_updates": (False, True),
    "scaler": (False, True),
    "grad_accum_steps": (1, 2),
    "ema": (False, True),
    "clip_mode": (None, "norm"),
    "layer_decay": (None, 0.75),
    "resumed": (False, True),
}
# Every setting of any six of the seven switches: those with an even number of them on.
COMBINATIONS = [
    Options(**dict(zip(SWITCHES, values, strict=True)))
    for values in itertools.product(*SWITCHES.values())
    if sum(v == on for v, (_, on) in zip(values, SWITCHES.values(), strict=True)) % 2 == 0
]
OTHERS = [
    Options(opt="adamw", layer_decay=0.75, grad_accum_steps=3, ema=True, resumed=True),
    Options(opt="adamw", idle="freeze", sched_on_updates=True, clip_mode="agc"),
    Options(opt="lamb", clip_mode="value", resumed=True),
    Options(opt="lamb", ema=True, scaler=True, idle="freeze", resumed=True),
    Options(opt="rmsproptf", idle="freeze", ema=True),
]


def same_state(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def shown(options: Options) -> str:
    differ = [f"{k}={v}" for k, v in vars(options).items() if v != getattr(Options(), k)]
    return ",".join(differ) or "plain"


@pytest.mark.parametrize("options", [*COMBINATIONS, *OTHERS], ids=shown)
def test_equals_one_optimizer_a_group_with_the_formula_written_out(options, tmp_path):
    data = batches(3)
    used, go_on = [], {}
    if options.resumed:
        used = train(options, data, folder=tmp_path, stop_after=2, group_by=GROUP)["used"]
        go_on = {"supernet": tiny_supernet(seed=7), "resume": str(tmp_path / "last.pth.tar")}
    result = train(options, data, group_by=GROUP, **go_on)
    used += result["used"]
    sampler = UniformSampler(result["model"].space, seed=0)
    assert [update.architecture for update in used] == [sampler.sample() for _ in used]
    reference = train_by_hand(options, data, used, result["attached"].training.calr.gamma)
    assert reference["groups"] > 1
    assert same_state(result["model"], reference["model"])
    if options.ema:
        assert same_state(result["ema"], reference["ema"])


def test_accumulated_micro_batches_train_one_subnet():
    supernet = tiny_supernet().train()
    optimizer = create_optimizer_v2(supernet, opt="sgd", lr=0.1)
    attached = attach(optimizer, supernet)
    for _ in range(4):
        for _ in range(3):
            supernet(torch.randn(2, 3, 16, 16)).sum().backward()
        for label, choice in supernet.choices().items():
            for name, layer in choice.items():
                if name != supernet.sampled[label]:
                    assert all(p.grad is None for p in layer.parameters())
        drawn = supernet.sampled
        optimizer.step()
        assert attached.training.last.architecture == drawn
        optimizer.zero_grad()
        supernet(torch.randn(2, 3, 16, 16))
        assert supernet.sampled != drawn


def test_a_step_whose_gradients_are_not_finite_can_be_refused():
    supernet = tiny_supernet().train()
    optimizer = create_optimizer_v2(supernet, opt="sgd", lr=0.1)
    attach(optimizer, supernet, total_steps=4, nonfinite="raise")
    (supernet(torch.randn(2, 3, 16, 16)).sum() * float("inf")).backward()
    with pytest.raises(FloatingPointError, match="an inf or a NaN"):
        optimizer.step()


def test_validation_computes_the_activated_subnet():
    data = batches(3)
    supernet = tiny_supernet()
    pinned = supernet.space.decode([1] * len(supernet.space.labels))
    supernet.activate(pinned)
    result = train(Options(epochs=1, ema=True), data, supernet=supernet)
    with torch.no_grad():
        expected = supernet.extract(pinned)(data[0][0])
        assert torch.equal(result["validated"][-1], expected)
        assert torch.equal(result["ema"](data[0][0]), result["ema"].extract(pinned)(data[0][0]))
        other = supernet.space.decode([0] * len(supernet.space.labels))
        supernet.activate(other)
        assert torch.equal(supernet(data[0][0]), supernet.extract(other)(data[0][0]))
        assert not torch.equal(supernet(data[0][0]), expected)


def test_skipped_amp_step_keeps_subnet_weights_and_count():
    supernet = tiny_supernet().train()
    optimizer = create_optimizer_v2(supernet, opt="sgd", lr=0.1)
    attached = attach(optimizer, supernet)
    scaler = NativeScaler(device="cpu")
    before = copy.deepcopy(list(supernet.parameters()))
    x = torch.randn(2, 3, 16, 16)
    scaler(supernet(x).sum() * float("inf"), optimizer)
    optimizer.zero_grad()
    drawn = supernet.sampled
    assert attached.training.updates == 0
    assert all(torch.equal(p, q) for p, q in zip(before, supernet.parameters(), strict=True))
    supernet(x)
    assert supernet.sampled == drawn


@pytest.mark.filterwarnings("ignore:step 1 is skipped")
def test_the_next_subnet_follows_one_whose_gradients_are_not_finite():
    supernet = tiny_supernet().train()
    optimizer = create_optimizer_v2(supernet, opt="sgd", lr=0.1)
    attached = attach(optimizer, supernet, total_steps=30, nonfinite="skip", seed=1)
    twin = UniformSampler(supernet.space, seed=1)
    drawn = []
    for step in range(12):
        optimizer.zero_grad()
        loss = supernet(torch.randn(2, 3, 16, 16)).square().mean()
        (loss * (math.inf if step % 3 == 1 else 1.0)).backward()
        drawn.append(supernet.sampled)
        optimizer.step()
    assert drawn == [twin.sample() for _ in range(12)]
    assert (attached.training.updates, attached.training.skipped) == (8, 4)


def test_gradient_checkpointing_recomputes_the_drawn_subnet():
    def gradients(checkpointing):
        supernet = tiny_supernet().train()
        supernet.set_grad_checkpointing(checkpointing)
        attach(create_optimizer_v2(supernet, opt="sgd", lr=0.1), supernet)
        supernet(batches(1)[0][0]).square().sum().backward()
        return {n: p.grad for n, p in supernet.named_parameters() if p.grad is not None}

    plain, recomputed = gradients(False), gradients(True)
    assert plain.keys() == recomputed.keys()
    assert all(torch.allclose(plain[name], recomputed[name]) for name in plain)


def test_polynomial_decay_of_the_paper_over_total_steps():
    supernet = tiny_supernet().train()
    optimizer = create_optimizer_v2(supernet, opt="sgd", lr=0.1)
    attached = attach(optimizer, supernet, total_steps=6)
    for step in range(6):
        supernet(torch.randn(2, 3, 16, 16)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        last = attached.training.last
        assert last.lr[0] == pytest.approx(0.1 * (1 - step / 6) ** last.gamma)


def test_bounds_and_default_group_come_from_the_space():
    supernet = tiny_supernet()
    optimizer = create_optimizer_v2(supernet, opt="sgd", lr=0.1)
    training = attach(optimizer, supernet, gamma_by="complexity", momentum=True).training
    counts = [
        sum(p.numel() for p in supernet.extract(a).parameters())
        for a in (
            supernet.space.smallest(supernet.subnet_parameters()),
            supernet.space.largest(supernet.subnet_parameters()),
        )
    ]
    assert [training.calr.c_min, training.calr.c_max] == counts
    assert training.momentum.group_by in supernet.space.choices
    macs = attach(
        create_optimizer_v2(supernet, opt="sgd", lr=0.1), supernet, complexity="macs"
    ).training.calr
    assert macs.c_max > 1e6


def test_detached_supernet_trains_the_activated_subnet():
    supernet = tiny_supernet().train()
    attached = attach(create_optimizer_v2(supernet, opt="sgd", lr=0.1), supernet)
    supernet(torch.randn(2, 3, 16, 16))
    attached.detach()
    active = {label: choice.active for label, choice in supernet.choices().items()}
    assert active == supernet.architecture == supernet.base
    supernet(torch.randn(2, 3, 16, 16))
    assert not supernet._forward_pre_hooks


def test_elastic_vit_is_attached_alike():
    supernet = elastic_vit("test_vit", embed_dim=(32, 64), heads=(1, 2), num_classes=4, img_size=32)
    optimizer = create_optimizer_v2(supernet, opt="adamw", lr=1e-3)
    attached = attach(optimizer, supernet)
    supernet.train()
    sampler = UniformSampler(supernet.space, seed=0)
    for _ in range(3):
        supernet(torch.randn(2, 3, 32, 32)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert attached.training.last.architecture == sampler.sample()
    assert supernet.eval().architecture == supernet.space.largest(supernet.subnet_parameters())


def test_copy_of_the_supernet_is_independent():
    supernet = tiny_supernet().train()
    attach(create_optimizer_v2(supernet, opt="sgd", lr=0.1), supernet)
    twin = copy.deepcopy(supernet)
    twin.train()(torch.randn(2, 3, 16, 16))
    assert supernet.sampled is None
    assert ModelEmaV3(supernet).module.architecture == supernet.base


@pytest.mark.parametrize("name", ["lookahead_sgd", "lookahead_adamw"])
def test_lookahead_is_refused_with_the_reason(name):
    supernet = tiny_supernet()
    optimizer = create_optimizer_v2(supernet, opt=name, lr=0.1)
    with pytest.raises(ValueError, match=r"Lookahead, which is not supported: .*slow weights"):
        attach(optimizer, supernet)
    assert not supernet._forward_pre_hooks


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_by": "blocks.9.9"}, r"no label of the space; labels are 'blocks\.1\.0'"),
        ({"complexity": "flops"}, "'parameters', 'macs' or a function"),
        ({"curve": "linear"}, "choose one of polynomial"),
        ({"total_steps": 0}, "total_steps must be a whole number, at least 1"),
        ({"idle": "drift"}, "idle must be"),
        ({"bounds": (5, 2), "gamma_by": "complexity"}, "reversed"),
        ({"gamma_by": "size"}, "gamma_by must be 'rank' or 'complexity'"),
        ({"bounds": (1, 9)}, "bounds are for γ by complexity"),
    ],
)
def test_bad_options(options, message):
    supernet = tiny_supernet()
    optimizer = create_optimizer_v2(supernet, opt="sgd", lr=0.1)
    with pytest.raises(ValueError, match=message):
        attach(optimizer, supernet, **options)
    attach(optimizer, supernet)  # nothing was left behind


def test_gamma_by_rank_leaves_the_mean_of_log_gamma_at_0():
    supernet = tiny_supernet()
    optimizer = create_optimizer_v2(supernet, opt="sgd", lr=0.1)
    attached = attach(optimizer, supernet, total_steps=4)
    gammas = [attached.training.calr.gamma(architecture) for architecture in supernet.space]
    assert np.mean(np.log(gammas)) == pytest.approx(0, abs=1e-9)
    assert max(gammas) > 2


def test_gamma_by_rank_is_by_the_rank_among_subnets_that_the_sampler_draws():
    supernet = tiny_supernet()
    label = supernet.space.labels[0]
    kept = supernet.space.choices[label][0]
    samplers = [UniformSampler(supernet.space, 1, lambda a: a[label] == kept) for _ in range(2)]
    optimizer = create_optimizer_v2(supernet, opt="sgd", lr=0.1)
    attached = attach(optimizer, supernet, total_steps=4, sampler=samplers[0])
    drawn = [samplers[0].sample() for _ in range(2000)]
    assert drawn[:9] == [samplers[1].sample() for _ in range(9)]
    gammas = [attached.training.calr.gamma(architecture) for architecture in drawn]
    assert np.mean(np.log(gammas)) == pytest.approx(0, abs=0.1)


def test_sampler_of_several_subnets_is_refused():
    supernet = tiny_supernet().train()
    optimizer = create_optimizer_v2(supernet, opt="sgd", lr=0.1)
    with pytest.raises(TypeError, match="needs a sampler of one"):
        attach(optimizer, supernet, sampler=FairSampler(supernet.space))
    assert not optimizer._optimizer_step_pre_hooks


def test_sampler_of_another_space_is_refused():
    supernet = tiny_supernet().train()
    optimizer = create_optimizer_v2(supernet, opt="sgd", lr=0.1)
    sampler = UniformSampler(SearchSpace({"layer": ["a", "b"]}))
    with pytest.raises(ValueError, match=r"chooses nothing for 'blocks\.1\.0'"):
        attach(optimizer, supernet, sampler=sampler)
    attach(optimizer, supernet, calr=False, sampler=sampler)
    with pytest.raises(ValueError, match=r"chooses nothing for 'blocks\.1\.0'"):
        supernet(torch.randn(2, 3, 16, 16))


def test_plain_model_is_refused():
    model = nn.Linear(2, 2)
    with pytest.raises(TypeError, match="Linear is no supernet of this adapter; make one by fuse"):
        attach(torch.optim.SGD(model.parameters(), 0.1), model)


def test_checkpoint_without_sampling_is_refused():
    supernet = tiny_supernet()
    optimizer = create_optimizer_v2(supernet, opt="sgd", lr=0.1)
    plain = optimizer.state_dict()
    attached = attach(optimizer, supernet)
    with pytest.raises(ValueError, match="written without dynamic training"):
        optimizer.load_state_dict(plain)
    state = optimizer.state_dict()
    del state["dynamic_sampling"]
    with pytest.raises(ValueError, match="no state of the sampling"):
        optimizer.load_state_dict(state)
    assert attached.training.updates == 0


def test_checkpoint_of_another_space_is_refused(tmp_path):
    train(Options(epochs=1), batches(3), folder=tmp_path)
    checkpoint = torch.load(tmp_path / "last.pth.tar", weights_only=True)
    supernet = tiny_supernet()
    supernet.space = SearchSpace(
        {label: candidates[:2] for label, candidates in supernet.space.choices.items()}
    )
    optimizer = optimizer_for(supernet, Options())
    attach(optimizer, supernet)
    with pytest.raises(ValueError, match=r"space\.blocks\.1\.1 is .* in the checkpoint"):
        optimizer.load_state_dict(checkpoint["optimizer"])


def test_sampling_leaves_other_generators_alone():
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    supernet = tiny_supernet().train()
    attach(create_optimizer_v2(supernet, opt="sgd", lr=0.1), supernet)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    supernet(torch.zeros(2, 3, 16, 16))
    assert torch.equal(torch_state, torch.get_rng_state())
    assert (numpy_state == np.random.get_state()[1]).all()  # noqa: NPY002


@pytest.mark.parametrize("updates", [0, 1])
@pytest.mark.parametrize("way", ["evaluation mode", "forward_features"])
def test_step_without_a_forward_pass_in_training_mode_is_refused(updates, way):
    supernet = tiny_supernet().train()
    optimizer = create_optimizer_v2(supernet, opt="sgd", lr=0.1)
    attached = attach(optimizer, supernet)
    images = torch.randn(2, 3, 16, 16)
    for _ in range(updates):
        supernet(images).sum().backward()
        optimizer.step()
    optimizer.zero_grad()
    before = copy.deepcopy(supernet.state_dict())
    if way == "forward_features":
        supernet.forward_head(supernet.forward_features(images)).sum().backward()
    else:
        supernet.eval()(images).sum().backward()
    with pytest.raises(RuntimeError, match=r"no subnet has been drawn .* Call supernet\.train"):
        optimizer.step()
    assert attached.training.updates == updates
    parameters = dict(supernet.named_parameters())
    assert all(torch.equal(parameters[name], before[name]) for name in parameters)


def test_parts_of_the_supernet_compute_the_activated_subnet_between_updates():
    supernet = tiny_supernet()
    alone = copy.deepcopy(supernet)
    optimizer = create_optimizer_v2(supernet, opt="sgd", lr=0.1)
    attach(optimizer, supernet)
    images = torch.randn(2, 3, 16, 16)
    for _ in range(4):
        supernet.train()(images).sum().backward()
        optimizer.step()
        assert supernet.sampled != supernet.architecture
        alone.load_state_dict(supernet.state_dict())
        with torch.no_grad():
            ours = supernet.eval().forward_features(images)
            assert torch.equal(ours, alone.eval().forward_features(images))
