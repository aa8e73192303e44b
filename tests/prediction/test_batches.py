import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tlray.errors import Code, FetchError
from tlray.images.limits import Limits
from tlray.prediction import batches
from tlray.prediction.batches import cut, make_decoded, make_encoded, open_images, pack, unpack
from tlray.storage import Fetched

BLOCK_BYTES = 16 * 2**10


def encode(width, height):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (width, height, 9)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("sizes", "encoded", "expected"),
    [
        ([10] * 7, True, [3, 3, 1]),
        ([40 * 2**20] * 3, True, [1, 1, 1]),
        ([40 * 2**20] * 3, False, [3]),
        ([30 * 2**20, None, 40 * 2**20, 10], True, [2, 2]),
        ([100 * 2**20, 10], True, [1, 1]),
        ([], True, []),
    ],
)
def test_batches_are_bounded_by_rows_and_where_they_travel_encoded_by_bytes(sizes, encoded, expected):
    rows = pa.table({"size": pa.array(sizes, pa.int64()), "row_id": pa.array(range(len(sizes)), pa.int64())})
    batches = list(cut(rows, 3, 3, encoded=encoded))
    assert [batch.num_rows for batch in batches] == expected
    assert [row for batch in batches for row in batch["row_id"].to_pylist()] == list(range(len(sizes)))


def test_the_first_batch_may_be_smaller():
    rows = pa.table({"size": pa.array([10] * 9, pa.int64())})
    assert [batch.num_rows for batch in cut(rows, 2, 4, encoded=True)] == [2, 4, 3]


def test_decoding_before_and_in_the_engine_give_the_same():
    fetched = [
        Fetched(encode(30, 20), 0),
        Fetched(FetchError(Code.DENIED, "no"), 4),
        Fetched(b"", 0),
        Fetched(encode(8, 8)[:40], 1),
    ]
    row_ids = np.arange(4)
    packed = pack(make_encoded(row_ids, fetched, 16, Limits()), BLOCK_BYTES)
    assert len(packed["packed"]) == 1
    assert len(packed["packed"][0]) > BLOCK_BYTES
    assert len(pack(make_encoded(row_ids[:1], fetched[1:2], 16, Limits()), BLOCK_BYTES)["packed"][0]) > BLOCK_BYTES
    late = unpack(packed)
    early = make_decoded(row_ids, fetched, 16, Limits())
    assert unpack(early) is early
    assert late["retries"].tolist() == early["retries"].tolist() == [0, 4, 0, 1]
    one, two = (open_images(batch, slice(None), 16, Limits()) for batch in (late, early))
    np.testing.assert_array_equal(one.pixels, two.pixels)
    assert one.status == two.status == ["ok", "DENIED", "EMPTY", "TRUNCATED"]
    assert (one.errors, one.widths, one.heights) == (two.errors, two.widths, two.heights)
    assert one.errors[1] == "no"
    assert one.widths == [30, None, None, None]
    part = open_images(late, slice(3, 4), 16, Limits())
    assert part.status == ["TRUNCATED"]


def test_a_batch_of_large_images_is_decoded_where_it_is_read(monkeypatch):
    """Its rows stay as planned, and so do their labels."""
    large, broken = encode(30, 20), encode(8, 8)[:40]
    fetched = [Fetched(data, 0) for data in (large, encode(9, 9), broken, FetchError(Code.DENIED, "no"), large)]
    calm = make_encoded(np.arange(5), fetched, 16, Limits())
    monkeypatch.setattr(batches, "_MAX_ENCODED_BYTES", len(large))
    short = make_encoded(np.arange(5), fetched, 16, Limits())
    assert [isinstance(data, bytes) for data in short["data"]] == [True, False, False, False, False]
    short = unpack(pack(short, BLOCK_BYTES))
    one, two = (open_images(batch, slice(None), 16, Limits()) for batch in (calm, short))
    np.testing.assert_array_equal(one.pixels, two.pixels)
    assert one.status == two.status == ["ok", "ok", "TRUNCATED", "DENIED", "ok"]
    assert (one.errors, one.widths, one.heights) == (two.errors, two.widths, two.heights)


def test_rows_of_unknown_size_cannot_make_a_block_of_gigabytes():
    """As those of a Parquet file: 128 images of 16 MB, of which Arrow cannot make one value."""
    image = encode(64, 64)
    fetched = (Fetched(image + bytes(16 * 2**20), 0) for _ in range(128))
    (block,) = pack(make_encoded(np.arange(128), fetched, 16, Limits()), BLOCK_BYTES)["packed"]
    assert len(block) < 70 * 2**20
    images = open_images(unpack({"packed": [block]}), slice(None), 16, Limits())
    assert images.status == ["ok"] * 128
