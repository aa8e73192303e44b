"""Predictions of parts that are not full yet, saved so that a killed run repeats little.

    OUTPUT/_waiting/FIRST-LAST-START-TOKEN-SEQ.parquet   some rows of the part FIRST-LAST; START is the driver's in UTC

Each save writes the rows since the last one, a file a part, so that no file grows with the number of engines. The files
are read back where memory is short, and deleted when their part is written.
"""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from tlray import storage
from tlray.errors import FetchError, OutageError, OutputError
from tlray.output.schema import MODEL_ID_KEY, from_parquet, to_parquet

FOLDER = "_waiting"

_NAME = re.compile(r"(\d{12})-(\d{12})-(\d{8}T\d{6}Z-[0-9a-f]{8}-\d{9})\.parquet")
_MAX_WRITES = 16

_Item = TypeVar("_Item")


def name_driver() -> str:
    """Return a name for the files of one driver: its start in UTC, and a token of its own."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"


class WaitingFiles:
    """The files of one output, written by one driver.

    Args:
        schema: columns of predictions; files with others are ignored.
        model_id: model of the predictions; files of another one are ignored.
    """

    def __init__(self, output: str, schema: pa.Schema, model_id: str) -> None:
        self._folder = storage.join(output, FOLDER)
        self._schema = schema.remove_metadata()
        self._model_id = model_id.encode()
        self._driver = name_driver()
        self._number = 0

    def save(self, tables: Mapping[range, pa.Table]) -> dict[range, str]:
        """Write the rows of each part as a new file; return the addresses, by the part's row ids.

        Raises:
            OutputError: a file cannot be written.
        """
        addresses = {}
        for rows in tables:
            name = f"{rows.start:012d}-{rows.stop - 1:012d}-{self._driver}-{self._number:09d}.parquet"
            addresses[rows] = storage.join(self._folder, name)
            self._number += 1
        data = (to_parquet(table.replace_schema_metadata({MODEL_ID_KEY: self._model_id})) for table in tables.values())
        _run_together(lambda item: storage.put(*item), zip(addresses.values(), data, strict=True))
        return addresses

    def read(self, addresses: Iterable[str]) -> list[pa.Table]:
        """Return the rows of files that this run saved.

        Raises:
            OutputError: one is missing or damaged.
        """
        tables = []
        for address, data in zip(addresses, storage.get_many(addresses), strict=True):
            table = self._parse(data)
            if table is None:
                reason = f": {data}" if isinstance(data, FetchError) else ""
                raise OutputError(f"{address} cannot be read back{reason}")
            tables.append(table)
        return tables

    def load(self, num_rows: int) -> Iterator[tuple[str, pa.Table | None]]:
        """Yield the files of stopped runs and their rows, the newest first; None for a file that is of no use.

        Files that cannot be read now are passed over, and stay.

        Args:
            num_rows: number of planned rows.
        """
        if not storage.has_content(self._folder):
            return
        names = [(_NAME.fullmatch(entry.name), entry.uri) for entry in storage.iter_files(self._folder)]
        found = sorted(((match[3], match, uri) for match, uri in names if match), reverse=True)
        addresses = [uri for _, _, uri in found]
        for (_, match, address), data in zip(found, storage.get_many(addresses), strict=True):
            if isinstance(data, FetchError):
                continue
            table = self._parse(data)
            if table is not None:
                first, last = int(match[1]), min(int(match[2]), num_rows - 1)
                inside = pc.and_(pc.greater_equal(table["row_id"], first), pc.less_equal(table["row_id"], last))
                table = table.filter(inside)
            yield address, table

    def delete(self, addresses: Iterable[str]) -> None:
        """Remove files, as far as possible: one that stays holds rows that are in their part."""
        _run_together(_delete, addresses)

    def _parse(self, data: bytes | FetchError) -> pa.Table | None:
        """Return the rows of a file; None if it is damaged, or of another model."""
        if isinstance(data, FetchError):
            return None
        try:
            table = from_parquet(data)
        except (pa.ArrowException, OSError):
            return None
        same = table.schema.equals(self._schema) and (table.schema.metadata or {}).get(MODEL_ID_KEY) == self._model_id
        return table.replace_schema_metadata(None) if same else None


def _delete(address: str) -> None:
    with contextlib.suppress(OutputError, OutageError, OSError):
        storage.delete(address)


def _run_together(work: Callable[[_Item], object], items: Iterable[_Item]) -> None:
    """Call a function with each item, some at once; raise what one of the calls raises."""
    with ThreadPoolExecutor(_MAX_WRITES) as pool:
        for _ in pool.map(work, items):
            pass
