from __future__ import annotations

import csv
import dataclasses
import gzip
import math
import shutil
import tarfile

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.stats import kendalltau, rankdata
from torch import nn

from benchmarks.nb201 import data, figures
from benchmarks.nb201.__main__ import main
from benchmarks.nb201.arms import ARMS, mean_gamma
from benchmarks.nb201.data import (
    Images,
    Table,
    TrainingBatches,
    load_images,
    load_table,
    parse_architecture,
)
from benchmarks.nb201.factors import DESIGN, effects, print_effects
from benchmarks.nb201.idle import idle_differences, print_idle
from benchmarks.nb201.kernels import SIMD, TORCH
from benchmarks.nb201.progress import Progress
from benchmarks.nb201.rankings import (
    ALWAYS,
    Setting,
    columns_of,
    rank_errors,
    read_rankings,
    scores_path,
    tilted,
)
from benchmarks.nb201.report import SETTING, append_result, paired_differences, read_results
from benchmarks.nb201.scoring import regret_of, score, split_deviation
from benchmarks.nb201.standalone import train_standalone
from benchmarks.nb201.supernet import (
    EDGES,
    OPERATIONS,
    SPACE,
    Supernet,
    depth,
    live_edges,
    macs,
    parameters,
)
from benchmarks.nb201.training import IDLE, SAMPLERS, Run, Training
from nas_dynamic.analysis.paired import Difference
from nas_dynamic.analysis.ranking import complexity_bias, kendall_tau_within
from nas_dynamic.complexity import count_macs
from nas_dynamic.space import key

pytestmark = pytest.mark.host

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")

ALIKE = "|{0}~0|+|{0}~0|{0}~1|+|{0}~0|{0}~1|{0}~2|"
CONV3, SKIPS, POOLS = map(ALIKE.format, ("nor_conv_3x3", "skip_connect", "avg_pool_3x3"))
# lex_index, arch_str and CIFAR-10 test accuracy as published.
ROWS = [
    (0, ALIKE.format("none"), 10.0),
    (1, "|none~0|+|none~0|none~1|+|none~0|none~1|skip_connect~2|", 10.0),
    (5, "|none~0|+|none~0|none~1|+|none~0|skip_connect~1|none~2|", 10.0),
    (3906, SKIPS, 54.2967),
    (10000, "|nor_conv_3x3~0|+|skip_connect~0|none~1|+|none~0|none~1|none~2|", 10.0),
    (15624, POOLS, 49.02),
]


def unit(in_channels, out_channels, kernel, stride=1, affine=False):
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels, affine=affine),
    )


class Zero(nn.Module):
    def forward(self, x):
        return x * 0


class ReferenceCell(nn.Module):
    def __init__(self, architecture, channels, affine):
        super().__init__()
        make = {
            "none": Zero,
            "skip_connect": nn.Identity,
            "nor_conv_1x1": lambda: unit(channels, channels, 1, affine=affine),
            "nor_conv_3x3": lambda: unit(channels, channels, 3, affine=affine),
            "avg_pool_3x3": lambda: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
        }
        self.edges = nn.ModuleList(make[operation]() for operation in architecture.values())

    def forward(self, x):
        a, b, c, d, e, f = self.edges
        one = a(x)
        two = b(x) + c(one)
        return d(x) + e(one) + f(two)


class Reference(nn.Module):
    """A stand-alone NAS-Bench-201 network as the paper draws it, every edge computed."""

    def __init__(self, architecture, channels, cells, affine=False):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels, affine=affine),
        )
        widths = [channels, 2 * channels, 4 * channels]
        self.stages = nn.ModuleList(
            nn.Sequential(*(ReferenceCell(architecture, width, affine) for _ in range(cells)))
            for width in widths
        )
        self.residual = nn.ModuleList(
            nn.Sequential(
                unit(width, 2 * width, 3, 2, affine), unit(2 * width, 2 * width, 3, 1, affine)
            )
            for width in widths[:-1]
        )
        self.shortcut = nn.ModuleList(
            nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(width, 2 * width, 1, bias=False))
            for width in widths[:-1]
        )
        self.head = nn.Sequential(nn.BatchNorm2d(widths[-1], affine=affine), nn.ReLU())
        self.classifier = nn.Linear(widths[-1], 10)

    def forward(self, x):
        x = self.stem(x)
        for number, stage in enumerate(self.stages):
            if number:
                x = self.shortcut[number - 1](x) + self.residual[number - 1](x)
            x = stage(x)
        return self.classifier(self.head(x).mean((2, 3)))

    def inherit(self, supernet, architecture):
        with torch.no_grad():
            self.stem[0].weight.copy_(supernet.stem)
            for stage, cells in zip(self.stages, supernet.stages, strict=True):
                for reference, cell in zip(stage, cells, strict=True):
                    for number, operation in enumerate(architecture.values()):
                        if "conv" in operation:
                            of = cell.conv3x3 if operation == "nor_conv_3x3" else cell.conv1x1
                            reference.edges[number][1].weight.copy_(of[number])
            for number, block in enumerate(supernet.reductions):
                self.residual[number][0][1].weight.copy_(block.conv_a)
                self.residual[number][1][1].weight.copy_(block.conv_b)
                self.shortcut[number][1].weight.copy_(block.shortcut)
            self.classifier.load_state_dict(supernet.classifier.state_dict())
        return self


