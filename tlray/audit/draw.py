"""`tlray audit OUTPUT --sample N`: draw labelled rows, simple random within each predicted class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tlray import storage
from tlray.audit import form, sheet
from tlray.audit import sample as samples
from tlray.audit.sample import Drawn, Sample
from tlray.config import AuditConfig
from tlray.errors import ConfigError, OutputError
from tlray.images.limits import MAX_BYTES, MAX_PIXELS, Limits
from tlray.output.plan import Plan, open_plan
from tlray.output.reader import LabelsReader
from tlray.output.receipt import Receipt, read_receipt
from tlray.sources.candidates import SourceKind

FOLDER = "audit"
"""Below the output, where no other folder is given."""

MIN_ROWS = 5
"""Rows that each predicted class gets, where it has them and enough are asked for."""

_SHRINK_ROWS = 65_536
_LISTABLE = {SourceKind.FILE, SourceKind.TAR, SourceKind.ZIP}
"""Kinds of rows that a list for training can name."""


@dataclass(frozen=True)
class SampleSummary:
    """A drawn sample.

    Attributes:
        output: of the labelling run.
        folder: where sample.csv, sheet.html and sample.json lie.
        sample: the sample.
        pictures: how many of its rows the sheet shows.
        already_drawn: whether it was there before; then `pictures` is 0.
    """

    output: str
    folder: str
    sample: Sample
    pictures: int
    already_drawn: bool


def draw(config: AuditConfig) -> SampleSummary:
    """Draw a sample and write what a reviewer needs; one that is there already is left as it is.

    Raises:
        UsageError: the output is not a finished labelling run, or the folder holds something else.
    """
    config.check()
    if config.sample is None:
        raise ConfigError(["--sample takes how many rows to draw; got nothing"])
    storage.configure(config.s3_options)
    output = storage.resolve(config.labels)
    folder = find_folder(config)
    receipt, plan = read_receipt(output), open_plan(output)
    if receipt is None or plan is None:
        raise OutputError(f"tlray audit takes the output of a finished tlray predict; got {output}")
    earlier = samples.read_sample(folder)
    if earlier is not None:
        _check_same(folder, earlier, receipt, config.sample, config.seed)
        return SampleSummary(output, folder, earlier, 0, already_drawn=True)
    _check_folder(folder)
    labels = LabelsReader.open(output, receipt)
    drawn, sample = _draw(labels, plan, receipt, config.sample, config.seed)
    limits = Limits(receipt.config.get("max_bytes", MAX_BYTES), receipt.config.get("max_pixels", MAX_PIXELS))
    page, pictures = sheet.make_sheet(sample, plan.take(drawn), limits, plan.image_column)
    storage.put(storage.join(folder, sheet.NAME), page)
    storage.put(storage.join(folder, form.NAME), form.write_form(sample.rows))
    samples.write_sample(folder, sample)  # last: from now on the CSV is the reviewer's
    return SampleSummary(output, folder, sample, pictures, already_drawn=False)


def find_folder(config: AuditConfig) -> str:
    """Return the folder of an audit."""
    return storage.resolve(config.output or storage.join(config.labels, FOLDER))


def allocate(counts: Sequence[int], wanted: int) -> list[int]:
    """Rows to draw from each class: proportional to its share, but at least `MIN_ROWS` or all it has.

    Where `wanted` is too few for that, the least is as large as it can be for all classes alike.

    Args:
        counts: rows of each class, above 0.
        wanted: rows in all, at least one a class.

    Returns:
        As many as `wanted` in sum, or all rows where there are no more.
    """
    rows = np.array(counts, np.int64)
    if wanted >= rows.sum():
        return [int(count) for count in rows]
    least = np.minimum(rows, min(MIN_ROWS, wanted // len(rows)))
    fixed = np.zeros(len(rows), bool)
    while True:
        left, total = wanted - least[fixed].sum(), rows[~fixed].sum()
        below = ~fixed & (left * rows < least * total)
        if not below.any():
            break
        fixed |= below
    given = np.where(fixed, least, left * rows // total)
    remainders = np.where(fixed, -1, left * rows % total)
    # the largest remainders first; of equal ones, the earlier class
    given[np.argsort(-remainders, kind="stable")[: wanted - given.sum()]] += 1
    return [int(count) for count in given]


class Reservoirs:
    """The rows with the smallest random keys of each class: a simple random sample of it, whatever its size.

    Args:
        num_classes: C.
        size: most rows of a class.
        seed: of the keys, together with the first row id of the part.

    Attributes:
        counts: int64 `[C]`, rows seen.
    """

    def __init__(self, num_classes: int, size: int, seed: int) -> None:
        self.counts = np.zeros(num_classes, np.int64)
        self._size = size
        self._seed = seed
        self._bounds = np.full(num_classes, np.inf)
        self._kept = _join([])
        self._fresh: list[_Keyed] = []

    def add(self, row_ids: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]) -> None:
        """Take the rows of a part; a label below 0 is none."""
        if not len(row_ids):
            return
        keys = np.random.default_rng([self._seed, int(row_ids[0])]).random(len(row_ids))
        self.counts += np.bincount(labels[labels >= 0], minlength=len(self.counts))
        near = (labels >= 0) & (keys < self._bounds[labels])
        self._fresh.append((labels[near], keys[near], row_ids[near]))
        if sum(len(fresh[0]) for fresh in self._fresh) > max(_SHRINK_ROWS, len(self._kept[0])):
            self._shrink()

    def take(self, sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Row ids of the sample, `sizes[c]` of each class, in order of class, then row id."""
        self._shrink()
        labels, _, row_ids = self._kept
        chosen = _rank(labels) < sizes[labels]
        order = np.lexsort((row_ids[chosen], labels[chosen]))
        return row_ids[chosen][order]

    def _shrink(self) -> None:
        labels, keys, row_ids = _join([self._kept, *self._fresh])
        order = np.lexsort((keys, labels))
        order = order[_rank(labels[order]) < self._size]
        self._kept = labels[order], keys[order], row_ids[order]
        self._fresh = []
        last = np.flatnonzero(_rank(self._kept[0]) == self._size - 1)
        self._bounds[self._kept[0][last]] = self._kept[1][last]


