"""`tlray audit OUTPUT --sample N`: draw labelled rows for a person to review, in one round or several."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from tlray import storage
from tlray.audit import form, review
from tlray.audit import sample as samples
from tlray.audit.sample import Drawn, Sample, name_round
from tlray.audit.sampling import DrawnRows, PrioritySample, Sizes, Totals
from tlray.config import AuditConfig
from tlray.errors import ConfigError, OutputError
from tlray.output.finished import get_limits, open_finished
from tlray.output.plan import Plan
from tlray.output.reader import LabelsReader
from tlray.output.receipt import Receipt
from tlray.sources.candidates import SourceKind

FOLDER = "audit"
"""Below the output, where no other folder is given."""

_LISTABLE = {SourceKind.FILE, SourceKind.TAR, SourceKind.ZIP}
"""Kinds of rows that a list for training can name."""


@dataclass(frozen=True)
class SampleSummary:
    """A drawn sample.

    Attributes:
        output: of the labelling run.
        folder: where review.html, sample.csv and sample.json lie.
        sample: the sample, with all its rounds.
        pictures: how many rows of the last round its page shows.
        already_drawn: whether it was there before; then `pictures` is 0.
        answers: addresses of the forms of earlier rounds, as they were given; None for those in the folder.
        until: width of the intervals to reach, if one was given.
    """

    output: str
    folder: str
    sample: Sample
    pictures: int
    already_drawn: bool
    answers: list[str] | None = None
    until: float | None = None

    @property
    def form(self) -> str:
        """Return the address of the last round's CSV."""
        return self.forms[-1]

    @property
    def forms(self) -> list[str]:
        """List the addresses of the CSVs of all rounds."""
        names = [form.name_form(number) for number in range(1, len(self.sample.rounds) + 1)]
        return [storage.join(self.folder, name) for name in names]

    @property
    def command(self) -> str:
        """Return the command that measures the filled-in forms."""
        forms = self.forms if self.answers is None else [*self.answers, self.form]
        elsewhere = "" if self.folder == storage.join(self.output, FOLDER) else f" --output {self.folder}"
        until = "" if self.until is None else f" --until {self.until:g}"
        return f"tlray audit {self.output} --answers {' '.join(forms)}{elsewhere}{until}"

    @property
    def page(self) -> str:
        """Return the address of the page on which the last round is reviewed."""
        return storage.join(self.folder, name_round(review.NAME, len(self.sample.rounds)))


def draw(config: AuditConfig) -> SampleSummary:
    """Draw a sample, or add rows to one, and write what a reviewer needs; one that is large enough is left as it is.

    Raises:
        UsageError: the output is not a finished labelling run, or the folder holds something else.
    """
    config.check()
    if config.sample is None:
        raise ConfigError(["--sample takes how many rows to draw; got nothing"])
    storage.configure(config.s3_options)
    folder = find_folder(config)
    earlier = samples.read_sample(folder)
    return draw_round(storage.resolve(config.labels), folder, earlier, config.sample, config.seed)


def find_folder(config: AuditConfig) -> str:
    """Return the folder of an audit."""
    return storage.resolve(config.output or storage.join(config.labels, FOLDER))


def draw_round(
    output: str,
    folder: str,
    earlier: Sample | None,
    wanted: int,
    seed: int,
    answers: list[str] | None = None,
    until: float | None = None,
) -> SampleSummary:
    """Bring a sample to a number of rows.

    Args:
        output: of the labelling run.
        folder: of the audit.
        earlier: the sample that the folder holds; its rows stay.
        wanted: rows of all rounds together.
        seed: of the draw.
        answers: addresses of the forms of earlier rounds, if they were given.
        until: width of the intervals to reach.
    """
    receipt, plan = open_finished(output, "tlray audit")
    if earlier is None:
        _check_folder(folder)
    else:
        _check_same(folder, earlier, receipt, wanted, seed)
        if wanted == earlier.rounds[-1] or len(earlier.rows) == sum(earlier.rows_by_class.values()):
            return SampleSummary(output, folder, earlier, 0, already_drawn=True, answers=answers, until=until)
    rounds = [*(earlier.rounds if earlier else []), wanted]
    reader = LabelsReader.open(output, receipt)
    form.check_classes(reader.classes)
    sample = _draw(reader, plan, receipt, rounds, seed)
    fresh = sample.list_round(len(rounds))
    if earlier is not None and {row.row_id for row in sample.rows} - {row.row_id for row in fresh} != {
        row.row_id for row in earlier.rows
    }:
        raise OutputError(f"{folder} holds a sample of other labels; give --output a new folder or prefix")
    planned = plan.take(np.array(sorted(row.row_id for row in fresh), np.int64))
    summary = SampleSummary(output, folder, sample, 0, already_drawn=False, answers=answers, until=until)
    empty = form.write_form(fresh)
    if storage.exists(summary.form) and storage.get(summary.form) != empty:
        raise OutputError(f"{summary.form} may hold somebody's answers; move it, then give the same command again")
    page, pictures = review.make_review_page(
        sample, fresh, planned, get_limits(receipt), plan.image_column, summary.form, summary.command
    )
    storage.put(summary.page, page)
    storage.put(summary.form, empty)
    samples.write_sample(folder, sample)  # last: from now on the CSV is the reviewer's
    return replace(summary, pictures=pictures)


