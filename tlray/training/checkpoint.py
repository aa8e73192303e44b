"""Save and load the state of a training, after each epoch and within long ones: one file each, written atomically.

    STORAGE/RUN/epoch-0007/state.npz               after epoch 7
    STORAGE/RUN/epoch-0007-000000001280/state.npz  after 1,280 images more

A run finds its latest state by itself. Ray Train gets each one as a checkpoint too, but notices it only at its next
poll; shorter epochs would run twice.
"""

from __future__ import annotations

import io
import re
import zipfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tlray import storage
from tlray.config import SelectName, TrainConfig, describe_run
from tlray.errors import DivergedError, FetchError, StoppedError
from tlray.metrics.intervals import LossGain
from tlray.model.manifest import EpochRecord, hash_json
from tlray.storage.records import RecordError, dump_record, parse_record
from tlray.training.schedule import score_epoch

if TYPE_CHECKING:
    import keras

    from tlray.model.network import Weights

STATE = "state.npz"

TRIAL = "trial"
"""Folder of the first trial's states below those of its training."""

DECISION = "decision.json"
"""The decision of a trial, beside its states: a restart might decide otherwise where the gain is almost 0."""

_STATE_NAME = re.compile(rf"(epoch-(\d+)(?:-(\d+))?)/{re.escape(STATE)}", re.ASCII)
_KEPT = 2  # a reader may still need the one before the latest
_META = "_meta"


def name_trial(checkpoints: str, number: int) -> str:
    """Return the folder of a trial's states by its number, from 1."""
    return storage.join(checkpoints, TRIAL if number == 1 else f"{TRIAL}-{number}")


def name_run(config: TrainConfig, images_fingerprint: str) -> str:
    """Return the folder of a run's checkpoints; the same for every command that may resume them."""
    fingerprint = hash_json({**describe_run(config), "images": images_fingerprint})
    return storage.join(storage.resolve(config.resolved_storage_path), f"run-{fingerprint[:16]}")


@dataclass(frozen=True)
class EpochPart:
    """The beginning of an epoch.

    Attributes:
        images: training images it has taken, in the order of the epoch.
        loss, hits: sums over them, of the weighted loss and of right predictions.
        seconds: time it took; `waited` the part of it without input.
    """

    images: int
    loss: float
    hits: float
    seconds: float
    waited: float


@dataclass
class TrainingState:
    """State of a training after some epochs, and a part of the next one.

    Attributes:
        phase: index of the current phase.
        history: records of all epochs, over both phases.
        weights: everything trained so far.
        slots: the optimizer's variables, in order; empty at the start of a phase.
        best: record of the best epoch.
        best_weights: its weights; empty if they are the current ones.
        before, before_weights: record and weights of phase 1's best epoch, for phase 2 to be compared with.
        loss_scale: of float16 steps.
        part: of the epoch that has begun; None between epochs.
        split, plan: as in `TrainingTask`.
    """

    phase: int = 0
    history: list[EpochRecord] = field(default_factory=list)
    weights: Weights = field(default_factory=dict)
    slots: list[npt.NDArray[np.generic]] = field(default_factory=list)
    best: EpochRecord | None = None
    best_weights: Weights = field(default_factory=dict)
    before: EpochRecord | None = None
    before_weights: Weights = field(default_factory=dict)
    loss_scale: float = 1.0
    part: EpochPart | None = None
    split: str = ""
    plan: str = ""

    @property
    def is_new(self) -> bool:
        """True before anything was trained."""
        return not self.history and self.part is None

    @property
    def epoch(self) -> int:
        """Number of finished epochs over both phases."""
        return len(self.history)

    def take_epoch(
        self,
        record: EpochRecord,
        weights: Weights,
        optimizer: keras.optimizers.Optimizer,
        loss_scale: float,
        select: SelectName | None,
    ) -> None:
        """Add an epoch that has just ended; `weights` are those that it trained.

        `select` tells the best epoch; None takes this one.

        Raises:
            DivergedError: a weight or a variable of the optimizer is not finite, as after a step whose gradient was
                not, though its loss was.
        """
        slots = _read_slots(weights, optimizer, f"phase {record.phase}, epoch {record.epoch}")
        is_best = self.best is None or select is None or score_epoch(record, select) > score_epoch(self.best, select)
        if self.best is not None and not self.best_weights and not is_best:
            self.best_weights = self.weights  # the previous epoch is the best
        self.history.append(record)
        self.weights = {**self.weights, **weights}
        if is_best:
            self.best, self.best_weights = record, {}
        self.slots = slots
        self.loss_scale = loss_scale
        self.part = None

    def take_part(
        self, part: EpochPart, weights: Weights, optimizer: keras.optimizers.Optimizer, loss_scale: float
    ) -> None:
        """Take the beginning of the next epoch; arguments and errors as `take_epoch`."""
        slots = _read_slots(weights, optimizer, f"{part.images:,} images of epoch {self.epoch + 1}")
        if self.best is not None and not self.best_weights:
            self.best_weights = self.weights  # the last finished epoch is the best
        self.weights = {**self.weights, **weights}
        self.slots, self.loss_scale, self.part = slots, loss_scale, part

    def end_phase(self, *, is_last: bool) -> None:
        """Go to the next phase, which starts from the best epoch so far."""
        if self.best_weights:
            self.weights, self.best_weights = self.best_weights, {}
        if not is_last:
            self.before, self.before_weights = self.best, self.weights
        self.slots = []
        self.phase += 1


