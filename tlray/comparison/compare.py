"""`tlray compare OLD NEW`: which labels change between two outputs over the same inputs."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from tlray import storage
from tlray.comparison.changes import COLUMNS, Changes
from tlray.comparison.page import NAME as PAGE
from tlray.comparison.page import OneSided, list_shown, render_comparison
from tlray.comparison.pairs import Pairs, list_examples, pair_rows, read_pairs
from tlray.comparison.summary import ChangedClass, CompareSummary, Transition
from tlray.config import CompareConfig
from tlray.console import Stage, now
from tlray.errors import OutputError
from tlray.metrics.intervals import wilson
from tlray.output.finished import get_limits, open_finished, read_images
from tlray.output.parts import FOLDER as LABELS
from tlray.output.plan import Plan
from tlray.output.reader import LabelsReader
from tlray.output.receipt import Receipt
from tlray.report.thumbnails import Thumbnails, make_thumbnails

RESULT = "compare.json"
CHANGES = "changes.parquet"
FORMAT = 1


@dataclass(frozen=True)
class FinishedOutput:
    """A finished output of predict."""

    address: str
    receipt: Receipt
    plan: Plan
    labels: LabelsReader


def compare(config: CompareConfig) -> CompareSummary:
    """Compare two outputs; write the result where `output` asks for it.

    Raises:
        UsageError: one of them is not a finished output, they have no input in common, or the folder is not empty.
    """
    config.check()
    storage.configure(config.s3_options)
    old, new = (_open(uri) for uri in (config.old, config.new))
    output = None if config.output is None else storage.resolve(config.output)
    if output is not None:
        _check_output(output, [old, new])
    pairs = pair_rows(old.labels, new.labels)
    if not len(pairs.new):
        raise OutputError(f"{old.address} and {new.address} have no input in common; compare outputs of one archive")
    changes = Changes()
    with Stage("compare", len(pairs.new)) as stage:
        for theirs, ours in read_pairs(old.labels, new.labels, pairs, COLUMNS, ["uri"]):
            changes.add(theirs, ours)
            stage.advance(ours.num_rows)
    listed = changes.list_changes()
    summary = summarize(old, new, output, config.max_changed, pairs, changes, listed.num_rows)
    if output is not None:
        _write(output, old, new, pairs, listed, summary)
    return summary


def _check_output(output: str, compared: Sequence[FinishedOutput]) -> None:
    """Allow a new folder, or a prefix with what an interrupted comparison left, outside of the labels."""
    for one in compared:
        labels = storage.join(one.address, LABELS)
        if output == labels or output.startswith(f"{labels}/"):
            raise OutputError(f"--output takes a folder of its own; {output} lies in labels, which readers take whole")
    storage.check_writable(output)
    names = [entry.name for entry in storage.iter_files(output)] if storage.has_content(output) else []
    left = storage.is_s3(output) and RESULT not in names and set(names) <= {CHANGES, PAGE}
    if names and not left:
        raise OutputError(f"--output takes a new folder or prefix; {output} holds something already")


def _open(uri: str) -> FinishedOutput:
    address = storage.resolve(uri)
    receipt, plan = open_finished(address, "tlray compare")
    return FinishedOutput(address, receipt, plan, LabelsReader.open(address, receipt))


def summarize(
    old: FinishedOutput,
    new: FinishedOutput,
    output: str | None,
    max_changed: float,
    pairs: Pairs,
    changes: Changes,
    listed: int,
) -> CompareSummary:
    """Return the result of a comparison."""
    before, after, kept = Counter[str](), Counter[str](), Counter[str]()
    for (was, now_is), rows in changes.transitions.items():
        before[was] += rows
        after[now_is] += rows
        if was == now_is:
            kept[was] = rows
    names = dict.fromkeys([*old.labels.classes, *new.labels.classes])
    both, same = changes.labelled_by_both, changes.same
    low, high = wilson(same, both)
    return CompareSummary(
        old=old.address,
        new=new.address,
        old_model_id=old.receipt.model_id,
        new_model_id=new.receipt.model_id,
        output=output,
        compared=len(pairs.new),
        changed=changes.changed,
        labelled_by_both=both,
        same=same,
        agreement=same / both if both else None,
        agreement_low=low,
        agreement_high=high,
        unlabelled=changes.unlabelled,
        lost=dict(changes.lost.most_common()),
        gained=dict(changes.gained.most_common()),
        only_old=len(pairs.only_old),
        only_new=len(pairs.only_new),
        listed=listed,
        transitions=[
            Transition(was, now_is, rows) for (was, now_is), rows in changes.transitions.most_common() if was != now_is
        ],
        by_class={name: ChangedClass(before[name], after[name], kept[name]) for name in names},
        mean_difference=changes.differences / same if same else 0.0,
        largest_difference=changes.largest_difference,
        max_changed=max_changed,
    )


def _write(
    output: str, old: FinishedOutput, new: FinishedOutput, pairs: Pairs, listed: pa.Table, summary: CompareSummary
) -> None:
    """Write the folder, whole or, where it cannot be renamed, with its record last."""
    buffer = io.BytesIO()
    pq.write_table(listed, buffer)
    shown = list_shown(listed, summary)
    alone = [
        OneSided("old", summary.only_old, list_examples(old.labels, pairs.only_old)),
        OneSided("new", summary.only_new, list_examples(new.labels, pairs.only_new)),
    ]
    pictures = _make_pictures(new, sorted({change.row_id for change in shown.list_all()}))
    compared = now()
    result = {"format": FORMAT, "compared_at": compared, **asdict(summary)}
    del result["output"]
    files = {
        CHANGES: buffer.getvalue(),
        PAGE: render_comparison(summary, shown, alone, pictures, compared),
        RESULT: (json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode(),
    }
    storage.put_folder(output, files, last=RESULT)


def _make_pictures(new: FinishedOutput, row_ids: list[int]) -> Thumbnails[int]:
    limits = get_limits(new.receipt)
    return make_thumbnails(row_ids, lambda keys: read_images(new.plan, keys, limits), limits=limits)
