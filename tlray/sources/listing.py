"""The inputs of --input as candidates: one for every file, object, member, line or row found."""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import itertools
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa

from tlray import storage
from tlray.errors import UNREACHABLE, DataError, FetchError, StoppedError
from tlray.sources import archives, lists, manifests
from tlray.sources import parquet as tables
from tlray.sources.candidates import Candidate, find_litter, has_image_name
from tlray.sources.sidecars import make_fields

_INDEX_THREADS = 16
_CHECKED_LINES = 100
_PACKED = (".bz2", ".xz", ".zst", ".zip")
_NO_IMAGES = (
    ".txt", ".lst", ".json", ".xls", ".xlsx", ".xml", ".yaml", ".yml", ".feather", ".arrow", ".orc",
    *(f".{kind}{packed}" for kind in ("csv", "tsv", "jsonl", "ndjson", "json", "txt") for packed in (*_PACKED, ".gz")),
)  # fmt: skip
"""Extensions of files that people give as lists, and that are not read as such."""


@dataclass(frozen=True)
class Selection:
    """Filters of inputs, and the columns of manifests and tables.

    Attributes:
        include, exclude: globs over names below an input, `*` matching slashes too.
        limit: maximum number of rows; listing stops there.
        sample: share of the inputs to take, in (0, 1], by a hash of their addresses.
        shard: `(i, n)`, the i-th of n shares by another hash, i from 1.
        uri_column, id_column: of manifests.
        image_column: of Parquet files with images; None reads Parquet files as manifests.
        allow: allowed prefixes of a manifest's addresses; empty for the default.
        columns: own columns of manifests and tables that become `input_*`; None for all.
        sidecars: extensions of members of archives that tell of the image of the same stem.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    limit: int | None = None
    sample: float = 1.0
    shard: tuple[int, int] = (1, 1)
    uri_column: str = "uri"
    id_column: str | None = None
    image_column: str | None = None
    allow: tuple[str, ...] = ()
    columns: tuple[str, ...] | None = None
    sidecars: tuple[str, ...] = ()

    @property
    def sidecar_extensions(self) -> tuple[str, ...]:
        """`sidecars` in lower case, without a full stop before them."""
        return tuple(dict.fromkeys(extension.lower().lstrip(".") for extension in self.sidecars))


@dataclass(frozen=True)
class Candidates:
    """Candidates found in the inputs.

    Attributes:
        fields: `input_*` columns of any of them.
        rows: candidates in order; those with a reason are left out.
    """

    fields: list[pa.Field]
    rows: Iterator[Candidate]


def find_candidates(inputs: Sequence[str], selection: Selection) -> Candidates:
    """List every input, in the order given; an input below another one is listed once.

    Raises:
        DataError: an input does not exist or cannot be read, or none has a column of `selection.columns`.
    """
    sidecars = make_fields(selection.sidecar_extensions)
    fields = {field.name: field for field in sidecars}
    parts: list[Callable[[], Iterator[Candidate]]] = []
    for typed in _drop_covered(inputs):
        found, rows = _open_input(typed, selection)
        for field in found:
            known = fields.setdefault(field.name, field)
            if known.type != field.type:
                raise DataError(
                    f"{field.name.removeprefix('input_')} is {known.type} in one manifest and {field.type} in {typed}; "
                    "give manifests whose columns agree"
                )
        parts.append(rows)
    chained = (candidate for rows in parts for candidate in rows())
    own = [field for field in fields.values() if field not in sidecars]
    return Candidates([*sidecars, *_choose_columns(own, selection.columns)], _select(chained, selection))


def _choose_columns(fields: Sequence[pa.Field], columns: Sequence[str] | None) -> list[pa.Field]:
    if columns is None:
        return [*fields]
    known = {field.name.removeprefix("input_"): field for field in fields}
    if unknown := [column for column in columns if column not in known]:
        have = lists.shorten(", ".join(known)) or "they have none"
        raise DataError(f"--columns takes own columns of the inputs ({have}); got {unknown[0]!r}")
    return [field for name, field in known.items() if name in columns]


def _drop_covered(inputs: Sequence[str]) -> list[str]:
    """Return inputs without duplicates or those below another one; keep manifests, which listings do not open."""
    unique = list({_find_real(uri): uri for uri in reversed([*map(archives.resolve, inputs)])}.values())[::-1]
    roots = [_find_real(uri) for uri in unique if not _opens(uri)]
    return [
        uri
        for uri in unique
        if manifests.is_manifest(uri) or not any(_find_real(uri).startswith(f"{root}/") for root in roots)
    ]


def _find_real(uri: str) -> str:
    """Return an address by which two names of one place are alike."""
    return uri if storage.is_s3(uri) else os.path.realpath(uri)


def _opens(uri: str) -> bool:
    """Return whether an input is opened to find its rows."""
    return archives.split_member(uri) is not None or archives.is_archive(uri) or manifests.is_manifest(uri)


def _open_input(uri: str, selection: Selection) -> tuple[list[pa.Field], Callable[[], Iterator[Candidate]]]:
    parts = archives.split_member(uri)
    if parts is not None:
        return [], lambda: iter([_find_member(*parts, selection.sidecar_extensions)])
    if selection.image_column is not None and tables.is_table(uri):
        found = storage.list_files(uri)
        if len(found) == 1 and tables.is_table(found[0].name):
            fields, rows = tables.read_table(found[0], selection.image_column)
            return fields, lambda: rows
    if manifests.is_manifest(uri):
        fields, lines = manifests.read_manifest(uri, selection.uri_column, selection.id_column, selection.allow)
        return fields, lambda: (
            _resolve_member(line, selection.sidecar_extensions) for line in _check_some_exist(uri, lines)
        )
    if selection.image_column is not None:
        fields = _find_fields(storage.iter_files(uri), selection.image_column)
        return fields, lambda: _expand(storage.iter_files(uri), selection)
    return [], lambda: _name_file(uri, _expand(storage.iter_files(uri), selection))


def _name_file(uri: str, candidates: Iterator[Candidate]) -> Iterator[Candidate]:
    """Take an input that is one file whatever its extension, unless it may be a list that is not read."""
    for candidate in candidates:
        if candidate.uri != uri:
            yield candidate
        elif uri.lower().endswith(_NO_IMAGES):
            raise DataError(f"{uri} is no image; a list of images ends in {', '.join(lists.EXTENSIONS)}")
        else:
            yield candidate._replace(named=True)


def _check_some_exist(manifest: str, lines: Iterator[Candidate]) -> Iterator[Candidate]:
    """Raise `DataError` if none of the first files that a list names exists: its paths are another machine's."""
    first = list(itertools.islice(lines, _CHECKED_LINES))
    named = [line.uri for line in first if line.reason is None and not storage.is_s3(line.uri)]
    if named and not any(map(_exists, named)):
        raise DataError(
            f"none of the first {len(named):,} files that {manifest} names exists (such as {lists.shorten(named[0])}); "
            "relative paths start at the list's folder"
        )
    yield from first
    yield from lines


