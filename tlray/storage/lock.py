"""Let one driver at a time write to an output.

The lock is a small JSON record (host, boot id, pid, start time) with a heartbeat every 10 s. On the same host a dead
owner is detected at once; elsewhere, also in another container of the host, it counts as dead when its heartbeat is
60 s old and no longer changes. `lock_stores` makes sure that of several drivers only one gets it.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import psutil

from tlray.console import say
from tlray.errors import FetchError, OutageError, OutputError, StoppedError
from tlray.storage.addresses import is_s3, join
from tlray.storage.lock_stores import LocalLock, LockRecord, LockStore, S3Lock
from tlray.storage.records import dump_record

NAME = "_lock.json"

HEARTBEAT_S = 10.0
STALE_S = 60.0
WAIT_S = 60.0

_LOOK_S = 1.0
_CLOCK_TOLERANCE_S = 2.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PID_NAMESPACE = Path("/proc/self/ns/pid")


class Lock:
    """A lock on an output, held by this process while in the context.

    Args:
        folder: folder or prefix of the lock's record.
        output: what is locked, for messages; `folder` by default.
        wait_s: seconds to wait for another driver.
        unsafe: take it in an object store without conditional writes too, where two drivers may get it at once.

    Raises:
        StoppedError: another driver still holds it.
        OutputError: the lock cannot be written, or the store has no conditional writes.
    """

    def __init__(self, folder: str, wait_s: float = WAIT_S, *, unsafe: bool = False, output: str | None = None) -> None:
        address = join(folder, NAME)
        self._output = output or folder
        self._wait_s = wait_s
        self._token = secrets.token_hex(8)
        self._store: LockStore = LocalLock(address, self._token)
        if is_s3(address):
            self._store = S3Lock(address, self._token, unsafe=unsafe)
        self._ended = threading.Event()
        self._lost = False
        self._beat = threading.Thread(target=self._keep_beating, name="lock", daemon=True)

    def __enter__(self) -> Lock:
        began = time.monotonic()
        seen: tuple[str, float] = ("", began)
        said = False
        while not self._store.create(self._make_record()):
            held = self._store.read()
            if held is None and time.monotonic() - began < self._wait_s:
                time.sleep(_LOOK_S / 10)  # it was removed between the two calls
                continue
            held = held or LockRecord.unreadable()
            mark = f"{held.token} {held.heartbeat}"
            if mark != seen[0]:
                seen = (mark, time.monotonic())
            dead = _is_dead(held, time.monotonic() - seen[1])
            if dead and self._store.take_over(held, self._make_record()):
                break
            if time.monotonic() - began >= self._wait_s:
                raise StoppedError(
                    f"another tlray works on {self._output} (process {held.pid} on {held.host}); "
                    "let it finish or stop it, then run the same command again"
                )
            if not said and not dead:
                said = True
                where = f"process {held.pid} on {held.host}"
                say(f"another tlray works on {self._output} ({where}); waiting up to {self._wait_s:.0f} s for it")
            time.sleep(_LOOK_S / 10 if dead else _LOOK_S)
        self._beat.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._beat.join()
        with contextlib.suppress(OutputError, OutageError, FetchError, OSError):
            self._store.remove()

    @property
    def is_lost(self) -> bool:
        """True once another driver has taken over the lock."""
        return self._lost

    def check(self) -> None:
        """Raise `StoppedError` if another driver has taken over the lock, as after a stalled heartbeat."""
        if self._lost:
            raise StoppedError(f"another tlray has taken over {self._output}; this one stops")

    def _make_record(self) -> bytes:
        return dump_record(replace(_describe_self(), token=self._token, heartbeat=time.time()))

    def _keep_beating(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            # an unreachable store does not mean that the lock is lost
            with contextlib.suppress(OutputError, OutageError, FetchError, OSError):
                if not self._store.renew(self._make_record()):
                    self._lost = True
                    return


def _describe_self() -> LockRecord:
    process = psutil.Process()
    namespace = str(_PID_NAMESPACE.readlink()) if _PID_NAMESPACE.is_symlink() else ""
    return LockRecord(socket.gethostname(), _read_boot_id(), process.pid, process.create_time(), "", 0.0, namespace)


def _read_boot_id() -> str:
    return _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else str(round(psutil.boot_time()))


def _is_dead(held: LockRecord, unchanged_s: float) -> bool:
    """Return whether the writer of a record has ended; the record has been the same for `unchanged_s` seconds."""
    ours = _describe_self()
    if held.host == ours.host and held.boot_id != ours.boot_id:
        return True
    if (held.host, held.pid_namespace) == (ours.host, ours.pid_namespace):
        try:
            process = psutil.Process(held.pid)
            alive = process.status() != psutil.STATUS_ZOMBIE
            return not alive or abs(process.create_time() - held.started) > _CLOCK_TOLERANCE_S
        except psutil.NoSuchProcess:
            return True
        except psutil.Error:
            return unchanged_s > 2 * HEARTBEAT_S
    return time.time() - held.heartbeat > STALE_S and unchanged_s > 2 * HEARTBEAT_S
