"""Commands one after another in a process that stays joined to a Ray cluster, as in a notebook.

Starting a process, a Ray and Ray Data's actors takes a command on a few images longer than its work.
"""

import contextlib
import importlib
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO

import pytest


class Runner:
    """The process; a context manager."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)

    def __enter__(self) -> "Runner":
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.entry.runner"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self._environment,
        )
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._process.communicate(timeout=60)
        finally:
            self._process.kill()

    def fits(self, environment: Mapping[str, str]) -> bool:
        """Whether a command in this environment may run here."""
        changed = dict(environment.items() ^ self._environment.items())
        return changed.keys() <= {"PYTEST_CURRENT_TEST"} and self._process.poll() is None

    def run(
        self, arguments: Sequence[str], timeout_s: float, constants: Mapping[str, float] | None = None
    ) -> tuple[int, str]:
        """Run a command, with other values of constants `package.module:NAME`; its exit code and what it printed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([arguments, constants or {}]), file=self._process.stdin, flush=True)
        if not select.select([self._process.stdout], [], [], timeout_s)[0]:
            self._process.kill()
            raise TimeoutError(f"after {timeout_s} s: {arguments}")
        code, output = json.loads(self._process.stdout.readline())
        return code, output


@contextlib.contextmanager
def capture() -> Iterator[Callable[[], str]]:
    """Collects what is written to stdout and stderr, by whatever code."""
    kept = [os.dup(1), os.dup(2)]
    with tempfile.TemporaryFile("w+") as file:
        try:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            yield lambda: read_all(file)
        finally:
            for number, copy in enumerate(kept, 1):
                os.dup2(copy, number)
                os.close(copy)


def read_all(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


def run(arguments: list[str], constants: dict[str, float]) -> tuple[int, str]:
    from tlray.cli import main

    with capture() as read, pytest.MonkeyPatch.context() as patch:
        for place, value in constants.items():
            module, _, name = place.partition(":")
            patch.setattr(importlib.import_module(module), name, value)
        try:
            code = main(arguments)
        except SystemExit as ended:  # of the parser
            code = ended.code if isinstance(ended.code, int) else 1
        sys.stdout.flush()
        sys.stderr.flush()
        return code, read()


def serve() -> None:
    from tlray.cluster.connect import connect

    with contextlib.ExitStack() as stack:
        with capture():
            stack.enter_context(connect(None, None, verbose=False))
        for line in sys.stdin:
            print(json.dumps(run(*json.loads(line))), flush=True)


if __name__ == "__main__":
    serve()
