"""TensorFlow and Keras for processes that run nothing but tlray: quicker imports, and oneDNN wherever it is built in.

Both take up what else is installed. Of the 7.4 s that an import took on 2 cores, Keras without the packages that only
its wrappers, plots and adapters need took 4.2 s, and TensorFlow without Keras 3.8 s.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

from tlray.model.precision import has_bfloat16, is_bfloat16_refused


def enable_onednn() -> None:
    """Say so before TensorFlow is imported, which takes oneDNN by itself on CPUs with AVX-512 alone.

    TensorFlow asks oneDNN for bfloat16 where the CPU's flags promise it, also where oneDNN was told to do without:
    there TensorFlow's own kernels have to do.
    """
    refuses = has_bfloat16() and is_bfloat16_refused()
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0" if refuses else "1")


def import_keras() -> None:
    """Import Keras and TensorFlow; Keras's wrappers, plots and adapters stay unusable in this process."""
    enable_onednn()
    with _without("sklearn", "matplotlib", "scipy", "pandas"):
        import keras  # noqa: F401


def import_tensorflow() -> None:
    """Import TensorFlow alone, for a process that only runs a SavedModel."""
    enable_onednn()
    with _without("keras"):
        import tensorflow  # noqa: F401


@contextlib.contextmanager
def _without(*names: str) -> Iterator[None]:
    """Let imports of these packages fail meanwhile, as if they were not installed."""
    loaded = {name: sys.modules[name] for name in names if name in sys.modules}
    sys.modules.update(dict.fromkeys(names))  # type: ignore[arg-type]  # None is how Python is told so
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
        sys.modules.update(loaded)
