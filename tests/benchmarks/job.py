"""The training that both sides of `train.py` do."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal


@dataclass(frozen=True)
class Job:
    """What both are told."""

    data: str
    """Class folders to train on."""
    test_data: str
    """Class folders to test on."""
    weights: str
    """Weights of the base without its top."""
    backbone: Literal["inception_v3", "mobilenet_v2"] = "inception_v3"
    image_size: int = 299
    head_epochs: int = 5
    finetune_epochs: int = 5
    lr_finetune: float = 1e-4
    """Rate of phase 2, SGD with momentum 0.9."""
    global_batch: int = 64

    def describe(self) -> dict[str, str | int | float]:
        """Its own fields, without those of a class made from it."""
        return {field.name: getattr(self, field.name) for field in fields(Job)}
