"""Print messages and progress: a bar with rate and time left on a terminal, one line that moves in a notebook, else a
line every 15 s.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

_LINE_INTERVAL_S, _MOVE_INTERVAL_S = 15.0, 0.5

console = Console(highlight=False, soft_wrap=True, force_jupyter=False)
"""Console of all commands; without styles unless stdout is a terminal, or a notebook that takes them."""


def now() -> str:
    """Return the UTC time in ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def is_notebook() -> bool:
    """Return whether this process runs the cells of a notebook."""
    module = sys.modules.get("IPython")
    shell = None if module is None else module.get_ipython()
    return any(kind.__name__ == "ZMQInteractiveShell" for kind in type(shell).__mro__)  # Colab has a class of its own


def say(text: str) -> None:
    """Print one line, after the time of day unless a person sees it at once."""
    _MovingLine.clear()
    stamp = "" if console.is_terminal or is_notebook() else f"{time.strftime('%H:%M:%S')}  "
    console.print(f"{stamp}{text}", markup=False)


class _MovingLine:
    """The line of a notebook's output that progress writes again and again."""

    length = 0

    @classmethod
    def write(cls, text: str) -> None:
        """Replace the line."""
        sys.stdout.write(f"\r{text:<{cls.length}}")
        sys.stdout.flush()
        cls.length = len(text)

    @classmethod
    def end(cls) -> None:
        """Leave the line as it is, and go on below."""
        if cls.length:
            sys.stdout.write("\n")
            cls.length = 0

    @classmethod
    def clear(cls) -> None:
        """Make room for another line; progress goes on below that."""
        if cls.length:
            sys.stdout.write(f"\r{'':<{cls.length}}\r")
            cls.length = 0


class Stage:
    """One stage of a job, as a context manager: `with Stage("predict", 1_399) as stage: stage.advance(32)`."""

    def __init__(self, name: str, total: int, *, unit: str = "images") -> None:
        self._name = name
        self._total = total
        self._unit = unit
        self._done = 0
        self._note = ""
        self._started = self._last_line = time.monotonic()
        self._bar: Progress | None = None
        self._moves = is_notebook()

    def __enter__(self) -> Stage:
        if self._moves:
            self._print_line(time.monotonic())
        elif console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description:<12}"),
                BarColumn(bar_width=32),
                TextColumn(f"{{task.completed:,.0f}}/{{task.total:,.0f}} {self._unit}"),
                _RateColumn(self._unit),
                TimeRemainingColumn(compact=True, elapsed_when_finished=True),
                TextColumn("{task.fields[note]}"),
                console=console,
            )
            self._bar.start()
            self._bar.add_task(self._name, total=self._total, note="")
        else:
            say(f"{self._name}: {self._total:,} {self._unit}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif error is None:
            self._print_line(time.monotonic())
        _MovingLine.end()

    def advance(self, count: int) -> None:
        """Add to the number of finished units."""
        self._done = min(self._total, self._done + count)
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._done)
        elif now - self._last_line >= self._interval_s and self._done < self._total:
            self._print_line(now)

    def set_total(self, total: int) -> None:
        """Change the number of all units."""
        self._total = total
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], total=total)

    def move_to(self, done: int) -> None:
        """Set the number of finished units, as when a job goes back to its last checkpoint."""
        self._done = 0
        self.advance(done)

    def note(self, text: str) -> None:
        """Show a note after the progress."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], note=text)
        self._note = text

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        say(text)

    @property
    def _interval_s(self) -> float:
        return _MOVE_INTERVAL_S if self._moves else _LINE_INTERVAL_S

    def _print_line(self, now: float) -> None:
        self._last_line = now
        elapsed = now - self._started
        rate = self._done / elapsed if elapsed > 0 else 0.0
        left = f", {(self._total - self._done) / rate:,.0f} s left" if 0 < self._done < self._total and rate else ""
        note = f", {self._note}" if self._note else ""
        text = f"{self._name}: {self._done:,}/{self._total:,} {self._unit}, {rate:,.1f}/s{left}{note}"
        if self._moves:
            _MovingLine.write(text)
        else:
            say(text)


class _RateColumn(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.1f} {self._unit}/s" if speed else "")


@contextlib.contextmanager
def silence_stderr() -> Iterator[None]:
    """Discard what native code writes to stderr meanwhile: TensorFlow logs before it reads its log level."""
    sys.stderr.flush()
    kept = os.dup(2)
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
