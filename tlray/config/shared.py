"""What several commands share: options, their checks, and how a config is told to a record."""

from __future__ import annotations

import math
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Annotated, Any, TypeVar

import tyro

from tlray.errors import ConfigError
from tlray.images.limits import MAX_BYTES, MAX_PIXELS, PILLOW_MAX_PIXELS, Limits
from tlray.storage import S3Options

SCHEMES = "a local path or s3://bucket/prefix"

_PLACES = {
    "config", "address", "max_cpus", "wait_for_resources", "verbose", "cache", "cache_dir", "storage_path",
    "max_failures", "max_failed", "collective_timeout", "mlflow_uri", "no_sign_request", "request_payer", "kms_key_id",
}  # fmt: skip

_INPUTS = {"data", "val_data", "test_data", "weights", "model", "input", "update_from"}
_OUTPUTS = {"output", "cache_dir", "storage_path"}
_NO_PLACES = {"weights": ("imagenet", "none")}

T = TypeVar("T")


_PLAIN = {
    "str | None": (str | None, "STR"),
    "int | None": (int | None, "INT"),
    "float | None": (float | None, "FLOAT"),
    "tuple[str, ...] | None": (tuple[str, ...] | None, "[STR ...]"),
    "tuple[str, ...]": (tuple[str, ...], "[STR ...]"),
    "bool": (bool, None),
}
"""How kinds of options are shown whose default says nothing: None, no values, not set."""


def arrange_help(cls: type[T]) -> type[T]:
    """Say no empty defaults in a command's help, and list required options first, then its own, then the shared ones.

    All fields are keyword-only, so that their order changes nothing else.
    """
    fields: dict[str, Any] = cls.__dataclass_fields__  # type: ignore[attr-defined]
    for name, kind in cls.__annotations__.items():
        if kind in _PLAIN and fields[name].default in (None, (), False):
            plain, metavar = _PLAIN[kind]
            cls.__annotations__[name] = Annotated[plain, tyro.conf.arg(metavar=metavar, help_behavior_hint="")]

    def rank(name: str) -> int:
        return 0 if fields[name].default is MISSING else 1 if name in cls.__annotations__ else 2

    cls.__dataclass_fields__ = {name: fields[name] for name in sorted(fields, key=rank)}  # type: ignore[attr-defined]
    return cls


@arrange_help
@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every command on Ray takes."""

    config: str | None = None
    """YAML file of these options; flags win over it."""

    address: str | None = None
    """Ray cluster to join; else RAY_ADDRESS, else a local one of its own."""

    max_cpus: int | None = None
    """Most cores a local run takes; default all."""

    wait_for_resources: float | None = None
    """Seconds that it waits for a cluster's GPUs and cores; default 60, or 900 where the cluster grows by itself."""

    verbose: bool = False
    """Show what Ray and TensorFlow print, and tracebacks."""


@arrange_help
@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """Limits that hold before an image is decoded."""

    max_bytes: int = MAX_BYTES
    """Largest encoded image in bytes; a larger one is TOO_LARGE."""

    max_pixels: int = MAX_PIXELS
    """Most pixels that a header may tell of; more is BOMB."""

    @property
    def limits(self) -> Limits:
        """Both, for decoding."""
        return Limits(self.max_bytes, self.max_pixels)


@arrange_help
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


@dataclass(frozen=True)
class PathOption:
    """An option that names a path or s3:// address.

    Attributes:
        option: such as --input; its name alone where it is given without one.
        uri: as typed.
        is_output: whether the command writes there.
    """

    option: str
    uri: str
    is_output: bool


def list_path_options(config: Any) -> list[PathOption]:
    """Every path and s3:// address that a config names."""
    places = []
    for field in fields(config):
        if field.name not in _INPUTS | _OUTPUTS:
            continue
        value = getattr(config, field.name)
        for uri in (value,) if isinstance(value, str) else value or ():
            if uri not in _NO_PLACES.get(field.name, ()):
                option = ("" if "Positional" in str(field.type) else "--") + field.name.replace("_", "-")
                places.append(PathOption(option, uri, field.name in _OUTPUTS))
    return places


def check_run(faults: Faults, config: RunConfig) -> None:
    """Check what every command on Ray takes."""
    if config.max_cpus is not None:
        faults.check_range("max_cpus", config.max_cpus, 1, 4096)
        if config.address is not None:
            faults.add("--max-cpus bounds a local run; it cannot be given with --address")
    if config.wait_for_resources is not None:
        faults.check_range("wait_for_resources", config.wait_for_resources, 0, 10**7)
    scheme, separator, _ = (config.address or "").partition("://")
    if separator:
        hint = "submit the command there: tlray submit COMMAND --address ... -- OPTIONS"
        faults.add(f"--address takes HOST:PORT of a Ray cluster that this machine is a node of; for {scheme}:// {hint}")


def check_limits(faults: Faults, config: LimitsConfig) -> None:
    """Check the limits of decoding."""
    faults.check_range("max_bytes", config.max_bytes, 1, 2**31)
    faults.check_range("max_pixels", config.max_pixels, 1, PILLOW_MAX_PIXELS)


class Faults:
    """Collects one sentence for each value that is not allowed."""

    def __init__(self) -> None:
        self._sentences: list[str] = []

    def add(self, sentence: str) -> None:
        """Add a sentence."""
        self._sentences.append(sentence)

    def check_range(self, name: str, value: float, low: float, high: float) -> None:
        """Take `low` to `high`, both included."""
        if not low <= value <= high:
            self.add(f"{_flag(name)} takes {low:,} to {high:,}; got {value}")

    def check_positive(self, name: str, value: float) -> None:
        """Take finite numbers above 0."""
        if not 0 < value < math.inf:
            self.add(f"{_flag(name)} takes a number above 0; got {value}")

    def check_share(self, name: str, value: float) -> None:
        """Take shares above 0, up to 1."""
        if not 0 < value <= 1:
            self.add(f"{_flag(name)} takes a share above 0, up to 1; got {value}")

    def check_uri(self, name: str, value: str | None) -> None:
        """Take None, a local path, or `s3://` with a bucket."""
        if value is None:
            return
        scheme, separator, rest = value.partition("://")
        if not value.strip():
            self.add(f"{_flag(name)} takes {SCHEMES}; got an empty string")
        elif separator and scheme != "s3":
            self.add(f"{_flag(name)} takes {SCHEMES}; got the scheme {scheme + '://'!r}")
        elif separator and not rest.split("/")[0]:
            self.add(f"{_flag(name)} takes {SCHEMES}; got {value!r} without a bucket")

    def report(self) -> None:
        """Raise what was collected.

        Raises:
            ConfigError: a value is not allowed; all of them in one.
        """
        if self._sentences:
            raise ConfigError(self._sentences)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