_Keyed = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.int64]]
"""Labels, keys and row ids of rows."""


def _join(pieces: Sequence[_Keyed]) -> _Keyed:
    empty = np.zeros(0, np.int64)
    labels, keys, row_ids = zip((empty, empty.astype(np.float64), empty), *pieces, strict=True)
    return np.concatenate(labels), np.concatenate(keys), np.concatenate(row_ids)


def _rank(labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The place of each row among those of its class, which stand together."""
    starts = np.flatnonzero(np.diff(labels, prepend=-1))
    lengths = np.diff(np.append(starts, len(labels)))
    return np.arange(len(labels)) - np.repeat(starts, lengths)


def _draw(
    reader: LabelsReader, plan: Plan, receipt: Receipt, wanted: int, seed: int
) -> tuple[npt.NDArray[np.int64], Sample]:
    """The sample, and its row ids in ascending order."""
    reservoirs = Reservoirs(len(reader.classes), wanted, seed)
    for table in reader.read(["row_id", "predicted_index"]):
        labels = table["predicted_index"].cast(pa.int64()).fill_null(-1).to_numpy()
        reservoirs.add(table["row_id"].to_numpy(), labels)
    present = np.flatnonzero(reservoirs.counts)
    if not len(present):
        raise OutputError("tlray audit takes an output with labelled rows; all rows of this one failed")
    if wanted < len(present):
        raise ConfigError([f"--sample takes at least a row for each of the {len(present):,} classes; got {wanted:,}"])
    sizes = np.zeros(len(reader.classes), np.int64)
    sizes[present] = allocate(reservoirs.counts[present].tolist(), wanted)
    row_ids = reservoirs.take(sizes)
    labels = reader.take(row_ids, ["row_id", "uri", "class_name", "probability"])
    sources = plan.take(row_ids)["source"]
    rows = [
        Drawn(row_id, uri, class_name, round(probability, 6), lies_inside)
        for row_id, uri, class_name, probability, lies_inside in zip(
            *labels.to_pydict().values(), [source not in _LISTABLE for source in sources.to_pylist()], strict=True
        )
    ]
    return np.sort(row_ids), Sample(
        format=samples.FORMAT,
        run_id=receipt.run_id,
        model_id=receipt.model_id,
        finished=receipt.finished,
        asked=wanted,
        seed=seed,
        classes=reader.classes,
        rows_by_class={reader.classes[label]: int(reservoirs.counts[label]) for label in present},
        rows=rows,
    )


def _check_same(folder: str, earlier: Sample, receipt: Receipt, wanted: int, seed: int) -> None:
    """Never draw over a sample that somebody may have filled."""
    ours = {"--sample": wanted, "--seed": seed, "run": receipt.run_id, "labels of": receipt.finished}
    theirs = {"--sample": earlier.asked, "--seed": earlier.seed, "run": earlier.run_id, "labels of": earlier.finished}
    told = "; ".join(
        f"{name} {theirs[name]} there, {value} asked" for name, value in ours.items() if theirs[name] != value
    )
    if told:
        raise OutputError(f"{folder} holds another sample ({told}); give --output a new folder or prefix")


def _check_folder(folder: str) -> None:
    """Allow to write over what an interrupted draw left, and nothing else."""
    storage.check_writable(folder)
    if storage.has_content(folder):
        for entry in storage.iter_files(folder):
            if entry.name not in (form.NAME, sheet.NAME) and not entry.name.startswith("."):
                raise OutputError(f"{folder} already holds something else ({entry.name}); give --output a new folder")
