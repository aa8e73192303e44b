"""Finished outputs of predictions that nobody computed."""

import io
from types import SimpleNamespace

from PIL import Image

from tests.factories import make_receipt, make_table
from tlray.output.parts import PartWriter, make_schema
from tlray.output.plan import write_plan
from tlray.output.receipt import write_receipt
from tlray.output.rowset import RowSet
from tlray.sources.listing import Selection, find_candidates


def make_image(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (60, 30), colour).save(buffer, "PNG")
    return buffer.getvalue()


def label(folder, inputs, predict, classes, rows_per_part=64, probability=None, model_id="m" * 64):
    """A finished labelling run over inputs; `predict(row_id)` is a class index, or None for a failed row.

    `probability(row_id)` is 0.25 and a little more by default.
    """
    probability = probability or (lambda row: 0.25 + row / 1e4)
    output = str(folder)
    plan = write_plan(output, find_candidates([str(uri) for uri in inputs], Selection()), {}, None)
    bundle = SimpleNamespace(model_id=model_id, classes=classes, preprocessing_fingerprint="f")
    indices = [predict(row) for row in range(plan.num_rows)]
    columns = {
        "row_id": range(plan.num_rows),
        "status": ["CORRUPT" if index is None else "ok" for index in indices],
        "predicted_index": indices,
        "class_name": [None if index is None else classes[index] for index in indices],
        "probability": [None if index is None else probability(row) for row, index in enumerate(indices)],
    }
    writer = PartWriter(output, plan, make_schema(bundle, "run", []), rows_per_part, RowSet(plan.num_rows))
    receipt = make_receipt(list(writer.add(make_table(columns))), finished="2025-01-01T00:00:00Z", model_id=model_id)
    write_receipt(output, receipt)
    return output
