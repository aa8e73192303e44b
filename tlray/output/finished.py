"""A finished output, and the images of its rows for the pages that show them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tlray.errors import OutputError
from tlray.images.limits import MAX_BYTES, MAX_PIXELS, Limits
from tlray.output.plan import Plan, open_plan
from tlray.output.receipt import Receipt, read_receipt
from tlray.sources.candidates import PACKED
from tlray.sources.reading import read_rows


def open_finished(output: str, taker: str) -> tuple[Receipt, Plan]:
    """Return the receipt and the plan of a finished output.

    Args:
        output: address of the output.
        taker: command or option that takes it, for the error.

    Raises:
        OutputError: the output is not finished.
    """
    receipt, plan = read_receipt(output), open_plan(output)
    if receipt is None or plan is None:
        raise OutputError(f"{taker} takes the output of a finished tlray predict; got {output}")
    return receipt, plan


def get_limits(receipt: Receipt) -> Limits:
    """Return the limits of a run."""
    config = receipt.config
    return Limits(config.get("max_bytes", MAX_BYTES), config.get("max_pixels", MAX_PIXELS))


def read_images(plan: Plan, row_ids: Sequence[int], limits: Limits) -> Iterator[bytes | None]:
    """Yield the encoded image of each row; None where it cannot be read, or would need a pass over its archive."""
    rows = plan.take(np.array(row_ids, np.int64))
    packed = pc.is_in(rows["source"], pa.array(PACKED))
    fetched = read_rows(rows.filter(pc.invert(packed)), limits.max_bytes, plan.image_column)
    for skip in packed.to_pylist():
        data = None if skip else next(fetched).data
        yield data if isinstance(data, bytes) else None
