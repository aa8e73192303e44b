"""Checks of single values, each fault one sentence that says what was allowed and what came; reported all together."""

from __future__ import annotations

import math

from tlray.errors import ConfigError

SCHEMES = "a local path or s3://bucket/prefix"


class Faults:
    """Collects one sentence for each value that is not allowed."""

    def __init__(self) -> None:
        self._sentences: list[str] = []

    def add(self, sentence: str) -> None:
        """Add a sentence."""
        self._sentences.append(sentence)

    def check_range(self, name: str, value: float, low: float, high: float) -> None:
        """Take `low` to `high`, both included."""
        if not low <= value <= high:
            self.add(f"{_flag(name)} takes {low:,} to {high:,}; got {value}")

    def check_positive(self, name: str, value: float) -> None:
        """Take finite numbers above 0."""
        if not 0 < value < math.inf:
            self.add(f"{_flag(name)} takes a number above 0; got {value}")

    def check_share(self, name: str, value: float) -> None:
        """Take shares above 0, up to 1."""
        if not 0 < value <= 1:
            self.add(f"{_flag(name)} takes a share above 0, up to 1; got {value}")

    def check_uri(self, name: str, value: str | None) -> None:
        """Take None, a local path, or `s3://` with a bucket."""
        if value is None:
            return
        scheme, separator, rest = value.partition("://")
        if not value.strip():
            self.add(f"{_flag(name)} takes {SCHEMES}; got an empty string")
        elif separator and scheme != "s3":
            self.add(f"{_flag(name)} takes {SCHEMES}; got the scheme {scheme + '://'!r}")
        elif separator and not rest.split("/")[0]:
            self.add(f"{_flag(name)} takes {SCHEMES}; got {value!r} without a bucket")

    def report(self) -> None:
        """Raise what was collected.

        Raises:
            ConfigError: a value is not allowed; all of them in one.
        """
        if self._sentences:
            raise ConfigError(self._sentences)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
