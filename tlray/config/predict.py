"""Options of `tlray predict`, `plan` and `verify`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

import tyro

from tlray.cluster.resources import EngineBounds
from tlray.config.shared import (
    SCHEMES,
    Faults,
    LimitsConfig,
    RunConfig,
    S3Config,
    arrange_help,
    check_limits,
    check_run,
    check_store,
)
from tlray.errors import Code
from tlray.model.precision import PrecisionName

_SHARD = re.compile(r"(\d+)/(\d+)")


@arrange_help
@dataclass(frozen=True, kw_only=True)
class InputsConfig:
    """Images to predict."""

    input: tuple[str, ...]
    """Images: folders, files, s3:// prefixes or objects; archives (.tar .zip, .tar.gz .bz2 .xz .zst),
    or one image in them (ARCHIVE#MEMBER); manifests (.csv .tsv .jsonl .parquet);
    an S3 Inventory's manifest.json. Any number, mixed."""

    uri_column: str = "uri"
    """Manifest column of paths and s3:// addresses; the other columns are copied to the labels as input_NAME."""

    id_column: str | None = None
    """Manifest column that identifies a line: later lines with the same value are left out."""

    image_column: str | None = None
    """Read Parquet files as tables of images, with the encoded images in this column."""

    columns: tuple[str, ...] | None = None
    """Own columns of manifests and tables to copy to the labels as input_COLUMN: those named, or none; default all."""

    sidecars: tuple[str, ...] = ()
    """Extensions of members of an archive that tell of the image of the same stem, such as cls json txt in WebDataset:
    each is copied to the labels as input_EXTENSION."""

    include: tuple[str, ...] = ()
    """Take only names that match one of these globs ('*' also matches slashes)."""

    exclude: tuple[str, ...] = ()
    """Leave out names that match one of these globs."""

    limit: int | None = None
    """Most images to take, in listing order."""

    sample: float = 1.0
    """Share of the images to take, chosen by a hash of their addresses."""

    shard: str = "1/1"
    """I/N: take the I-th of N shares, for N independent runs."""

    allow: tuple[str, ...] = ()
    """Allowed prefixes of addresses in a manifest; default s3://, and local paths if the manifest is local."""

    unsafe_lock: bool = False
    """Write to an object store without conditional writes, where a second run of the output may not be kept out."""

    @property
    def resolved_shard(self) -> tuple[int, int]:
        """Index of the share, from 1, and the number of shares."""
        index, _, count = self.shard.partition("/")
        return int(index), int(count)


@arrange_help
@dataclass(frozen=True, kw_only=True)
class PredictConfig(RunConfig, LimitsConfig, S3Config, InputsConfig):
    """Predict the classes of images with a bundle: one Parquet row per input, or a printed line for a single file."""

    model: str
    """Bundle to predict with: a folder or s3:// prefix."""

    output: str | None = None
    """New folder or s3:// prefix for the labels; without it, the prediction for a single file is printed."""

    top_k: int = 0
    """Also write the K most probable classes of each image; 0 for none."""

    embeddings: bool = False
    """Also write the pooled features of each image, the input of the classifier's head."""

    min_probability: str | None = None
    """Mark labels below this probability in the column needs_review; auto takes the bundle's thresholds."""

    max_ood: float | None = None
    """Mark labels above this ood_score in needs_review too; 99% of a class's own new images lie below 1.0."""

    batch_size: int | None = None
    """Images per step of an engine; default 16 on a CPU, 128 on a GPU."""

    gpus_per_engine: float | None = None
    """GPUs per engine: a fraction to share a GPU, 0 to run on CPUs; default 1 if the cluster has GPUs."""

    allow_cpu: bool = False
    """Go on where Ray counts a GPU that TensorFlow does not see, and compute on that machine's cores."""

    min_engines: int = 1
    """Engines that must fit before prediction starts."""

    max_engines: int | None = None
    """Most engines; those that do not fit at first start as the cluster grows. Default: all that fit at first."""

    precision: PrecisionName = "auto"
    """Compute type of the engines. auto: bfloat16 on CPUs or float16 on GPUs that support it,
    if it keeps the predictions of the bundle's golden images, else float32.
    A single file is always computed in float32."""

    rows_per_part: int = 8192
    """Rows per Parquet part."""

    max_failed: float = 1.0
    """Most rows that may fail before the run stops: a share up to 1, or a count above 1."""

    retry_failed: tuple[str, ...] | None = None
    """Retry the failed rows of an output: those with these status codes, or all if none is given."""

    update_from: str | None = None
    """Earlier output: copy its rows whose object and model are unchanged, and predict only the rest."""

    @property
    def engine_bounds(self) -> EngineBounds:
        """The options on engines."""
        return EngineBounds(self.gpus_per_engine, self.min_engines, self.max_engines, self.allow_cpu)

    def check(self) -> None:
        """Raise one `ConfigError` naming every value that is not allowed."""
        faults = Faults()
        for name in ("model", "output", "update_from"):
            faults.check_uri(name, getattr(self, name))
        check_inputs(faults, self)
        check_store(faults, self)
        faults.check_range("top_k", self.top_k, 0, 1000)
        if self.batch_size is not None:
            faults.check_range("batch_size", self.batch_size, 1, 4096)
        if self.gpus_per_engine is not None:
            faults.check_range("gpus_per_engine", self.gpus_per_engine, 0, 1)
        faults.check_range("min_engines", self.min_engines, 1, 100_000)
        if self.max_engines is not None:
            faults.check_range("max_engines", self.max_engines, self.min_engines, 100_000)
        if self.min_probability is not None and not _is_probability(self.min_probability):
            faults.add(f"--min-probability takes auto or 0 to 1; got {self.min_probability}")
        if self.max_ood is not None:
            faults.check_range("max_ood", self.max_ood, 0, 1_000_000)
        faults.check_range("rows_per_part", self.rows_per_part, 1, 1_000_000)
        faults.check_range("max_failed", self.max_failed, 0, 10**12)
        unknown = sorted(set(self.retry_failed or ()) - set(Code))
        if unknown:
            faults.add(f"--retry-failed takes codes among {' '.join(Code)}; got {' '.join(unknown)}")
        if self.update_from is not None and self.update_from == self.output:
            faults.add("--update-from takes an earlier output; got --output itself")
        check_run(faults, self)
        check_limits(faults, self)
        faults.report()


@arrange_help
@dataclass(frozen=True, kw_only=True)
class PlanConfig(LimitsConfig, S3Config, InputsConfig):
    """List the images that `predict` would process in OUTPUT/_plan; predict with the same output continues from it.

    With --probe, also predict a few images to measure how fast this machine is and which stage limits it.
    """

    output: str
    """New folder or s3:// prefix for the labels."""

    probe: int | None = None
    """Predict this many images, spread over the plan, and measure each stage; no labels are kept."""

    model: str | None = None
    """Bundle for --probe."""

    batch_size: int | None = None
    """Images per step of the probe's engines, as in `predict`."""

    precision: PrecisionName = "auto"
    """Compute type of the probe's engines, as in `predict`."""

    price_per_hour: float | None = None
    """Price of a machine like this one; with --probe, estimates the cost of the whole plan."""

    config: str | None = None
    """YAML file of options; flags override it."""

    verbose: bool = False
    """Show tracebacks."""

    def check(self) -> None:
        """Raise one `ConfigError` naming every value that is not allowed."""
        faults = Faults()
        faults.check_uri("output", self.output)
        faults.check_uri("model", self.model)
        check_inputs(faults, self)
        check_limits(faults, self)
        check_store(faults, self)
        if self.batch_size is not None:
            faults.check_range("batch_size", self.batch_size, 1, 4096)
        if self.probe is not None:
            faults.check_range("probe", self.probe, 1, 4096)
            if self.model is None:
                faults.add("--probe needs --model: the bundle to predict with")
        elif self.price_per_hour is not None:
            faults.add("--price-per-hour needs --probe N")
        if self.price_per_hour is not None:
            faults.check_range("price_per_hour", self.price_per_hour, 0, 10**9)
        faults.report()


@arrange_help
@dataclass(frozen=True, kw_only=True)
class VerifyConfig(S3Config):
    """Verify that an output is complete: read it again and compare it with its plan and receipt."""

    output: Annotated[str, tyro.conf.Positional]
    """Output of a finished `predict`."""

    verbose: bool = False
    """Show tracebacks."""

    def check(self) -> None:
        """Raise a `ConfigError` if the output's address is not allowed."""
        faults = Faults()
        faults.check_uri("output", self.output)
        check_store(faults, self)
        faults.report()


def _is_probability(text: str) -> bool:
    if text == "auto":
        return True
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False


def check_inputs(faults: Faults, config: InputsConfig) -> None:
    """Check the options of `InputsConfig`."""
    if not config.input:
        faults.add(f"--input takes one or more of: {SCHEMES}; got nothing")
    for uri in config.input:
        faults.check_uri("input", uri)
    for prefix in config.allow:
        if prefix != "s3://":
            faults.check_uri("allow", prefix)
    if config.limit is not None:
        faults.check_range("limit", config.limit, 1, 10**12)
    faults.check_share("sample", config.sample)
    shard = _SHARD.fullmatch(config.shard)
    if shard is None or not 1 <= int(shard[1]) <= int(shard[2]):
        faults.add(f"--shard takes I/N with I from 1 to N, such as 2/8; got {config.shard!r}")
