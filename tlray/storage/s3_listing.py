"""List S3: several prefixes at once, each kept on disk until its turn, so that memory stays bounded."""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from queue import SimpleQueue
from typing import Any

from tlray.errors import Code, DataError, FetchError, OutputError
from tlray.storage.addresses import Entry, split_s3
from tlray.storage.s3_client import ARCHIVED, ARCHIVED_REASON, explain_as, explain_fetch, get_client, name_payer

_THREADS = 16
_FIRST_KEYS = 100
_PAGE_KEYS = 1000
_MOST_LEVEL_PAGES = 10


def has_content(uri: str) -> bool:
    """Return whether a prefix holds any object.

    Raises:
        OutputError: it cannot be listed.
    """
    bucket, key = split_s3(uri)
    prefix = f"{key}/" if key else ""
    with explain_as(OutputError, uri, "listed"):
        return bool(
            get_client().list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1, **name_payer()).get("Contents")
        )


def find_any(uri: str) -> Entry:
    """Return the largest of the first objects below a prefix, or the one object at `uri`.

    Raises:
        FetchError: no object exists there, or it cannot be listed.
    """
    bucket, key = split_s3(uri)
    prefix = f"{key}/" if key else ""
    for start in dict.fromkeys((prefix, key)):
        with explain_fetch():
            page = get_client().list_objects_v2(Bucket=bucket, Prefix=start, MaxKeys=_FIRST_KEYS, **name_payer())
        found = [item for item in page.get("Contents", ()) if start == prefix or item["Key"] == key]
        if found:
            return _make_entry(bucket, start, max(found, key=lambda item: item["Size"]))
    raise FetchError(Code.NOT_FOUND, "no object exists at or below this address")


def iter_files(uri: str) -> Iterator[Entry]:
    """Yield the objects below a prefix in order of their keys, or the one object at `uri`.

    Raises:
        DataError: no object exists there, or it cannot be listed.
    """
    bucket, key = split_s3(uri)
    prefix = f"{key}/" if key else ""
    found = False
    with explain_as(DataError, uri, "listed"):
        for entry in _iter_tree(bucket, prefix):
            found = True
            yield entry
        if not found and key:
            for entry in _iter_objects(bucket, key, ""):
                if entry.uri == uri:
                    yield entry._replace(name=key.rpartition("/")[2])
                    return
    if not found:
        raise DataError(f"{uri} holds no objects; give a prefix or an object that exists")


def _iter_tree(bucket: str, prefix: str) -> Iterator[Entry]:
    here, children = _list_level(bucket, prefix, prefix)
    below = prefix
    while len(children) == 1 and not here:
        below = children[0]
        here, children = _list_level(bucket, below, prefix)
    if len(children) < 2:
        yield from _iter_objects(bucket, below, prefix)
        return
    with tempfile.TemporaryDirectory(prefix="tlray-list-") as folder, ThreadPoolExecutor(_THREADS) as pool:
        spools = {name: _Spool(os.path.join(folder, str(index))) for index, name in enumerate(children)}  # noqa: PTH118
        try:
            for name, spool in spools.items():
                pool.submit(spool.fill, bucket, name, prefix)
            for name in sorted([*here, *children]):
                if name in spools:
                    yield from spools[name]
                else:
                    yield here[name]
        finally:
            for spool in spools.values():
                spool.stop()
            pool.shutdown(cancel_futures=True)


def _list_level(bucket: str, prefix: str, base: str) -> tuple[dict[str, Entry], list[str]]:
    """Return the objects directly below a prefix, by key, and the prefixes; neither if there are more than 10 pages.

    Names of objects are relative to `base`.
    """
    objects: dict[str, Entry] = {}
    children: list[str] = []
    pages = get_client().get_paginator("list_objects_v2")
    for number, page in enumerate(pages.paginate(Bucket=bucket, Prefix=prefix, Delimiter="/", **name_payer())):
        objects.update((item["Key"], _make_entry(bucket, base, item)) for item in page.get("Contents", ()))
        children += [item["Prefix"] for item in page.get("CommonPrefixes", ())]
        if number == _MOST_LEVEL_PAGES:  # very many objects: the caller lists them in sequence
            return {}, []
    return objects, children


def _iter_objects(bucket: str, prefix: str, base: str) -> Iterator[Entry]:
    """Yield the objects whose keys start with `prefix`; names are relative to `base`."""
    for page in get_client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, **name_payer()):
        for item in page.get("Contents", ()):
            yield _make_entry(bucket, base, item)


def _make_entry(bucket: str, base: str, item: dict[str, Any]) -> Entry:
    key: str = item["Key"]
    modified = int(item["LastModified"].timestamp() * 1e9)
    archived = ARCHIVED_REASON if item.get("StorageClass") in ARCHIVED else None
    return Entry(f"s3://{bucket}/{key}", key[len(base) :], item["Size"], item["ETag"].strip('"'), modified, archived)


class _Spool:
    """The listing of one prefix: written to disk by a thread, and read when its turn comes."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._pages: SimpleQueue[int | Exception | None] = SimpleQueue()
        self._stopped = False

    def fill(self, bucket: str, prefix: str, base: str) -> None:
        """List a prefix; put the length of each page into the queue, then None or the error."""
        entries = _iter_objects(bucket, prefix, base)
        try:
            with open(self._path, "ab", buffering=0) as file:  # noqa: PTH123
                while not self._stopped and (page := list(islice(entries, _PAGE_KEYS))):
                    data = pickle.dumps([tuple(entry) for entry in page])
                    file.write(data)
                    self._pages.put(len(data))
        except Exception as error:
            self._pages.put(error)
        else:
            self._pages.put(None)

    def stop(self) -> None:
        """Stop listing after the current page."""
        self._stopped = True

    def __iter__(self) -> Iterator[Entry]:
        position = 0
        while (length := self._pages.get()) is not None:
            if isinstance(length, Exception):
                raise length
            with open(self._path, "rb") as file:  # noqa: PTH123
                file.seek(position)
                yield from (Entry(*item) for item in pickle.loads(file.read(length)))
            position += length
        if position:
            os.unlink(self._path)  # noqa: PTH108