def _read_slots(weights: Weights, optimizer: keras.optimizers.Optimizer, when: str) -> list[npt.NDArray[np.generic]]:
    slots = [np.array(variable) for variable in optimizer.variables]
    if not all(np.isfinite(array).all() for array in (*weights.values(), *slots)):
        raise DivergedError(
            f"the weights are not finite after {when}; lower the learning rate; the last checkpoint stays"
        )
    return slots


@dataclass(frozen=True)
class CheckpointRecord:
    """The part of a checkpoint that is not an array: as `TrainingState`, with the number of slots."""

    phase: int
    history: list[EpochRecord]
    best: EpochRecord | None
    before: EpochRecord | None
    slots: int
    loss_scale: float
    part: EpochPart | None = None
    split: str = ""
    plan: str = ""


def save_state(uri: str, state: TrainingState) -> str:
    """Write a run's state, delete all but the last two, and return the checkpoint's folder."""
    meta = CheckpointRecord(
        phase=state.phase,
        history=state.history,
        best=state.best,
        before=state.before,
        slots=len(state.slots),
        loss_scale=state.loss_scale,
        part=state.part,
        split=state.split,
        plan=state.plan,
    )
    arrays: Weights = {_META: np.frombuffer(dump_record(meta), np.uint8)}
    arrays |= {f"weights/{name}": array for name, array in state.weights.items()}
    arrays |= {f"best/{name}": array for name, array in state.best_weights.items()}
    arrays |= {f"before/{name}": array for name, array in state.before_weights.items()}
    arrays |= {f"slots/{index}": array for index, array in enumerate(state.slots)}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    within = "" if state.part is None else f"-{state.part.images:012d}"
    folder = storage.join(uri, f"epoch-{state.epoch:04d}{within}")
    storage.put(storage.join(folder, STATE), buffer.getvalue())
    for old in _list_states(uri)[:-_KEPT]:
        storage.delete_folder(storage.join(uri, old))
    return folder


def load_state(uri: str, split: str = "", plan: str = "", *, is_trial: bool = False) -> TrainingState:
    """Return a run's latest state; an empty one if it has none.

    Args:
        split, plan: as in `TrainingTask`.
        is_trial: the folder is that of a trial.

    Raises:
        StoppedError: it cannot be read, is damaged, was written by another version, or is of another split or plan.
    """
    folders = _list_states(uri)
    if not folders:
        return TrainingState(split=split, plan=plan)
    data = next(storage.get_many([storage.join(uri, folders[-1], STATE)]))
    checkpoint = f"the checkpoint {folders[-1]} in {uri}"
    if isinstance(data, FetchError):
        raise StoppedError(f"{checkpoint} cannot be read ({data})")
    try:
        with np.load(io.BytesIO(data)) as stored:
            arrays: Weights = dict(stored)
        meta = parse_record(CheckpointRecord, arrays[_META].tobytes())
        slots = [arrays[f"slots/{index}"] for index in range(meta.slots)]
    except RecordError as error:
        raise StoppedError(f"{checkpoint} is of another tlray ({error}); remove {uri} to start over") from None
    except (ValueError, LookupError, EOFError, zipfile.BadZipFile) as error:
        raise StoppedError(f"{checkpoint} is damaged ({error}); remove it to go on from the one before") from None

    run = uri.rpartition("/")[0] if is_trial else uri
    if meta.plan != plan:
        raise StoppedError(
            f"{checkpoint} is of a training with other epochs, rates or start of the head: features were cached then, "
            f"or are now; give --cache and --cache-dir as then, or remove {run} to start over"
        )
    if meta.split != split:
        reason = (
            "folds: features were computed by another kind of machine then, and other images are near-duplicates; "
            "give --cache-dir as then"
            if is_trial
            else "training, validation or test images: some were left out then, or are now; make them readable as they "
            "were"
        )
        raise StoppedError(f"{checkpoint} is of other {reason}, or remove {run} to start over")

    def take(group: str) -> Weights:
        return {name.removeprefix(group): array for name, array in arrays.items() if name.startswith(group)}

    return TrainingState(
        phase=meta.phase,
        history=meta.history,
        weights=take("weights/"),
        slots=slots,
        best=meta.best,
        best_weights=take("best/"),
        before=meta.before,
        before_weights=take("before/"),
        loss_scale=meta.loss_scale,
        part=meta.part,
        split=meta.split,
        plan=meta.plan,
    )


@dataclass(frozen=True)
class Decision:
    """The result of a trial.

    Attributes:
        gain: of phase 2 over phase 1 on the images held out; None if there is no phase 1.
        keeps: whether phase 2 is trained on all images.
    """

    gain: LossGain | None
    keeps: bool


def save_decision(uri: str, decision: Decision) -> None:
    """Write what the trial of these states has decided."""
    storage.put(storage.join(uri, DECISION), dump_record(decision))


def load_decision(uri: str) -> Decision | None:
    """Return what the trial of these states has decided; None if it has not.

    Raises:
        StoppedError: it cannot be read, or is damaged.
    """
    address = storage.join(uri, DECISION)
    try:
        return parse_record(Decision, storage.get(address)) if storage.exists(address) else None
    except (FetchError, RecordError) as error:
        raise StoppedError(f"{address} cannot be read ({error}); remove {uri} to try phase 2 again") from None


def _list_states(uri: str) -> list[str]:
    """Return the folders of states, the latest last."""
    if not storage.has_content(uri):
        return []
    found = (_STATE_NAME.fullmatch(entry.name) for entry in storage.list_files(uri))
    folders = sorted((int(match[2]), int(match[3] or 0), match[1]) for match in found if match)
    return [name for _, _, name in folders]
