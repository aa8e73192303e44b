"""Keep the record of a lock so that of several drivers only one gets it: in a file, or in an object.

A file is held by a lock of the operating system (`flock`) too, from its creation to its removal: the system releases it
when the process ends, and knows it in other containers, and on NFS on other machines. It is written in place, since a
renamed file would be another one. An object is written on the condition that it is the one that was read.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from tlray.errors import Code, FetchError, OutputError
from tlray.storage import local, s3
from tlray.storage.addresses import Request
from tlray.storage.fetch import fetch
from tlray.storage.records import RecordError, parse_record

_RECORD_BYTES = 1024
_NO_FILE_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


@dataclass(frozen=True)
class LockRecord:
    """The process that holds a lock.

    Attributes:
        host: name of its machine.
        boot_id: of that machine since it started.
        pid: process id.
        started: when the process started, seconds since the epoch.
        token: distinguishes locks of one process.
        heartbeat: last sign of life, seconds since the epoch.
        pid_namespace: in which the process has its id, as containers have their own; "" where unknown.
    """

    host: str
    boot_id: str
    pid: int
    started: float
    token: str
    heartbeat: float
    pid_namespace: str = ""

    @classmethod
    def parse(cls, data: bytes) -> LockRecord:
        """Return the record of a file or object, whatever it holds."""
        try:
            return parse_record(cls, data)
        except RecordError:
            return cls.unreadable()

    @classmethod
    def unreadable(cls) -> LockRecord:
        """Return what stands for a record that cannot be read."""
        return cls("an unknown host", "", 0, 0.0, "", 0.0)


class LockStore(Protocol):
    """The place of a lock's record; all methods raise `OutputError` or `OutageError` if it cannot be reached."""

    def create(self, record: bytes) -> bool:
        """Write the record if there is none; return whether the lock is ours."""

    def read(self) -> LockRecord | None:
        """Return the record, None without one."""

    def take_over(self, dead: LockRecord, record: bytes) -> bool:
        """Write the record in place of a dead driver's, unless another one did; return whether the lock is ours."""

    def renew(self, record: bytes) -> bool:
        """Write the record with a new heartbeat; return False if the lock is another's by now."""

    def remove(self) -> None:
        """Remove the record if it is ours."""


def _read_record(address: str) -> LockRecord | None:
    data = fetch(Request(address)).data
    if not isinstance(data, FetchError):
        return LockRecord.parse(data)
    if data.code is not Code.NOT_FOUND:
        raise OutputError(f"{address} cannot be read: {data}")
    return None


class LocalLock:
    """A record in a file."""

    def __init__(self, address: str, token: str) -> None:
        self._path = Path(address)
        self._token = token
        self._file: BinaryIO | None = None

    def create(self, record: bytes) -> bool:
        """Do as `LockStore.create`."""
        if not local.put_new(str(self._path), _pad(record)):
            return False
        self._file = self._open_locked()
        return self._file is not None and self._is_ours()

    def read(self) -> LockRecord | None:
        """Do as `LockStore.read`."""
        return _read_record(str(self._path))

    def take_over(self, dead: LockRecord, record: bytes) -> bool:
        """Do as `LockStore.take_over`; a file that is still held has a living owner."""
        file = self._open_locked()
        if file is None:
            return False
        if _read(file).token != dead.token:
            file.close()
            return False
        self._file = file
        self._write(record)
        return True

    def renew(self, record: bytes) -> bool:
        """Do as `LockStore.renew`."""
        if not self._is_ours():
            return False
        self._write(record)
        return True

    def remove(self) -> None:
        """Do as `LockStore.remove`."""
        if self._file is not None:
            if self._is_ours():
                self._path.unlink()
            self._file.close()

    def _open_locked(self) -> BinaryIO | None:
        """Return the file, held by this process; None if another one holds it, or it is gone."""
        try:
            file = self._path.open("r+b", buffering=0)  # NFS holds only files that are open for writing
        except FileNotFoundError:
            return None
        with contextlib.ExitStack() as stack:
            stack.enter_context(file)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return None
            except OSError as error:  # the record alone has to do
                if error.errno not in _NO_FILE_LOCKS:
                    raise
            if not _is_at(file, self._path):
                return None
            stack.pop_all()
        return file

    def _is_ours(self) -> bool:
        return self._file is not None and _is_at(self._file, self._path) and _read(self._file).token == self._token

    def _write(self, record: bytes) -> None:
        assert self._file is not None
        os.pwrite(self._file.fileno(), _pad(record), 0)
        os.fsync(self._file.fileno())


def _pad(record: bytes) -> bytes:
    """Return a record of fixed length, which one write replaces."""
    return record.ljust(_RECORD_BYTES)


def _read(file: BinaryIO) -> LockRecord:
    return LockRecord.parse(os.pread(file.fileno(), _RECORD_BYTES, 0))


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Return whether an open file is still the one at a path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


class S3Lock:
    """A record in an object."""

    def __init__(self, address: str, token: str, *, unsafe: bool) -> None:
        self._address = address
        self._token = token
        self._unsafe = unsafe
        self._etag: str | None = None

    def create(self, record: bytes) -> bool:
        """Do as `LockStore.create`.

        Raises:
            OutputError: the store ignores conditions.
        """
        if self.read() is not None:
            return False
        self._etag = s3.put_if(self._address, record, None, unsafe=self._unsafe)
        if not self._confirm():
            return False
        if not self._unsafe and s3.put_if(self._address, record, None) is not None:
            s3.delete(self._address)
            raise OutputError(
                f"{self._address} is written in a store that ignores conditions, where two drivers could write one "
                "output; give another store, or --unsafe-lock if nobody else writes there"
            )
        return True

    def read(self) -> LockRecord | None:
        """Do as `LockStore.read`."""
        return _read_record(self._address)

    def take_over(self, dead: LockRecord, record: bytes) -> bool:
        """Do as `LockStore.take_over`."""
        _, etag = s3.head(self._address)
        held = self.read()
        if held is None or held.token != dead.token:
            return False
        self._etag = s3.put_if(self._address, record, etag, unsafe=self._unsafe)
        return self._confirm()

    def renew(self, record: bytes) -> bool:
        """Do as `LockStore.renew`."""
        self._etag = s3.put_if(self._address, record, self._etag, unsafe=self._unsafe)
        return self._etag is not None or self._confirm()

    def remove(self) -> None:
        """Do as `LockStore.remove`."""
        if self._is_ours():
            s3.delete(self._address, self._etag)

    def _is_ours(self) -> bool:
        held = self.read()
        return held is not None and held.token == self._token

    def _confirm(self) -> bool:
        """Return whether the stored record is ours, and keep its etag: the response to the write may have been lost."""
        if not self._is_ours():
            return False
        if self._etag is None:
            _, self._etag = s3.head(self._address)
        return True