def _exists(uri: str) -> bool:
    return os.path.exists((archives.split_member(uri) or (uri,))[0])  # noqa: PTH110  (Path.exists may raise)


def _find_fields(entries: Iterable[storage.Entry], image_column: str) -> list[pa.Field]:
    """Return the `input_*` columns of the tables in a folder."""
    fields: dict[str, pa.Field] = {}
    for entry in entries:
        if tables.is_table(entry.name) and entry.unreadable is None:
            with contextlib.suppress(tables.NotATableError):  # `_describe` gives the reason
                for field in tables.read_table(entry, image_column)[0]:
                    if fields.setdefault(field.name, field).type != field.type:
                        raise DataError(
                            f"{field.name.removeprefix('input_')} is {fields[field.name].type} in one table and "
                            f"{field.type} in {entry.uri}; give tables whose columns agree"
                        )
    return list(fields.values())


def _expand(entries: Iterator[storage.Entry], selection: Selection) -> Iterator[Candidate]:
    """Yield files and the members of archives in order; several archives are indexed at a time."""
    waiting: deque[Future[list[Candidate]] | list[Candidate]] = deque()
    with ThreadPoolExecutor(_INDEX_THREADS) as pool:
        try:
            for entry in entries:
                if archives.is_archive(entry.name) and entry.unreadable is None:
                    waiting.append(pool.submit(_index, entry, selection.sidecar_extensions))
                elif not waiting:
                    yield from _describe(entry, selection.image_column)
                    continue
                else:
                    waiting.append(list(_describe(entry, selection.image_column)))
                while len(waiting) > 2 * _INDEX_THREADS:
                    yield from _take(waiting.popleft())
            while waiting:
                yield from _take(waiting.popleft())
        finally:
            pool.shutdown(cancel_futures=True)


def _take(promised: Future[list[Candidate]] | list[Candidate]) -> list[Candidate]:
    return promised if isinstance(promised, list) else promised.result()


