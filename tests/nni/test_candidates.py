"""Model spaces of all kinds of candidates: they train with the defaults, save, and resume."""

from __future__ import annotations

import functools

import nni
import pytest
import torch
from nni.nas.evaluator.pytorch import Classification, DataLoader
from nni.nas.experiment import NasExperiment
from nni.nas.nn.pytorch import LayerChoice, ModelSpace, MutableLinear
from nni.nas.strategy import RandomOneShot
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn

from nas_dynamic.adapters.nni import dynamic, search_space, subnet_parameters
from tests.attach.reference import assert_identical

pytestmark = pytest.mark.host


class Wide(ModelSpace):
    """One choice of a hundred widths, and a small one."""

    def __init__(self, small: bool):
        super().__init__()
        width = nni.choice("width", list(range(1, 101)))
        self.first = MutableLinear(3 * 64, width)
        self.second = MutableLinear(width, 10)
        depths = {"shallow": nn.Identity(), "deep": nn.Linear(10, 10)}
        self.last = LayerChoice(depths, label="last") if small else nn.Identity()

    def forward(self, x):
        return self.last(self.second(self.first(x.flatten(1)).relu()))


@pytest.mark.parametrize("small", [True, False])
def test_a_choice_of_more_candidates_than_groups_may_be_trains_with_the_default_rule(
    small, classification
):
    evaluator = classification(max_epochs=20)
    strategy = dynamic(RandomOneShot(), momentum=True)
    experiment = NasExperiment(Wide(small), evaluator, strategy)
    experiment.run()
    (callback,) = [c for c in evaluator.trainer.callbacks if hasattr(c, "training")]
    assert callback.training.updates == 120
    rule = callback.training.momentum.group_by
    assert rule == "last" if small else len(callback.training.groups) == 4


class Objects(ModelSpace):
    """Candidates that are layers by class, beside choices of plain ones."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3 * 64, 16)
        self.choice = LayerChoice([nn.ReLU(), nn.GELU(), nn.Tanh()], label="activation")
        width = nni.choice("width", [8, 16])
        self.second, self.third = MutableLinear(16, width), MutableLinear(width, 10)

    def forward(self, x):
        return self.third(self.second(self.choice(self.first(x.flatten(1)))).relu())


def fitted(classification, folder, epochs, resume=None):
    torch.manual_seed(0)
    saver = ModelCheckpoint(folder, filename="last", save_on_train_epoch_end=True)
    evaluator = classification(
        max_epochs=epochs,
        enable_checkpointing=True,
        callbacks=[saver],
    )
    if resume:
        evaluator.fit_kwargs["ckpt_path"] = resume
    strategy = dynamic(RandomOneShot(), total_steps=12)
    NasExperiment(Objects(), evaluator, strategy).run()
    return strategy.supernet, evaluator


def test_a_checkpoint_has_the_numbers_of_candidates(classification, tmp_path):
    straight, _ = fitted(classification, tmp_path / "straight", 2)
    fitted(classification, tmp_path / "first", 1)
    saved = torch.load(tmp_path / "first" / "last.ckpt", weights_only=True)
    told = [v["architectures"] for v in saved["callbacks"].values() if "architectures" in v]
    assert all(type(n) is int for subnets in told for numbers in subnets for n in numbers)
    assert told
    resumed, _ = fitted(classification, tmp_path / "second", 2, tmp_path / "first" / "last.ckpt")
    assert_identical(resumed.state_dict(), straight.state_dict())


class Endless(torch.utils.data.IterableDataset):
    """Batches without a length."""

    def __iter__(self):
        while True:
            yield torch.zeros(3, 8, 8), 0


def test_a_training_whose_length_is_not_known_says_so(tmp_path):
    loader = DataLoader(Endless(), batch_size=2)
    evaluator = Classification(
        optimizer=functools.partial(torch.optim.SGD, momentum=0.9),
        train_dataloaders=loader,
        val_dataloaders=DataLoader(Endless(), batch_size=2),
        limit_val_batches=1,
        num_sanity_val_steps=0,
        num_classes=10,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=str(tmp_path),
        accelerator="cpu",
    )
    with pytest.raises(ValueError, match="is not known before: its data set has no length"):
        NasExperiment(Objects(), evaluator, dynamic(RandomOneShot())).run()


class Tied(ModelSpace):
    """An embedding that is the output layer as well, and a block that is used twice."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 8)
        wide = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
        self.block = LayerChoice({"plain": nn.Linear(8, 8), "wide": wide}, label="block")
        self.twice = nn.Sequential(self.block, nn.Tanh())
        other = nn.Linear(8, 8)
        self.other = LayerChoice({"one": other, "same": other, "none": nn.Tanh()}, label="other")
        self.out = nn.Linear(8, 50, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, x):
        return self.out(self.other(self.twice(self.block(self.embedding(x)))))


def test_tied_and_reused_weights_are_counted_once():
    supernet = RandomOneShot().mutate_model(Tied())
    count, space = subnet_parameters(supernet), search_space(supernet)
    for architecture in space:
        alone = Tied().freeze(dict(architecture))
        assert count(architecture) == sum(p.numel() for p in alone.parameters()), architecture
