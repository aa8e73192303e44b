"""Let one driver at a time write to an output.

The lock is a small JSON record (host, boot id, pid, start time) with a heartbeat every 10 s. On the same host a dead
owner is detected at once; on another host it counts as dead when its heartbeat is 60 s old and no longer changes.
"""

from __future__ import annotations

import contextlib
import fcntl
import secrets
import socket
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import psutil

from tlray.console import say
from tlray.errors import Code, FetchError, OutageError, OutputError, StoppedError
from tlray.storage import local, s3
from tlray.storage.addresses import Request, is_s3, join
from tlray.storage.fetch import fetch
from tlray.storage.records import RecordError, dump_record, parse_record

NAME = "_lock.json"

HEARTBEAT_S = 10.0
STALE_S = 60.0
WAIT_S = 60.0

_LOOK_S = 1.0
_CLOCK_TOLERANCE_S = 2.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


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
    """

    host: str
    boot_id: str
    pid: int
    started: float
    token: str
    heartbeat: float


_UNREADABLE = LockRecord("an unknown host", "", 0, 0.0, "", 0.0)


class Lock:
    """A lock on an output, held by this process while in the context.

    Raises:
        StoppedError: another driver still holds it after `wait_s` seconds.
        OutputError: the lock cannot be written.
    """

    def __init__(self, output: str, wait_s: float = WAIT_S) -> None:
        self._output = output
        self._address = join(output, NAME)
        self._wait_s = wait_s
        self._token = secrets.token_hex(8)
        self._ended = threading.Event()
        self._lost = False
        self._etag: str | None = None
        self._beat = threading.Thread(target=self._keep_beating, name="lock", daemon=True)

    def __enter__(self) -> Lock:
        began = time.monotonic()
        seen: tuple[str, float] = ("", began)
        said = False
        while not self._create():
            held = self._read()
            if held is None and time.monotonic() - began < self._wait_s:
                time.sleep(_LOOK_S / 10)  # it was removed between the two calls
                continue
            held = held or _UNREADABLE
            mark = f"{held.token} {held.heartbeat}"
            if mark != seen[0]:
                seen = (mark, time.monotonic())
            if _is_dead(held, time.monotonic() - seen[1]):
                if self._take_over(held):
                    break
                continue
            if time.monotonic() - began >= self._wait_s:
                raise StoppedError(
                    f"another tlray works on {self._output} (process {held.pid} on {held.host}); "
                    "let it finish or stop it, then run the same command again"
                )
            if not said:
                said = True
                where = f"process {held.pid} on {held.host}"
                say(f"another tlray works on {self._output} ({where}); waiting up to {self._wait_s:.0f} s for it")
            time.sleep(_LOOK_S)
        self._beat.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._beat.join()
        with contextlib.suppress(OutputError, OutageError, OSError):
            if not self._lost and self._is_ours():
                if is_s3(self._address):
                    s3.delete(self._address)
                else:
                    Path(self._address).unlink(missing_ok=True)

    def check(self) -> None:
        """Raise `StoppedError` if another driver has taken over the lock, as after a stalled heartbeat."""
        if self._lost:
            raise StoppedError(f"another tlray has taken over {self._output}; this one stops")

    def _make_record(self) -> bytes:
        return dump_record(replace(_describe_self(), token=self._token, heartbeat=time.time()))

    def _create(self) -> bool:
        if is_s3(self._address):
            if self._read() is not None:  # some stores ignore the condition
                return False
            s3.put_if(self._address, self._make_record(), None)
            return self._find_etag()
        return local.put_new(self._address, self._make_record())

    def _read(self) -> LockRecord | None:
        data = fetch(Request(self._address)).data
        if isinstance(data, FetchError):
            if data.code is not Code.NOT_FOUND:
                raise OutputError(f"{self._address} cannot be read: {data}")
            return None
        try:
            return parse_record(LockRecord, data)
        except RecordError:
            return _UNREADABLE

    def _is_ours(self) -> bool:
        held = self._read()
        return held is not None and held.token == self._token

    def _find_etag(self) -> bool:
        """Return whether the stored record is ours, and keep its etag: the response to the write may have been lost."""
        if not self._is_ours():
            return False
        _, self._etag = s3.head(self._address)
        return True

    def _take_over(self, dead: LockRecord) -> bool:
        """Replace a dead driver's record unless another driver did so first; return whether the lock is ours."""
        if is_s3(self._address):
            _, etag = s3.head(self._address)
            held = self._read()
            if held is None or held.token != dead.token:
                return False
            s3.put_if(self._address, self._make_record(), etag)
            return self._find_etag()
        try:
            with Path(self._address).open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                held = self._read()
                if held is None or held.token != dead.token:
                    return False
                local.put(self._address, self._make_record())
        except FileNotFoundError:
            return False
        return True

    def _keep_beating(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            # an unreachable store does not mean that the lock is lost
            with contextlib.suppress(OutputError, OutageError, FetchError, OSError):
                held = self._read()
                if held is not None and held.token != self._token:
                    self._lost = True
                    return
                if is_s3(self._address):
                    self._etag = s3.put_if(self._address, self._make_record(), self._etag)
                    if self._etag is None:
                        self._find_etag()
                else:
                    local.put(self._address, self._make_record())


def _describe_self() -> LockRecord:
    process = psutil.Process()
    return LockRecord(socket.gethostname(), _read_boot_id(), process.pid, process.create_time(), "", 0.0)


def _read_boot_id() -> str:
    return _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else str(round(psutil.boot_time()))


def _is_dead(held: LockRecord, unchanged_s: float) -> bool:
    """Return whether the writer of a record has ended; the record has been the same for `unchanged_s` seconds."""
    if held.host == socket.gethostname():
        if held.boot_id != _read_boot_id():
            return True
        try:
            process = psutil.Process(held.pid)
            alive = process.status() != psutil.STATUS_ZOMBIE
            return not alive or abs(process.create_time() - held.started) > _CLOCK_TOLERANCE_S
        except psutil.NoSuchProcess:
            return True
        except psutil.Error:
            return unchanged_s > 2 * HEARTBEAT_S
    return time.time() - held.heartbeat > STALE_S and unchanged_s > 2 * HEARTBEAT_S
