"""On a GPU: nothing waits for the device, captures are refused, gradients are those of a CPU."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.nb201.supernet import OPERATIONS, SPACE
from benchmarks.nb201.supernet import Supernet as NasBench201
from nas_dynamic import CaLR, DynamicTraining, MomentumSeparation
from nas_dynamic.adapters.timm import mobile_supernet
from nas_dynamic.evaluation import evaluate, recalibrate, score_subnets
from nas_dynamic.search import search_supernet
from tests.attach.reference import C_MAX, C_MIN, Mixed, batches, complexity, make_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

OPTIMIZERS: dict[str, Any] = {
    "sgd": functools.partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    "fused sgd": functools.partial(torch.optim.SGD, momentum=0.9, fused=True),
    "fused adamw": functools.partial(torch.optim.AdamW, fused=True),
}


class Loop:
    """Updates of a small supernet on the GPU, by gradients that are given."""

    def __init__(self, name: str, idle: str, **options: Any) -> None:
        self.model = make_model(Mixed).cuda()
        self.optimizer = OPTIMIZERS[name](self.model.parameters(), lr=0.01)
        self.told: dict[str, Any] = {}
        self.dynamic = DynamicTraining(
            self.optimizer,
            architecture=lambda: self.told,
            calr=CaLR(complexity, total_steps=40, bounds=(C_MIN, C_MAX)),
            momentum=MomentumSeparation("layer1"),
            idle=idle,
            **options,
        )

    def backward(self, batch: Any, scaler: Any = None) -> None:
        x, y, self.told = batch
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.model(x.cuda(), self.told), y.cuda())
        (loss if scaler is None else scaler.scale(loss)).backward()


@pytest.fixture
def no_waiting() -> Iterator[Any]:
    """What raises where the host waits for the device."""
    yield functools.partial(torch.cuda.set_sync_debug_mode, "error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("scaled", [False, True], ids=["fp32", "GradScaler"])
@pytest.mark.parametrize("nonfinite", ["ignore", "skip"])
@pytest.mark.parametrize("idle", ["coast", "freeze"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_update_does_not_wait_for_the_device(name, idle, nonfinite, scaled, no_waiting):
    if name == "fused sgd" and idle == "freeze":
        pytest.skip("refused at attachment")
    if "fused" not in name and (scaled or nonfinite == "skip"):
        pytest.skip("waits for the device, as documented")
    loop = Loop(name, idle, nonfinite=nonfinite)
    scaler = torch.amp.GradScaler("cuda", init_scale=256.0) if scaled else None
    for batch in batches(9):
        loop.backward(batch, scaler)
        no_waiting()
        loop.optimizer.step() if scaler is None else scaler.step(loop.optimizer)
        torch.cuda.set_sync_debug_mode("default")
        if scaler is not None:
            scaler.update()
    assert loop.dynamic.updates == 9


@pytest.mark.filterwarnings("ignore:step .* is skipped")
@pytest.mark.parametrize("by", ["GradScaler", "skip"])
def test_a_step_that_the_device_leaves_out_is_no_update(by: str):
    loop, untroubled = (Loop("fused adamw", "freeze", nonfinite="skip") for _ in range(2))
    scaler = torch.amp.GradScaler("cuda", init_scale=256.0) if by == "GradScaler" else None
    for number, batch in enumerate(batches(6)):
        if number in (0, 3):
            loop.backward(batch, scaler)
            loop.model.head.weight.grad[1, 2] = float("nan")
            if scaler is None:
                loop.optimizer.step()
            else:
                scaler.step(loop.optimizer)
                scaler.update()
        loop.backward(batch)
        loop.optimizer.step()
        untroubled.backward(batch)
        untroubled.optimizer.step()
        assert loop.dynamic.updates == number + 1
        for one, other in zip(loop.model.parameters(), untroubled.model.parameters(), strict=True):
            assert torch.equal(one, other)
    assert loop.dynamic.skipped == (2 if by == "skip" else 0)


def test_a_step_that_is_captured_is_refused():
    loop = Loop("fused adamw", "freeze")
    loop.backward(batches(1)[0])
    loop.optimizer.step()
    before = [p.detach().clone() for p in loop.model.parameters()]
    torch.cuda.synchronize()
    graph = torch.cuda.graph(torch.cuda.CUDAGraph())
    with pytest.raises(RuntimeError, match="captured into a CUDA graph"), graph:
        loop.optimizer.step()
    torch.cuda.synchronize()
    assert all(torch.equal(p, b) for p, b in zip(loop.model.parameters(), before, strict=True))
    assert loop.dynamic.updates == 1


@pytest.fixture
def exact(monkeypatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


def relative_error(model: nn.Module, truth: nn.Module) -> float:
    """Return the error of all gradients, as a share of their norm."""
    pairs = [
        (p.grad.double().cpu(), t.grad)
        for p, t in zip(model.parameters(), truth.parameters(), strict=True)
        if t.grad is not None
    ]
    error = sum(float((a - b).square().sum()) for a, b in pairs)
    return (error / sum(float(b.square().sum()) for _, b in pairs)) ** 0.5


@pytest.mark.parametrize("operation", OPERATIONS)
def test_gradients_of_nas_bench_201_are_those_of_float64(operation: str, exact):
    """Batch norm without affine parameters amplifies rounding, so one cell a stage."""
    if operation == "none":
        operation, rest = "nor_conv_3x3", "none"
    else:
        rest = "nor_conv_1x1"
    architecture = dict.fromkeys(SPACE.labels, operation) | {"1←0": rest, "3←0": operation}
    truth, model = NasBench201(8, 1).double(), NasBench201(8, 1).cuda()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(16, 3, 16, 16, generator=generator, dtype=torch.float64)
    classes = torch.randint(10, (16,), generator=generator)
    nn.functional.cross_entropy(truth(images, architecture), classes).backward()
    logits = model(images.float().cuda(), architecture)
    nn.functional.cross_entropy(logits, classes.cuda()).backward()
    assert relative_error(model, truth) < 1e-3


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_of_a_timm_space_are_those_of_float64(layout, exact):
    def supernet() -> Any:
        torch.manual_seed(0)
        arch_def = [["ds_r1_k3_s1_e1_c8"], ["ir_r2_k3_s2_e6_c8"], ["ir_r2_k3_s2_e6_c16_se0.25"]]
        return mobile_supernet(
            arch_def, kernel=(3, 5, 7), expansion=(3, 6), skip=True, num_classes=4
        )

    truth, model = supernet().double(), supernet().cuda().to(memory_format=layout)
    generator = torch.Generator().manual_seed(0)
    for number in range(4):
        architecture = truth.space.sample(np.random.default_rng(number))
        images = torch.randn(16, 3, 32, 32, generator=generator, dtype=torch.float64)
        classes = torch.randint(4, (16,), generator=generator)
        for net, x, y in (
            (truth, images, classes),
            (model, images.float().cuda().to(memory_format=layout), classes.cuda()),
        ):
            net.zero_grad()
            net.activate(architecture)
            nn.functional.cross_entropy(net(x), y).backward()
        assert relative_error(model, truth) < 2e-2  # an activation may round across a kink


def test_scores_are_those_of_the_cpu(exact):
    torch.manual_seed(0)
    arch_def = [["ds_r1_k3_s1_e1_c8"], ["ir_r2_k3_s2_e6_c8"], ["ir_r2_k3_s2_e6_c16"]]
    supernet = mobile_supernet(arch_def, kernel=(3, 5), expansion=(3, 6), num_classes=4)
    images, labels = torch.randn(200, 3, 32, 32), torch.randint(4, (200,))
    data = list(zip(images.split(32), labels.split(32), strict=True))
    generator = np.random.default_rng(0)
    architectures = [supernet.space.sample(generator) for _ in range(4)]
    scores = []
    for device in ("cpu", "cuda"):
        supernet.to(device)
        score = functools.partial(score_subnets, supernet, type(supernet).activate)
        scores.append(list(score(architectures, data, calibration=data[:3])))
    for cpu, gpu in zip(*scores, strict=True):
        assert cpu.architecture == gpu.architecture
        assert gpu.loss == pytest.approx(cpu.loss, rel=1e-3)


def test_a_search_on_the_gpu_ends_in_a_network_that_scores_as_found(exact):
    torch.manual_seed(0)
    arch_def = [["ds_r1_k3_s1_e1_c8"], ["ir_r2_k3_s2_e6_c8"], ["ir_r2_k3_s2_e6_c16"]]
    supernet = mobile_supernet(arch_def, kernel=(3, 5), expansion=(3, 6), num_classes=4).cuda()
    images, labels = torch.randn(200, 3, 32, 32), torch.randint(4, (200,))
    data = list(zip(images.split(40), labels.split(40), strict=True))
    best = search_supernet(supernet, data, calibration=data[:3], budget=8).best
    network = supernet.extract(best.architecture).cuda()
    recalibrate(network, data[:3])
    accuracy, loss = evaluate(network, data)
    assert accuracy == best.values["accuracy"]
    assert loss == pytest.approx(best.values["loss"], rel=1e-5)


@pytest.mark.host
def test_an_nni_experiment_trains_on_the_gpu(tmp_path):
    pytest.importorskip("nni")
    from tests.gpu.nni_on_gpu import train

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (gpu, here), (cpu, there) = (train(tmp_path, kind) for kind in ("gpu", "cpu"))
    assert (gpu.device, cpu.device) == ("cuda", "cpu")
    assert gpu.updates == cpu.updates
    assert len(gpu.updates) == 8
    for one, other in zip(here.parameters(), there.parameters(), strict=True):
        assert one.dtype == torch.float64
        torch.testing.assert_close(one.cpu(), other, rtol=1e-6, atol=1e-9)
