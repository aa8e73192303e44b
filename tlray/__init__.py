"""tlray: train an image classifier on your own folders, label an archive of any size with it, on Ray.

The names below load on first use, so that `import tlray` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tlray.bundle import Bundle, load_bundle
    from tlray.config import EvaluateConfig, PredictConfig, TrainConfig
    from tlray.evaluation import EvaluateSummary, evaluate
    from tlray.prediction.run import PredictSummary, predict
    from tlray.prediction.single import Prediction, predict_image
    from tlray.training.fit import TrainSummary, train

_HOMES = {
    "Bundle": "tlray.bundle",
    "EvaluateConfig": "tlray.config",
    "EvaluateSummary": "tlray.evaluation",
    "PredictConfig": "tlray.config",
    "PredictSummary": "tlray.prediction.run",
    "Prediction": "tlray.prediction.single",
    "TrainConfig": "tlray.config",
    "TrainSummary": "tlray.training.fit",
    "evaluate": "tlray.evaluation",
    "load_bundle": "tlray.bundle",
    "predict": "tlray.prediction.run",
    "predict_image": "tlray.prediction.single",
    "train": "tlray.training.fit",
}

__all__ = [
    "Bundle",
    "EvaluateConfig",
    "EvaluateSummary",
    "PredictConfig",
    "PredictSummary",
    "Prediction",
    "TrainConfig",
    "TrainSummary",
    "evaluate",
    "load_bundle",
    "predict",
    "predict_image",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'tlray' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
