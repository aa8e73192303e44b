"""Recipes of a training: the defaults of all options that decide how the network learns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OptimizerName = Literal["rmsprop", "sgd", "adam"]
ScheduleName = Literal["constant", "cosine"]
RecipeName = Literal["tuned", "seed"]
TuneName = Literal["auto", "off"] | int

FINETUNE_RATES: dict[str, float] = {"rmsprop": 1e-5, "sgd": 1e-3, "adam": 1e-5}
"""Default learning rates of phase 2 by optimizer; the tuned recipe's SGD, whose gradient is clipped, has its own."""


@dataclass(frozen=True)
class Recipe:
    """The way a network learns; attributes as the options of the same names.

    Attributes:
        nesterov: SGD's momentum is Nesterov's.
        solved: phase 1 starts from a linear head that is solved on cached features, not from random weights.
        must_gain: of phase 2 the last epoch is kept, and only if it lowers the validation loss of phase 1.
    """

    head_units: tuple[int, ...]
    head_epochs: int
    lr_head: float
    finetune_epochs: int
    lr_finetune: float
    schedule: ScheduleName
    warmup_epochs: float
    dropout: float
    mixup: float
    clip_norm: float
    nesterov: bool
    solved: bool
    must_gain: bool


def get_recipe(
    name: RecipeName, head_units: tuple[int, ...], head: OptimizerName, finetune: OptimizerName, *, solved: bool
) -> Recipe:
    """Return a recipe's values for the optimizers of both phases.

    Args:
        head_units: as given; empty for the recipe's own.
        solved: the head can be solved before phase 1, where it is linear.
    """
    factor = 1.0 if head != "sgd" else 10.0
    if name == "seed":
        return Recipe(
            head_units=head_units or (1024,),
            head_epochs=5,
            lr_head=1e-3 * factor,
            finetune_epochs=5,
            lr_finetune=FINETUNE_RATES[finetune],
            schedule="constant",
            warmup_epochs=0.0,
            dropout=0.0,
            mixup=0.0,
            clip_norm=0.0,
            nesterov=False,
            solved=False,
            must_gain=False,
        )
    solved = solved and not head_units
    # a solved head is left nearly as it is, but by the many steps of a large set, of which it saw a sample
    epochs, rate = (3, 1e-5) if solved else (20, 1e-4) if head_units else (5, 1e-3)
    return Recipe(
        head_units=head_units,
        head_epochs=epochs,
        lr_head=rate * factor,
        finetune_epochs=12,
        lr_finetune=1e-2 if finetune == "sgd" else FINETUNE_RATES[finetune],
        schedule="cosine",
        warmup_epochs=1.0,
        dropout=0.3,
        mixup=0.2,
        clip_norm=1.0,
        nesterov=True,
        solved=solved,
        must_gain=True,
    )
