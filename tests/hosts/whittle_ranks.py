"""One of two ranks of whittle's strategies under Fabric's DDP, for torchrun.

What a rank ends with, and the subnets that it has trained, is in FOLDER/NAME.RANK.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy

from tests.hosts.test_whittle import RANKED, train


def main(folder: Path) -> None:
    ddp = DDPStrategy(find_unused_parameters=True, process_group_backend="gloo")
    fabric = Fabric(accelerator="cpu", devices=2, strategy=ddp)
    fabric.launch()
    for name in RANKED:
        network, _, subnets = train(name, fabric=fabric)
        torch.save([network.state_dict(), subnets], folder / f"{name}.{fabric.global_rank}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
