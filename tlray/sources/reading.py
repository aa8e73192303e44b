"""The bytes of planned rows, whatever they lie in; whatever is wrong with one stays with that one."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from operator import attrgetter
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa

from tlray import storage
from tlray.errors import Code, FetchError
from tlray.sources import archives, zips
from tlray.sources import parquet as tables
from tlray.sources.candidates import REFUSED, SourceKind
from tlray.storage import Fetched, Request
from tlray.storage.local import is_transient

_PLAIN_KINDS = {SourceKind.TAR_SPARSE: SourceKind.TAR, SourceKind.TAR_PACKED_SPARSE: SourceKind.TAR_PACKED}


class PlannedRow(NamedTuple):
    """A row of the plan, as far as reading needs it; attributes as in `candidates.Candidate`."""

    uri: str
    source: SourceKind
    member: str | None
    offset: int | None
    length: int | None
    size: int | None
    etag: str | None
    mtime_ns: int | None
    crc32: int | None

    @property
    def archive(self) -> str:
        """Address of the file or archive that holds the row: a member's address without the member."""
        return self.uri if self.member is None else self.uri[: -len(self.member) - 1]

    @property
    def archive_kind(self) -> SourceKind:
        """`source`, the same for all members of an archive that are read together."""
        return _PLAIN_KINDS.get(self.source, self.source)

    @property
    def start(self) -> int:
        """Offset of a member's bytes in its archive."""
        return self.offset or 0

    @property
    def num_packed_bytes(self) -> int:
        """Bytes of a member inside its archive."""
        return self.length or 0


def list_rows(rows: pa.Table) -> list[PlannedRow]:
    """Return the rows of a plan's table."""
    columns = {name: rows[name].to_pylist() for name in PlannedRow._fields}
    columns["source"] = map(SourceKind, columns["source"])
    return list(map(PlannedRow, *columns.values()))


def read_rows(rows: pa.Table, max_bytes: int, image_column: str | None) -> Iterator[Fetched]:
    """The encoded image of each row, in order.

    Args:
        rows: of the plan, by `PLAN_SCHEMA`, ascending.
        max_bytes: a larger image is TOO_LARGE, and is not read.
        image_column: of Parquet rows.
    """
    for source, run in groupby(list_rows(rows), key=attrgetter("archive_kind")):
        if source in REFUSED:
            yield from (Fetched(FetchError(*REFUSED[source]), 0) for _ in run)
        elif source in (SourceKind.FILE, SourceKind.TAR, SourceKind.ZIP):
            yield from _read_ranges(source, list(run), max_bytes)
        else:
            for archive, members in groupby(run, key=attrgetter("archive")):
                if source is SourceKind.TAR_PACKED:
                    yield from _read_stream(archive, list(members), max_bytes)
                else:
                    yield from _read_table(archive, list(members), max_bytes, image_column or "")


def list_files(rows: pa.Table) -> list[tuple[str, int | None]]:
    """The files that rows are read from, each once, and their sizes where they are the rows' own."""
    files = {row.archive: row.size if row.member is None else None for row in list_rows(rows)}
    return list(files.items())


def _read_ranges(source: SourceKind, rows: list[PlannedRow], max_bytes: int) -> Iterator[Fetched]:
    """Files and members that one request each brings."""
    early = [_answer_early(row, max_bytes) for row in rows]
    wanted = [row for row, answer in zip(rows, early, strict=True) if answer is None]
    fetched = storage.fetch_many(_request(source, row, max_bytes) for row in wanted)
    for row, answered in zip(rows, early, strict=True):
        answer = answered or next(fetched)
        data = answer.data
        if answered is None and isinstance(data, bytes):
            if source is SourceKind.ZIP:
                answer = _unpack_zip(row, data, answer.retries)
            elif source is SourceKind.TAR and len(data) < row.num_packed_bytes:
                answer = answer._replace(data=FetchError(Code.TRUNCATED, "its archive ends before it does"))
            elif row.source is SourceKind.TAR_SPARSE:
                answer = answer._replace(data=archives.fill_holes(data, row.size or 0))
        yield answer


def _answer_early(row: PlannedRow, max_bytes: int) -> Fetched | None:
    """Return the error that a row's own columns show without a request, if any."""
    if row.length is not None and row.length > 2 * max_bytes:
        return Fetched(_explain_size(row.length, max_bytes), 0)
    if row.size is not None and row.size > max_bytes:
        return Fetched(_explain_size(row.size, max_bytes), 0)
    return Fetched(b"", 0) if row.size == 0 and row.member is not None else None