def _index(entry: storage.Entry, sidecars: tuple[str, ...]) -> list[Candidate]:
    """List an archive's members; leave out an unreadable archive, but stop if it is only out of reach for now."""
    try:
        return archives.index(entry, sidecars)
    except FetchError as error:
        if error.code in UNREACHABLE:
            raise StoppedError(f"{entry.uri} cannot be reached: {error}; run the same command to start over") from None
        return [Candidate(entry.uri, entry.name, reason=f"the archive cannot be read: {error.code}")]


def _describe(entry: storage.Entry, image_column: str | None) -> Iterator[Candidate]:
    if image_column is not None and tables.is_table(entry.name) and entry.unreadable is None:
        try:
            rows = tables.read_table(entry, image_column)[1]
        except tables.NotATableError:
            yield Candidate(entry.uri, entry.name, reason="not a table with such an --image-column")
        else:
            yield from rows
        return
    reason = entry.unreadable
    if entry.uri.endswith("/"):
        reason = "a folder marker"
    elif manifests.is_manifest(entry.uri):
        reason = "a manifest or table inside a folder; give it as an --input of its own"
    yield Candidate(entry.uri, entry.name, size=entry.size, etag=entry.etag, mtime_ns=entry.mtime_ns, reason=reason)


def find_members(address: str) -> list[Candidate]:
    """Return the members of an archive that `archive#member` names; a name may be that of several."""
    parts = archives.split_member(address)
    return [] if parts is None else _group_by_name(parts[0], ()).get(parts[1], [])


def _find_member(archive: str, member: str, sidecars: tuple[str, ...]) -> Candidate:
    found = _group_by_name(archive, sidecars).get(member)
    if found is None:
        raise DataError(f"{archive} has no member {member}")
    return found[0]._replace(named=True)


def _resolve_member(line: Candidate, sidecars: tuple[str, ...]) -> Candidate:
    """Return a manifest's line, or the archive's member that it names."""
    parts = archives.split_member(line.uri)
    if line.reason is not None or parts is None:
        return line
    members = _group_by_name(parts[0], sidecars).get(parts[1])
    if members is None:
        return line._replace(reason="the archive or its member does not exist")
    found = members[0]
    return found._replace(name=line.name, inputs=(found.inputs or {}) | (line.inputs or {}) or None, named=True)


@lru_cache(maxsize=64)
def _group_by_name(archive: str, sidecars: tuple[str, ...]) -> dict[str, list[Candidate]]:
    """Return the members of an archive by name, in order; none if the archive does not exist."""
    try:
        entries = [entry for entry in storage.iter_files(archive) if entry.uri == archive]
    except DataError:
        return {}
    by_name: dict[str, list[Candidate]] = {}
    for entry in entries:
        for candidate in _index(entry, sidecars):
            if candidate.member is not None:
                by_name.setdefault(candidate.name, []).append(candidate)
    return by_name


def _select(candidates: Iterator[Candidate], selection: Selection) -> Iterator[Candidate]:
    """Give a reason to each candidate that is not taken; end when --limit is reached."""
    include, exclude = _compile(selection.include), _compile(selection.exclude)
    left = selection.limit
    for candidate in candidates:
        reason = _find_reason(candidate, selection, include, exclude)
        if reason is not None:
            yield candidate._replace(reason=reason)
            continue
        if left is not None:
            if left == 0:
                return
            left -= 1
        yield candidate


def _find_reason(
    candidate: Candidate, selection: Selection, include: re.Pattern[str] | None, exclude: re.Pattern[str] | None
) -> str | None:
    """Return why a candidate is left out, None if it is taken."""
    if candidate.reason is not None:
        return candidate.reason
    if not candidate.named:
        if litter := find_litter(candidate.name):
            return litter
        if not has_image_name(candidate.name):
            return "its extension is not a known image extension"
    if include is not None and not include.match(candidate.name):
        return "not matched by --include"
    if exclude is not None and exclude.match(candidate.name):
        return "matched by --exclude"
    if not _is_utf8(candidate.uri):
        return "its name is not UTF-8"
    shard, num_shards = selection.shard
    if num_shards > 1 and _hash(b"shard", candidate.uri) % num_shards != shard - 1:
        return f"in another shard than {shard}/{num_shards}"
    if selection.sample < 1 and _hash(b"sample", candidate.uri) >= selection.sample * 2**64:
        return f"not in the sample of {selection.sample:g}"
    return None


def _compile(globs: Sequence[str]) -> re.Pattern[str] | None:
    return re.compile("|".join(fnmatch.translate(glob) for glob in globs)) if globs else None


def _hash(purpose: bytes, uri: str) -> int:
    """Return 64 bits that are the same for an address in every run, and independent between purposes."""
    return int.from_bytes(hashlib.blake2b(uri.encode(), digest_size=8, person=purpose).digest(), "little")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
