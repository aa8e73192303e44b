"""Records and tables for tests: whole by default, with the values that a test is about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from tlray.model.manifest import EpochRecord
from tlray.output.parts import Part
from tlray.output.receipt import FORMAT, PartRecord, Receipt, count_failed
from tlray.output.schema import PREDICTION_FIELDS
from tlray.sources.candidates import Candidate
from tlray.sources.places import Places, make_places


def make_table(columns: Mapping[str, Sequence[Any]], fields: Sequence[pa.Field] = PREDICTION_FIELDS) -> pa.Table:
    """Return a table with all of the fields: a column that is not given is null, or 0 where null is not allowed."""
    count = len(next(iter(columns.values())))
    given = {field.name: columns.get(field.name, [None if field.nullable else 0] * count) for field in fields}
    return pa.table({field.name: pa.array(given[field.name], field.type) for field in fields})


def make_files(uris: Sequence[str]) -> Places:
    """Return the places of plain files."""
    return make_places([Candidate(uri, uri) for uri in uris])


def make_epoch(epoch: int = 1, **values: Any) -> EpochRecord:
    """Return the record of an epoch with validation."""
    usual: dict[str, Any] = {
        "phase": "head", "loss": 0.5, "accuracy": 0.8, "val_loss": 0.6, "val_accuracy": 0.7, "val_macro_f1": 0.7,
        "val_weighted_loss": 0.6, "images": 100, "steps": 4, "seconds": 2.0,
        "train_seconds": 1.5, "wait_seconds": 0.1, "learning_rate": 0.001,
    }  # fmt: skip
    return EpochRecord(epoch=epoch, **(usual | values))


def make_receipt(parts: Sequence[Part] = (), **values: Any) -> Receipt:
    """Return the receipt of a run that wrote these parts."""
    failed, rows = count_failed(parts), sum(part.rows for part in parts)
    usual: dict[str, Any] = {
        "run_id": "run", "model_id": "m" * 64, "planned": rows, "labelled": rows - sum(failed.values()),
        "failed": sum(failed.values()), "failed_by_code": failed, "excluded": 0, "retries": 0, "update": None,
        "parts": [PartRecord(part.name, part.rows, part.sha256) for part in parts], "config": {},
        "started": "2025-01-01T00:00:00+00:00", "finished": "2025-01-01T00:01:00+00:00", "images_per_s": 10.0,
        "images_per_s_steady": 20.0, "first_label_s": 5.0, "stages": {}, "versions": {},
    }  # fmt: skip
    return Receipt(format=FORMAT, **(usual | values))
