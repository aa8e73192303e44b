"""List, read and write local files; a file is written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tlray.errors import Code, DataError, FetchError, OutputError
from tlray.storage.addresses import Entry, LargerError, Request, join

_FIRST_FILES = 100


def iter_files(uri: str) -> Iterator[Entry]:
    """Yield the files below a folder in order of their paths, or the one file at `uri`; enter each folder once.

    Raises:
        DataError: `uri` does not exist or cannot be listed; a folder below it that cannot is an unreadable entry.
    """
    root = Path(uri)
    if root.is_file():
        yield _stat(uri, root.name)
    elif root.is_dir():
        yield from _walk(uri, "", set())
    else:
        raise DataError(f"{uri} does not exist; give an existing folder or file, or an s3:// address")


def _walk(folder: str, prefix: str, seen: set[tuple[int, int]]) -> Iterator[Entry]:
    try:
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder that was listed before
            return
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            # a folder sorts with its slash: S3 lists keys in this order
            ordered = sorted(f"{entry.name}/" if _is_folder(entry) else entry.name for entry in entries)
    except OSError as error:
        if not prefix:
            raise DataError(f"{folder} cannot be listed: {error.strerror}; give a folder that you may read") from None
        yield Entry(folder, prefix[:-1], 0, None, 0, f"a folder that cannot be listed: {error.strerror}")
        return
    for name in ordered:
        if name.endswith("/"):
            yield from _walk(join(folder, name[:-1]), prefix + name, seen)
        else:
            yield _stat(join(folder, name), prefix + name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder or a link to one; a link that leads nowhere is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _stat(path: str, name: str) -> Entry:
    try:
        status = os.stat(path)  # noqa: PTH116  (millions of Path objects cost more than the listing)
    except OSError as error:
        return Entry(path, name, 0, None, 0, f"its status cannot be read: {error.strerror}")
    reason = None if stat.S_ISREG(status.st_mode) else "not a plain file"
    return Entry(path, name, status.st_size, None, status.st_mtime_ns, reason, status.st_ctime_ns)


def find_any(uri: str) -> Entry:
    """Return the largest of the first files below a folder, or the one file at `uri`.

    Raises:
        FetchError: `uri` does not exist, holds no files or cannot be listed.
    """
    if not os.path.exists(uri):  # noqa: PTH110  (Path.exists raises where a folder may not be searched)
        raise FetchError(Code.NOT_FOUND, "there is no such file or folder")
    try:
        found = [entry for entry in islice(iter_files(uri), _FIRST_FILES) if entry.unreadable is None]
    except DataError as error:
        raise FetchError(Code.DENIED, str(error)) from None
    if not found:
        raise FetchError(Code.NOT_FOUND, "the folder holds no files")
    return max(found, key=lambda entry: entry.size)


def try_writing(uri: str) -> None:
    """Check that files can be written into a folder, without writing one.

    Raises:
        FetchError: the folder does not exist or cannot be written to.
    """
    if not os.path.isdir(uri):  # noqa: PTH112  (as above)
        raise FetchError(Code.NOT_FOUND, "there is no such folder")
    if not os.access(uri, os.W_OK | os.X_OK):
        raise FetchError(Code.DENIED, "the folder cannot be written to")


def find_file(uri: str) -> Entry | None:
    """Return a plain file, named by its path; None if it does not exist."""
    try:
        status = os.stat(uri)  # noqa: PTH116  (as in `_stat`)
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return Entry(uri, uri, status.st_size, None, status.st_mtime_ns, None, status.st_ctime_ns)


def is_folder(uri: str) -> bool:
    """Return whether there is a folder of that name."""
    return os.path.isdir(uri)  # noqa: PTH112  (Path.is_dir may raise)


def has_content(uri: str) -> bool:
    """Return whether a folder holds anything, or a file has that name."""
    path = Path(uri)
    return path.is_file() or (path.is_dir() and any(path.iterdir()))


def read(request: Request) -> bytes:
    """Read a file, or a range of it.

    Raises:
        FetchError: NOT_FOUND, DENIED, TIMEOUT, CHANGED, TOO_LARGE, or UNSUPPORTED if it is not a plain file.
    """
    with explain(), open(request.uri, "rb", buffering=0, opener=_open_now) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise FetchError(Code.UNSUPPORTED, "not a plain file")
        check_unchanged(request, status.st_size, None, status.st_mtime_ns)
        if request.length is None:
            check_size(request, status.st_size)
            return file.readall()
        return _read_range(file.fileno(), request.offset or 0, request.length)


def _open_now(path: str, flags: int) -> int:
    """Open a file without waiting, as for somebody who writes into a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


