"""Run a bundle's network in OpenVINO's format: twice as fast as TensorFlow on CPUs, and loaded in a tenth of the time.

OpenVINO reports each import and conversion to an analytics service, without asking, if its package for that is
installed: it is imported as if that were not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tlray.metrics.ood import OodScore
from tlray.model.engines.interface import Engine, Form, Predictions
from tlray.model.openvino_layers import MODEL, OOD_SCORE
from tlray.model.precision import FloatName
from tlray.model.tf_imports import hide_packages

with hide_packages("openvino_telemetry"):
    import openvino

_HINTS: dict[FloatName, str] = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
_SCORE = "ood_score"  # output of the SavedModel


class OpenVinoEngine(Engine):
    """A network that OpenVINO has compiled for this machine's CPU."""

    FAILURES = (RuntimeError,)

    def __init__(self, folder: Path, image_size_px: int, batch_size: int, form: Form) -> None:
        super().__init__(folder, image_size_px, batch_size, form)
        core = openvino.Core()
        network = core.read_model(folder / MODEL)
        network.reshape([batch_size, image_size_px, image_size_px, 3])
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _HINTS[form.precision],
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
        }
        if form.threads is not None:
            options["INFERENCE_NUM_THREADS"] = form.threads
        self._request = core.compile_model(network, "CPU", options).create_infer_request()
        shapes = {name: list(output.shape) for output in network.outputs for name in output.get_names()}
        self._has_embedding = "embedding" in shapes
        scores = folder / OOD_SCORE
        self._ood_score = OodScore.load(scores) if scores.is_file() else None
        if self._ood_score is not None:
            num_features = self._ood_score.references.shape[2]
            if shapes.get("embedding") != [batch_size, num_features]:
                raise RuntimeError(f"the references of the ood_score have {num_features} features, the network others")

    def _run(self, pixels: npt.NDArray[np.uint8]) -> Predictions:
        results = self._request.infer([pixels], share_inputs=True)
        embeddings = results["embedding"] if self._has_embedding else None
        ood_score = None if self._ood_score is None or embeddings is None else self._ood_score.measure(embeddings)
        return Predictions(results["probabilities"], ood_score, embeddings)


def convert(saved_model: Path, folder: Path, ood_score: OodScore | None) -> None:
    """Write a SavedModel's network and its out-of-distribution score in OpenVINO's format, in float32.

    Raises:
        RuntimeError: OpenVINO cannot convert it.
    """
    network = openvino.Core().read_model(saved_model)
    for output in network.outputs:
        if _SCORE in output.get_names():
            # OpenVINO 2026.4 fuses the end of the score's graph to zeros, and bfloat16 would round its cosines
            network.remove_result(output.get_node())
    folder.mkdir()
    openvino.save_model(network, folder / MODEL, compress_to_fp16=False)
    if ood_score is not None:
        ood_score.save(folder / OOD_SCORE)
