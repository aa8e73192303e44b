"""Every worker of a training: trials of phase 2 if they are asked for, the training itself, the finished model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import keras
import ray
import ray.train
import ray.train.collective

from tlray.cluster.resources import count_cores
from tlray.features.cache import OpenCache
from tlray.model.manifest import EpochRecord
from tlray.model.tf_runtime import limit_threads
from tlray.training import steps
from tlray.training.channel import ModelReady, StageBegan, TrialEnded, WorkerReporter
from tlray.training.checkpoint import Decision, load_decision, name_trial, save_decision
from tlray.training.loop import Group, TrainingLoop
from tlray.training.networks import OpenNetwork
from tlray.training.predictions import RowPredictions, fit_calibration, join_predictions, score_trials
from tlray.training.task import TrainingTask, WorkerSettings

_POLL_S = 0.2


@dataclass(frozen=True)
class Tried:
    """The result of the trials.

    Attributes:
        decision: of the first.
        records: its epochs of phase 2.
        predictions: this worker's share of all, by role; empty if phase 2 is left out.
    """

    decision: Decision
    records: list[EpochRecord]
    predictions: dict[str, RowPredictions]


def _name_role(number: int, role: str) -> str:
    """Return the name of a trial's predictions of a role."""
    return f"trial {number} {role}"


class Worker:
    """One worker of the group."""

    def __init__(self, settings: WorkerSettings) -> None:
        """Connect to the other workers."""
        context = ray.train.get_context()
        rank, num_workers = context.get_world_rank(), context.get_world_size()
        self._checkpoints = settings.checkpoints
        limit_threads(min(settings.num_threads, max(1, count_cores() // context.get_local_world_size())))
        strategy = steps.make_strategy(settings.collective_timeout_s)
        self.group = Group(rank, num_workers, strategy, settings.channel, WorkerReporter(settings.channel, rank))

    def run(self, task: TrainingTask) -> None:
        """Run the remaining phases, predict the known rows, and send the model to the driver."""
        if task.precision.step != "float32":
            keras.config.set_dtype_policy(f"mixed_{task.precision.step}")
        cache = task.cache.open() if task.cache is not None else None
        tried = self._try(task.trials, cache) if task.trials else None
        if tried is not None and not tried.decision.keeps:
            task = replace(task, phases=tuple(phase for phase in task.phases if phase.name == "head"))
        loop = TrainingLoop(task, self.group, cache, self._checkpoints)
        self._finish(loop, loop.run(), tried)

    def _try(self, tasks: Sequence[TrainingTask], cache: OpenCache | None) -> Tried:
        """Train without one fold each, to see what phase 2 gains and how sure its predictions are."""
        self.group.reporter.report(StageBegan("trial"))
        loop = TrainingLoop(tasks[0], self.group, cache, name_trial(self._checkpoints, 1), 1)
        opened = loop.run()
        decision = self._decide(loop, opened, len(tasks[0].val_rows))
        records = [record for record in loop.state.history if record.phase == "finetune"]
        if not decision.keeps:
            return Tried(decision, records, {})
        predictions = self._predict_trial(loop, opened, 1)
        for number, task in enumerate(tasks[1:], start=2):
            loop = TrainingLoop(task, self.group, cache, name_trial(self._checkpoints, number), number)
            predictions |= self._predict_trial(loop, loop.run(), number)
        return Tried(decision, records, predictions)

    def _predict_trial(self, loop: TrainingLoop, opened: OpenNetwork, number: int) -> dict[str, RowPredictions]:
        predictions = loop.predict(opened, loop.state.weights)
        return {_name_role(number, role): found for role, found in predictions.items()}

    def _decide(self, loop: TrainingLoop, opened: OpenNetwork, num_images: int) -> Decision:
        """Decide whether phase 2 is trained; a decision that was made stays."""
        checkpoints = name_trial(self._checkpoints, 1)
        first = self.group.rank == 0
        decision: Decision | None = ray.train.collective.broadcast_from_rank_zero(
            load_decision(checkpoints) if first else None
        )
        if decision is None:
            kept, _, gain = loop.choose_epoch(opened)
            decision = Decision(gain, kept.phase == "finetune")
            if first:
                save_decision(checkpoints, decision)
        self.group.reporter.report(TrialEnded(decision.gain, decision.keeps, num_images))
        return decision

    def _finish(self, loop: TrainingLoop, opened: OpenNetwork, tried: Tried | None) -> None:
        """Predict the known rows with the best weights; rank 0 calibrates, exports and waits for the driver."""
        group, task = self.group, loop.task
        group.reporter.report(StageBegan("saving"))
        kept, weights, gain = loop.choose_epoch(opened)
        predicted = loop.predict(opened, weights) | ({} if tried is None else tried.predictions)
        ray.get(group.channel.put_predictions.remote(group.rank, predicted))
        # a worker that has ended removes the images that its machine keeps, which others may still read
        while ray.get(group.channel.count_predicted.remote()) < group.num_workers:
            time.sleep(_POLL_S)
        if group.rank != 0:
            return
        from tlray.training.export import export_model

        history, scores = loop.state.history, None
        predictions = self._collect_predictions()
        if task.out_of_fold is not None:
            predictions["val"] = task.out_of_fold
        if tried is not None:
            gain = tried.decision.gain
            if tried.decision.keeps:
                pairs = [
                    (predictions.pop(_name_role(number, "reference")), predictions.pop(_name_role(number, "val")))
                    for number in range(1, len(task.trials) + 1)
                ]
                scores = score_trials(pairs, task.labels, len(task.classes))
                # their features are of other networks than the references are now
                predictions["val"] = join_predictions(held_out.without_features() for _, held_out in pairs)
            else:
                history = history + tried.records
        calibration = fit_calibration(
            predictions["reference"], predictions.get("val"), task.labels, len(task.classes), scores
        )
        files, architecture = export_model(task, weights, history, calibration)
        # references: the driver reads the few hundred MB from this process's object store
        model = ModelReady([ray.put(files)], architecture, history, kept, calibration, [ray.put(predictions)], gain)
        group.reporter.report(model)
        group.reporter.wait_for_end()

    def _collect_predictions(self) -> dict[str, RowPredictions]:
        """Join the predictions of all workers by role."""
        predicted: dict[int, dict[str, RowPredictions]] = ray.get(self.group.channel.get_predictions.remote())
        roles = dict.fromkeys(role for rank in sorted(predicted) for role in predicted[rank])
        workers = predicted.values()
        return {role: join_predictions(worker[role] for worker in workers if role in worker) for role in roles}
