"""`tlray audit OUTPUT --answers FILE`: estimate an archive's classes and accuracy from its reviewed sample."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import asdict, replace

from tlray import storage
from tlray.audit import form
from tlray.audit.draw import draw_round, find_folder
from tlray.audit.estimate import AuditSummary, find_corrections, summarize
from tlray.audit.page import NAME as PAGE
from tlray.audit.page import render_audit
from tlray.audit.sample import ReviewedLabels, Sample, read_sample
from tlray.config import AuditConfig
from tlray.config.audit import MAX_SAMPLE
from tlray.console import now
from tlray.errors import ConfigError, DataError, FetchError, OutputError
from tlray.output.shares import read_shares
from tlray.sources.labelled import URI, name_some
from tlray.sources.shards import LABEL

RESULT = "audit.json"
CORRECTIONS = "corrections.csv"
FORMAT = 2

_LEAST_ROUND = 20
"""Rows that a further round adds at least; it adds at most as many as there are."""

_REVIEWED = 0.5
"""Share of each round that must be reviewed before another is drawn."""


def measure(config: AuditConfig) -> AuditSummary:
    """Measure a filled-in sample; write the result and the corrected labels, and draw another round if needed.

    Raises:
        UsageError: no sample was drawn, or the answers cannot be used.
    """
    config.check()
    addresses = [storage.resolve(uri) for uri in config.list_answers()]
    if not addresses:
        raise ConfigError(["--answers takes the filled CSV; got nothing"])
    storage.configure(config.s3_options)
    folder = find_folder(config)
    sample = read_sample(folder)
    if sample is None:
        raise OutputError(f"{folder} holds no sample; tlray audit {config.labels} --sample N draws one")
    answers = form.read_forms({address: _read(address) for address in addresses}, sample)
    shares = read_shares(storage.resolve(config.labels), sample.run_id)
    summary = summarize(folder, sample, answers, shares.corrected if shares else None)
    measured = now()
    result = {"format": FORMAT, "measured": measured, **asdict(summary)}
    for name in ("folder", "verdict", "next_round"):
        del result[name]
    text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    storage.put(storage.join(folder, RESULT), text.encode())
    storage.put(storage.join(folder, CORRECTIONS), write_corrections(find_corrections(sample.rows, answers)))
    storage.put(storage.join(folder, PAGE), render_audit(summary, sample, measured))
    if config.until is None:
        return summary
    wanted, verdict = plan_round(summary, sample, answers, config.until)
    if wanted is None:
        return replace(summary, verdict=verdict)
    output = storage.resolve(config.labels)
    drawn = draw_round(output, folder, sample, wanted, sample.seed, addresses, config.until)
    return replace(summary, verdict=verdict, next_round=drawn)


def _read(address: str) -> bytes:
    try:
        return storage.get(address)
    except FetchError as error:
        raise DataError(f"--answers {address} cannot be read: {error}") from None


def plan_round(summary: AuditSummary, sample: Sample, answers: ReviewedLabels, until: float) -> tuple[int | None, str]:
    """Return the rows that a sample needs for intervals of at most a width, and a sentence that says why.

    Widths shrink with the square root of the reviewed rows. None if no further round is drawn.
    """
    if summary.covered == 1 and summary.width <= until:
        return None, f"reached: no class's share has an interval wider than {until:g}"
    for number in range(1, len(sample.rounds) + 1):
        rows = sample.list_round(number)
        seen = sum(row.row_id in answers for row in rows)
        if seen < _REVIEWED * len(rows):
            name = form.name_form(number)
            return None, f"not reached; review {name} first, and give all forms ({seen:,} of its {len(rows):,} rows)"
    if summary.covered < 1:
        missing = [name for name, one in summary.by_class.items() if one.count is None]
        return None, f"not reached; no row with these labels was reviewed: {name_some(missing)}"
    drawn = len(sample.rows)
    wanted = plan_size(summary.reviewed, drawn, summary.width, until, summary.labelled)
    if wanted <= drawn:
        why = "all rows were drawn" if drawn == summary.labelled else f"a sample has at most {MAX_SAMPLE:,} rows"
        return None, f"not reached; {why}"
    needed = min(_count_needed(summary.reviewed, summary.width, until), summary.labelled)
    return wanted, f"not reached; about {needed:,} reviewed rows would do, and {wanted - drawn:,} more were drawn"


def plan_size(reviewed: int, drawn: int, width: float, until: float, labelled: int) -> int:
    """Return the rows that a sample should have after its next round, given the widest interval.

    Args:
        reviewed: reviewed rows.
        drawn: rows drawn.
        width: of the widest interval.
        until: width to reach.
        labelled: rows of the archive.
    """
    needed = _count_needed(reviewed, width, until)
    return min(max(needed, drawn + _LEAST_ROUND), 2 * drawn, MAX_SAMPLE, labelled)


def _count_needed(reviewed: int, width: float, until: float) -> int:
    return math.ceil(reviewed * (width / until) ** 2)


def write_corrections(corrections: dict[str, str]) -> bytes:
    """Return a list for `train --data` as CSV; its cells are not disarmed, since no spreadsheet reads it."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((URI, LABEL))
    writer.writerows(corrections.items())
    return text.getvalue().encode()
