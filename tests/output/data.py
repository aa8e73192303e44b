"""Small runs on disk for the tests of outputs: images that are never opened, made-up predictions."""

from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq

from tests.factories import make_receipt, make_table
from tlray.output.parts import PartWriter, make_schema
from tlray.output.plan import write_plan
from tlray.output.receipt import write_receipt
from tlray.output.rowset import RowSet
from tlray.sources.listing import Selection, find_candidates

BUNDLE = SimpleNamespace(model_id="m" * 64, classes=("a", "b"), preprocessing_fingerprint="f")
SCHEMA = make_schema(BUNDLE, "run", [])


class MemoryPlan:
    def __init__(self, count):
        self.num_rows = count

    def read(self, first, count):
        rows = range(first, min(first + count, self.num_rows))
        return pa.table({"row_id": list(rows), "uri": [f"/x/{row}.jpg" for row in rows]})


def make_predictions(row_ids, status="ok", bad=3):
    """Return predictions of class a for rows with one status, but for one row that is EMPTY."""
    statuses = ["EMPTY" if row == bad else status for row in row_ids]
    predicted = {"predicted_index": 0, "class_name": "a", "probability": 0.5, "width": 1, "height": 1}
    columns = {name: [value if code == "ok" else None for code in statuses] for name, value in predicted.items()}
    return make_table({"row_id": list(row_ids), "status": statuses, **columns})


def make_writer(output, done=None, count=10, rows_per_part=4):
    return PartWriter(str(output), MemoryPlan(count), SCHEMA, rows_per_part, done or RowSet(count))


def write_all(output, order):
    writer = make_writer(output)
    return [part for start in range(0, 10, 3) for part in writer.add(make_predictions(order[start : start + 3]))]


def read_labels(output):
    return pq.read_table(output / "labels").sort_by("row_id")


def write_images(folder, count=10):
    """Write files of 1, 2, ... bytes that are named like images."""
    folder.mkdir()
    for index in range(count):
        (folder / f"{index}.jpg").write_bytes(b"x" * (index + 1))
    return folder


def plan_images(output, folder):
    """Write the plan of an output over a folder."""
    return write_plan(str(output), find_candidates([str(folder)], Selection()), {}, None)


def write_run(output, folder, **receipt):
    """Write a finished run of ten images in parts of four, row 3 failed as EMPTY."""
    plan = plan_images(output, write_images(folder))
    writer = PartWriter(str(output), plan, SCHEMA, 4, RowSet(10))
    parts = list(writer.add(make_predictions(range(10))))
    receipt = make_receipt(parts, **receipt)
    write_receipt(str(output), receipt)
    return plan, receipt