@contextlib.contextmanager
def explain() -> Iterator[None]:
    """Turn errors of the operating system into `FetchError`."""
    try:
        yield
    except FileNotFoundError:
        raise FetchError(Code.NOT_FOUND, "the file no longer exists") from None
    except PermissionError:
        raise FetchError(Code.DENIED, "permission to read the file is denied") from None
    except OSError as error:
        code = Code.TIMEOUT if is_transient(error) else Code.NOT_FOUND
        raise FetchError(code, f"the file cannot be read: {error.strerror}") from None


def is_transient(error: OSError) -> bool:
    """Return whether the disk or a network folder failed, and not the file."""
    return error.errno in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)


def _read_range(descriptor: int, offset: int, length: int) -> bytes:
    """Read a range up to the end of the file; one `pread` may return less than requested."""
    pieces = []
    while length > 0:
        piece = os.pread(descriptor, length, offset)
        if not piece:
            break
        pieces.append(piece)
        offset += len(piece)
        length -= len(piece)
    return b"".join(pieces)


def check_unchanged(request: Request, size: int, etag: str | None, mtime_ns: int | None) -> None:
    """Raise CHANGED if a file differs from the one that was planned."""
    changes = []
    if request.size is not None and request.size != size:
        changes.append(f"{request.size:,} bytes then, {size:,} now")
    if request.etag is not None and etag is not None and request.etag != etag:
        changes.append(f"etag {request.etag} then, {etag} now")
    elif request.etag is None and None not in (request.mtime_ns, mtime_ns) and request.mtime_ns != mtime_ns:
        changes.append("another modification time")
    if changes:
        raise FetchError(Code.CHANGED, f"changed since it was planned: {'; '.join(changes)}")


def check_size(request: Request, size: int) -> None:
    """Raise TOO_LARGE if a file holds more than `max_bytes`, `LargerError` if more than `room`."""
    if request.max_bytes is not None and size > request.max_bytes:
        message = f"the file holds {size:,} bytes, more than --max-bytes {request.max_bytes:,}"
        raise FetchError(Code.TOO_LARGE, message)
    if request.room is not None and size > request.room:
        raise LargerError(size)


def put(uri: str, data: bytes) -> int:
    """Write a file under a temporary name, sync it and rename it; return its modification time in nanoseconds.

    Raises:
        OutputError: it cannot be written.
    """
    path = Path(uri)
    with _write_partial(path, data) as partial:
        mtime_ns = partial.stat().st_mtime_ns
        partial.replace(path)
        _sync_folder(path.parent)
    return mtime_ns


def put_new(uri: str, data: bytes) -> bool:
    """Write a file unless one exists, and return whether it was written.

    Raises:
        OutputError: it cannot be written.
    """
    path = Path(uri)
    with _write_partial(path, data) as partial:
        try:
            os.link(partial, path)  # fails if the name is taken; else the whole content appears at once
        except FileExistsError:
            return False
        except OSError:  # no hard links on this filesystem
            try:
                with path.open("xb") as file:
                    file.write(data)
            except FileExistsError:
                return False
    return True


@contextlib.contextmanager
def _write_partial(path: Path, data: bytes) -> Iterator[Path]:
    """Yield a synced temporary file beside `path`, and remove it; raise `OutputError` where writing fails."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield partial
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def put_folder(uri: str, files: dict[str, bytes], names: list[str]) -> None:
    """Write a folder under a temporary name, then rename it.

    Raises:
        OutputError: it cannot be written.
    """
    path = Path(uri)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        for name in names:
            put(join(str(partial), name), files[name])
        if path.is_dir():
            path.rmdir()  # an empty folder that the user made; others raise
        partial.rename(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise OutputError(f"{uri} cannot be written: {error.strerror}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_writable(uri: str, option: str) -> None:
    """Raise `OutputError` if a new folder cannot be made."""
    parent = Path(uri)
    while not os.path.exists(parent):  # noqa: PTH110  (Path.exists raises where a folder may not be searched)
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{option} {uri} cannot be written: {parent} is not a folder that you may write to")


def _sync_folder(folder: Path) -> None:
    """Make a rename durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
