"""An elastic language model in Hugging Face's Trainer, against one optimizer for each group."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from nas_dynamic import UniformSampler
from nas_dynamic.adapters.transformers import DynamicSupernet, elastic_lm
from nas_dynamic.complexity import bounds
from tests.transformers.models import SIZES, qwen2, tokens

pytestmark = pytest.mark.host

UPDATES, WARM_UP, BATCH, LR, SEED = 16, 4, 2, 3e-3, 5


class Texts(Dataset):
    def __init__(self):
        self.tokens = tokens(batch=UPDATES * BATCH, length=12)

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, number):
        return {"input_ids": self.tokens[number], "labels": self.tokens[number]}


def supernet_of():
    supernet = elastic_lm(qwen2(), **SIZES)
    # Trainer divides by a count of tokens of its own otherwise, which rounds differently.
    supernet.accepts_loss_kwargs = False
    return supernet


def adamw(supernet):
    return torch.optim.AdamW(supernet.parameters(), lr=LR, weight_decay=0.1)


def trainer_of(folder, dynamic, **arguments):
    supernet = supernet_of()
    settings = TrainingArguments(
        folder,
        **{
            "max_steps": UPDATES,
            "per_device_train_batch_size": BATCH,
            "learning_rate": LR,
            "lr_scheduler_type": "linear",
            "warmup_steps": WARM_UP,
            "train_sampling_strategy": "sequential",
            "use_cpu": True,
            "report_to": [],
            "disable_tqdm": True,
            "save_strategy": "no",
        }
        | arguments,
    )
    return Trainer(
        supernet,
        settings,
        train_dataset=Texts(),
        callbacks=[dynamic],
        optimizers=(adamw(supernet), None),
    )


def dynamic():
    return DynamicSupernet(gamma_by="complexity", group_by="width", seed=SEED)


def test_lr_and_groups_of_an_elastic_language_model(tmp_path):
    callback = dynamic()
    trainer = trainer_of(tmp_path, callback)
    trainer.train()
    assert set(callback.training.groups) == {16, 32, 48}

    supernet, optimizers = supernet_of(), {}
    parameters = supernet.subnet_parameters()
    least, most = bounds(supernet.space, parameters)
    sampler, data = UniformSampler(supernet.space, SEED), Texts()
    supernet.train()
    for step in range(UPDATES):
        architecture = sampler.sample()
        position = math.log(parameters(architecture) / least) / math.log(most / least)
        gamma = 4 - (4 - 1 / 4) * position
        decay = min(1.0, (UPDATES - step) / (UPDATES - WARM_UP))  # s(t), 1 in the warm-up
        optimizer = optimizers.setdefault(architecture["width"], adamw(supernet))
        optimizer.param_groups[0]["lr"] = LR * min(1.0, step / WARM_UP) * decay**gamma
        supernet.activate(architecture)
        supernet.zero_grad()
        batch = data.tokens[step * BATCH : (step + 1) * BATCH]
        supernet(batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(supernet.parameters(), 1.0)
        optimizer.step()
    for name, weight in trainer.model.state_dict().items():
        torch.testing.assert_close(weight, supernet.state_dict()[name], rtol=1e-5, atol=1e-6)


def test_a_training_resumes_from_what_trainer_saves(tmp_path):
    trainer_of(tmp_path, dynamic(), save_strategy="steps", save_steps=8).train()
    straight = trainer_of(tmp_path / "straight", dynamic())
    straight.train()
    resumed = trainer_of(tmp_path, dynamic())
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    for name, weight in resumed.model.state_dict().items():
        assert torch.equal(weight, straight.model.state_dict()[name])
    largest = AutoModelForCausalLM.from_pretrained(tmp_path / f"checkpoint-{UPDATES}")
    straight.model.eval().activate(straight.model.base)
    assert torch.equal(largest(tokens()).logits, straight.model(tokens()).logits)
