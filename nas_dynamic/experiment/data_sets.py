"""Where images come from: scikit-learn's digits, torchvision's sets, image folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from nas_dynamic._extras import extra
from nas_dynamic.experiment.data import ImageData, Images, Pixels
from nas_dynamic.storage.journal import RunError

__all__ = ["TORCHVISION_SETS", "DataError", "digits", "image_folder", "torchvision_set"]

TORCHVISION_SETS = ("CIFAR10", "CIFAR100", "FashionMNIST")

IN_MEMORY = 4 * 2**30
"""An image folder is kept in memory if it has at most this many bytes of pixels."""

Part = tuple[torch.Tensor | Pixels, torch.Tensor]


class DataError(RunError):
    """Images cannot be fetched or read; the message names the file or the set."""


def digits(validation: float = 0.25, test: float = 0.25, seed: int = 0) -> ImageData:
    """Return scikit-learn's 1,797 handwritten digits of 8×8 pixels; nothing is downloaded.

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
    """Return CIFAR-10, CIFAR-100 or FashionMNIST; grey images get three equal channels.

    Args:
        name: one of `TORCHVISION_SETS`.
        root: folder that torchvision keeps the set in.
        validation: share of the official training images to score on.
        seed: of the split.
        download: fetch the set if it is not there.
        augment: mirror and shift training images, see `Images`.

    Raises:
        DataError: the set cannot be fetched, or its files cannot be read.
        FileNotFoundError: the set is not in `root`, or its checksums there are wrong, and
            `download` is off.
    """
    with extra("experiment"):
        from torchvision import datasets

    parts: list[Part] = []
    for train in (True, False):
        try:
            part = getattr(datasets, name)(root, train=train, download=download)
        except (AssertionError, OSError, RuntimeError, ValueError) as error:
            if "download=True" in str(error):  # torchvision's advice: no file, or a wrong one
                raise FileNotFoundError(
                    f"{name} is not in {root}, or is damaged there; set download to true to fetch "
                    f"it ({error})"
                ) from error
            verb = "fetched into" if download else "read from"
            reason = str(error) or "its files are damaged"
            raise DataError(f"{name} cannot be {verb} {root}: {reason}") from error
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
    """Read a folder `train` and a folder `val` or `test`, each with one folder of images a class.

    Args:
        root: the folder of those two.
        size: images are scaled, and cut about their middle, to size × size pixels.
        validation: share of the images in `train` to score on.
        seed: of the split.
        augment: mirror and shift training images, see `Images`.

    Raises:
        DataError: a file is no image, or is damaged; where the images are more than the memory
            is given for, at the batch that it is in.
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

        # SyntaxError: a broken PNG. The bomb: more pixels than PIL decodes.
        unreadable = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
        images = []
        for path in self.paths[positions.numpy()]:
            try:
                with Image.open(path) as image:
                    images.append(self.transform(image.convert("RGB")))
            except unreadable as error:
                raise DataError(
                    f"{path} cannot be read as an image: {error}; replace it, or take it away"
                ) from error
        return torch.stack(images)


def _normalised(pixels: torch.Tensor | Pixels, labels: torch.Tensor, sample: int = 4096) -> Images:
    """Return images with the mean and deviation of some of them."""
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
    """Return training images, split, and test images."""
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
    """Return positions of 1 − share and of share of the images, stratified by class."""
    with extra("experiment"):
        from sklearn.model_selection import train_test_split

    kept, taken = train_test_split(
        np.arange(len(labels)), test_size=share, random_state=seed, stratify=labels.numpy()
    )
    return torch.from_numpy(np.sort(kept)), torch.from_numpy(np.sort(taken))
