"""tlray: train an image classifier on your own folders, label an archive of any size with it, on Ray.

The public names are imported on first use, so that `import tlray` loads neither Ray nor TensorFlow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tlray.version import __version__

if TYPE_CHECKING:
    from tlray.comparison.compare import compare
    from tlray.comparison.summary import CompareSummary
    from tlray.config import CompareConfig, EvaluateConfig, PredictConfig, TrainConfig
    from tlray.evaluation import EvaluateSummary, evaluate
    from tlray.model.bundle import Bundle, load_bundle
    from tlray.prediction.predict import predict
    from tlray.prediction.single_image import Prediction, predict_image
    from tlray.prediction.summary import PredictSummary
    from tlray.training.results import TrainSummary
    from tlray.training.train import train

_HOMES = {
    "Bundle": "tlray.model.bundle",
    "CompareConfig": "tlray.config",
    "CompareSummary": "tlray.comparison.summary",
    "EvaluateConfig": "tlray.config",
    "EvaluateSummary": "tlray.evaluation",
    "PredictConfig": "tlray.config",
    "PredictSummary": "tlray.prediction.summary",
    "Prediction": "tlray.prediction.single_image",
    "TrainConfig": "tlray.config",
    "TrainSummary": "tlray.training.results",
    "compare": "tlray.comparison.compare",
    "evaluate": "tlray.evaluation",
    "load_bundle": "tlray.model.bundle",
    "predict": "tlray.prediction.predict",
    "predict_image": "tlray.prediction.single_image",
    "train": "tlray.training.train",
}

__all__ = [
    "Bundle",
    "CompareConfig",
    "CompareSummary",
    "EvaluateConfig",
    "EvaluateSummary",
    "PredictConfig",
    "PredictSummary",
    "Prediction",
    "TrainConfig",
    "TrainSummary",
    "__version__",
    "compare",
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
