from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from nas_dynamic.evaluation import evaluate, inference, recalibrate, score_subnets

IMAGES = 48


class Supernet(nn.Module):
    """Two branches with BN of their own, then a shared BN, dropout and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(3, 6, kernel, padding="same"), nn.BatchNorm2d(6), nn.ReLU())
            for kernel in (1, 3)
        )
        self.shared = nn.BatchNorm2d(6)
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Linear(6, 4)
        self.branch = 0

    def activate(self, architecture) -> None:
        self.branch = architecture["branch"]

    def forward(self, x):
        x = self.shared(self.branches[self.branch](x)).relu()
        return self.classifier(self.dropout(x.mean((2, 3))))


class Subnet(nn.Module):
    """One branch of it, stand-alone, by torch's own modules."""

    def __init__(self, supernet: Supernet, branch: int) -> None:
        super().__init__()
        parts = [supernet.branches[branch], supernet.shared, supernet.classifier]
        self.branch, self.shared, self.classifier = copy.deepcopy(parts)

    def forward(self, x):
        return self.classifier(self.shared(self.branch(x)).relu().mean((2, 3)))


@pytest.fixture
def supernet() -> Supernet:
    torch.manual_seed(0)
    supernet = Supernet()
    for module in supernet.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.1, 3)
            nn.init.uniform_(module.weight, 0.5, 2)
    return supernet.train()


@pytest.fixture(params=[1, 2, 100], ids=lambda n: f"{n} batches at once")
def at_once(request, monkeypatch) -> None:
    """As on a GPU, which takes as many batches together as are worth its while."""
    monkeypatch.setitem(inference.AT_ONCE, "cpu", request.param * 20 * 3 * 8 * 8 * 4)


def batches(seed: int, size: int = 16):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(IMAGES, 3, 8, 8, generator=generator) * 2 + 1
    labels = torch.randint(4, (IMAGES,), generator=generator)
    return list(zip(images.split(size), labels.split(size), strict=True))


def standalone(supernet: Supernet, branch: int, calibration) -> tuple[float, float]:
    """Accuracy and loss by torch's own cumulative average, `momentum=None`."""
    model = Subnet(supernet, branch)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    model.train()
    with torch.no_grad():
        for images, _ in calibration:
            model(images)
        model.eval()
        logits = torch.cat([model(images) for images, _ in batches(1)])
    labels = torch.cat([labels for _, labels in batches(1)])
    loss = nn.functional.cross_entropy(logits, labels).item()
    return (logits.argmax(1) == labels).float().mean().item(), loss


def test_scores_are_those_of_the_stand_alone_subnet(supernet, at_once):
    calibration = batches(2, size=20)  # the last batch is smaller, and counts the same
    architectures = [{"branch": 0}, {"branch": 1}, {"branch": 0}]
    scores = list(
        score_subnets(
            supernet, Supernet.activate, architectures, batches(1), calibration=calibration
        )
    )
    for score in scores:
        accuracy, loss = standalone(supernet, score.architecture["branch"], calibration)
        assert score.accuracy == pytest.approx(accuracy)
        assert score.loss == pytest.approx(loss, rel=1e-5)
    assert (scores[0].accuracy, scores[0].loss) == (scores[2].accuracy, scores[2].loss)
    assert scores[0].loss != pytest.approx(scores[1].loss, rel=1e-3)


@pytest.mark.parametrize("batch_norm", ["recalibrate", "batch", "running"])
def test_supernet_is_the_same_between_and_after_scores(supernet, batch_norm):
    before = copy.deepcopy(supernet.state_dict())
    modes = [module.training for module in supernet.modules()]
    for _ in score_subnets(
        supernet,
        Supernet.activate,
        [{"branch": 1}, {"branch": 0}],
        batches(1),
        batch_norm=batch_norm,
        calibration=batches(2),
    ):
        for name, value in supernet.state_dict().items():
            assert torch.equal(value, before[name]), name
        assert [module.training for module in supernet.modules()] == modes
        assert not torch.is_inference_mode_enabled()


