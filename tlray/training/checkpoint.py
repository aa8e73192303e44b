"""What a checkpoint holds, and where it lies: one file an epoch that appears whole or not at all.

    STORAGE/RUN/epoch-0007/state.npz

A run finds its latest state by itself. Ray Train is told of each as a checkpoint, but learns of it only at its next
look, a moment later; epochs shorter than that would be run twice.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tlray import storage
from tlray.errors import FetchError, StoppedError

if TYPE_CHECKING:
    from tlray.model.network import Weights

STATE = "state.npz"

_KEPT = 2
# the latest, and the one before it for whoever reads while the latest is being written
_META = "_meta"


@dataclass
class TrainingState:
    """Training after some epochs.

    Attributes:
        phase: index of the phase that comes next, or goes on.
        history: one record an epoch, over both phases.
        weights: of all that has been trained so far.
        slots: the optimizer's variables, in order; none where a phase has just ended.
        best: the kept epoch's record, and its weights where they are not the current ones.
        best_weights: see `best`; empty where the current weights are the best.
        loss_scale: of float16 steps.
    """

    phase: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    weights: Weights = field(default_factory=dict)
    slots: list[npt.NDArray[Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    best_weights: Weights = field(default_factory=dict)
    loss_scale: float = 1.0

    @property
    def epoch(self) -> int:
        """Finished epochs over both phases."""
        return len(self.history)


def save_state(uri: str, state: TrainingState) -> str:
    """Write a run's state after an epoch and forget all but the last two; returns the checkpoint's folder."""
    meta = {
        "phase": state.phase,
        "history": state.history,
        "best": state.best,
        "slots": len(state.slots),
        "loss_scale": state.loss_scale,
    }
    arrays: dict[str, npt.NDArray[Any]] = {_META: np.frombuffer(json.dumps(meta).encode(), np.uint8)}
    arrays |= {f"weights/{name}": array for name, array in state.weights.items()}
    arrays |= {f"best/{name}": array for name, array in state.best_weights.items()}
    arrays |= {f"slots/{index}": array for index, array in enumerate(state.slots)}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    folder = storage.join(uri, f"epoch-{state.epoch:04d}")
    storage.put(storage.join(folder, STATE), buffer.getvalue())
    for old in _list_states(uri)[:-_KEPT]:
        storage.delete_folder(storage.join(uri, f"epoch-{old:04d}"))
    return folder


def load_state(uri: str) -> TrainingState:
    """A run's latest state; an empty one where there is none.

    Raises:
        StoppedError: it cannot be read.
    """
    epochs = _list_states(uri)
    if not epochs:
        return TrainingState()
    data = next(storage.get_many([storage.join(uri, f"epoch-{epochs[-1]:04d}", STATE)]))
    if isinstance(data, FetchError):
        raise StoppedError(f"the checkpoint of epoch {epochs[-1]} in {uri} cannot be read ({data})")
    with np.load(io.BytesIO(data)) as stored:
        meta = json.loads(stored[_META].tobytes())

        def take(group: str) -> Weights:
            return {name.partition("/")[2]: stored[name] for name in stored.files if name.startswith(f"{group}/")}

        return TrainingState(
            phase=meta["phase"],
            history=meta["history"],
            weights=take("weights"),
            slots=[stored[f"slots/{index}"] for index in range(meta["slots"])],
            best=meta["best"],
            best_weights=take("best"),
            loss_scale=meta["loss_scale"],
        )


def _list_states(uri: str) -> list[int]:
    """Epochs of which a whole state is there, in order."""
    if not storage.has_content(uri):
        return []
    names = [entry.name for entry in storage.list_files(uri)]
    return sorted(int(name[len("epoch-") : -len(STATE) - 1]) for name in names if name.endswith(f"/{STATE}"))
