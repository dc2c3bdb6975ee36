"""Strategies of several subnets, of several supernets, and with policies of their own."""

from __future__ import annotations

import atexit
import importlib.util
import pickle
from collections import Counter

import pytest
import pytorch_lightning as pl
import torch
from nni.nas.experiment import NasExperiment
from nni.nas.hub.pytorch import AutoFormer, NasBench201
from nni.nas.strategy import ENAS, Proxyless, RandomOneShot
from torch.nn.functional import cross_entropy

from nas_dynamic.adapters.nni import (
    FairOneShot,
    FewShotOneShot,
    GumbelOneShot,
    SandwichOneShot,
    activate,
    dynamic,
    search_space,
    subnet_parameters,
)
from nas_dynamic.adapters.nni.multi_subnet import distillation_loss
from tests.nni.runs import fit, same_weights, training_of

pytestmark = pytest.mark.host

needs_tianshou = pytest.mark.skipif(
    importlib.util.find_spec("tianshou") is None or importlib.util.find_spec("gym") is None,
    reason="NNI's ENAS needs tianshou and gym: pip install 'nas-dynamic[enas]'",
)


def enas():
    return ENAS(reward_metric_name="val_acc", batches_per_update=2)


STRATEGIES = {
    "random": RandomOneShot,
    "fair": FairOneShot,
    "sandwich": lambda: SandwichOneShot(randoms=1),
    "distilled": lambda: SandwichOneShot(randoms=1, distill=True),
    "few-shot": lambda: FewShotOneShot(epochs=1),
    "proxyless": Proxyless,
    "enas": pytest.param(enas, marks=needs_tianshou),
}


