"""Images to train and to score on, and their batches."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Sampler

__all__ = [
    "BatchSampler",
    "ImageData",
    "Images",
    "Pixels",
    "batch_loader",
    "calibration_batches",
]

Pixels = Callable[[torch.Tensor], torch.Tensor]
"""From k positions to uint8 of shape (k, 3, height, width)."""


@dataclass(frozen=True, eq=False)
class Images(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Labelled images that are read a batch at a time: an index is a tensor of positions.

    Attributes:
        pixels: uint8 of shape (n, 3, height, width); or a callable from k positions to uint8 of
            shape (k, 3, height, width).
        labels: int64 of shape (n,).
        mean: of each channel, for pixels in [0, 1]; shape (3,).
        std: likewise.
        augment: mirror half of the images of a batch, and shift each by up to an eighth of its
            size, at random.
    """

    pixels: torch.Tensor | Pixels
    labels: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor
    augment: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return normalised images, float32, and labels, at some positions."""
        raw = self.pixels[positions] if torch.is_tensor(self.pixels) else self.pixels(positions)
        images = (raw.float() / 255 - self.mean[:, None, None]) / self.std[:, None, None]
        if self.augment:
            # Seeded by the batch, so that a resumed training and any workers see the same images.
            seed = zlib.crc32(positions.numpy().tobytes())
            images = _mirrored_and_shifted(images, torch.Generator().manual_seed(seed))
        return images, self.labels[positions]

    def subset(self, positions: torch.Tensor) -> Images:
        """Return the images at some positions."""
        pixels: torch.Tensor | Pixels
        if torch.is_tensor(self.pixels):
            pixels = self.pixels[positions]
        else:
            pixels = _Subset(self.pixels, positions)
        return replace(self, pixels=pixels, labels=self.labels[positions])


@dataclass(frozen=True, slots=True)
class ImageData:
    """A data set in three parts that share no image.

    Attributes:
        train: the weights are trained on it.
        validation: subnets are scored on it.
        test: untouched by training and scores.
        classes: number of classes.
    """

    train: Images
    validation: Images
    test: Images
    classes: int


class BatchSampler(Sampler[torch.Tensor]):
    """Positions of each batch; a shuffled order depends on the seed and the epoch alone.

    Lightning calls `set_epoch`, so that a resumed training sees the batches of an unbroken one.
    """

    def __init__(self, images: int, batch_size: int, *, shuffle: bool = False, seed: int = 0):
        self.images = images
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order."""
        self.epoch = epoch

    def __len__(self) -> int:
        if self.shuffle:
            return self.images // self.batch_size
        return -(-self.images // self.batch_size)

    def __iter__(self) -> Iterator[torch.Tensor]:
        """Yield the batches; where they are shuffled, an incomplete last one is left out."""
        order = torch.arange(self.images)
        if self.shuffle:
            generator = np.random.default_rng([self.seed, self.epoch])
            order = torch.from_numpy(generator.permutation(self.images))
        yield from torch.split(order, self.batch_size)[: len(self)]


def batch_loader(
    images: Images,
    batch_size: int,
    *,
    shuffle: bool = False,
    seed: int = 0,
    workers: int = 0,
    loader: type[DataLoader[Any]] = DataLoader,
) -> DataLoader[Any]:
    """Return a DataLoader whose batches are read whole.

    Args:
        images: what to load.
        batch_size: images in a batch.
        shuffle: a new order each epoch, without the incomplete last batch.
        seed: of the order.
        workers: processes that read batches; worth it only where images are decoded each time.
        loader: the class, for frameworks that have one of their own.

    Raises:
        ValueError: a shuffled loader would have no batch.
    """
    if shuffle and len(images) < batch_size:
        raise ValueError(
            f"batch_size is {batch_size}, and there are {len(images)} training images: "
            "not one whole batch"
        )
    sampler = BatchSampler(len(images), batch_size, shuffle=shuffle, seed=seed)
    # batch_size=None: the sampler's positions go to the dataset as they are.
    return loader(images, batch_size=None, sampler=sampler, num_workers=workers)


def calibration_batches(
    images: Images, batch_size: int, count: int, seed: int = 0
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return batches of training images, without augmentation, the same ones for a seed."""
    batches = batch_loader(
        replace(images, augment=False), min(batch_size, len(images)), shuffle=True, seed=seed
    )
    return [batch for batch, _ in zip(batches, range(count), strict=False)]


@dataclass(frozen=True)
class _Subset:
    pixels: Pixels
    positions: torch.Tensor

    def __call__(self, positions: torch.Tensor) -> torch.Tensor:
        return self.pixels(self.positions[positions])


def _mirrored_and_shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    count, _, height, width = images.shape
    margin = max(height, width) // 8
    mirror = torch.rand(count, 1, 1, 1, generator=generator) < 0.5
    padded = F.pad(torch.where(mirror, images.flip(3), images), [margin] * 4)
    top, left = torch.randint(2 * margin + 1, (2, count, 1), generator=generator)
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    every = torch.arange(count)[:, None, None]
    shifted = padded.permute(0, 2, 3, 1)[every, rows[:, :, None], columns[:, None, :]]
    return shifted.permute(0, 3, 1, 2)