def _request(source: SourceKind, row: PlannedRow, max_bytes: int) -> Request:
    if source is SourceKind.FILE:
        return Request(row.uri, size=row.size, etag=row.etag, mtime_ns=row.mtime_ns, max_bytes=max_bytes)
    length = row.length if source is SourceKind.TAR else zips.get_span(row.num_packed_bytes)
    return Request(row.archive, row.offset, length, None, row.etag, row.mtime_ns)


def _unpack_zip(row: PlannedRow, head: bytes, retries: int) -> Fetched:
    """A member from the bytes at its local header; asks again where that header is longer than most."""
    try:
        start = zips.find_data(head)
        data = head[start : start + row.num_packed_bytes]
        if len(data) < row.num_packed_bytes and start + row.num_packed_bytes > zips.get_span(row.num_packed_bytes):
            request = Request(row.archive, row.start + start, row.num_packed_bytes, None, row.etag)
            more = storage.fetch(request)
            retries += more.retries
            if isinstance(more.data, FetchError):
                return more
            data = more.data
        if len(data) < row.num_packed_bytes:
            raise FetchError(Code.TRUNCATED, "its archive ends before it does")
        return Fetched(zips.unpack(head, data, row.size or 0, row.crc32), retries)
    except FetchError as error:
        return Fetched(error, retries)


def _read_stream(archive: str, rows: list[PlannedRow], max_bytes: int) -> Iterator[Fetched]:
    """Members of a packed tar: one pass over what it unpacks to."""
    answered = 0
    try:
        _check_unchanged(archive, rows[0])
        with storage.open_file(archive) as file:
            unpacked = archives.open_unpacked(file)
            last: tuple[int, bytes | FetchError] = (-1, b"")
            for row in rows:
                early = _answer_early(row, max_bytes)
                if early is None and row.start != last[0]:  # a hard link has the bytes of the member before
                    if row.start < unpacked.tell():  # a manifest may name members in any order
                        file.seek(0)
                        unpacked = archives.open_unpacked(file)
                    last = (row.start, _read_member(unpacked, row))
                yield early or Fetched(last[1], 0)
                answered += 1
    except FetchError as error:
        yield from (Fetched(error, 0) for _ in rows[answered:])
    except archives.DAMAGE:
        yield from (Fetched(FetchError(Code.CORRUPT, "its archive is damaged"), 0) for _ in rows[answered:])


def _read_member(unpacked: BinaryIO, row: PlannedRow) -> bytes | FetchError:
    unpacked.seek(row.start)
    data = unpacked.read(row.num_packed_bytes)
    if len(data) < row.num_packed_bytes:
        return FetchError(Code.TRUNCATED, "its archive ends before it does")
    return archives.fill_holes(data, row.size or 0) if row.source is SourceKind.TAR_PACKED_SPARSE else data


def _read_table(table: str, rows: list[PlannedRow], max_bytes: int, image_column: str) -> Iterator[Fetched]:
    """Rows of a Parquet file."""
    answered = 0
    try:
        _check_unchanged(table, rows[0])
        # the last rows of one input and the first of the next may be of one table, which is read once and in order
        numbers, place = np.unique(np.array([row.start for row in rows], np.int64), return_inverse=True)
        images = tables.iter_images(table, image_column, numbers)
        if len(numbers) < len(rows) or (np.diff(place) < 0).any():
            held = list(images)
            images = (held[index] for index in place.tolist())
        for data in images:
            if data is None:
                answer: bytes | FetchError = FetchError(Code.EMPTY, "the column is null here")
            elif len(data) > max_bytes:
                answer = _explain_size(len(data), max_bytes)
            else:
                answer = data
            yield Fetched(answer, 0)
            answered += 1
    except FetchError as error:
        yield from (Fetched(error, 0) for _ in rows[answered:])
    except (pa.ArrowException, OSError) as error:
        code = Code.TIMEOUT if isinstance(error, OSError) and is_transient(error) else Code.CORRUPT
        broken = FetchError(code, f"its table cannot be read: {storage.redact(str(error))[:200]}")
        yield from (Fetched(broken, 0) for _ in rows[answered:])


def _check_unchanged(uri: str, row: PlannedRow) -> None:
    """Ask for one byte of an archive, which tells whether it is still the one that was planned."""
    data = storage.fetch(Request(uri, 0, 1, None, row.etag, row.mtime_ns)).data
    if isinstance(data, FetchError):
        raise data


def _explain_size(size: int, max_bytes: int) -> FetchError:
    return FetchError(Code.TOO_LARGE, f"the file holds {size:,} bytes, more than --max-bytes {max_bytes:,}")
