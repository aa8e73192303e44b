"""All errors that tlray raises on purpose; they pickle, so they pass through Ray unchanged.

TlrayError                 exit 1
├── UsageError             exit 2: the user can fix it; mostly found before a cluster starts
│   ├── ConfigError        option values that are not allowed, all of them together
│   ├── DataError          labelled images or inputs that cannot be used
│   ├── WeightsError       pre-trained weights that are missing, damaged or of another network
│   ├── BundleError        a bundle that is missing, changed or of another format
│   └── OutputError        an output location that holds something else or cannot be written
├── StoppedError           exit 1: a job that ended early; what it finished is kept
│   ├── DivergedError      a training loss that is not finite
│   └── OutageError        an object store that does not answer
└── InputError             one input that cannot be used; carries a Code
    ├── ImageError         its bytes cannot be decoded: becomes a failed row
    └── FetchError         its bytes cannot be fetched, or have changed
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum

OK = "ok"
"""Status of a row without an error."""


class Code(StrEnum):
    """Reason why an input failed; written to the `status` column of its row."""

    NOT_FOUND = "NOT_FOUND"
    DENIED = "DENIED"
    THROTTLED = "THROTTLED"
    TIMEOUT = "TIMEOUT"
    EMPTY = "EMPTY"
    TOO_LARGE = "TOO_LARGE"
    TRUNCATED = "TRUNCATED"
    UNSUPPORTED = "UNSUPPORTED"
    CORRUPT = "CORRUPT"
    BOMB = "BOMB"
    CHANGED = "CHANGED"
    CRASHED = "CRASHED"
    MODEL_ERROR = "MODEL_ERROR"


UNREACHABLE = frozenset({Code.DENIED, Code.THROTTLED, Code.TIMEOUT})
"""Codes of errors in reaching an image, not in the image itself: worth a retry."""


class TlrayError(Exception):
    """Base of all errors that tlray raises on purpose."""

    exit_code = 1


class UsageError(TlrayError):
    """An option, a file or a location of the user's that cannot be used."""

    exit_code = 2


class ConfigError(UsageError):
    """Option values that are not allowed; `faults` holds one sentence per value."""

    def __init__(self, faults: Iterable[str]) -> None:
        self.faults = tuple(faults)
        super().__init__(self.faults)

    def __str__(self) -> str:
        return "\n".join(self.faults)


class DataError(UsageError):
    """Labelled images or inputs that cannot be used."""


class WeightsError(UsageError):
    """Pre-trained weights that are missing, damaged or of another network."""


class BundleError(UsageError):
    """A bundle that is missing, changed or of another format."""


class OutputError(UsageError):
    """An output location that holds something else, or that cannot be written."""


class StoppedError(TlrayError):
    """A job that ended early; what it finished is kept, and the same command resumes it."""


class DivergedError(StoppedError):
    """A training loss that is not finite."""


class OutageError(StoppedError):
    """An object store that does not answer, or throttles every request."""


class InputError(TlrayError):
    """One input that cannot be used."""

    def __init__(self, code: Code, message: str) -> None:
        self.code = code
        self.message = message
        super().__init__(code, message)

    def __str__(self) -> str:
        return self.message


class ImageError(InputError):
    """An image whose bytes cannot be decoded.

    `width` and `height` are its upright size in pixels, None where the header could not be read.
    """

    def __init__(self, code: Code, message: str, width: int | None = None, height: int | None = None) -> None:
        super().__init__(code, message)
        self.width = width
        self.height = height
        self.args = (code, message, width, height)


class FetchError(InputError):
    """An input whose bytes could not be fetched, or have changed since it was planned.

    `retry_after_s` are the seconds after which a throttling store wants to be asked again, None if it says nothing.
    """

    def __init__(self, code: Code, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(code, message)
        self.retry_after_s = retry_after_s
        self.args = (code, message, retry_after_s)


_CHAINED = re.compile(r"\n\s*\n(?:The above exception was|During handling of the above)")
_NOT_THE_CAUSE = re.compile(
    r"\s*(?:$|\[\[\{\{node |Failed to .+ after \d+/\d+ attempts|To change retry attempts, |This looks like an AWS S3 )"
)


def last_line(error: object) -> str:
    """Return the last line of an error's message, where Ray and TensorFlow put the cause, or its type if it is empty.

    Of chained errors the first counts. Ray's advice on its settings and TensorFlow's graph nodes are skipped.
    """
    lines = [line.strip() for line in _CHAINED.split(str(error))[0].splitlines() if not _NOT_THE_CAUSE.match(line)]
    return lines[-1] if lines else type(error).__name__
