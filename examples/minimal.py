"""A supernet of one's own, trained dynamically on digits, ranked; its best subnet taken away."""

import copy

import torch
from sklearn.datasets import load_digits
from torch import nn

from nas_dynamic import CaLR, DynamicTraining, SearchSpace, UniformSampler
from nas_dynamic.complexity import lookup, population
from nas_dynamic.evaluation import evaluate, recalibrate, score_subnets

SPACE = SearchSpace({f"layer{n}": ["conv1", "conv3", "conv5"] for n in (1, 2, 3)})


class Supernet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 16, 3, 2, 1), nn.Linear(16, 10)
        for label, names in SPACE.choices.items():
            self.add_module(label, nn.ModuleDict({name: layer(int(name[-1])) for name in names}))

    def activate(self, architecture):
        self.sampled = architecture

    def subnet(self, architecture):
        layers = [self.get_submodule(f"{label}.{name}") for label, name in architecture.items()]
        return nn.Sequential(self.stem, *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), self.head)

    def forward(self, images):
        return self.subnet(self.sampled)(images)


def layer(kernel):
    conv = nn.Conv2d(16, 16, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(16), nn.ReLU())


torch.manual_seed(0)
digits, order = load_digits(), torch.randperm(1797)
images = torch.tensor(digits.images, dtype=torch.float32)[order, None] / 16
labels = torch.tensor(digits.target)[order]
train, validation, test = ([(images[part], labels[part])] for part in torch.arange(1797).split(599))

supernet, sampler = Supernet(), UniformSampler(SPACE, seed=0)
size = lookup(SPACE, lambda a: sum(p.numel() for p in supernet.subnet(a).parameters()))
optimizer = torch.optim.SGD(supernet.parameters(), lr=0.1, momentum=0.9)
DynamicTraining(
    optimizer,
    architecture=lambda: supernet.sampled,
    calr=CaLR(size, total_steps=1000, population=population(SPACE, size)),
)
for _ in range(1000):
    batch = torch.randint(599, (64,))
    supernet.activate(sampler.sample())
    optimizer.zero_grad()
    nn.functional.cross_entropy(supernet(images[batch]), labels[batch]).backward()
    optimizer.step()

scores = score_subnets(supernet, Supernet.activate, SPACE, validation, calibration=train)
ranking = sorted(scores, key=lambda score: score.loss)
for score in ranking[:3]:
    print(f"loss {score.loss:.3f}, {size(score.architecture):,.0f} parameters:", score.architecture)

network = copy.deepcopy(supernet.subnet(ranking[0].architecture))
recalibrate(network, train)
print(f"the best one alone: {evaluate(network, test)[0]:.1%} of the test images")
torch.save(network.state_dict(), "subnet.pt")
