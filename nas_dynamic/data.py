"""Images to train and to score on: scikit-learn's digits, torchvision's sets, image folders."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Sampler

from nas_dynamic._extras import extra

__all__ = [
    "TORCHVISION_SETS",
    "BatchSampler",
    "ImageData",
    "Images",
    "batch_loader",
    "calibration_batches",
    "digits",
    "image_folder",
    "torchvision_set",
]

TORCHVISION_SETS = ("CIFAR10", "CIFAR100", "FashionMNIST")

IN_MEMORY = 4 * 2**30
"""An image folder is kept in memory if it has at most this many bytes of pixels."""

Pixels = Callable[[torch.Tensor], torch.Tensor]
Part = tuple[torch.Tensor | Pixels, torch.Tensor]


@dataclass(frozen=True, eq=False)
class Images(Dataset):
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
        """Normalised images, float32, and labels, at some positions."""
        raw = self.pixels[positions] if torch.is_tensor(self.pixels) else self.pixels(positions)
        images = (raw.float() / 255 - self.mean[:, None, None]) / self.std[:, None, None]
        if self.augment:
            # Seeded by the batch, so that a resumed training and any workers see the same images.
            seed = zlib.crc32(positions.numpy().tobytes())
            images = _mirrored_and_shifted(images, torch.Generator().manual_seed(seed))
        return images, self.labels[positions]

    def subset(self, positions: torch.Tensor) -> Images:
        """The images at some positions."""
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
        """The batches; where they are shuffled, an incomplete last one is left out."""
        order = torch.arange(self.images)
        if self.shuffle:
            generator = np.random.default_rng([self.seed, self.epoch])
            order = torch.from_numpy(generator.permutation(self.images))
        yield from order.split(self.batch_size)[: len(self)]


def batch_loader(
    images: Images,
    batch_size: int,
    *,
    shuffle: bool = False,
    seed: int = 0,
    workers: int = 0,
    loader: type[DataLoader] = DataLoader,
) -> DataLoader:
    """A DataLoader whose batches are read whole.

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
    """Some batches of training images, without augmentation, always the same for a seed."""
    batches = batch_loader(
        replace(images, augment=False), min(batch_size, len(images)), shuffle=True, seed=seed
    )
    return [batch for batch, _ in zip(batches, range(count), strict=False)]


def digits(validation: float = 0.25, test: float = 0.25, seed: int = 0) -> ImageData:
    """scikit-learn's 1,797 handwritten digits of 8×8 pixels; nothing is downloaded.

    Args:
        validation: share of the images outside of `test` to score on.
        test: share of all images that is left for the end.
        seed: of the split, which is the same for every class.
    """
    with extra("experiment"):
        from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = torch.from_numpy((bunch.images * (255 / 16)).round().astype(np.uint8))
    images = _normalised(grey[:, None].expand(-1, 3, -1, -1), torch.from_numpy(bunch.target))
    rest, tested = _split(images.labels, test, seed)
    trained, validated = _split(images.labels[rest], validation, seed)
    return ImageData(
        images.subset(rest[trained]), images.subset(rest[validated]), images.subset(tested), 10
    )


def torchvision_set(
    name: str,
    root: str | Path,
    *,
    validation: float = 0.1,
    seed: int = 0,
    download: bool = False,
    augment: bool = True,
) -> ImageData:
    """CIFAR-10, CIFAR-100 or FashionMNIST; grey images get three equal channels.

    Args:
        name: one of `TORCHVISION_SETS`.
        root: folder that torchvision keeps the set in.
        validation: share of the official training images to score on.
        seed: of the split.
        download: fetch the set if it is not there.
        augment: mirror and shift training images, see `Images`.

    Raises:
        FileNotFoundError: the set is not in `root`, and `download` is off.
    """
    with extra("experiment"):
        from torchvision import datasets

    parts: list[Part] = []
    for train in (True, False):
        try:
            part = getattr(datasets, name)(root, train=train, download=download)
        except RuntimeError as error:
            raise FileNotFoundError(
                f"{name} is not in {root}; set download to true to fetch it ({error})"
            ) from error
        pixels = torch.as_tensor(part.data)
        pixels = (
            pixels[:, None].expand(-1, 3, -1, -1)
            if pixels.dim() == 3
            else pixels.permute(0, 3, 1, 2).contiguous()
        )
        parts.append((pixels, torch.as_tensor(part.targets)))
    return _official_split(parts, validation, seed, augment, len(part.classes))


