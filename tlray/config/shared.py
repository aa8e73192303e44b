"""What several commands share: options, their checks, and how a config is told to a record."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from tlray.config.checks import Faults
from tlray.limits import MAX_BYTES, MAX_PIXELS, PILLOW_MAX_PIXELS
from tlray.storage import S3Options

_PLACES = {
    "config", "address", "max_cpus", "verbose", "cache", "cache_dir", "storage_path", "max_failures", "max_failed",
    "collective_timeout", "mlflow_uri", "no_sign_request", "request_payer", "kms_key_id",
}  # fmt: skip

T = TypeVar("T")


def order_own_fields_first(cls: type[T]) -> type[T]:
    """List a command's own options before the shared ones in its help; all are keyword-only, so nothing else moves."""
    fields: dict[str, Any] = cls.__dataclass_fields__  # type: ignore[attr-defined]
    own = [name for name in fields if name in cls.__annotations__]
    shared = [name for name in fields if name not in cls.__annotations__]
    cls.__dataclass_fields__ = {name: fields[name] for name in own + shared}  # type: ignore[attr-defined]
    return cls


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every command on Ray takes."""

    config: str | None = None
    """YAML file of these options; flags win over it."""

    address: str | None = None
    """Ray cluster to join; else RAY_ADDRESS, else a local one of its own."""

    max_cpus: int | None = None
    """Most cores a local run takes; default all."""

    verbose: bool = False
    """Show what Ray and TensorFlow print, and tracebacks."""


@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """Limits that hold before an image is decoded."""

    max_bytes: int = MAX_BYTES
    """Largest encoded image in bytes; a larger one is TOO_LARGE."""

    max_pixels: int = MAX_PIXELS
    """Most pixels that a header may tell of; more is BOMB."""


@dataclass(frozen=True, kw_only=True)
class S3Config:
    """S3's usual switches; credentials, region and endpoint come the way boto3 finds them."""

    no_sign_request: bool = False
    """Ask S3 without credentials, as public buckets allow."""

    request_payer: bool = False
    """Pay for S3 requests to buckets whose owner doesn't."""

    kms_key_id: str | None = None
    """KMS key that S3 encrypts with what is written; default the bucket's own encryption."""

    @property
    def s3_options(self) -> S3Options:
        """The switches for `storage.configure`."""
        return S3Options(self.no_sign_request, self.request_payer, self.kms_key_id)


def describe(config: RunConfig) -> dict[str, Any]:
    """What of a config decides the result, as plain JSON values; where and how loudly it runs is left out."""
    return {name: value for name, value in asdict(config).items() if name not in _PLACES}


def check_run(faults: Faults, config: RunConfig) -> None:
    """Check what every command on Ray takes."""
    if config.max_cpus is not None:
        faults.check_range("max_cpus", config.max_cpus, 1, 4096)
        if config.address is not None:
            faults.add("--max-cpus bounds a local run; it cannot be given with --address")


def check_limits(faults: Faults, config: LimitsConfig) -> None:
    """Check the limits of decoding."""
    faults.check_range("max_bytes", config.max_bytes, 1, 2**31)
    faults.check_range("max_pixels", config.max_pixels, 1, PILLOW_MAX_PIXELS)
