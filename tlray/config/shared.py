"""Options that several commands share, checks of values, and the parts of a config that go into records."""

from __future__ import annotations

import math
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Annotated, Any, Literal, TypeVar

import tyro

from tlray.errors import ConfigError
from tlray.images.limits import MAX_BYTES, MAX_PIXELS, PILLOW_MAX_PIXELS, Limits
from tlray.storage import S3Options

SCHEMES = "a local path or s3://bucket/prefix"

_NOT_DECIDING = {
    "config", "address", "max_cpus", "wait_for_resources", "verbose", "cache", "cache_dir", "storage_path",
    "max_failures", "max_failed", "collective_timeout", "mlflow_uri", "no_sign_request", "request_payer", "kms_key_id",
    "retry_for", "outage_patience", "unsafe_lock", "allow_cpu", "checkpoint_every",
}  # fmt: skip

_INPUTS = {"data", "val_data", "test_data", "weights", "model", "input", "update_from"}
_OUTPUTS = {"output", "cache_dir", "storage_path"}
_NO_PATHS = {"weights": ("imagenet", "none")}

T = TypeVar("T")

_PLAIN = {
    "str | None": (str | None, "STR"),
    "int | None": (int | None, "INT"),
    "float | None": (float | None, "FLOAT"),
    "tuple[str, ...] | None": (tuple[str, ...] | None, "[STR ...]"),
    "tuple[int, ...]": (tuple[int, ...], "[INT ...]"),
    "tuple[str, ...]": (tuple[str, ...], "[STR ...]"),
    "Literal[0, 1] | None": (Literal[0, 1] | None, "{0,1}"),
    "bool": (bool, None),
}
"""Types and metavars of options whose defaults say nothing: None, no values, False."""


_ONE_OR_MORE = "str | tuple[str, ...]"
"""Type of an option that Python may give as one value, while the command line always gives several."""


def arrange_help(cls: type[T]) -> type[T]:
    """Hide empty defaults in a command's help, and sort its options: required ones, its own, then shared ones.

    All fields are keyword-only, so their order changes nothing else.
    """
    fields: dict[str, Any] = cls.__dataclass_fields__  # type: ignore[attr-defined]
    for name, kind in cls.__annotations__.items():
        if kind == _ONE_OR_MORE:
            hint = "" if fields[name].default == () else None
            arg = tyro.conf.arg(metavar="STR [STR ...]", help_behavior_hint=hint)
            cls.__annotations__[name] = Annotated[tuple[str, ...], arg]
        elif kind in _PLAIN and fields[name].default in (None, (), False):
            plain, metavar = _PLAIN[kind]
            cls.__annotations__[name] = Annotated[plain, tyro.conf.arg(metavar=metavar, help_behavior_hint="")]

    def rank(name: str) -> int:
        return 0 if fields[name].default is MISSING else 1 if name in cls.__annotations__ else 2

    cls.__dataclass_fields__ = {name: fields[name] for name in sorted(fields, key=rank)}  # type: ignore[attr-defined]
    return cls


def count_allowed(max_failed: float, total: int) -> float:
    """Return how many of `total` inputs may fail under `--max-failed`: a share up to 1, a count above 1."""
    return max_failed * total if max_failed <= 1 else max_failed


@arrange_help
@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Options of every command that runs on Ray."""

    config: str | None = None
    """YAML file of options; flags override it."""

    address: str | None = None
    """Ray cluster to join, as HOST:PORT; default RAY_ADDRESS, else a local cluster is started."""

    max_cpus: int | None = None
    """Most cores for a local run; default all."""

    wait_for_resources: float | None = None
    """Seconds to wait for GPUs and cores of a cluster; default 60, or 900 with an autoscaler."""

    verbose: bool = False
    """Show the output of Ray and TensorFlow, and tracebacks."""


@arrange_help
@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """Limits that are checked before an image is decoded."""

    max_bytes: int = MAX_BYTES
    """Largest encoded image in bytes; larger ones fail as TOO_LARGE."""

    max_pixels: int = MAX_PIXELS
    """Largest image in pixels, by its header; larger ones fail as BOMB."""

    @property
    def limits(self) -> Limits:
        """The limits as the decoder takes them."""
        return Limits(self.max_bytes, self.max_pixels)


@arrange_help
@dataclass(frozen=True, kw_only=True)
class S3Config:
    """Options of S3 requests; credentials, region and endpoint are found as boto3 does."""

    no_sign_request: bool = False
    """Send S3 requests without credentials, for public buckets."""

    request_payer: bool = False
    """Pay for requests to requester-pays S3 buckets."""

    kms_key_id: str | None = None
    """KMS key to encrypt written S3 objects with; default the bucket's own encryption."""

    retry_for: float = 60.0
    """Seconds for which a file that is denied, throttled or times out is asked for again."""

    outage_patience: float = 300.0
    """Seconds to wait for a store that does not answer at all."""

    @property
    def s3_options(self) -> S3Options:
        """The options as `storage.configure` takes them."""
        return S3Options(
            self.no_sign_request, self.request_payer, self.kms_key_id, self.retry_for, self.outage_patience
        )


