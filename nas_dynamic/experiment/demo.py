"""`nas-dynamic demo`: a comparison whose configuration is built in."""

from __future__ import annotations

from nas_dynamic.experiment.config import Config, parse

__all__ = ["demo_config"]


def demo_config(
    *,
    epochs: int = 100,
    channels: int = 4,
    device: str = "cpu",
    precision: str = "32",
) -> Config:
    """Return the dynamic arm of the demo: NNI's NasBench201, at small size, on digits.

    Args:
        epochs: of each supernet.
        channels: of the first cells.
        device: as in a configuration.
        precision: as in a configuration.
    """
    sgd = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True}
    return parse(
        {
            "name": "demo",
            "space": {
                "name": "NasBench201",
                "kwargs": {"stem_out_channels": channels, "num_modules_per_stack": 1},
            },
            # Few images to train on, so that subnets differ; many to tell them apart.
            "data": {"name": "digits", "validation": 0.6, "test": 0.5},
            "optimizer": {"name": "SGD", "kwargs": sgd},
            "epochs": epochs,
            "batch_size": 32,
            "gradient_clip": 5.0,
            "device": device,
            "precision": precision,
        }
    )
