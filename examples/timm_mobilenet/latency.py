"""Measure a latency table of the MobileNet space, and how far it is off on random subnets.

python examples/timm_mobilenet/latency.py
"""

from __future__ import annotations

import argparse
import timeit
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mobilenet import make_supernet
from train import PRESETS

from nas_dynamic.complexity import AdditiveTable, measure_latency


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    preset = PRESETS[args.preset]
    supernet = make_supernet(10, preset["width"], preset["strides"], aligned=False)
    supernet = supernet.to(args.device, memory_format=torch.channels_last).eval()
    size = preset["image_size"]
    images = torch.randn(args.batch_size, 3, size, size, device=args.device)
    images = images.contiguous(memory_format=torch.channels_last)

    entries = sum(len(choice) for choice in supernet.choices().values())
    if args.out.exists():
        table = AdditiveTable.load(args.out)
        print(f"{entries} entries, read from {args.out}")
    else:
        seconds = timeit.default_timer()
        table = supernet.subnet_latency(images, seconds=args.seconds)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        table.save(args.out)
        seconds = timeit.default_timer() - seconds
        print(f"{entries} entries, measured in {seconds:.0f} s, kept in {args.out}")
    base = supernet.base
    print(f"a look-up takes {min(timeit.repeat(lambda: table(base), number=999)) / 999e-6:.1f} µs")

    def measured(architecture: Any) -> float:
        return measure_latency(supernet.extract(architecture), images, seconds=args.seconds)

    errors = 100 * table.errors(supernet.space, measured, args.subnets)
    print(
        f"{args.subnets} random subnets, table against measured: mean {errors.mean():+.1f}%, "
        f"standard deviation {errors.std(ddof=1):.1f}%, worst {errors[abs(errors).argmax()]:+.1f}%"
    )
    again = np.array([measured(base) for _ in range(5)])
    print(f"one subnet measured five times: {again.min():.2f} to {again.max():.2f} ms")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="small")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=0.2, help="to measure each layer for")
    parser.add_argument("--subnets", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/timm_mobilenet/latency.json"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