def describe(config: RunConfig) -> dict[str, Any]:
    """Return the options that decide a result, as plain JSON values, without those on where and how it runs."""
    return {name: value for name, value in asdict(config).items() if name not in _NOT_DECIDING}


@dataclass(frozen=True)
class PathOption:
    """An option that names a path or s3:// address.

    Attributes:
        option: flag such as --input, or the name of a positional argument.
        uri: path or address as typed.
        is_output: whether the command writes there.
    """

    option: str
    uri: str
    is_output: bool


def list_path_options(config: Any) -> list[PathOption]:
    """Return every path and s3:// address that a config names."""
    options = []
    for field in fields(config):
        if field.name not in _INPUTS | _OUTPUTS:
            continue
        value = getattr(config, field.name)
        for uri in (value,) if isinstance(value, str) else value or ():
            if uri not in _NO_PATHS.get(field.name, ()):
                option = ("" if "Positional" in str(field.type) else "--") + field.name.replace("_", "-")
                options.append(PathOption(option, uri, field.name in _OUTPUTS))
    return options


def check_run(faults: Faults, config: RunConfig) -> None:
    """Check the options of `RunConfig`."""
    if config.max_cpus is not None:
        faults.check_range("max_cpus", config.max_cpus, 1, 4096)
        if config.address is not None:
            faults.add("--max-cpus limits a local run; it cannot be combined with --address")
    if config.wait_for_resources is not None:
        faults.check_range("wait_for_resources", config.wait_for_resources, 0, 10**7)
    scheme, separator, _ = (config.address or "").partition("://")
    if separator:
        hint = "submit the command there: tlray submit COMMAND --address ... -- OPTIONS"
        faults.add(f"--address takes HOST:PORT of a Ray cluster that this machine is a node of; for {scheme}:// {hint}")


def check_limits(faults: Faults, config: LimitsConfig) -> None:
    """Check the options of `LimitsConfig`."""
    faults.check_range("max_bytes", config.max_bytes, 1, 2**31)
    faults.check_range("max_pixels", config.max_pixels, 1, PILLOW_MAX_PIXELS)


def check_store(faults: Faults, config: S3Config) -> None:
    """Check the options of `S3Config`."""
    faults.check_range("retry_for", config.retry_for, 0, 86_400)
    faults.check_range("outage_patience", config.outage_patience, 0, 10**7)


class Faults:
    """Collector of one sentence per value that is not allowed."""

    def __init__(self) -> None:
        self._sentences: list[str] = []

    def add(self, sentence: str) -> None:
        """Add a sentence."""
        self._sentences.append(sentence)

    def check_range(self, name: str, value: float, low: float, high: float) -> None:
        """Allow `low` to `high`, both included."""
        if not low <= value <= high:
            self.add(f"{_flag(name)} takes {low:,} to {high:,}; got {value}")

    def check_positive(self, name: str, value: float) -> None:
        """Allow finite numbers above 0."""
        if not 0 < value < math.inf:
            self.add(f"{_flag(name)} takes a number above 0; got {value}")

    def check_share(self, name: str, value: float) -> None:
        """Allow shares above 0, up to 1."""
        if not 0 < value <= 1:
            self.add(f"{_flag(name)} takes a share above 0, up to 1; got {value}")

    def check_uri(self, name: str, value: str | None) -> None:
        """Allow None, a local path, or `s3://` with a bucket."""
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
        """Raise the collected sentences, if any.

        Raises:
            ConfigError: values are not allowed.
        """
        if self._sentences:
            raise ConfigError(self._sentences)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
