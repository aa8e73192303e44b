"""Types of floating-point numbers that a machine computes in.

Weights, sums, loss and softmax are always float32; only the inputs of convolutions and products change their type.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tlray.errors import StoppedError

FloatName = Literal["float32", "bfloat16", "float16"]
PrecisionName = Literal["auto", "float32", "bfloat16", "float16"]
"""Values of `--precision`."""

_CPU_FLAGS = {"avx512_bf16", "amx_bf16"}
_ISA_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
_ISAS_WITH_BFLOAT16 = re.compile("AVX512_CORE_(BF16|FP16|AMX.*)|AVX10.*|DEFAULT|ALL", re.IGNORECASE)
_BFLOAT16_COMPUTE_CAPABILITY = 8.0
_FLOAT16_COMPUTE_CAPABILITY = 7.0


@dataclass(frozen=True)
class Precision:
    """Types that a training computes in.

    Attributes:
        frozen: type of the frozen base.
        step: type of the training steps.
        reason: the reason for the choice of `auto`.
    """

    frozen: FloatName
    step: FloatName
    reason: str = ""

    @property
    def storage_dtype(self) -> str:
        """Type of stored features: float32 if all is float32, else float16."""
        return "float32" if self.frozen == self.step == "float32" else "float16"


def choose_precision(asked: PrecisionName, fastest: FloatName, *, gpus: bool) -> Precision:
    """Resolve `--precision` for a training; on a CPU `auto` keeps the few steps after the frozen base in float32."""
    if asked != "auto":
        return Precision(asked, asked)
    where = "GPU" if gpus else "CPU"
    if fastest == "float32":
        return Precision("float32", "float32", f"this {where} has no faster type")
    if gpus:
        return Precision(fastest, fastest, f"this {where} has {fastest}")
    return Precision(fastest, "float32", f"this {where} has {fastest}: the frozen base uses it")


def list_precisions(asked: PrecisionName, fastest: FloatName, *, gpus: bool) -> list[FloatName]:
    """Resolve `--precision` for a finished model: list the types that an engine tries, the fastest first.

    On GPUs TensorFlow turns a finished graph into float16 alone.

    Raises:
        StoppedError: the device lacks the given type.
    """
    own: FloatName = "float16" if gpus else "bfloat16"
    names: list[FloatName] = ["float32"] if fastest == "float32" else [own, "float32"]
    if asked == "auto":
        return names
    if asked not in names:
        device = "GPU" if gpus else "CPU"
        raise StoppedError(f"--precision takes auto or {' or '.join(names)} on this {device}; got {asked}")
    return [asked]


def detect_fastest(*, gpus: bool) -> FloatName:
    """Return the fastest type of this machine's GPU or CPU, without TensorFlow."""
    if not gpus:
        return "bfloat16" if has_bfloat16() and not is_bfloat16_refused() else "float32"
    capability = min(_query_gpus("compute_cap"), default=0.0)
    if capability >= _BFLOAT16_COMPUTE_CAPABILITY:
        return "bfloat16"
    return "float16" if capability >= _FLOAT16_COMPUTE_CAPABILITY else "float32"


def find_common(fastest: Iterable[FloatName]) -> FloatName:
    """Return the fastest type that all of some machines compute in, by the fastest of each; float32 without any.

    GPUs with bfloat16 have float16 too.
    """
    names = set(fastest)
    if names == {"bfloat16"}:
        return "bfloat16"
    return "float16" if names and "float32" not in names else "float32"


def read_gpu_memory() -> int | None:
    """Return the MiB of this machine's smallest GPU; None if NVIDIA's driver does not tell."""
    return int(min(_query_gpus("memory.total"), default=0)) or None


def count_gpus() -> int:
    """Return the number of GPUs that NVIDIA's driver shows this process, without TensorFlow."""
    found, visible = len(_query_gpus("memory.total")), os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return found
    return min(found, sum(name.strip() not in ("", "-1") for name in visible.split(",")))


def _query_gpus(field: str) -> list[float]:
    """Return a number of each GPU of this machine, by NVIDIA's driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    try:
        words = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30).stdout.split()
    except subprocess.TimeoutExpired:
        return []
    return [float(word) for word in words if word.replace(".", "").isdigit()]


def has_bfloat16() -> bool:
    """Return whether the CPU's flags promise bfloat16."""
    flags = Path("/proc/cpuinfo")
    return flags.is_file() and bool(_CPU_FLAGS & set(flags.read_text().split()))


def is_bfloat16_refused() -> bool:
    """Return whether oneDNN was told to use fewer instructions than bfloat16 needs.

    oneDNN's documentation, "CPU dispatcher control", lists the names.
    """
    limit = next((os.environ[name] for name in _ISA_LIMITS if os.environ.get(name)), "ALL")
    return _ISAS_WITH_BFLOAT16.fullmatch(limit) is None