def drawn(count, seed=0):
    generator = np.random.default_rng(seed)
    return [SPACE.sample(generator) for _ in range(count)]


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (320, 16, 16, 3), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.arange(320) % 10)


@pytest.mark.parametrize(
    "kernels", [TORCH, pytest.param(SIMD, marks=needs_compiler)], ids=["torch", "simd"]
)
def test_a_subnet_equals_the_network_built_for_it(kernels):
    supernet = Supernet(8, 2, seed=1, kernels=kernels)
    x = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    named = [parse_architecture(text) for _, text, _ in ROWS]
    for architecture in [*named, parse_architecture(CONV3), *drawn(12)]:
        reference = Reference(architecture, 8, 2).inherit(supernet, architecture)
        torch.testing.assert_close(
            supernet(x, architecture), reference(x), atol=2e-4, rtol=1e-4, msg=str(architecture)
        )


@needs_compiler
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("rectify", "normalize"), [(True, True), (False, True), (False, False)])
@pytest.mark.parametrize("channels", [(3, 8), (8, 16), (16, 16)])
def test_compiled_convolution_has_torchs_output_and_gradients(
    kernel, stride, rectify, normalize, channels
):
    torch.manual_seed(0)
    x = torch.randn(32, channels[0], 8, 6)
    weight = torch.randn(channels[1], channels[0], kernel, kernel)
    gradient = torch.randn(32, channels[1], 8 // stride, 6 // stride)
    found = []
    for kernels in (TORCH, SIMD):
        # The stem's three channels take no gradient.
        a, b = x.clone().requires_grad_(channels[0] > 3), weight.clone().requires_grad_()
        y = kernels.convolve(kernels.enter(a), b, stride, rectify, normalize)
        grad = gradient if kernels is TORCH else gradient.permute(1, 2, 3, 0)
        y.backward(grad)
        found.append([y if kernels is TORCH else y.permute(3, 0, 1, 2), b.grad])
        found[-1] += [a.grad] if a.requires_grad else []
    for expected, got in zip(*found, strict=True):
        scale = float(expected.detach().abs().max())
        torch.testing.assert_close(got, expected, atol=1e-5 * scale, rtol=1e-4)


@needs_compiler
@pytest.mark.parametrize("layer", ["average_pool", "halve", "leave"])
def test_compiled_layers_have_torchs_output_and_gradients(layer):
    torch.manual_seed(0)
    x = torch.randn(32, 8, 6, 4)
    found = []
    for kernels in (TORCH, SIMD):
        a = x.clone().requires_grad_()
        y = getattr(kernels, layer)(kernels.enter(a))
        y = y.permute(3, 0, 1, 2) if y.dim() == 4 and kernels is SIMD else y
        (y * torch.arange(y.numel()).view(y.shape).sin()).sum().backward()
        found.append((y, a.grad))
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@needs_compiler
def test_compiled_kernels_refuse_shapes_that_they_cannot_compute():
    with pytest.raises(ValueError, match="multiple of 32 images, got 20"):
        SIMD.enter(torch.zeros(20, 3, 8, 8))
    with pytest.raises(ValueError, match="multiple of 8 channels, got 12"):
        SIMD.convolve(torch.zeros(3, 8, 8, 32), torch.zeros(12, 3, 3, 3))
    with pytest.raises(ValueError, match="multiple of 8 channels, got 3"):
        SIMD.convolve(torch.zeros(3, 8, 8, 32, requires_grad=True), torch.zeros(8, 3, 3, 3))


def test_weights_are_drawn_by_torchs_rule_and_by_the_seed():
    torch.manual_seed(0)
    first = Supernet(8, 1, seed=5)
    torch.manual_seed(1)
    second = Supernet(8, 1, seed=5)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    reference = nn.Conv2d(32, 32, 3).weight
    ours = first.stages[2][0].conv3x3[0]
    assert ours.abs().max() <= 1 / math.sqrt(32 * 9)
    assert ours.std().item() == pytest.approx(reference.std().item(), rel=0.05)
    assert not torch.equal(next(Supernet(8, 1, seed=6).parameters()), first.stem)


def test_parameter_count_is_that_of_the_stand_alone_network():
    for architecture in [parse_architecture(CONV3), *drawn(6)]:
        for channels, cells in ((8, 1), (16, 5)):
            network = Reference(architecture, channels, cells)
            expected = sum(p.numel() for p in network.parameters())
            assert parameters(architecture, channels, cells) == expected


@pytest.mark.parametrize(
    ("text", "published"), [(CONV3, 1.531546), (SKIPS, 0.073306)], ids=["conv3", "skips"]
)
def test_parameter_count_plus_affine_norms_is_the_published_one(text, published):
    """NAS-Bench-201 counts scales and shifts of its norms, which a supernet's norms do not have."""
    architecture = parse_architecture(text)
    network = Reference(architecture, 16, 5, affine=True)
    affine = sum(2 * m.num_features for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    assert parameters(architecture) + affine == round(published * 1e6)


def test_macs_are_those_that_torch_counts():
    for architecture in [parse_architecture(CONV3), *drawn(4)]:
        with torch.device("meta"):
            network, image = Reference(architecture, 8, 2), torch.zeros(1, 3, 16, 16)
        assert macs(architecture, 8, 2, 16) == count_macs(network, image)


def test_architectures_of_the_table(tmp_path):
    path = tmp_path / "nb201.csv.gz"
    with gzip.open(path, "wt", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["arch_str", "lex_index", "c10_test200"])
        writer.writerows([text, index, accuracy] for index, text, accuracy in reversed(ROWS))
    table = load_table(path)
    for (index, _, accuracy), architecture, value in zip(
        ROWS, table.architectures, table.accuracy, strict=True
    ):
        digits = SPACE.encode(architecture)
        assert np.ravel_multi_index(digits, [5] * 6) == index
        assert value == accuracy
    with pytest.raises(ValueError, match="six edges"):
        parse_architecture("|conv_7x7~0|+|none~0|none~1|+|none~0|none~1|none~2|")
    with pytest.raises(FileNotFoundError, match="--table"):
        load_table(tmp_path / "other.csv")


@pytest.mark.parametrize(
    ("accuracy", "message"),
    [("70", "values 90.0 and 70.0"), ("nan", "value nan"), ("", "no number")],
)
def test_accuracies_that_say_nothing_are_refused(accuracy, message, tmp_path):
    lines = ["lex_index,arch_str,c10_test200", f"1,{CONV3},90", f"1,{CONV3},{accuracy}"]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=f"table.csv, row 2 of 2: .*{message}"):
        load_table(tmp_path / "table.csv")


def test_stratified_sample_spreads_over_the_ranks():
    accuracy = np.random.default_rng(0).permutation(1000).astype(float)
    table = Table(drawn(1000), accuracy).stratified(100)
    assert sorted(int(value) // 10 for value in table.accuracy) == list(range(100))
    assert table.architectures == Table(drawn(1000), accuracy).stratified(100).architectures


def test_live_edges_are_those_on_a_path():
    numbers = {
        "|nor_conv_3x3~0|+|skip_connect~0|none~1|+|none~0|none~1|none~2|": [],
        "|none~0|+|none~0|skip_connect~1|+|nor_conv_1x1~0|avg_pool_3x3~1|skip_connect~2|": [3],
        "|skip_connect~0|+|none~0|skip_connect~1|+|none~0|none~1|nor_conv_3x3~2|": [0, 2, 5],
    }
    for text, expected in numbers.items():
        assert [edge[0] for edge in live_edges(parse_architecture(text))] == expected


def test_scores_are_those_of_subnets_evaluated_one_by_one(images):
    supernet = Supernet(8, 1, seed=2)
    batches = images.balanced(128).batches(64)
    architectures = [parse_architecture(text) for _, text, _ in ROWS] + drawn(60)
    scores = score(supernet, architectures, batches)
    for i, architecture in enumerate(architectures):
        for j, (x, classes) in enumerate(batches):
            logits = supernet(x, architecture)
            assert scores.accuracy[i, j] * 64 == (logits.argmax(1) == classes).sum()
            loss = F.cross_entropy(logits, classes).item()
            assert scores.loss[i, j] == pytest.approx(loss, rel=1e-6)


def test_balanced_images_take_turns(images):
    assert images.balanced(40).classes.tolist() == list(range(10)) * 4


def test_batches_are_crops_of_their_images_and_depend_on_the_seed(images):
    batches = TrainingBatches(images, 64, seed=3)
    later, first = batches[7][0], batches[0][0]
    assert torch.equal(TrainingBatches(images, 64, seed=3)[7][0], later)
    assert not torch.equal(TrainingBatches(images, 64, seed=4)[7][0], later)
    assert torch.equal(batches[0][0], first)
    seen = sorted(int(i) for update in range(5) for i in batches._order[update * 64 :][:64])
    assert seen == list(range(320))
    whole = images.balanced(320).batches(320)[0][0]
    centres = F.pad(whole, (2, 2, 2, 2)).unfold(2, 16, 1).unfold(3, 16, 1)  # every crop
    candidates = torch.cat([centres, centres.flip(-1)]).reshape(-1, 3 * 256)
    order = images.balanced(320).pixels.flatten(1)
    for number in range(3):
        original = images.pixels[batches._order[number]].flatten()
        row = int((order == original).all(1).nonzero())
        crops = candidates.view(2, 320, 3, 25, 256)[:, row]
        inner = first[number].reshape(3, 256)[:, None]
        distance = (crops - inner).abs().amax((1, 3)).min()
        assert distance < 0.02  # the border is the mean colour rounded to a pixel value


def test_arms_of_one_seed_see_the_same_subnets_images_and_first_weights(images):
    runs = [Training(Run(arm, "coast", "3←0", 1, 8, batch=32), images) for arm in ("static", "ms")]
    for run in runs:
        run.advance(updates=1)
    a, b = runs
    assert a.loss != a.loss  # the loss is read every tenth update
    for p, q in zip(a.supernet.parameters(), b.supernet.parameters(), strict=True):
        assert torch.equal(p, q)
    assert [a.sampler.sample() for _ in range(5)] == [b.sampler.sample() for _ in range(5)]


def test_a_fair_update_trains_the_mean_loss_of_five_subnets_that_hold_each_candidate(images):
    run = Run("static", "freeze", "", 3, 1, batch=32, sampler="fair")
    training, twin = Training(run, images), Training(run, images)
    subnets = twin.sampler.sample()
    for edge in EDGES:
        assert {subnet[edge] for subnet in subnets} == set(OPERATIONS)
    x, classes = twin.batches[0]
    losses = [F.cross_entropy(twin.supernet(x, subnet), classes) for subnet in subnets]
    torch.stack(losses).mean().backward()
    torch.nn.utils.clip_grad_norm_(twin.supernet.parameters(), 5.0)
    usual = {"lr": 0.025, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
    torch.optim.SGD(twin.supernet.parameters(), **usual).step()
    training.advance()
    pairs = zip(training.supernet.parameters(), twin.supernet.parameters(), strict=True)
    assert all(torch.allclose(p, q, rtol=1e-5, atol=1e-7) for p, q in pairs)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(
    ("arm", "edge"), [("static", ""), ("dynamic", "3←0"), ("calq-measured", "")]
)
def test_a_stopped_and_resumed_run_ends_with_the_same_weights(arm, edge, sampler, images, tmp_path):
    run = Run(arm, "coast", edge, 0, 24, batch=32, sampler=sampler)
    straight = Training(run, images)
    straight.advance()
    stopped = Training(run, images)
    stopped.advance(updates=13)
    stopped.save(tmp_path / "run.pt")
    resumed = Training(run, images)
    resumed.load(tmp_path / "run.pt")
    assert resumed.updates == 13
    resumed.advance()
    assert resumed.done
    for kind in ("supernet", "averaged"):
        expected, got = getattr(straight, kind), getattr(resumed, kind)
        for p, q in zip(expected.parameters(), got.parameters(), strict=True):
            assert torch.equal(p, q)


@pytest.mark.parametrize("idle", IDLE)
def test_idle_parameters_move_by_what_is_left_to_them(idle, images):
    """Against the formula of SGD with Nesterov momentum, written for one tensor."""
    updates, decay, beta = 9, 5e-4, 0.9

    def in_double():  # rounding grows fast where ReLU cuts normalized noise
        training = Training(Run("static", idle, "", 0, updates), images)
        training.supernet.double()
        batches = [training.batches[update] for update in range(updates)]
        training.batches = [(x.double(), classes) for x, classes in batches]
        return training

    expected = in_double()
    weights = list(expected.supernet.parameters())
    momenta: list[torch.Tensor | None] = [None] * len(weights)
    for update in range(updates):
        lr = 0.025 * (1 + math.cos(math.pi * update / updates)) / 2
        x, classes = expected.batches[update]
        F.cross_entropy(expected.supernet(x, expected.sampler.sample()), classes).backward()
        torch.nn.utils.clip_grad_norm_(weights, 5.0)
        for i, weight in enumerate(weights):
            value, gradient, moved = weight.data, weight.grad, True
            if gradient is not None:
                gradient = gradient + decay * value
            elif idle in ("coast", "drift") and momenta[i] is not None:  # trained once
                gradient = decay * value if idle == "coast" else torch.zeros_like(value)
            else:
                moved = False
            if moved:
                momentum = momenta[i]
                momenta[i] = gradient if momentum is None else beta * momentum + gradient
                weight.data = value - lr * (gradient + beta * momenta[i])
            elif idle == "decay":
                weight.data = value * (1 - lr * decay / (1 - beta))
            weight.grad = None
    training = in_double()
    training.advance()
    for weight, trained in zip(weights, training.supernet.parameters(), strict=True):
        torch.testing.assert_close(trained, weight, rtol=1e-9, atol=1e-12)


def test_a_stand_alone_network_is_trained_by_a_plain_cosine_decay(images, tmp_path):
    architecture = parse_architecture(CONV3)
    run = Run("static", "freeze", "", 2, 12, batch=32)
    batches = images.balanced(128).batches(64)
    train_standalone(tmp_path / "standalone.csv", [architecture], run, images, batches, TORCH)
    network = Supernet(8, 1, seed=2)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.025, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=12)
    seen = TrainingBatches(images, 32, seed=2)
    for update in range(12):
        x, classes = seen[update]
        F.cross_entropy(network(x, architecture), classes).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
    with torch.no_grad():
        losses = [F.cross_entropy(network(x, architecture), y).item() for x, y in batches]
    with (tmp_path / "standalone.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["loss"]) == pytest.approx(np.mean(losses), abs=2e-5)


def test_gamma_of_the_arms():
    gammas = {}
    for name, arm in ARMS.items():
        calr = arm.calr(10)
        gammas[name] = np.array([calr.gamma(architecture) for architecture in SPACE])
    assert np.all(gammas["static"] == 1)
    assert np.all(gammas["gmean"] == gammas["calr"].mean())
    assert mean_gamma() == pytest.approx(2.18, abs=0.005)  # as published for this space
    assert np.log(gammas["calq"]).mean() == pytest.approx(0, abs=1e-9)
    for name, complexity in {"calr": parameters, "calq": parameters, "calq-depth": depth}.items():
        order = np.argsort([complexity(architecture) for architecture in SPACE])
        assert np.all(np.diff(gammas[name][order]) <= 1e-12)
        assert 0.25 <= gammas[name].min() < gammas[name].max() <= 4


def test_gamma_by_size_and_depth_is_by_the_mean_of_the_two_ranks():
    def ranks(measure):
        values = np.array([measure(architecture) for architecture in SPACE])
        return [(values < value).sum() + ((values == value).sum() + 1) / 2 for value in values]

    expected = rankdata(np.add(ranks(parameters), ranks(depth)))
    calr = ARMS["calq-both"].calr(10)
    gammas = np.array([calr.gamma(architecture) for architecture in SPACE])
    assert np.all(rankdata(-gammas.round(9)) == expected)


def test_measured_complexity_is_the_order_in_which_losses_still_fall():
    progress, generator = Progress(updates=2000), np.random.default_rng(0)
    falling = dict(zip(OPERATIONS, (0.0, 0.1, 0.4, 0.8, 0.2), strict=True))
    truth = {key(a): sum(falling[str(a[edge])] for edge in EDGES) for a in SPACE}
    for update in range(1500):
        subnet = SPACE.sample(generator)
        loss = 3 - truth[key(subnet)] * update / 2000 + 0.2 * generator.standard_normal()
        progress.observe(subnet, loss)
        if update == 90:
            assert {progress(a) for a in SPACE} == {1.5}  # too early to tell
    assert kendalltau([progress(a) for a in SPACE], [*truth.values()]).statistic > 0.8
    assert sorted(progress(a) for a in SPACE) == pytest.approx(sorted(progress.population))
    resumed = Progress(updates=2000)
    resumed.load_state_dict(progress.state_dict())
    for one in (progress, resumed):
        for _ in range(25):
            one.observe(subnet, 1.0)
    assert [resumed(a) for a in SPACE] == [progress(a) for a in SPACE]


def test_depth_counts_convolutions_of_the_longest_path():
    paths = [["3←0"], ["1←0", "3←1"], ["2←0", "3←2"], ["1←0", "2←1", "3←2"]]
    for architecture in SPACE:
        operations = [[str(architecture[edge]) for edge in path] for path in paths]
        open_paths = [path for path in operations if "none" not in path]
        convolutions = [sum("conv" in operation for operation in path) for path in open_paths]
        assert depth(architecture) == 1 + max(convolutions, default=0)


def test_the_final_anneal_bends_the_last_tenth_only():
    plain, annealed = ARMS["calq"].calr(1000), ARMS["calq-anneal"].calr(1000)
    for architecture in drawn(5):
        factors = [
            np.array([calr.factor(architecture, step) for step in range(1001)])
            for calr in (plain, annealed)
        ]
        np.testing.assert_array_equal(*[factor[:900] for factor in factors])
        ratio = factors[1][900:1000] / factors[0][900:1000]
        np.testing.assert_allclose(ratio, np.linspace(1, 0, 100, endpoint=False), atol=1e-9)
        assert factors[1][-1] == 0
    assert plain.definition() != annealed.definition()


def test_peak_learning_rate_of_the_arms():
    assert ARMS["static"].lr == ARMS["dynamic"].lr == 0.025
    arm = ARMS["calq-ms-visits"]
    moved = sum(arm.lr * arm.momentum**age for age in range(200))
    assert moved == pytest.approx(sum(0.025 * 0.9**age for age in range(2000)))


def write_archive(path, count):
    """Write a tar of an ImageFolder with noise, `count` images in each of two classes."""
    generator = np.random.default_rng(0)
    with tarfile.open(path, "w:gz") as archive:
        for split in ("train", "test"):
            for name in ("cat", "dog"):
                for i in range(count):
                    file = path.parent / f"{i}.png"
                    pixels = generator.integers(256, size=(32, 32, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(file)
                    archive.add(file, f"cifar/{split}/{name}/{i}.png")


def test_images_are_decoded_again_for_another_source(tmp_path, monkeypatch):
    decoded, decode = [], data._decode
    monkeypatch.setattr(data, "_decode", lambda *a: decoded.append(a[0].name) or decode(*a))
    cache = tmp_path / "cache"

    def count(name):
        return len(load_images(tmp_path / name, "test", 16, cache).classes)

    for name, images in (("first.tar", 1), ("second.tar", 2)):
        write_archive(tmp_path / name, images)
    (tmp_path / "folder/test/cat").mkdir(parents=True)
    (tmp_path / "0.png").rename(tmp_path / "folder/test/cat/0.png")
    found = [count(name) for name in ("first.tar", "first.tar", "second.tar", "folder", "folder")]
    assert found == [2, 2, 4, 1, 1]
    assert decoded == ["first.tar", "second.tar", "folder"]
    count("second.tar")
    write_archive(tmp_path / "second.tar", 3)
    assert count("second.tar") == 6
    with pytest.raises(FileNotFoundError, match="nowhere: give --data"):
        count("nowhere")


def test_command_line_scores_once_and_prints_a_table(tmp_path, capsys):
    write_archive(tmp_path / "images.tar.gz", 256)
    with (tmp_path / "table.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["arch_str", "lex_index", "c10_test200"])
        writer.writerows([text, index, accuracy] for index, text, accuracy in ROWS)
    results = tmp_path / "results.csv"
    arguments = ["--results", str(results), "run", "--arms", "static,ms", "--seeds", "0-1"]
    arguments += ["--updates", "4", "--images", "512", "--runs", str(tmp_path / "runs")]
    arguments += ["--data", str(tmp_path / "images.tar.gz"), "--table", str(tmp_path / "table.csv")]
    main(arguments)
    main([*arguments, "--scored", "last,averaged"])
    written = results.read_text()
    rows = list(csv.DictReader(written.splitlines()))
    assert [(row["arm"], row["edge"], row["seed"], row["scored"]) for row in rows] == [
        (arm, edge, seed, scored)
        for scored in ("last", "averaged")
        for seed in "01"
        for arm, edge in (("static", ""), ("ms", "3←0"))
    ]
    main(arguments)
    assert results.read_text() == written
    with pytest.raises(SystemExit):
        main([*arguments, "--images", "500"])
    assert "multiple of 256" in capsys.readouterr().err
    main(["--results", str(results), "table", "--against", "ms"])
    printed = capsys.readouterr().out
    assert "− ms" in printed
    for measure in ("tau", "tau_loss", "mean_accuracy"):
        averaged = [row for row in rows if row["scored"] == "averaged"]
        static, ms = (
            np.mean([float(row[measure]) for row in averaged if row["arm"] == arm])
            for arm in ("static", "ms")
        )
        assert f"{static - ms:+.3f}" in printed
    main(["--results", str(results), "table", "--seeds", "1"])
    printed = capsys.readouterr().out
    means = [float(row["tau"]) for row in rows if row["arm"] == "static" and row["seed"] == "1"]
    assert f"{means[0]:.3f}" in printed
    assert "nan" not in printed
    places = ["--runs", str(tmp_path / "runs"), "--table", str(tmp_path / "table.csv")]
    main(["--results", str(results), "rankings", *places])
    printed = capsys.readouterr().out
    of_seeds = [
        -np.load(tmp_path / "runs" / f"static-coast-s{seed}-u4-c8n1p16b64-last-6x512.npz")[
            "loss"
        ].mean(1)
        for seed in (0, 1)
    ]
    truth = [accuracy for _, _, accuracy in sorted(ROWS)]
    taus = [kendalltau(ranking, truth).statistic for ranking in of_seeds]
    of_size, of_both, _ = (
        line for line in printed.splitlines() if "last" in line and "static" in line
    )
    assert f"{np.mean(taus):.3f} ±{np.std(taus, ddof=1):.3f}" in of_size
    assert f" {kendalltau(*of_seeds).statistic:.3f} " in of_both
    standalone = [
        "--results",
        str(results),
        "standalone",
        "--networks",
        "3",
        "--updates",
        "2",
        *places,
    ]
    standalone += ["--images", "512", "--data", str(tmp_path / "images.tar.gz")]
    standalone += ["--output", str(tmp_path / "standalone.csv")]
    main(standalone)
    trained = (tmp_path / "standalone.csv").read_text()
    assert len(trained.splitlines()) == 4
    main(standalone)
    assert (tmp_path / "standalone.csv").read_text() == trained
    assert "3 networks; τ of stand-alone" in capsys.readouterr().out
    main(["--results", str(results), "figure", "--folder", str(tmp_path / "figures")])
    for name in ("nb201_differences.png", "nb201_budgets.png"):
        assert Image.open(tmp_path / "figures" / name).size[0] > 100


A_ROW = {"arm": "static", "idle": "coast", "edge": "", "seed": 0, "scored": "last"}
A_ROW |= {"sampler": "uniform", "channels": 8, "cells": 1, "size": 16, "batch": 64}
A_ROW |= {"updates": 4, "architectures": 3, "images": 512}
OTHER = {"sampler": "fair"} | {name: 2 * A_ROW[name] for name in SETTING if name != "sampler"}


def test_rankings_of_different_settings_are_kept_apart(tmp_path):
    expected = {}
    for number, changed in enumerate([{}, *({name: OTHER[name]} for name in SETTING)]):
        row = A_ROW | changed
        append_result(tmp_path / "results.csv", row)
        fields = {field.name for field in dataclasses.fields(Run)}
        run = Run(**{name: value for name, value in row.items() if name in fields})
        np.savez(scores_path(tmp_path, run, row), loss=np.full((3, 2), number))
        key = Setting(*(row[name] for name in SETTING), "last", "static", "coast", "")
        expected[key] = -number
    found = read_rankings(tmp_path / "results.csv", tmp_path)
    assert {key: by_seed[0].mean() for key, by_seed in found.items()} == expected
    assert tuple(columns_of([next(iter(found))])) == ALWAYS
    varying = {*SETTING, *ALWAYS}
    assert columns_of(found) == [name for name in Setting._fields if name in varying]
    assert Setting._fields[: len(SETTING)] == SETTING


@pytest.mark.parametrize("changed", SETTING)
def test_figures_have_every_setting(changed, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "_save", lambda figure, output: drawn.append(figure))
    for setting in (A_ROW, A_ROW | {changed: OTHER[changed]}):
        for seed in range(3):
            for tau, arm in enumerate(("static", "dynamic")):
                row = setting | {"seed": seed, "arm": arm, "tau": tau, "tau_loss": tau}
                append_result(tmp_path / "results.csv", row)
    figures.draw_arms(tmp_path / "results.csv", tmp_path)
    figures.draw_budgets(tmp_path / "results.csv", tmp_path)
    arms, budgets = (figure.axes[0] for figure in drawn)
    lines = [label.get_text() for label in arms.get_yticklabels()]
    assert lines.count("dynamic (3)") == 2
    assert len(set(lines)) == 3
    points = [len(series.lines[0].get_xdata()) for series in budgets.containers]
    assert points == {"updates": [2], "sampler": [1]}.get(changed, [1, 1])
    assert len({series.get_label() for series in budgets.containers}) == len(points)


def test_a_run_with_two_rows_is_refused(tmp_path):
    for row in (A_ROW, A_ROW | {"seed": 1}, A_ROW | {"seed": 1}):
        append_result(tmp_path / "results.csv", row)
    with pytest.raises(
        ValueError, match=r"more than one row of\n.*images 512.* arm static, seed 1$"
    ):
        read_results(tmp_path / "results.csv")


def test_differences_are_paired_by_seed_within_a_setting():
    static = dict.fromkeys(SETTING, "1") | {
        "arm": "static",
        "idle": "coast",
        "edge": "",
        "scored": "last",
        "seed": "0",
        "tau": ".6",
    }
    rows = [
        static,
        static | {"seed": "1", "tau": ".7"},
        static | {"updates": "2", "tau": ".1"},
        static | {"sampler": "fair", "tau": ".1"},
        static | {"arm": "ms", "edge": "3←0", "seed": "1", "tau": ".75"},
        static | {"arm": "ms", "edge": "3←0", "tau": ".62"},
        static | {"arm": "ms", "edge": "3←0", "seed": "2", "tau": ".9"},
    ]
    (difference,) = paired_differences(rows).values()
    assert sorted(difference.values) == pytest.approx([0.02, 0.05])


def test_differences_are_to_the_same_edge_where_it_was_run():
    row = dict.fromkeys(SETTING, "1") | {"idle": "coast", "scored": "last", "seed": "0"}
    rows = [
        row | {"arm": "static", "edge": "", "tau": ".5"},
        row | {"arm": "ms", "edge": "3←0", "tau": ".6"},
        row | {"arm": "ms", "edge": "1←0", "tau": ".8"},
        row | {"arm": "dynamic", "edge": "1←0", "tau": ".9"},
        row | {"arm": "dynamic", "edge": "2←0", "tau": ".9"},
    ]
    found = {
        key[-2:]: float(difference.mean)
        for key, difference in paired_differences(rows, against="ms").items()
    }
    assert found == pytest.approx(
        {("", "static"): -0.1, ("1←0", "dynamic"): 0.1, ("2←0", "dynamic"): 0.3}
    )


def test_regret_is_what_the_best_of_those_ranked_first_lacks():
    ranking, truth = np.array([1.0, 5.0, 4.0, 2.0]), np.array([9.0, 3.0, 7.0, 8.0])
    assert [regret_of(count, ranking, truth) for count in (1, 2, 3, 4)] == [6, 2, 1, 0]


def test_rank_errors_find_the_operation_that_a_ranking_favours():
    architectures = drawn(200)
    truth = np.random.default_rng(3).normal(size=200)
    favoured = np.array([a["3←0"] == "avg_pool_3x3" for a in architectures])
    errors = rank_errors(truth + favoured, truth, architectures)
    (first, error), *_ = errors.items()
    assert first == "3←0 avg_pool_3x3"
    ranks = rankdata(truth + favoured) - rankdata(truth)
    assert error == pytest.approx(ranks[favoured].mean() / 2)
    assert list(errors.values()) == sorted(errors.values(), reverse=True)
    assert set(rank_errors(2 * truth, truth, architectures).values()) == {0.0}


def test_a_tilted_ranking_has_the_bias_of_the_other_and_moves_whole_sizes():
    generator = np.random.default_rng(1)
    truth, noise, more = generator.normal(size=(3, 400))
    sizes = np.round(truth + generator.normal(size=400))
    static, dynamic = truth + noise - sizes, truth + noise + 0.3 * more
    tilt = tilted(static, dynamic, truth, sizes)
    assert complexity_bias(static, truth, sizes) > 0.2
    assert complexity_bias(tilt, truth, sizes) == pytest.approx(
        complexity_bias(dynamic, truth, sizes), abs=2e-3
    )
    kept = kendall_tau_within(static, truth, sizes)
    assert kendall_tau_within(tilt, truth, sizes) == pytest.approx(kept)


def test_intervals_cover_the_mean_as_often_as_they_say():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        low, high = Difference(generator.normal(0.3, 1, 5)).t_interval()
        covered += low < 0.3 < high
    assert 0.92 < covered / 400 < 0.98
    values = generator.normal(0, 0.03, 40)
    needed = Difference(values).seeds_needed(0.02)
    halves = [np.diff(Difference(np.resize(values, n)).t_interval())[0] / 2 for n in (4, 40)]
    assert halves[0] > 0.02 > halves[1]
    assert 4 < needed < 40


def test_deviation_of_scoring_is_the_spread_over_draws_of_the_images():
    generator = np.random.default_rng(0)
    truth = np.arange(60.0)
    draws = truth[:, None] + generator.normal(0, 60, (300, 60, 16))
    spread = np.std([kendalltau(draw.mean(1), truth).statistic for draw in draws])
    estimates = [split_deviation(draw, truth, splits=20) for draw in draws[:60]]
    assert np.sqrt(np.mean(np.square(estimates))) == pytest.approx(spread, rel=0.25)


def test_run_names_tell_runs_apart():
    base = Run("ms", "coast", "3←0", 0, 100)
    changed = {"arm": "dynamic", "idle": "freeze", "edge": "2←1", "seed": 1, "updates": 101}
    changed |= {"channels": 16, "cells": 2, "size": 32, "batch": 32, "sampler": "fair"}
    names = {dataclasses.replace(base, **{key: value}).name for key, value in changed.items()}
    assert len(names | {base.name}) == len(changed) + 1


def test_effects_are_those_that_an_additive_measure_was_made_of(tmp_path, capsys):
    noise = np.random.default_rng(0)
    rows = []
    for seed in range(4):
        of_linear, of_rank, of_both = 0.03 + 0.001 * noise.normal(size=3)
        for (linear, by_rank, separate), arm in DESIGN.items():
            tau = 0.5 + of_linear * linear + of_rank * by_rank + of_both * (by_rank == separate)
            rows.append(
                dict.fromkeys(SETTING, "1")
                | {"arm": arm, "idle": "coast", "edge": "3←0" if separate else "", "scored": "last"}
                | {"seed": str(seed), "tau": tau, "tau_loss": tau, "mean_accuracy": 0.5}
            )
        found = effects({row["arm"]: row["tau"] for row in rows[-len(DESIGN) :]})
        assert found == pytest.approx(
            {
                "linear decay": of_linear,
                "γ by rank": of_rank,
                "MS": 0,
                "linear decay × γ by rank": 0,
                "linear decay × MS": 0,
                "γ by rank × MS": of_both,
            }
        )
    with (tmp_path / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows[1:])  # of seed 0 one arm is not there
    print_effects(tmp_path / "results.csv")
    assert "3 seeds of 8 arms" in capsys.readouterr().out


def test_coasting_less_freezing_is_paired_by_seed(tmp_path, capsys):
    row = dict.fromkeys(SETTING, "1") | {"updates": "20", "scored": "last", "edge": ""}
    values = {("static", "coast"): [0.5, 0.7, 0.9], ("static", "freeze"): [0.3, 0.6]}
    values |= {("poly", "coast"): [0.6], ("static", "drift"): [0.1]}
    for (arm, idle), taus in values.items():
        for seed, tau in enumerate(taus):
            measured = dict.fromkeys(("tau", "tau_loss", "mean_accuracy"), tau)
            append_result(
                tmp_path / "r.csv", {"arm": arm, "idle": idle, "seed": seed} | row | measured
            )
    rows = read_results(tmp_path / "r.csv")
    ((arm, differences),) = idle_differences(rows, "tau_loss").items()
    assert arm[0] == "static"
    assert differences == pytest.approx([0.2, 0.1])
    print_idle(tmp_path / "r.csv")
    assert "+0.150 [−0.485, +0.785]" in capsys.readouterr().out