def _draw(reader: LabelsReader, plan: Plan, receipt: Receipt, rounds: list[int], seed: int) -> Sample:
    totals = Totals(len(reader.classes))
    for table in reader.read(["predicted_index", "probability"]):
        kept = table.filter(table["predicted_index"].is_valid())
        totals.add(kept["predicted_index"].to_numpy().astype(np.int64), kept["probability"].to_numpy().astype(float))
    if not totals.counts.any():
        raise OutputError("tlray audit takes an output with labelled rows; all rows of this one failed")
    sizes = Sizes(totals, rounds[0])
    priority = PrioritySample(rounds[-1], seed)
    for table in reader.read(["row_id", "predicted_index", "probability"]):
        labelled = table["predicted_index"].is_valid().to_numpy()
        kept = table.filter(pa.array(labelled))
        labels = kept["predicted_index"].to_numpy().astype(np.int64)
        measured = sizes.measure(labels, kept["probability"].to_numpy().astype(float))
        priority.add(table["row_id"].to_numpy(), labelled, measured)
    present = np.flatnonzero(totals.counts)
    return Sample(
        format=samples.FORMAT,
        run_id=receipt.run_id,
        model_id=receipt.model_id,
        finished=receipt.finished,
        rounds=rounds,
        seed=seed,
        classes=reader.classes,
        rows_by_class={reader.classes[label]: int(totals.counts[label]) for label in present},
        confidence_by_class={reader.classes[label]: float(totals.confidence[label]) for label in present},
        rows=_describe_rows(reader, plan, priority.take(), rounds),
    )


def _describe_rows(reader: LabelsReader, plan: Plan, drawn: DrawnRows, rounds: list[int]) -> list[Drawn]:
    """Return drawn rows in order of round, class, then row id."""
    numbers = np.searchsorted(rounds, np.arange(len(drawn.row_ids)), side="right") + 1
    labels = reader.take(drawn.row_ids, ["row_id", "uri", "predicted_index", "class_name", "probability"])
    order = np.lexsort((drawn.row_ids, labels["predicted_index"].to_numpy(), numbers))
    labels = labels.take(pa.array(order))
    sources = plan.take(drawn.row_ids[order])["source"].to_pylist()
    return [
        Drawn(
            row_id=row["row_id"],
            uri=row["uri"],
            class_name=row["class_name"],
            probability=row["probability"],
            inside=source not in _LISTABLE,
            round=int(numbers[place]),
            inclusion=float(drawn.inclusion[place]),
        )
        for row, source, place in zip(labels.to_pylist(), sources, order.tolist(), strict=True)
    ]


def _check_same(folder: str, earlier: Sample, receipt: Receipt, wanted: int, seed: int) -> None:
    """Never draw over a sample that somebody may have filled."""
    ours = {"--seed": seed, "run": receipt.run_id, "labels of": receipt.finished}
    theirs = {"--seed": earlier.seed, "run": earlier.run_id, "labels of": earlier.finished}
    told = [f"{name} {theirs[name]} there, {value} asked" for name, value in ours.items() if theirs[name] != value]
    if wanted < earlier.rounds[-1]:
        told.insert(0, f"--sample {earlier.rounds[-1]} there, {wanted} asked")
    if told:
        raise OutputError(f"{folder} holds another sample ({'; '.join(told)}); give --output a new folder or prefix")


def _check_folder(folder: str) -> None:
    """Allow to write over what an interrupted draw left, and nothing else."""
    storage.check_writable(folder)
    if storage.has_content(folder):
        for entry in storage.iter_files(folder):
            if entry.name not in (form.NAME, review.NAME) and not entry.name.startswith("."):
                raise OutputError(f"{folder} already holds something else ({entry.name}); give --output a new folder")
