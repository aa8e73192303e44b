"""The receipt of a finished labelling run, written last: how many inputs, how many rows, in which parts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tlray import storage
from tlray.output.parts import Part

NAME = "_receipt.json"
FORMAT = 1


@dataclass(frozen=True)
class Receipt:
    """What a finished run proves; every planned row is in exactly one part.

    Attributes:
        format: version of this record.
        run_id: the run that made the plan.
        model_id: the bundle's identity.
        planned, labelled, failed: rows; planned = labelled + failed.
        failed_by_code: rows whose status is not "ok", by status.
        excluded: addresses that were seen but not planned.
        retries: requests that the run which ended the job asked again.
        update: with `--update-from`: the earlier output, and how many rows are new, changed, kept and vanished.
        parts: name, rows and sha256 of each part.
        config: what decides the labels.
        started, finished: UTC, ISO 8601.
        images_per_s: of this run, start-up included.
        images_per_s_steady: of this run, from its first labels to its last.
        first_label_s: seconds from the command to the first labels.
        stages: seconds by stage.
        versions: of tlray and what it stands on.
        needs_review: rows that are less sure than `--min-probability`; None where that wasn't asked for.
        engines: how those that ended the job computed, and how many did so.
        probe: images/s that `tlray plan --probe` told before, and what came, past start-up; None without a probe.
    """

    format: int
    run_id: str
    model_id: str
    planned: int
    labelled: int
    failed: int
    failed_by_code: dict[str, int]
    excluded: int
    retries: int
    update: dict[str, Any] | None
    parts: list[dict[str, Any]]
    config: dict[str, Any]
    started: str
    finished: str
    images_per_s: float
    images_per_s_steady: float
    first_label_s: float | None
    stages: dict[str, float]
    versions: dict[str, str]
    needs_review: int | None = None
    engines: dict[str, int] = field(default_factory=dict)
    probe: dict[str, float] | None = None


def summarize_parts(parts: Sequence[Part]) -> dict[str, Any]:
    """The receipt's counts and list of parts."""
    failed: dict[str, int] = {}
    for part in parts:
        for code, count in part.failed_by_code.items():
            failed[code] = failed.get(code, 0) + count
    num_failed = sum(failed.values())
    ordered = sorted(parts, key=lambda part: part.name)
    return {
        "labelled": sum(part.rows for part in parts) - num_failed,
        "failed": num_failed,
        "failed_by_code": dict(sorted(failed.items())),
        "parts": [{"name": part.name, "rows": part.rows, "sha256": part.sha256} for part in ordered],
    }


def write_receipt(output: str, receipt: Receipt) -> None:
    """Write it whole or not at all."""
    data = json.dumps(asdict(receipt), indent=2, ensure_ascii=False) + "\n"
    storage.put(storage.join(output, NAME), data.encode())


def read_receipt(output: str) -> Receipt | None:
    """The receipt of a finished run, or None."""
    address = storage.join(output, NAME)
    if not storage.exists(address):
        return None
    return Receipt(**json.loads(storage.get(address)))