def test_buffers_are_restored_when_scoring_fails(supernet):
    before = copy.deepcopy(supernet.state_dict())
    broken = [*batches(2), (torch.zeros(4, 5, 8, 8), torch.zeros(4))]
    with pytest.raises(RuntimeError, match="channels"):
        list(
            score_subnets(
                supernet, Supernet.activate, [{"branch": 0}], batches(1), calibration=broken
            )
        )
    assert all(torch.equal(value, before[name]) for name, value in supernet.state_dict().items())


def test_batch_statistics_are_those_of_training_mode(supernet, at_once):
    supernet.dropout.p = 0.0
    (score,) = score_subnets(
        supernet, Supernet.activate, [{"branch": 1}], batches(1), batch_norm="batch"
    )
    model = Subnet(supernet, 1).train()
    with torch.no_grad():
        logits = torch.cat([model(images) for images, _ in batches(1)])
    labels = torch.cat([labels for _, labels in batches(1)])
    assert score.loss == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)


def test_recalibration_leaves_layers_alone_that_the_subnet_does_not_use(supernet, at_once):
    idle = copy.deepcopy(supernet.branches[1].state_dict())
    recalibrate(supernet, batches(2))
    assert all(
        torch.equal(value, idle[name]) for name, value in supernet.branches[1].state_dict().items()
    )


def test_recalibration_of_a_sliced_layer_reaches_only_its_channels(at_once):
    class Sliced(nn.BatchNorm2d):
        """Uses its first channels, at a momentum of its own, like NNI's."""

        def forward(self, x):
            n = x.shape[1]
            return nn.functional.batch_norm(
                x, self.running_mean[:n], self.running_var[:n], None, None, self.training, 0.1
            )

    model = nn.Sequential(nn.Conv2d(3, 4, 1), Sliced(6))
    calibration = batches(2)
    recalibrate(model, calibration)
    with torch.no_grad():
        inputs = [model[0](images) for images, _ in calibration]
    expected = torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0)
    torch.testing.assert_close(model[1].running_mean[:4], expected)
    variances = torch.stack([x.var((0, 2, 3)) for x in inputs]).mean(0)
    torch.testing.assert_close(model[1].running_var[:4], variances)
    assert torch.equal(model[1].running_mean[4:], torch.zeros(2))
    assert torch.equal(model[1].running_var[4:], torch.ones(2))


@pytest.mark.host
def test_nni_supernet_scores_as_its_frozen_subnet():
    from nni.nas.hub.pytorch import NasBench201
    from nni.nas.strategy import RandomOneShot

    from nas_dynamic.adapters.nni import activate, search_space

    torch.manual_seed(0)
    supernet = RandomOneShot().mutate_model(NasBench201(4, 1, 4))
    space = search_space(supernet)
    architectures = [space.sample(np.random.default_rng(seed)) for seed in range(3)]
    calibration = batches(2)
    for score in score_subnets(
        supernet,
        activate,
        architectures,
        batches(1),
        calibration=calibration,
    ):
        subnet = copy.deepcopy(supernet.freeze(score.architecture)).train()
        for module in subnet.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
                module.momentum = None
        with torch.no_grad():
            for images, _ in calibration:
                subnet(images)
        accuracy, loss = evaluate(subnet, batches(1))
        assert score.accuracy == accuracy
        assert score.loss == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs calibration batches"),
        ({"batch_norm": "none"}, "must be 'recalibrate', 'batch' or 'running', got 'none'"),
        ({"calibration": []}, "no image to recalibrate on"),
        ({"batch_norm": "running", "precision": "8"}, "unknown precision '8'; choose one of 32,"),
    ],
)
def test_what_cannot_be_scored_is_refused(supernet, arguments, message):
    with pytest.raises(ValueError, match=message):
        list(score_subnets(supernet, Supernet.activate, [{"branch": 0}], batches(1), **arguments))


def test_no_image_is_refused(supernet):
    with pytest.raises(ValueError, match="no image to evaluate on"):
        evaluate(supernet, [])
