"""Image folders with timm's transforms, and scikit-learn's digits as one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from timm.data import create_transform
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.datasets import ImageFolder


class Images:
    """`train/CLASS/…` and `val/CLASS/…` or `test/CLASS/…`.

    Args:
        root: the folder.
        size: height and width in pixels.
        train_images: how many of `train` to use at most.
        validation_images: how many of `train` to hold out; a tenth of them, at most 10,000.
        mirrored: whether an image means the same when it is flipped.
        workers: processes that load images.
    """

    def __init__(
        self,
        root: Path,
        size: int,
        *,
        train_images: int | None = None,
        validation_images: int | None = None,
        mirrored: bool = True,
        workers: int = 0,
    ) -> None:
        shape, small = (3, size, size), size < 64
        plain = create_transform(shape, crop_pct=1.0 if small else 0.875)
        augmented = create_transform(
            shape,
            is_training=True,
            scale=(0.6, 1.0) if small else (0.08, 1.0),
            hflip=0.5 if mirrored else 0.0,
            color_jitter=None if small else 0.4,  # a fifth of the time of a small supernet
        )
        train = ImageFolder(str(root / "train"), augmented)
        plain_train = ImageFolder(str(root / "train"), plain)
        test = root / ("val" if (root / "val").is_dir() else "test")
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).tolist()
        held_out = validation_images or min(len(order) // 10, 10_000)
        kept = order[held_out:][:train_images]
        self.classes = len(train.classes)
        self.workers = workers
        self.parts: dict[str, Dataset] = {
            "train": Subset(train, kept),
            "calibration": Subset(plain_train, kept[:512]),
            "validation": Subset(plain_train, order[:held_out]),
            "test": ImageFolder(str(test), plain),
        }

    def loader(self, part: str, batch_size: int) -> DataLoader:
        """Batches of a part; those of training are shuffled and augmented."""
        training = part == "train"
        return DataLoader(
            self.parts[part],
            batch_size,
            shuffle=training,
            drop_last=training,
            num_workers=self.workers,
        )

    def batches(self, part: str, batch_size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Batches of a part, kept in memory."""
        return [
            (images.contiguous(memory_format=torch.channels_last), labels)
            for images, labels in self.loader(part, batch_size)
        ]


def digits_folder(root: Path) -> Path:
    """scikit-learn's digits as an image folder."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = (digits.images * (255 / 16)).round().astype(np.uint8)
    for i, (image, label) in enumerate(zip(pixels, digits.target, strict=True)):
        folder = root / ("test" if i % 4 == 0 else "train") / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).convert("RGB").save(folder / f"{i}.png")
    return root
