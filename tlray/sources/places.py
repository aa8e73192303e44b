"""The places of labelled images: files, members of archives and rows of tables, by row id."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tlray.errors import DataError, FetchError
from tlray.sources.candidates import Candidate, SourceKind
from tlray.sources.reading import list_files, read_rows

PLACE_FIELDS = (
    pa.field("uri", pa.string(), nullable=False),
    pa.field("source", pa.string(), nullable=False),
    pa.field("member", pa.string()),
    pa.field("offset", pa.int64()),
    pa.field("length", pa.int64()),
    pa.field("size", pa.int64()),
    pa.field("etag", pa.string()),
    pa.field("mtime_ns", pa.int64()),
    pa.field("crc32", pa.int64()),
)
"""`source` is a `SourceKind`; `member`, `offset` and `length` locate a row in an archive; `crc32` is a zip's."""

_SCHEMA = pa.schema(PLACE_FIELDS)
_ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class Places:
    """Places of images.

    Attributes:
        table: by `PLACE_FIELDS`, a row for each image.
        image_column: column of encoded images, the same of all Parquet tables; None without any.
    """

    table: pa.Table
    image_column: str | None = None

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def list_names(self, rows: Sequence[int] | npt.NDArray[np.integer]) -> list[str]:
        """Return the addresses of some rows, for people."""
        names: list[str] = self.table["uri"].take(pa.array(rows, pa.int64())).to_pylist()
        return names

    def list_files(self, rows: Sequence[int] | npt.NDArray[np.integer]) -> list[tuple[str, int | None]]:
        """Return the files that some rows are read from, each once, and their sizes where they are known."""
        return list_files(self.table.take(pa.array(rows, pa.int64())))

    def fetch(self, rows: Sequence[int] | npt.NDArray[np.integer], max_bytes: int) -> Iterator[bytes | FetchError]:
        """Yield the encoded image of each row, or the reason why there is none, in order.

        Of archives and tables each row is read once, in their own order, and all are held at once.

        Args:
            max_bytes: a larger image is TOO_LARGE, and is not read.
        """
        rows = np.asarray(rows, np.int64)
        taken = self.table.take(pa.array(rows))
        if set(taken["source"].unique().to_pylist()) <= {SourceKind.FILE.value}:
            return (fetched.data for fetched in read_rows(taken, max_bytes, None))
        unique, place = np.unique(rows, return_inverse=True)
        taken = self.table.take(pa.array(unique))
        read = [fetched.data for fetched in read_rows(taken, max_bytes, self.image_column)]
        return (read[index] for index in place.tolist())

    def fetch_all(self, max_bytes: int) -> Iterator[bytes | FetchError]:
        """Yield every image in order, as `fetch` does, but hold few of archives and tables at once."""
        for start in range(0, len(self), _ROWS_AT_ONCE):
            yield from self.fetch(range(start, min(start + _ROWS_AT_ONCE, len(self))), max_bytes)


def make_places(candidates: Sequence[Candidate], image_column: str | None = None) -> Places:
    """Return the places of candidates; plain files are read whatever they hold by then."""
    rows = [
        (one.uri, one.source.value, *one[3:10])
        if one.source is not SourceKind.FILE
        else (one.uri, one.source.value, *[None] * 7)
        for one in candidates
    ]
    columns = zip(*rows, strict=True) if rows else [()] * len(PLACE_FIELDS)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, PLACE_FIELDS, strict=True)]
    return Places(pa.table(arrays, schema=_SCHEMA), image_column)


def join_places(parts: Sequence[Places]) -> Places:
    """Join places.

    Raises:
        DataError: their Parquet tables have their images in different columns.
    """
    columns = sorted({part.image_column for part in parts if part.image_column is not None})
    if len(columns) > 1:
        raise DataError(f"tables have their images in different columns ({', '.join(columns)}); rename them alike")
    # in one chunk, of which a few rows are taken without copying the rest
    return Places(pa.concat_tables([part.table for part in parts]).combine_chunks(), next(iter(columns), None))
