"""TensorFlow's settings of this process: GPUs, threads and bfloat16."""

from __future__ import annotations

import contextlib
import socket

import tensorflow as tf

from tlray.errors import StoppedError
from tlray.model.precision import read_gpu_memory

_GPU_MEMORY_SHARE = 0.9
"""Share of a booked part of a GPU's memory for TensorFlow; CUDA and its libraries take the rest."""


def count_gpus() -> int:
    """Return the number of GPUs that TensorFlow sees."""
    return len(tf.config.list_physical_devices("GPU"))


def allow_bfloat16(*, allowed: bool = True) -> None:
    """Let oneDNN compute convolutions and products in bfloat16; sums stay float32."""
    tf.config.optimizer.set_experimental_options({"auto_mixed_precision_onednn_bfloat16": allowed})


def prepare_gpus(booked: float = 0.0, *, allow_cpu: bool = True) -> bool:
    """Prepare TensorFlow for the GPUs of this process, before it has used one; return whether it sees any.

    It takes their memory as it needs it, of a shared GPU at most the booked share, and float32 is computed as such, not
    in TF32, whose 10 bits of mantissa would move predictions from those of a CPU.

    Args:
        booked: GPUs that Ray booked for this process.
        allow_cpu: go on if one is booked and TensorFlow sees none.

    Raises:
        StoppedError: one is booked, and TensorFlow sees none.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if booked and not gpus and not allow_cpu:
        raise StoppedError(
            f"Ray booked a GPU of {socket.gethostname()}, and TensorFlow sees none there; install tlray[gpu] and "
            "NVIDIA's driver on that machine, book no GPU with --gpus-per-worker 0 or --gpus-per-engine 0, or compute "
            "on its cores with --allow-cpu"
        )
    tf.config.experimental.enable_tensor_float_32_execution(False)
    limit_mb = choose_gpu_memory(booked, read_gpu_memory()) if gpus and 0 < booked < 1 else None
    with contextlib.suppress(RuntimeError):  # TensorFlow has used it already
        for gpu in gpus:
            if limit_mb is None:
                tf.config.experimental.set_memory_growth(gpu, True)
            else:
                limited = tf.config.LogicalDeviceConfiguration(memory_limit=limit_mb)
                tf.config.set_logical_device_configuration(gpu, [limited])
    return bool(gpus)


def choose_gpu_memory(booked: float, total_mb: int | None) -> int | None:
    """Return the MiB that a process may take of a GPU that it shares; None for no limit.

    Args:
        booked: its share of the GPU.
        total_mb: the GPU's MiB; None if unknown.
    """
    if total_mb is None or not 0 < booked < 1:
        return None
    return int(total_mb * booked * _GPU_MEMORY_SHARE)


def limit_threads(num_threads: int) -> None:
    """Set TensorFlow's number of threads; no effect once it has run anything."""
    try:
        tf.config.threading.set_intra_op_parallelism_threads(num_threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError:  # TensorFlow is running already
        return
