"""How command lines read names, seeds and a number of images."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection

__all__ = ["SCORING_BATCH", "names", "seeds", "whole_batches"]

SCORING_BATCH = 256


def names(known: Collection[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        found = text.split(",")
        for name in found:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return found

    return parse


def seeds(text: str) -> list[int]:
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def whole_batches(text: str) -> int:
    images = int(text)
    if images < 2 * SCORING_BATCH or images % SCORING_BATCH:
        raise argparse.ArgumentTypeError(
            f"{images} images are not two batches or more; give a multiple of {SCORING_BATCH}"
        )
    return images
