"""What the workers tell the driver while Ray Train runs: progress, epochs, and the finished model."""

from __future__ import annotations

import queue
from typing import Any, NamedTuple

import ray


class Message(NamedTuple):
    """One thing a worker has to say.

    Attributes:
        kind: "resumed", "stage", "images", "epoch", "model" or "failed".
        body: plain values, see `training.loop`.
        sent: when, seconds since the epoch.
    """

    kind: str
    body: dict[str, Any]
    sent: float


@ray.remote(num_cpus=0)
class Channel:
    """A queue that outlives the workers, whose own prints and exceptions reach nobody."""

    def __init__(self) -> None:
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._closed = False
        self._task: Any = None
        self._predictions: dict[int, Any] = {}
        self._controller: Any = None

    def send(self, message: Message) -> None:
        """Append a message."""
        self._messages.put(message)

    def drain(self) -> list[Message]:
        """Take every message that waits."""
        messages = []
        while not self._messages.empty():
            messages.append(self._messages.get())
        return messages

    def put_task(self, task: Any) -> None:
        """Let the workers have their task."""
        self._task = task

    def get_task(self) -> Any:
        """The workers' task; None before it is known."""
        return self._task

    def put_controller(self, controller: Any) -> None:
        """Keep the handle of Ray Train's controller."""
        self._controller = controller

    def get_controller(self) -> Any:
        """Its handle; None before it has started."""
        return self._controller

    def put_predictions(self, rank: int, share: Any) -> None:
        """Keep what a worker found out, for rank 0; a worker that took its place finds out the same."""
        self._predictions[rank] = share

    def count_predicted(self) -> int:
        """How many workers have found out what is theirs."""
        return len(self._predictions)

    def get_predictions(self) -> dict[int, Any]:
        """What workers found out so far, by rank."""
        return self._predictions

    def close(self) -> None:
        """Tell workers that nothing more is needed of them, also those that Ray Train starts from now on."""
        self._closed = True

    def is_closed(self) -> bool:
        """Whether the driver has all that it needs, or has given up."""
        return self._closed
