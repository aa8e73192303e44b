"""A plan of rows that were never listed, and parts for most of them: `python -m tests.faults.scale OUTPUT ROWS`.

Prints one JSON line with seconds and peak memory of the process, so that a test can hold them against its limits.
"""

import argparse
import json
import resource
import time
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pyarrow as pa

from tlray import storage
from tlray.config import PlanConfig
from tlray.output import plan as plans
from tlray.output.ledger import Ledger
from tlray.output.parts import PartWriter, make_schema
from tlray.output.rowset import RowSet
from tlray.output.schema import PREDICTION_FIELDS
from tlray.prediction import planning
from tlray.sources import listing as inputs
from tlray.storage import Entry

INPUT = "/synthetic"
ROWS_PER_PART = 8192


def list_synthetic(num_rows: int) -> Iterator[Entry]:
    for row in range(num_rows):
        name = f"{row // 1000:06d}/{row:09d}.jpg"
        yield Entry(f"{INPUT}/{name}", name, 100_000 + row % 1000, None, 1_700_000_000_000_000_000 + row)


def make_plan(output: str, num_rows: int) -> None:
    """The real planning over a listing that is made up."""
    inputs.storage.iter_files = lambda uri: list_synthetic(num_rows)
    planning.make_plan(PlanConfig(input=(INPUT,), output=output))


def make_parts(output: str, num_done: int, bundle: str) -> None:
    """Whole parts for the first rows."""
    manifest = json.loads(storage.get(storage.join(bundle, "bundle.json")))
    stand_in = SimpleNamespace(
        model_id=manifest["model_id"], classes=tuple(manifest["classes"]), preprocessing_fingerprint="f"
    )
    plan = plans.open_plan(output)
    assert plan is not None
    ledger = Ledger(output, stand_in.model_id)
    schema = make_schema(stand_in, "run", [])
    writer = PartWriter(output, plan, schema, ROWS_PER_PART, RowSet(plan.num_rows), on_written=ledger.add)
    for first in range(0, num_done // ROWS_PER_PART * ROWS_PER_PART, ROWS_PER_PART):
        rows = np.arange(first, first + ROWS_PER_PART)
        columns = {
            "row_id": rows,
            "status": np.full(len(rows), "ok", object),
            "error": [None] * len(rows),
            "predicted_index": np.zeros(len(rows), np.int32),
            "class_name": np.full(len(rows), stand_in.classes[0], object),
            "probability": (rows % 1000 / 1000).astype(np.float32),
            "width": np.full(len(rows), 640, np.int32),
            "height": np.full(len(rows), 480, np.int32),
            "needs_review": [None] * len(rows),
            "ood_score": [None] * len(rows),
            "retries": np.zeros(len(rows), np.int32),
        }
        answers = pa.table({field.name: pa.array(columns[field.name], field.type) for field in PREDICTION_FIELDS})
        list(writer.add(answers))
    ledger.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output")
    parser.add_argument("rows", type=int)
    parser.add_argument("--done", type=int, default=0)
    parser.add_argument("--bundle")
    options = parser.parse_args()
    began = time.monotonic()
    if options.done:
        make_parts(options.output, options.done, options.bundle)
    else:
        make_plan(options.output, options.rows)
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    told = {"rows": options.rows, "seconds": round(time.monotonic() - began, 1), "peak_mib": round(peak_mib)}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
