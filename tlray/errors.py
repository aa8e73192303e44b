"""Every error tlray raises on purpose, in one tree; all of them pickle, so they cross Ray unharmed.

TlrayError                 exit 1
├── UsageError             exit 2: found before any cluster starts, and the user can mend it
│   ├── ConfigError        values that are not allowed, all of them together
│   ├── DataError          labelled folders or inputs that cannot be used
│   ├── WeightsError       pre-trained weights that are missing or of another network
│   ├── BundleError        a bundle that is missing, changed or of another format
│   └── OutputError        an output location that holds something else
├── StoppedError           exit 1: a job that ended early; what it finished stays
│   └── DivergedError      a loss that is not finite
└── InputError             one input that cannot be used; carries a Code
    ├── ImageError         its bytes are at fault: becomes a row
    └── FetchError         the way to it is at fault, or it is gone
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum

OK = "ok"
"""Status of a row without error."""


class Code(StrEnum):
    """What is wrong with one input; written to the `status` column of its row."""

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


IN_THE_WAY = frozenset({Code.DENIED, Code.THROTTLED, Code.TIMEOUT})
"""What lies in the way to an image, rather than in the image: worth another try."""


class TlrayError(Exception):
    """Base of every error that tlray raises on purpose."""

    exit_code = 1


class UsageError(TlrayError):
    """Something the user typed or pointed at cannot be used."""

    exit_code = 2


class ConfigError(UsageError):
    """Values that are not allowed; `faults` holds one sentence for each."""

    def __init__(self, faults: Iterable[str]) -> None:
        self.faults = tuple(faults)
        super().__init__(self.faults)

    def __str__(self) -> str:
        return "\n".join(self.faults)


class DataError(UsageError):
    """Labelled folders or inputs that cannot be used."""


class WeightsError(UsageError):
    """Pre-trained weights that are missing, damaged or of another network."""


class BundleError(UsageError):
    """A bundle that is missing, changed or of another format."""


class OutputError(UsageError):
    """An output location that holds something else, or that cannot be written."""


class StoppedError(TlrayError):
    """A job that ended before its end; what it finished stays and the same command goes on."""


class DivergedError(StoppedError):
    """A training loss that is not finite."""


class InputError(TlrayError):
    """One input that cannot be used."""

    def __init__(self, code: Code, message: str) -> None:
        self.code = code
        self.message = message
        super().__init__(code, message)

    def __str__(self) -> str:
        return self.message


class ImageError(InputError):
    """The bytes of one image are at fault.

    `width` and `height` are its upright size in pixels where the header told, else None.
    """

    def __init__(self, code: Code, message: str, width: int | None = None, height: int | None = None) -> None:
        super().__init__(code, message)
        self.width = width
        self.height = height
        self.args = (code, message, width, height)


class FetchError(InputError):
    """The bytes of one input could not be had, or are not those that were planned."""


_CHAINED = re.compile(r"\n\s*\n(?:The above exception was|During handling of the above)")
_NOT_THE_CAUSE = re.compile(
    r"\s*(?:$|\[\[\{\{node |Failed to .+ after \d+/\d+ attempts|To change retry attempts, |This looks like an AWS S3 )"
)


def last_line(error: object) -> str:
    """What an error says at its end, where Ray and TensorFlow put the cause; its type where it says nothing.

    Of errors that led to one another the first counts. Ray's advice on its own settings, and the node of TensorFlow's
    graph, are no causes.
    """
    lines = [line.strip() for line in _CHAINED.split(str(error))[0].splitlines() if not _NOT_THE_CAUSE.match(line)]
    return lines[-1] if lines else type(error).__name__
