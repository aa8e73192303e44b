"""Open a bundle as the fastest engine that keeps its golden predictions on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tlray.errors import StoppedError
from tlray.images.decode import decode
from tlray.model.bundle import NETWORK, Bundle, Golden
from tlray.model.engines.interface import Engine, Form
from tlray.model.precision import FloatName, PrecisionName, detect_fastest, list_precisions
from tlray.model.tf_imports import import_tensorflow

GOLDEN_TOLERANCES: dict[FloatName, float] = {"float32": 2e-3, "bfloat16": 0.02, "float16": 0.02}
"""Largest allowed change of a golden image's probability on any machine; its label may not change."""


def open_engine(
    bundle: Bundle,
    batch_size: int,
    *,
    num_threads: int | None = None,
    precision: PrecisionName = "auto",
    booked_gpus: float = 0.0,
    allow_cpu: bool = True,
    fetch_saved_model: Callable[[], None] | None = None,
) -> Engine:
    """Return the fastest warm engine of this process's device that keeps the golden predictions.

    On a CPU that is OpenVINO's if the bundle holds its format; then no TensorFlow is imported. With `auto` precision it
    falls back to float32 if a faster type moves the golden probabilities by more than `GOLDEN_TOLERANCES`.

    Args:
        num_threads: on a CPU; None lets the library choose.
        booked_gpus: GPUs of this process, a fraction of a shared one.
        allow_cpu: compute on cores where TensorFlow does not see a booked GPU.
        fetch_saved_model: called before TensorFlow opens the bundle's SavedModel, where its folder lacks that.

    Raises:
        StoppedError: the given precision, or float32, moves them too far.
    """
    on_gpu = bool(booked_gpus) and _prepare_gpus(booked_gpus, allow_cpu=allow_cpu)
    names = list_precisions(precision, detect_fastest(gpus=on_gpu), gpus=on_gpu)
    opener = _Opener(bundle, batch_size, fetch_saved_model)
    for form in _list_forms(bundle, names, num_threads, on_gpu=on_gpu):
        engine = opener.open(form)
        if engine is not None and on_gpu:
            plain_s = engine.time_batch()
            compiled = opener.open(replace(form, xla=True))
            # if the plain form wins it is made anew: TensorFlow's options hold for all graphs of the process
            engine = compiled if compiled is not None and compiled.time_batch() < plain_s else opener.open(form)
        if engine is not None:
            engine.form = replace(engine.form, note="; ".join(opener.faults))
            return engine
    raise StoppedError(
        f"the model does not repeat its golden predictions here ({'; '.join(opener.faults)}); give another "
        "--precision, or use another machine"
    )


def _prepare_gpus(booked: float, *, allow_cpu: bool) -> bool:
    import_tensorflow()
    from tlray.model.tf_runtime import prepare_gpus

    return prepare_gpus(booked, allow_cpu=allow_cpu)


def _list_forms(bundle: Bundle, names: Sequence[FloatName], num_threads: int | None, *, on_gpu: bool) -> list[Form]:
    """List the forms to try, the fastest first; TensorFlow's on a CPU only where OpenVINO fails."""
    if on_gpu:
        return [Form(name, "GPU") for name in names]
    forms = [Form(name, "CPU", num_threads) for name in names]
    if NETWORK not in bundle.manifest.files:
        return forms
    return [replace(form, library="OpenVINO") for form in forms] + forms


class _Opener:
    """Opens a bundle in some form, if that keeps the golden predictions.

    Attributes:
        faults: of the forms that do not.
    """

    def __init__(self, bundle: Bundle, batch_size: int, fetch_saved_model: Callable[[], None] | None) -> None:
        self.faults: list[str] = []
        self._bundle = bundle
        self._batch_size = batch_size
        self._fetch_saved_model = fetch_saved_model
        self._golden = bundle.load_golden()
        self._pixels = np.stack([decode(image.data, bundle.image_size_px).pixels for image in self._golden])

    def open(self, form: Form) -> Engine | None:
        """Return an engine; None if it fails."""
        folder, kind = self._find(form)
        try:
            engine = kind(folder, self._bundle.image_size_px, self._batch_size, form)
            predicted = engine.predict_golden(self._pixels)
            fault = find_golden_fault(self._golden, predicted, GOLDEN_TOLERANCES[form.precision])
        except kind.FAILURES as error:
            fault = f"{form.library} fails with {type(error).__name__}"
        if fault is None:
            return engine
        self.faults.append(f"{form.precision}{' with XLA' * form.xla}: {fault}")
        return None

    def _find(self, form: Form) -> tuple[Path, type[Engine]]:
        """Return the folder that an engine opens, and its class."""
        if form.library == "OpenVINO":
            from tlray.model.engines.openvino_engine import OpenVinoEngine

            return (self._bundle.path / NETWORK).parent, OpenVinoEngine
        if self._fetch_saved_model is not None:
            self._fetch_saved_model()
            self._fetch_saved_model = None
        import_tensorflow()
        from tlray.model.engines.tensorflow_engine import TensorFlowEngine

        return self._bundle.path / "saved_model", TensorFlowEngine


def find_golden_fault(golden: Sequence[Golden], predicted: npt.NDArray[np.float32], tolerance: float) -> str | None:
    """Return the fault of an engine's probabilities `[N, C]` of the golden images; None if they agree."""
    expected = np.stack([image.probabilities for image in golden])
    moved = float(np.abs(predicted - expected).max())
    if not moved <= tolerance:  # NaN is a fault too
        return f"a golden probability moves by {moved:.2g}, {tolerance:g} are allowed"
    if (predicted.argmax(axis=1) != expected.argmax(axis=1)).any():
        return "a golden label changes"
    return None
