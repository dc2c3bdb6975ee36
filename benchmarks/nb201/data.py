"""CIFAR-10 in memory, and the table of the trained networks."""

from __future__ import annotations

import functools
import io
import multiprocessing
import os
import tarfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.nb201.supernet import EDGES, OPERATIONS, SPACE
from nas_dynamic import Architecture
from nas_dynamic.analysis.architecture_table import ArchitectureTable

__all__ = [
    "Images",
    "Table",
    "TrainingBatches",
    "load_images",
    "load_table",
    "normalized",
    "parse_architecture",
]

MEAN = torch.tensor([0.4914, 0.4822, 0.4465]) * 255
STD = torch.tensor([0.2470, 0.2435, 0.2616]) * 255


@dataclass(frozen=True)
class Images:
    """Decoded images, uint8 of shape (n, size, size, 3), and their classes, int64 of shape (n,)."""

    pixels: torch.Tensor
    classes: torch.Tensor

    def balanced(self, count: int) -> Images:
        """Return `count` images in an order in which the classes take turns."""
        turn = torch.zeros_like(self.classes)
        for label in range(10):
            members = self.classes == label
            turn[members] = torch.arange(int(members.sum()))
        order = torch.argsort(turn * 10 + self.classes)[:count]
        return Images(self.pixels[order], self.classes[order])

    def batches(self, size: int, device: str = "cpu") -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return normalized images and classes, in batches whose statistics are always the same."""
        pixels, classes = self.pixels.to(device), self.classes.to(device)
        return [
            (normalized(pixels[i : i + size]), classes[i : i + size])
            for i in range(0, len(classes), size)
        ]


def normalized(pixels: torch.Tensor) -> torch.Tensor:
    """Return floats of shape (n, 3, height, width), channels last in memory."""
    scale = (1 / STD).to(pixels.device)
    return torch.addcmul((-MEAN / STD).to(pixels.device), pixels.float(), scale).permute(0, 3, 1, 2)


class TrainingBatches:
    """Shuffled, cropped and flipped batches: a pure function of the seed and the update.

    Args:
        images: the training set.
        batch: images in a batch; an incomplete last one is dropped.
        seed: of the order and the augmentation.
        device: where the batches lie.
    """

    def __init__(self, images: Images, batch: int, seed: int, device: str = "cpu") -> None:
        count, size = images.pixels.shape[:2]
        pad = size // 8  # 4 pixels of 32, as usual for CIFAR-10
        padded = torch.zeros(count, size + 2 * pad, size + 2 * pad, 3, dtype=torch.uint8)
        # The mean colour, so that the border is zero after normalization.
        padded[:] = MEAN.round().to(torch.uint8)
        padded[:, pad : pad + size, pad : pad + size] = images.pixels
        self.padded, self.classes = padded.to(device), images.classes.to(device)
        self.batch, self.seed, self.pad, self.size = batch, seed, pad, size
        self.in_epoch = count // batch
        self._epoch = -1

    def __getitem__(self, update: int) -> tuple[torch.Tensor, torch.Tensor]:
        epoch, number = divmod(update, self.in_epoch)
        if epoch != self._epoch:
            self._draw(epoch)
        part = slice(number * self.batch, (number + 1) * self.batch)
        order = self._order[part]
        crop = self.padded[
            order[:, None, None], self._rows[part][:, :, None], self._columns[part][:, None, :]
        ]
        return normalized(crop), self.classes[order]

    def _draw(self, epoch: int) -> None:
        draw = np.random.default_rng([self.seed, epoch])
        count, device = len(self.classes), self.classes.device
        span = np.arange(self.size)
        rows = draw.integers(2 * self.pad + 1, size=(count, 1)) + span
        columns = draw.integers(2 * self.pad + 1, size=(count, 1)) + span
        columns = np.where(draw.integers(2, size=(count, 1)), columns[:, ::-1], columns)
        self._order = torch.from_numpy(draw.permutation(count)).to(device)
        self._rows = torch.from_numpy(rows).to(device)
        self._columns = torch.from_numpy(columns).to(device)
        self._epoch = epoch


def load_images(source: Path, split: str, size: int, cache: Path) -> Images:
    """Load CIFAR-10 from an ImageFolder (`train/CLASS/…`, `test/CLASS/…`) or a tar file of one.

    Decoded once, scaled down to `size` by averaging, and kept beside the runs: until another
    folder is given, or a tar that is another one or was changed.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: it holds no images of the split.
    """
    path, identity = cache / f"cifar10-{split}-{size}.npz", _identity(source)
    if not _is_of(path, identity):
        # All splits at once, since it takes seconds to go through a tar.
        for found, images in _decode(source, size).items():
            cache.mkdir(parents=True, exist_ok=True)
            complete = cache / f"cifar10-{found}-{size}.npz"
            partial = complete.with_suffix(f".{os.getpid()}.tmp.npz")
            pixels, classes = images.pixels.numpy(), images.classes.numpy()
            np.savez(partial, pixels=pixels, classes=classes, source=np.array(identity))
            partial.replace(complete)
    if not _is_of(path, identity):
        raise ValueError(f"{source} holds no images below {split}/CLASS/")
    with np.load(path) as arrays:
        return Images(torch.from_numpy(arrays["pixels"]), torch.from_numpy(arrays["classes"]))


def _identity(source: Path) -> str:
    """Return the path of a source, and what tells whether a tar was changed."""
    if source.is_dir():
        return str(source.resolve())
    if not source.is_file():
        raise FileNotFoundError(f"{source}: give --data, an ImageFolder of CIFAR-10 or its tar")
    status = source.stat()
    return f"{source.resolve()} {status.st_size} {status.st_mtime_ns}"


def _is_of(cache: Path, identity: str) -> bool:
    """Tell whether a cache holds the images of a source."""
    if not cache.is_file():
        return False
    with np.load(cache) as arrays:
        return str(arrays["source"]) == identity


def _decode(source: Path, size: int) -> dict[str, Images]:
    """Decode the images of every split, on all cores."""
    found: dict[str, list[tuple[str, str, bytes]]] = {}
    for split, label, name, data in _files(source):
        found.setdefault(split, []).append((label, name, data))
    splits = {}
    # Processes, since Pillow holds Python's lock for most of so small an image.
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("fork")) as pool:
        for split, rows in found.items():
            rows.sort(key=lambda row: row[:2])
            names = sorted({row[0] for row in rows})
            decode = functools.partial(_pixels, size=size)
            pixels = np.stack(list(pool.map(decode, [row[2] for row in rows], chunksize=500)))
            classes = torch.tensor([names.index(row[0]) for row in rows])
            splits[split] = Images(torch.from_numpy(pixels), classes)
    return splits


def _pixels(data: bytes, size: int) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BOX))


def _files(source: Path) -> Iterator[tuple[str, str, str, bytes]]:
    """Yield split, class, name and content of every image."""
    if source.is_dir():
        for split in ("train", "test"):
            for file in (source / split).glob("*/*"):
                yield split, file.parent.name, file.name, file.read_bytes()
        return
    with tarfile.open(source) as archive:
        for member in archive:
            parts = Path(member.name).parts
            if member.isfile() and len(parts) >= 3 and parts[-3] in ("train", "test"):
                yield *parts[-3:], archive.extractfile(member).read()


@dataclass(frozen=True)
class Table:
    """Architectures and their stand-alone accuracies.

    Attributes:
        architectures: n architectures.
        accuracy: CIFAR-10 test accuracy after 200 epochs, percent; shape (n,).
    """

    architectures: list[Architecture]
    accuracy: np.ndarray

    def stratified(self, count: int) -> Table:
        """Return `count` architectures spread evenly over the ranks of the accuracy.

        One, drawn with a fixed seed, of each of `count` equal strata: the sample's τ then
        estimates that of the whole table with little noise from the draw.
        """
        if count >= len(self.architectures):
            return self
        order = np.argsort(self.accuracy, kind="stable")
        draw = np.random.default_rng(0)
        chosen = [int(draw.choice(stratum)) for stratum in np.array_split(order, count)]
        return Table([self.architectures[i] for i in chosen], self.accuracy[chosen])


def load_table(path: Path) -> Table:
    """Read the table from a CSV, gzipped or not, with `arch_str` and `c10_test200`.

    Architectures are in the order of the space, which is that of the benchmark's numbers.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a row has no architecture, no accuracy, or another one than an earlier row.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: give --table, the CSV of NAS-Bench-201")
    table = ArchitectureTable.read(
        path, SPACE, "c10_test200", parse=lambda row: parse_architecture(row["arch_str"])
    )
    architectures = [architecture for architecture in SPACE if architecture in table]
    return Table(architectures, np.array([table(architecture) for architecture in architectures]))


def parse_architecture(text: str) -> dict[str, str]:
    """Read an architecture in the benchmark's notation, `|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`."""
    parts = [part for node in text.split("+") for part in node.strip("|").split("|")]
    operations = [part.rpartition("~")[0] for part in parts]
    if len(parts) != len(EDGES) or not set(operations) <= set(OPERATIONS):
        raise ValueError(
            f"{text!r} is no architecture of NAS-Bench-201: six edges, each one of "
            f"{', '.join(OPERATIONS)}"
        )
    return dict(zip(SPACE.labels, operations, strict=True))