@pytest.mark.parametrize("attached", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("hub", ["NasBench201", "ProxylessNAS", "AutoFormer"], indirect=True)
@pytest.mark.parametrize("build", STRATEGIES.values(), ids=STRATEGIES)
def test_every_strategy_trains_every_space(build, hub, attached, classification):
    make, shape = hub
    if build is Proxyless and isinstance(make(), AutoFormer):
        pytest.skip("NNI's Proxyless takes no sliced operations")
    strategy = build()
    if attached:
        strategy = dynamic(strategy, momentum=True)
    elif isinstance(strategy, ENAS):  # whose loader is mended by dynamic() only
        strategy = dynamic(strategy, calr=False, momentum=False, idle="freeze")
    evaluator = classification(shape, examples=8)
    torch.manual_seed(0)
    initial = make().state_dict()
    supernet, trainer, recorder = fit(strategy, evaluator, make())
    weights = {n: p for n, p in supernet.named_parameters() if n in initial}
    assert all(torch.isfinite(p).all() for p in weights.values())
    assert any(not torch.equal(p, initial[n]) for n, p in weights.items())
    if attached:
        training = training_of(trainer)
        assert training.updates == training.calr.total_steps == 2
        for update in recorder.updates:
            (group,) = {training.momentum.group(s.architecture) for s in update.subnets}
            assert group == update.group
            assert 0 < update.factor[0] <= 2
    if isinstance(strategy, FewShotOneShot):
        label = next(k for k, v in strategy.supernets[0].space.choices.items() if len(v) == 1)
        assert len(strategy.supernets) == len(search_space(supernet).choices[label])


def test_dynamic_trains_both_ends_under_the_sandwich_rule_unless_momentum_is_asked_for(
    classification,
):
    for options, ends in (({}, 1), ({"momentum": True}, 5)):
        strategy = dynamic(SandwichOneShot(randoms=1), seed=0, **options)
        _, trainer, recorder = fit(strategy, classification(max_epochs=2))
        assert (training_of(trainer).momentum is None) == (not options)
        assert len({tuple(largest.values()) for largest, *_ in recorder.steps}) == ends


def test_each_update_of_fair_trains_every_candidate_once(classification):
    supernet, _, recorder = fit(FairOneShot(), classification(max_epochs=2))
    assert len(recorder.steps) == 12
    for subnets in recorder.steps:
        for label, candidates in search_space(supernet).choices.items():
            assert Counter(a[label] for a in subnets) == dict.fromkeys(candidates, 1)


def test_sandwich_trains_both_ends(classification):
    supernet, _, recorder = fit(SandwichOneShot(randoms=1), classification())
    parameters, space = subnet_parameters(supernet), search_space(supernet)
    for largest, smallest, _ in recorder.steps:
        assert parameters(largest) == max(map(parameters, space))
        assert parameters(smallest) == min(map(parameters, space))


def reference(recorder, batches, strategy, loss, calr=None, group_by=None):
    """One optimizer a group, the lr and the weights of the losses written out."""
    torch.manual_seed(0)
    supernet = strategy.mutate_model(NasBench201(4, 1, 10)).double()
    optimizers, trained = {}, set()
    for t, ((x, y), subnets) in enumerate(zip(batches, recorder.steps, strict=True)):
        factors = [1.0 for _ in subnets]
        if calr is not None:
            factors = [2 * (1 - t / calr.total_steps) ** calr.gamma(a) for a in subnets]
        mean = sum(factors) / len(factors)
        supernet.train()
        supernet.zero_grad()
        gradients = [torch.zeros_like(p) for p in supernet.parameters()]
        teacher = None
        for architecture, factor in zip(subnets, factors, strict=True):
            activate(supernet, architecture)
            logits = supernet(x.double())
            value = loss(logits, y, teacher)
            teacher = logits.detach() if teacher is None else teacher
            parameters = list(supernet.parameters())
            found = torch.autograd.grad(value, parameters, allow_unused=True)
            for n, (total, gradient) in enumerate(zip(gradients, found, strict=True)):
                if gradient is not None:
                    total += factor / mean / len(subnets) * gradient
                    trained.add(n)
        for n, (p, gradient) in enumerate(zip(supernet.parameters(), gradients, strict=True)):
            p.grad = gradient if n in trained else None
        group = subnets[0][group_by] if group_by else None
        if group not in optimizers:
            optimizers[group] = torch.optim.SGD(
                supernet.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=1e-3
            )
        optimizers[group].param_groups[0]["lr"] = 0.05 * mean
        optimizers[group].step()
    return supernet


def by_labels(logits, y, teacher):
    return cross_entropy(logits, y)


def by_teacher(logits, y, teacher):
    if teacher is None:
        return cross_entropy(logits, y)
    return -(teacher.softmax(1) * logits.log_softmax(1)).sum(1).mean()


@pytest.mark.parametrize(
    ("strategy", "loss"),
    [
        (FairOneShot, by_labels),
        (SandwichOneShot, by_labels),
        (lambda: SandwichOneShot(distill=True), by_teacher),
    ],
    ids=["fair", "sandwich", "distilled"],
)
def test_dynamic_equals_the_formulas_written_out(strategy, loss, classification):
    evaluator = classification(max_epochs=2, precision="64-true")
    supernet, trainer, recorder = fit(dynamic(strategy(), idle="coast", momentum=True), evaluator)
    training = training_of(trainer)
    label = training.momentum.group_by
    batches = list(evaluator.train_dataloaders) * 2
    expected = reference(recorder, batches, strategy(), loss, training.calr, label)
    assert len(training.groups) > 1
    for p, q in zip(supernet.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "strategy", [Proxyless, GumbelOneShot, pytest.param(enas, marks=needs_tianshou)]
)
def test_weight_steps_of_a_policy_equal_the_formulas_written_out(strategy, classification):
    evaluator = classification(max_epochs=2, precision="64-true")
    batches = list(evaluator.train_dataloaders)
    supernet, trainer, recorder = fit(dynamic(strategy(), idle="coast", momentum=True), evaluator)
    training = training_of(trainer)
    recorder.steps = [[update.architecture] for update in recorder.updates]
    assert training.updates == training.calr.total_steps == 12
    label = training.momentum.group_by
    expected = reference(recorder, batches * 2, strategy(), by_labels, training.calr, label)
    ours, theirs = dict(supernet.named_parameters()), dict(expected.named_parameters())
    for name, p in ours.items():
        if "_arch_alpha" not in name:
            torch.testing.assert_close(p, theirs[name], rtol=1e-10, atol=1e-12, msg=name)


def test_architecture_steps_of_proxyless_are_left_alone(classification):
    """Without CaLR and momentum separation everything is equal to plain Proxyless."""
    static = dynamic(Proxyless(), calr=False, momentum=False, idle="freeze")
    supernet, trainer, _ = fit(static, classification(max_epochs=2))
    plain, _, _ = fit(Proxyless(), classification(max_epochs=2))
    assert same_weights(supernet, plain)
    _, trainer, _ = fit(dynamic(Proxyless()), classification(max_epochs=2))
    weights, architecture = trainer.optimizers
    assert architecture.is_arch_optimizer
    assert weights._optimizer_step_pre_hooks
    assert not architecture._optimizer_step_pre_hooks
    assert architecture.param_groups[0]["lr"] == 3e-4
    assert all(len(state) == 3 for state in architecture.state.values())


RESUMED = {
    "random": lambda: dynamic(RandomOneShot(), seed=1, total_steps=18),
    "fair-static": lambda: FairOneShot(seed=1),
    "fair": lambda: dynamic(FairOneShot(seed=1), total_steps=18),
    "sandwich": lambda: dynamic(SandwichOneShot(seed=1), total_steps=18, momentum=True),
    "few-shot": lambda: dynamic(FewShotOneShot(seed=1, epochs=1), total_steps=18),
}


@pytest.mark.parametrize("build", RESUMED.values(), ids=RESUMED)
def test_stopped_and_resumed_equals_straight(build, classification, tmp_path):
    def run(stop_at, resume_from=None):
        checkpoints = pl.callbacks.ModelCheckpoint(
            tmp_path, filename="{step}", every_n_train_steps=6, save_top_k=-1
        )
        evaluator = classification(
            max_epochs=3, enable_checkpointing=True, callbacks=[checkpoints], max_steps=stop_at
        )
        if resume_from:
            evaluator.fit_kwargs["ckpt_path"] = str(resume_from)
        return fit(build(), evaluator)

    straight, _, expected = run(stop_at=18)
    for checkpoint in tmp_path.glob("*.ckpt"):
        checkpoint.unlink()
    run(stop_at=12)
    resumed, _, recorder = run(stop_at=18, resume_from=tmp_path / "step=12.ckpt")
    assert recorder.steps == expected.steps[12:]
    assert same_weights(straight, resumed)
    torch.load(tmp_path / "step=12.ckpt", weights_only=True)


def test_accumulated_batches_share_the_subnets(classification):
    evaluator = classification(accumulate_grad_batches=4, max_epochs=2)  # 6 batches: 4 + 2
    _, trainer, recorder = fit(dynamic(FairOneShot()), evaluator)
    assert training_of(trainer).updates == 4
    batches = [recorder.steps[i : i + n] for i, n in ((0, 4), (4, 2), (6, 4), (10, 2))]
    assert all(step == steps[0] for steps in batches for step in steps)
    assert len({str(steps[0]) for steps in batches}) == 4


def test_seed_decides_and_validation_does_not(classification):
    def steps(strategy, **kwargs):
        return fit(strategy, classification(**kwargs))[2].steps

    often = steps(FairOneShot(seed=1), val_check_interval=2, num_sanity_val_steps=2)
    assert steps(FairOneShot(seed=1)) == often
    assert steps(FairOneShot(seed=2)) != often
    one, other = (steps(dynamic(FairOneShot(seed=1), seed=seed)) for seed in (None, 2))
    assert one == steps(dynamic(FairOneShot(seed=1), seed=1)) != other


def test_filter_holds_for_every_sampled_subnet(classification):
    def valid(sample):
        return sample["cell/0_1"] != "none" or sample["cell/0_2"] == "none"

    _, _, recorder = fit(FairOneShot(filter=valid), classification())
    assert all(valid(architecture) for step in recorder.steps for architecture in step)


def test_few_shot_trains_a_copy_for_each_candidate(classification):
    strategy = FewShotOneShot(label="cell/0_2", epochs=2)
    supernet, _, _ = fit(strategy, classification(weight_decay=0.0))
    candidates = search_space(supernet).choices["cell/0_2"]
    shared = dict(supernet.named_parameters())
    for (space, model), candidate in zip(strategy.supernets, candidates, strict=True):
        assert space.choices["cell/0_2"] == (candidate,)
        assert strategy.supernet_of(next(iter(space))).model is model
        moved = {n for n, p in model.named_parameters() if not torch.equal(p, shared[n])}
        # Edge 2←0 of every cell; parameters of its other operations had no gradient.
        of_edge = {n.split(".")[5] for n in moved if ".layers.1.0." in n}
        assert of_edge <= {candidate}
        assert any(".layers.0.0." in n for n in moved)


def test_few_shot_with_lr_zero_copies_the_supernet(classification):
    strategy = FewShotOneShot(label=lambda supernet: "cell/1_2")
    supernet, _, _ = fit(strategy, classification(learning_rate=0.0))
    assert len(strategy.supernets) == 5
    for space, model in strategy.supernets:
        assert len(space.choices["cell/1_2"]) == 1
        assert same_weights(model, supernet)
        assert not {id(p) for p in model.parameters()} & {id(p) for p in supernet.parameters()}


@pytest.mark.parametrize("strategy", [FairOneShot, lambda: FewShotOneShot(label="cell/0_1")])
def test_in_an_experiment(strategy, classification, tmp_path):
    strategy = dynamic(strategy())
    experiment = NasExperiment(NasBench201(4, 1, 10), classification(), strategy)
    experiment.config.experiment_working_directory = tmp_path
    experiment.run()
    experiment.stop()
    atexit.unregister(experiment.stop)  # it would log to the stream that pytest has closed
    assert experiment.config.execution_engine.name == "sequential"
    assert search_space(strategy.supernet).size == 5**6
    assert len(getattr(strategy, "supernets", range(5))) == 5


@pytest.mark.parametrize("strategy", [FairOneShot, SandwichOneShot, FewShotOneShot])
def test_strategy_pickles(strategy):
    copied = pickle.loads(pickle.dumps(dynamic(strategy(seed=3))))
    assert type(copied) is strategy
    assert copied.seed == 3


def test_logs_the_mean_over_the_subnets(classification, tmp_path):
    logger = pl.loggers.CSVLogger(tmp_path, name="", version="")
    evaluator = classification(logger=logger, log_every_n_steps=1)
    _, _, recorder = fit(dynamic(FairOneShot()), evaluator)
    logger.save()
    header, *lines = (tmp_path / "metrics.csv").read_text().splitlines()
    rows = [dict(zip(header.split(","), line.split(","), strict=True)) for line in lines]
    rows = [row for row in rows if row["dynamic/lr"]]
    for row, update in zip(rows, recorder.updates, strict=True):
        gammas = [subnet.gamma for subnet in update.subnets]
        assert float(row["dynamic/gamma"]) == pytest.approx(sum(gammas) / 5)


@pytest.mark.parametrize("precision", ["bf16-mixed"])
def test_precision(classification, precision):
    evaluator = classification(precision=precision)
    supernet, trainer, _ = fit(dynamic(SandwichOneShot(distill=True)), evaluator)
    assert training_of(trainer).updates == 6
    assert all(torch.isfinite(p).all() for p in supernet.parameters())


def test_annealed_losses(classification):
    _, trainer, recorder = fit(dynamic(FairOneShot(), anneal="loss"), classification())
    assert all(update.lr == (0.05,) for update in recorder.updates)
    assert training_of(trainer).updates == 6


@pytest.mark.parametrize(
    ("strategy", "options", "kwargs", "message"),
    [
        (FairOneShot, {"group_by": len}, {}, "give the label of a choice"),
        (FairOneShot, {"group_by": "layer9"}, {}, "labels are 'cell/0_1'"),
        (RandomOneShot, {"anneal": "loss"}, {}, "needs a host that weights the losses"),
        (Proxyless, {}, {"max_steps": 4}, "counts the steps of the architecture's optimizer"),
        (lambda: FewShotOneShot(label="layer9"), {}, {}, "cannot be split on 'layer9'"),
        (
            lambda: FewShotOneShot(label="cell/0_1"),
            {"group_by": "cell/0_1"},
            {},
            "a sub-supernet has a single momentum group",
        ),
    ],
)
def test_refusals(strategy, options, kwargs, message, classification):
    with pytest.raises(ValueError, match=message):
        fit(dynamic(strategy(), **options), classification(**kwargs))


def test_distillation_needs_logits():
    with pytest.raises(TypeError, match="distill=False"):
        distillation_loss((torch.zeros(2, 3),), (torch.zeros(2, 3),))


def test_subnet_of_no_supernet():
    with pytest.raises(ValueError, match="once the experiment has run"):
        FewShotOneShot().supernet_of({"cell/0_1": "none"})
