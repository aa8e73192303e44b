"""Import TensorFlow and Keras faster, and with oneDNN, in processes that run nothing but tlray.

Both import optional packages. On 2 cores an import took 7.4 s: Keras without the packages of its wrappers, plots and
adapters 4.2 s, TensorFlow without Keras 3.8 s.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Iterator

from tlray.model.precision import has_bfloat16, is_bfloat16_refused


def enable_onednn() -> None:
    """Set oneDNN's variable before TensorFlow is imported, which uses oneDNN by default only on CPUs with AVX-512.

    TensorFlow asks oneDNN for bfloat16 if the CPU's flags promise it, even if oneDNN's variables forbid it: there
    TensorFlow's own kernels are used.
    """
    refuses = has_bfloat16() and is_bfloat16_refused()
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0" if refuses else "1")


def show_booked_gpus() -> float:
    """Let this process of Ray's see the GPUs that are booked for it alone; call it before TensorFlow is imported.

    Ray leaves the variable as it is where it books none, and TensorFlow would take memory of GPUs that others use.

    Returns:
        the number that is booked, a fraction if processes share a GPU.
    """
    import ray

    context = ray.get_runtime_context()
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(context.get_accelerator_ids().get("GPU", [])) or "-1"
    return float(context.get_assigned_resources().get("GPU", 0.0))


def import_keras() -> None:
    """Import Keras and TensorFlow; Keras's wrappers, plots and adapters do not work in this process."""
    enable_onednn()
    with hide_packages("sklearn", "matplotlib", "scipy", "pandas"):
        import keras  # noqa: F401


def import_tensorflow() -> None:
    """Import TensorFlow without Keras, for a process that only runs a SavedModel."""
    enable_onednn()
    with hide_packages("keras"):
        import tensorflow  # noqa: F401


@contextlib.contextmanager
def hide_packages(*names: str) -> Iterator[None]:
    """Make imports of these packages fail, as if they were not installed; and import without pauses for garbage."""
    collects = gc.isenabled()
    gc.disable()  # an eighth of the import's time: hardly anything that it allocates is garbage
    loaded = {name: sys.modules[name] for name in names if name in sys.modules}
    sys.modules.update(dict.fromkeys(names))  # type: ignore[arg-type]  # None makes an import fail
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
        sys.modules.update(loaded)
        if collects:
            gc.enable()