def image_folder(
    root: str | Path,
    size: int,
    *,
    validation: float = 0.1,
    seed: int = 0,
    augment: bool = True,
) -> ImageData:
    """A folder `train` and a folder `val` or `test`, each with one folder of images a class.

    Args:
        root: the folder of those two.
        size: images are scaled, and cut about their middle, to size × size pixels.
        validation: share of the images in `train` to score on.
        seed: of the split.
        augment: mirror and shift training images, see `Images`.

    Raises:
        FileNotFoundError: a folder is missing, or holds no classes.
        ValueError: the two folders hold different classes.
    """
    with extra("experiment"):
        from torchvision.datasets import ImageFolder

    root = Path(root)
    test_root = root / "val" if (root / "val").is_dir() else root / "test"
    for folder in (root / "train", test_root):
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{folder} does not exist; an image folder holds train/CLASS/… and "
                "val/CLASS/… or test/CLASS/…"
            )
    folders = [ImageFolder(str(root / "train")), ImageFolder(str(test_root))]
    if folders[0].classes != folders[1].classes:
        differing = sorted(set(folders[0].classes) ^ set(folders[1].classes))
        raise ValueError(
            f"{root / 'train'} and {test_root} must hold the same classes; "
            f"{', '.join(differing[:5])} is in one of them only"
        )
    parts: list[Part] = []
    in_memory = 3 * size * size * sum(len(folder) for folder in folders) <= IN_MEMORY
    for folder in folders:
        read = _Files([path for path, _ in folder.samples], size)
        everything = torch.arange(len(folder))
        parts.append((read(everything) if in_memory else read, torch.tensor(folder.targets)))
    return _official_split(parts, validation, seed, augment, len(folders[0].classes))


class _Files:
    """Pixels of image files, decoded when they are asked for."""

    def __init__(self, paths: Sequence[str], size: int) -> None:
        with extra("experiment"):
            from torchvision.transforms import v2

        self.paths = np.array(paths)
        self.transform = v2.Compose([v2.Resize(size), v2.CenterCrop(size), v2.PILToTensor()])

    def __call__(self, positions: torch.Tensor) -> torch.Tensor:
        from PIL import Image

        images = []
        for path in self.paths[positions.numpy()]:
            with Image.open(path) as image:
                images.append(self.transform(image.convert("RGB")))
        return torch.stack(images)


@dataclass(frozen=True)
class _Subset:
    pixels: Pixels
    positions: torch.Tensor

    def __call__(self, positions: torch.Tensor) -> torch.Tensor:
        return self.pixels(self.positions[positions])


def _normalised(pixels: torch.Tensor | Pixels, labels: torch.Tensor, sample: int = 4096) -> Images:
    """Images with the mean and deviation of some of them."""
    some = torch.from_numpy(np.random.default_rng(0).permutation(len(labels))[:sample])
    values = (pixels[some] if torch.is_tensor(pixels) else pixels(some)).float() / 255
    std, mean = torch.std_mean(values, (0, 2, 3))
    return Images(pixels, labels.long(), mean, std.clamp_min(1e-3))


def _official_split(
    parts: Sequence[Part],
    validation: float,
    seed: int,
    augment: bool,
    classes: int,
) -> ImageData:
    """Training images, split, and test images."""
    train, test = parts
    images = _normalised(*train)
    trained, validated = _split(images.labels, validation, seed)
    return ImageData(
        replace(images.subset(trained), augment=augment),
        images.subset(validated),
        replace(images, pixels=test[0], labels=test[1].long()),
        classes,
    )


def _split(labels: torch.Tensor, share: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions of 1 − share and of share of the images, stratified by class."""
    with extra("experiment"):
        from sklearn.model_selection import train_test_split

    kept, taken = train_test_split(
        np.arange(len(labels)), test_size=share, random_state=seed, stratify=labels.numpy()
    )
    return torch.from_numpy(np.sort(kept)), torch.from_numpy(np.sort(taken))


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
