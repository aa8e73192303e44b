"""What the workers tell the driver while Ray Train runs: progress, epochs, predictions, and the finished model."""

from __future__ import annotations

import queue
from typing import Any, NamedTuple

import ray


class Message(NamedTuple):
    """One thing a worker has to say.

    Attributes:
        kind: "images", "epoch", "predictions" or "model".
        body: plain values, see `training.loop`.
    """

    kind: str
    body: dict[str, Any]


@ray.remote(num_cpus=0)
class Channel:
    """A queue that outlives the workers, whose own prints and exceptions reach nobody."""

    def __init__(self) -> None:
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()

    def send(self, message: Message) -> None:
        """Append a message."""
        self._messages.put(message)

    def drain(self) -> list[Message]:
        """Take every message that waits."""
        messages = []
        while not self._messages.empty():
            messages.append(self._messages.get())
        return messages
