"""Decide when to write a checkpoint within an epoch.

A checkpoint needs sums over all workers, so they must write it after the same step. They ask each other about once a
second, in one small sum, whether rank 0 wants one, and after how many steps to ask again.
"""

from __future__ import annotations

import time
from collections.abc import Callable

_ASK_S = 1.0
_MAX_STEPS = 1000


class InterimClock:
    """The clock of one worker; all workers of a group have one, and take the same steps."""

    def __init__(self, every_s: float, is_asked: Callable[[], bool]) -> None:
        """Start the clock.

        Args:
            every_s: seconds between checkpoints; 0 for none but those that are asked for.
            is_asked: whether the driver asks for one; called on rank 0 alone.
        """
        self._every_s = every_s
        self._is_asked = is_asked
        self._saved = self._asked = time.monotonic()
        self._steps = 0
        self._left = 1

    def count_step(self) -> bool:
        """Count a step, and return whether the workers ask each other after it."""
        self._steps += 1
        self._left -= 1
        return self._left <= 0

    def propose(self) -> tuple[bool, int]:
        """Return, on rank 0, whether a checkpoint is due, and the number of steps until the workers ask again."""
        now = time.monotonic()
        pause_s = min(_ASK_S, self._every_s) if self._every_s else _ASK_S
        seconds_a_step = max(now - self._asked, 1e-6) / self._steps
        is_due = bool(self._every_s) and now - self._saved >= self._every_s
        return is_due or self._is_asked(), min(max(1, int(pause_s / seconds_a_step)), _MAX_STEPS)

    def agree(self, num_steps: int) -> None:
        """Ask again after this number of steps, as rank 0 has proposed."""
        self._left, self._steps, self._asked = num_steps, 0, time.monotonic()

    def note_saved(self) -> None:
        """Count the time to the next checkpoint from now on."""
        self._saved = time.monotonic()
