"""`tlray predict`, `plan`, `verify` and `audit`."""

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
)
from tlray.errors import Code
from tlray.model.precision import PrecisionName

_SHARD = re.compile(r"(\d+)/(\d+)")


@arrange_help
@dataclass(frozen=True, kw_only=True)
class InputsConfig:
    """What is to be labelled."""

    input: tuple[str, ...]
    """Folders, files, s3:// prefixes or objects; archives (.tar .tar.gz .tgz .zip), or one image in them as
    ARCHIVE#MEMBER; manifests (.csv .jsonl .parquet); an S3 Inventory's manifest.json. Any number, mixed."""

    uri_column: str = "uri"
    """A manifest's column of paths and s3:// addresses; its other columns go to the labels as input_NAME."""

    id_column: str | None = None
    """A manifest's column that tells its lines apart; without it, every line is a row."""

    image_column: str | None = None
    """Take Parquet files as tables of images, and this column as their bytes."""

    include: tuple[str, ...] = ()
    """Take only names that one of these globs matches ('*' matches slashes too)."""

    exclude: tuple[str, ...] = ()
    """Leave out names that one of these globs matches."""

    limit: int | None = None
    """Most images to take, in the order of the listing."""

    sample: float = 1.0
    """Share of the images to take, the same ones every time."""

    shard: str = "1/1"
    """I/N: the I-th of N shares, for N independent runs."""

    allow: tuple[str, ...] = ()
    """Prefixes that a manifest's addresses may have; default s3://, and local paths in a local manifest."""

    @property
    def resolved_shard(self) -> tuple[int, int]:
        """Number of the share, from 1, and how many there are."""
        index, _, count = self.shard.partition("/")
        return int(index), int(count)


@arrange_help
@dataclass(frozen=True, kw_only=True)
class PredictConfig(RunConfig, LimitsConfig, S3Config, InputsConfig):
    """Label images with a bundle: one Parquet row for every input, or the answer for a single file."""

    model: str
    """Bundle to label with: a folder or s3:// prefix."""

    output: str | None = None
    """Where labels go: a new folder or s3:// prefix. A single file may do without: its answer is printed."""

    top_k: int = 0
    """Also write the K most probable classes of each image; 0 for none."""

    embeddings: bool = False
    """Also write each image's pooled features, the vector that its label was told from."""

    min_probability: str | None = None
    """Mark less probable labels in the column needs_review: a number, or auto for the bundle's own thresholds."""

    batch_size: int | None = None
    """Images an engine takes at once; default 16 on a CPU, 128 on a GPU."""

    gpus_per_engine: float | None = None
    """GPUs of each engine: a fraction for several on one GPU, 0 for cores; default 1 where the cluster has GPUs."""

    min_engines: int = 1
    """Engines that must find room before labelling begins."""

    max_engines: int | None = None
    """Most engines; where there is no room for all yet, more start as the cluster grows. Default: what finds room
    at the start."""

    precision: PrecisionName = "auto"
    """What engines compute in: bfloat16 on CPUs or float16 on GPUs that have it, where the bundle's golden images keep
    their answers; else float32, as a single file always."""

    rows_per_part: int = 8192
    """Rows in one Parquet part."""

    max_failed: float = 1.0
    """Most rows that may fail: a share up to 1, or a count above 1; more stops the run."""

    retry_failed: tuple[str, ...] | None = None
    """Label the failed rows of an output again: those with these codes, or all where none is given."""

    update_from: str | None = None
    """An earlier output: rows whose object and model are unchanged are copied from it, the rest is labelled."""

    @property
    def engine_bounds(self) -> EngineBounds:
        """What is said about engines."""
        return EngineBounds(self.gpus_per_engine, self.min_engines, self.max_engines)

    def check(self) -> None:
        """Raise one `ConfigError` naming every value that is not allowed."""
        faults = Faults()
        for name in ("model", "output", "update_from"):
            faults.check_uri(name, getattr(self, name))
        check_inputs(faults, self)
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
    """List what `predict` would label into OUTPUT/_plan, and stop there; the same output then goes on with it.

    With --probe, a few images are labelled too, to tell how fast this machine is and which stage limits it.
    """

    output: str
    """Where labels will go: a new folder or s3:// prefix."""

    probe: int | None = None
    """Label this many images from all over the plan and measure each stage; nothing of it is kept as labels."""

    model: str | None = None
    """Bundle to probe with."""

    batch_size: int | None = None
    """Images the probe's engines take at once, as in `predict`."""

    precision: PrecisionName = "auto"
    """What the probe's engines compute in, as in `predict`."""

    price_per_hour: float | None = None
    """Of a machine like this one; with --probe, tells what the whole plan costs."""

    config: str | None = None
    """YAML file of these options; flags win over it."""

    verbose: bool = False
    """Show tracebacks."""

    def check(self) -> None:
        """Raise one `ConfigError` naming every value that is not allowed."""
        faults = Faults()
        faults.check_uri("output", self.output)
        faults.check_uri("model", self.model)
        check_inputs(faults, self)
        check_limits(faults, self)
        if self.batch_size is not None:
            faults.check_range("batch_size", self.batch_size, 1, 4096)
        if self.probe is not None:
            faults.check_range("probe", self.probe, 1, 4096)
            if self.model is None:
                faults.add("--probe needs --model: the bundle to label with")
        elif self.price_per_hour is not None:
            faults.add("--price-per-hour goes with --probe N")
        if self.price_per_hour is not None:
            faults.check_range("price_per_hour", self.price_per_hour, 0, 10**9)
        faults.report()


