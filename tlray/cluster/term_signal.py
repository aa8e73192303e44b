"""Stop in order at SIGTERM, as schedulers and spot machines send it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType

from tlray.console import say


class TermSignal:
    """A context in which the first SIGTERM calls `stop` and sets `received`; a second one ends the process as usual."""

    def __init__(self, stop: Callable[[], None], doing: str) -> None:
        """Make the context; `doing` is what to print after "SIGTERM: "."""
        self._stop = stop
        self._doing = doing
        self.received = False

    def __enter__(self) -> TermSignal:
        self._ours = threading.current_thread() is threading.main_thread()
        if self._ours:
            self._before = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._ours:
            signal.signal(signal.SIGTERM, self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        signal.signal(signal.SIGTERM, self._before)
        # in a thread: the interrupted code may hold locks that printing and stopping need
        threading.Thread(target=self._finish, name="stop", daemon=True).start()

    def _finish(self) -> None:
        say(f"SIGTERM: {self._doing}")
        self._stop()
