from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from nas_dynamic.experiment import data_sets
from nas_dynamic.experiment.data import Images, batch_loader, calibration_batches
from nas_dynamic.experiment.data_sets import DataError, digits, image_folder, torchvision_set


def rows(images: Images) -> list[bytes]:
    return [pixels.numpy().tobytes() for pixels in images.pixels]


def test_digits_are_split_once_and_evenly_over_classes():
    data = digits(validation=0.4, test=0.25, seed=3)
    parts = [data.train, data.validation, data.test]
    assert [len(part) for part in parts] == [808, 539, 450]
    # No image of scikit-learn's digits stands in it twice.
    assert len({row for part in parts for row in rows(part)}) == 1797
    for part in parts:
        shares = part.labels.bincount(minlength=10) / len(part)
        assert shares.min() > 0.09
        assert shares.max() < 0.11
    assert rows(digits(0.4, 0.25, seed=3).train) == rows(data.train)
    assert rows(digits(0.4, 0.25, seed=4).train) != rows(data.train)


def test_images_are_normalised_by_channel():
    images, labels = digits().train[torch.arange(200)]
    assert images.shape == (200, 3, 8, 8)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert abs(images.mean().item()) < 0.05
    assert images.std().item() == pytest.approx(1, abs=0.05)


def numbered(count: int, size: int = 8, augment: bool = False) -> Images:
    """Image k is k everywhere but for its left column, which is zero."""
    pixels = torch.arange(count, dtype=torch.uint8)[:, None, None, None].repeat(1, 3, size, size)
    pixels[..., 0] = 0
    return Images(pixels, torch.arange(count), torch.zeros(3), torch.ones(3), augment)


def labels_of(loader) -> list[int]:
    return [label for _, labels in loader for label in labels.tolist()]


def test_batches_in_order_hold_every_image():
    loader = batch_loader(numbered(10), 4)
    assert [len(labels) for _, labels in loader] == [4, 4, 2]
    assert len(loader) == 3
    assert labels_of(loader) == list(range(10))


def test_shuffled_batches_depend_on_seed_and_epoch_alone():
    def epoch(seed: int, number: int) -> list[int]:
        loader = batch_loader(numbered(10), 4, shuffle=True, seed=seed)
        loader.sampler.set_epoch(number)
        assert len(loader) == 2  # whole batches only
        torch.rand(3)
        return labels_of(loader)

    assert epoch(0, 1) == epoch(0, 1)
    assert len({tuple(epoch(seed, number)) for seed in range(2) for number in range(2)}) == 4
    assert len(set(epoch(0, 0))) == 8


def test_calibration_batches_are_fixed_and_not_augmented():
    images = numbered(20, augment=True)
    batches = calibration_batches(images, 6, 2, seed=1)
    assert [len(labels) for _, labels in batches] == [6, 6]
    for x, labels in batches:
        assert torch.equal(x, replace(images, augment=False)[labels][0])
    again = calibration_batches(images, 6, 2, seed=1)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(batches, again, strict=True))


def test_augmentation_mirrors_and_shifts_by_whole_pixels():
    images = numbered(200, size=16, augment=True)
    positions = torch.arange(100, 200)
    augmented, _ = images[positions]
    assert torch.equal(augmented, images[positions][0])
    assert not torch.equal(augmented, images[positions.flip(0)][0].flip(0))
    raw, _ = replace(images, augment=False)[positions]
    padded = torch.nn.functional.pad(raw, [2, 2, 2, 2])
    seen = set()
    for found, plain in zip(augmented, padded, strict=True):
        candidates = {
            (mirrored, top, left): crop[:, top : top + 16, left : left + 16]
            for mirrored, crop in ((False, plain), (True, plain.flip(2)))
            for top in range(5)
            for left in range(5)
        }
        matches = [key for key, value in candidates.items() if torch.equal(found, value)]
        assert matches
        seen.add(matches[0])
    assert len(seen) > 25


