"""The ledger of a prediction run: what is known of each written part, so that a resume need not read them again.

    OUTPUT/_ledger/START-TOKEN-SEQ.jsonl   one line a part; START is the driver's in UTC, TOKEN its own

Object stores cannot append, so a driver writes a new file with each flush. Of several lines for a part the one that
fits the listing counts, by size and by etag or time; a part without one is read. `verify` does not trust it.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

from tlray import storage
from tlray.errors import OK, FetchError, OutageError, OutputError
from tlray.output.parts import Part, get_row_ids
from tlray.output.waiting import name_driver
from tlray.storage.records import RecordError, parse_record

FOLDER = "_ledger"

_FLUSH_INTERVAL_S = 10.0


@dataclass(frozen=True)
class LedgerLine:
    """One written part.

    Attributes:
        part: file name below `labels/`.
        bytes: size of the file.
        etag, mtime_ns: of the object, or of the local file; the other is None.
        counts: rows by status.
        needs_review: rows that need a review.
        precision: compute types of the engines that predicted it; "" where unknown.
    """

    part: str
    rows: int
    bytes: int
    etag: str | None
    mtime_ns: int | None
    sha256: str
    counts: dict[str, int]
    needs_review: int
    model_id: str
    precision: str

    def fits(self, entry: storage.Entry, model_id: str) -> bool:
        """Return whether a listed file is the one that was written, by this model."""
        same = self.etag == entry.etag if entry.etag is not None else self.mtime_ns == entry.mtime_ns
        whole = self.rows == len(get_row_ids(self.part)) == sum(self.counts.values())
        return same and whole and (self.part, self.bytes, self.model_id) == (entry.name, entry.size, model_id)

    def to_part(self) -> Part:
        """Return the part."""
        failed = {status: count for status, count in self.counts.items() if status != OK}
        return Part(self.part, self.rows, self.sha256, failed, self.needs_review)


@dataclass
class Ledger:
    """The lines of one driver; they are written every 10 s, and when `flush` is called.

    Attributes:
        precision: compute types of the engines, as far as they are known.
    """

    output: str
    model_id: str
    precision: str = ""
    _lines: list[LedgerLine] = field(default_factory=list)
    _number: int = 0
    _flushed_at: float = field(default_factory=lambda: time.monotonic())
    _name: str = field(default_factory=name_driver)

    def add(self, part: Part, num_bytes: int, written: storage.Written) -> None:
        """Take a part that was written."""
        counts = {OK: part.rows - sum(part.failed_by_code.values()), **part.failed_by_code}
        counts = {status: count for status, count in counts.items() if count}
        identity = (written.etag, written.mtime_ns, part.sha256)
        self._lines.append(
            LedgerLine(
                part.name, part.rows, num_bytes, *identity, counts, part.needs_review, self.model_id, self.precision
            )
        )
        if time.monotonic() - self._flushed_at >= _FLUSH_INTERVAL_S:
            self.flush()

    def flush(self) -> None:
        """Write the lines since the last flush as a new file; if that fails, the next flush writes them."""
        self._flushed_at = time.monotonic()
        if self._lines:
            address = storage.join(self.output, FOLDER, f"{self._name}-{self._number:06d}.jsonl")
            lines = [json.dumps(asdict(line), ensure_ascii=False) for line in self._lines]
            with contextlib.suppress(OutputError, OutageError):
                storage.put(address, ("\n".join(lines) + "\n").encode())
                self._number += 1
                self._lines = []


def name_precisions(forms: Iterable[str]) -> str:
    """Return the compute types of engines by their forms, such as "bfloat16 on 1 thread", joined by +."""
    return "+".join(sorted({form.split()[0].rstrip(",") for form in forms}))


def read_ledger(output: str) -> dict[str, list[LedgerLine]]:
    """Return the lines of all drivers by part; files and lines that cannot be read are left out."""
    folder = storage.join(output, FOLDER)
    lines: dict[str, list[LedgerLine]] = {}
    if not storage.has_content(folder):
        return lines
    uris = [entry.uri for entry in storage.iter_files(folder) if entry.name.endswith(".jsonl")]
    for data in storage.get_many(uris):
        if isinstance(data, FetchError):
            continue
        for text in data.splitlines():
            try:
                line = parse_record(LedgerLine, text)
            except RecordError:
                continue
            lines.setdefault(line.part, []).append(line)
    return lines


def find_line(lines: Mapping[str, Iterable[LedgerLine]], entry: storage.Entry, model_id: str) -> LedgerLine | None:
    """Return the line that fits a listed file, None without one."""
    return next((line for line in lines.get(entry.name, ()) if line.fits(entry, model_id)), None)