@arrange_help
@dataclass(frozen=True, kw_only=True)
class VerifyConfig(S3Config):
    """Prove an output whole: read everything again and hold it against its plan and receipt."""

    output: Annotated[str, tyro.conf.Positional]
    """The output of a finished `predict`."""

    verbose: bool = False
    """Show tracebacks."""

    def check(self) -> None:
        """Raise a `ConfigError` where the output's address is not one."""
        faults = Faults()
        faults.check_uri("output", self.output)
        faults.report()


def _is_probability(text: str) -> bool:
    if text == "auto":
        return True
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False


@arrange_help
@dataclass(frozen=True, kw_only=True)
class AuditConfig(S3Config):
    """Tell how good an archive's labels are, by a sample that a person looks at.

    --sample N draws N labelled rows at random within each predicted class into OUTPUT/audit: sheet.html shows them,
    sample.csv is to be filled. Its column correct_label takes a full stop where the label is right, else the name of
    the right class, or ? where none of the classes is, or nobody can tell; a row left empty doesn't count.
    --answers FILE reads the filled CSV: OUTPUT/audit/audit.json tells the precision of each class and of the archive,
    corrections.csv is a list that train --data takes.
    """

    labels: Annotated[str, tyro.conf.Positional]
    """The output of a finished `predict`."""

    sample: int | None = None
    """Rows to draw, over all predicted classes."""

    answers: str | None = None
    """The filled CSV: a path or s3:// address."""

    seed: int = 0
    """Seeds the draw; the same seed draws the same rows."""

    output: str | None = None
    """Where sample and results go: a folder or s3:// prefix; default OUTPUT/audit."""

    verbose: bool = False
    """Show tracebacks."""

    def check(self) -> None:
        """Raise one `ConfigError` naming every value that is not allowed."""
        faults = Faults()
        for name in ("labels", "answers", "output"):
            faults.check_uri(name, getattr(self, name))
        if (self.sample is None) == (self.answers is None):
            came = "neither" if self.sample is None else "both"
            faults.add(f"tlray audit takes --sample N, to draw rows, or --answers FILE, to measure them; got {came}")
        if self.sample is not None:
            faults.check_range("sample", self.sample, 1, 10_000)
        faults.check_range("seed", self.seed, 0, 2**32 - 1)
        faults.report()


def check_inputs(faults: Faults, config: InputsConfig) -> None:
    """Check what several commands take as inputs."""
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