@pytest.fixture
def folder(tmp_path):
    generator = np.random.default_rng(0)
    for part, count in (("train", 10), ("test", 4)):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            for k in range(count):
                pixels = generator.integers(256, size=(12, 10, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{k}.png")
    return tmp_path


def test_image_folder_is_the_same_in_memory_and_from_disk(folder, monkeypatch):
    in_memory = image_folder(folder, 8, validation=0.3)
    monkeypatch.setattr(data_sets, "IN_MEMORY", 0)
    from_disk = image_folder(folder, 8, validation=0.3)
    assert torch.is_tensor(in_memory.train.pixels)
    assert not torch.is_tensor(from_disk.train.pixels)
    assert [len(p) for p in (in_memory.train, in_memory.validation, in_memory.test)] == [14, 6, 8]
    assert in_memory.classes == 2
    for name in ("train", "validation", "test"):
        for worker_count in (0, 1):
            pairs = zip(
                batch_loader(getattr(in_memory, name), 5),
                batch_loader(getattr(from_disk, name), 5, workers=worker_count),
                strict=True,
            )
            for (a, labels_a), (b, labels_b) in pairs:
                assert torch.equal(a, b)
                assert torch.equal(labels_a, labels_b)


def test_image_folders_of_other_classes_are_refused(folder):
    (folder / "test" / "dog").rename(folder / "test" / "wolf")
    with pytest.raises(ValueError, match=r"must hold the same classes; dog, wolf"):
        image_folder(folder, 8)


def test_missing_data_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds train/CLASS"):
        image_folder(tmp_path, 8)
    with pytest.raises(FileNotFoundError, match="set download to true"):
        torchvision_set("FashionMNIST", tmp_path)
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"cut off")
    with pytest.raises(FileNotFoundError, match=r"CIFAR10 is not in .*, or is damaged there"):
        torchvision_set("CIFAR10", tmp_path)


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("kept", [0, 8, 60, -60])
def test_damaged_image_is_named(folder, monkeypatch, in_memory, kept):
    monkeypatch.setattr(data_sets, "IN_MEMORY", 2**30 if in_memory else 0)
    damaged = folder / "train" / "dog" / "3.png"
    damaged.write_bytes(damaged.read_bytes()[:kept])
    with pytest.raises(DataError, match=f"{damaged} cannot be read as an image"):
        image_folder(folder, 8)


def test_image_of_more_pixels_than_pil_decodes_is_named(folder, monkeypatch):
    large = folder / "train" / "dog" / "3.png"
    Image.new("RGB", (200, 200)).save(large)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match=f"{large} cannot be read as an image: .*exceeds limit"):
        image_folder(folder, 8)


def test_set_that_cannot_be_fetched_or_read_says_why(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"FashionMNIST cannot be fetched into .*file"):
        torchvision_set("FashionMNIST", tmp_path / "file", download=True)
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for name, magic in (("images-idx3", 3), ("labels-idx1", 1)):
            header = np.array([0x800 + magic, 40, *[28] * (magic - 1)], dtype=">i4").tobytes()
            (raw / f"{part}-{name}-ubyte").write_bytes(header + b"cut off")
    with pytest.raises(DataError, match="FashionMNIST cannot be read from"):
        torchvision_set("FashionMNIST", tmp_path)


def test_grey_torchvision_images_get_three_channels(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 40), ("t10k", 20)):
        pixels = np.random.default_rng(0).integers(256, size=(count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for name, array, magic in (("images-idx3", pixels, 3), ("labels-idx1", labels, 1)):
            header = np.array([0x800 + magic, *array.shape], dtype=">i4").tobytes()
            (raw / f"{part}-{name}-ubyte").write_bytes(header + array.tobytes())
    data = torchvision_set("FashionMNIST", tmp_path, validation=0.25, augment=False)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [30, 10, 20]
    assert data.classes == 10
    images, _ = data.test[torch.arange(20)]
    assert images.shape == (20, 3, 28, 28)
    spread = images * data.test.std[:, None, None] + data.test.mean[:, None, None]
    expected = torch.from_numpy(pixels)[:, None].expand(-1, 3, -1, -1).float() / 255
    torch.testing.assert_close(spread, expected)


def test_batch_that_is_larger_than_the_data_is_refused():
    with pytest.raises(ValueError, match="batch_size is 64, and there are 10 training images"):
        batch_loader(numbered(10), 64, shuffle=True)
