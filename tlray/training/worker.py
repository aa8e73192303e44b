"""Every worker of a training: a trial of phase 2 if one is asked for, the training itself, the finished model."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import keras
import ray
import ray.train
import ray.train.collective

from tlray import storage
from tlray.cluster.resources import count_cores
from tlray.features.cache import OpenCache
from tlray.model.manifest import EpochRecord
from tlray.model.tf_runtime import limit_threads
from tlray.training import steps
from tlray.training.channel import ModelReady, StageBegan, TrialEnded, WorkerReporter
from tlray.training.checkpoint import TRIAL, Decision, load_decision, save_decision
from tlray.training.loop import Group, TrainingLoop
from tlray.training.networks import OpenNetwork
from tlray.training.predictions import RowPredictions, fit_calibration, join_predictions, score_trial
from tlray.training.task import TrainingTask, WorkerSettings

_POLL_S = 0.2


@dataclass(frozen=True)
class Trial:
    """A finished trial.

    Attributes:
        records: the epochs of phase 2.
        predictions: this worker's share, by role; empty if phase 2 is left out.
    """

    decision: Decision
    records: list[EpochRecord]
    predictions: dict[str, RowPredictions]


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
        trial = self._try(task.trial, cache) if task.trial is not None else None
        if trial is not None and not trial.decision.keeps:
            task = replace(task, phases=tuple(phase for phase in task.phases if phase.name == "head"))
        loop = TrainingLoop(task, self.group, cache, self._checkpoints)
        self._finish(loop, loop.run(), trial)

    def _try(self, task: TrainingTask, cache: OpenCache | None) -> Trial:
        """Train without one fold, to see what phase 2 gains on it and how sure its predictions are."""
        self.group.reporter.report(StageBegan("trial"))
        checkpoints = storage.join(self._checkpoints, TRIAL)
        loop = TrainingLoop(task, self.group, cache, checkpoints, is_trial=True)
        opened = loop.run()
        first = self.group.rank == 0
        decision: Decision | None = ray.train.collective.broadcast_from_rank_zero(
            load_decision(checkpoints) if first else None
        )
        if decision is None:
            kept, _, gain = loop.choose_epoch(opened)
            decision = Decision(gain, kept.phase == "finetune")
            if first:
                save_decision(checkpoints, decision)
        self.group.reporter.report(TrialEnded(decision.gain, decision.keeps, len(task.val_rows)))
        records = [record for record in loop.state.history if record.phase == "finetune"]
        predictions = loop.predict(opened, loop.state.weights) if decision.keeps else {}
        return Trial(decision, records, {f"{TRIAL} {role}": found for role, found in predictions.items()})

    def _finish(self, loop: TrainingLoop, opened: OpenNetwork, trial: Trial | None) -> None:
        """Predict the known rows with the best weights; rank 0 calibrates, exports and waits for the driver."""
        group, task = self.group, loop.task
        group.reporter.report(StageBegan("saving"))
        kept, weights, gain = loop.choose_epoch(opened)
        predicted = loop.predict(opened, weights) | ({} if trial is None else trial.predictions)
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
        if trial is not None:
            gain = trial.decision.gain
            if trial.decision.keeps:
                references, held_out = (predictions.pop(f"{TRIAL} {role}") for role in ("reference", "val"))
                scores = score_trial(references, held_out, task.labels, len(task.classes))
                # its features are of another network than the references are now
                predictions["val"] = held_out.without_features()
            else:
                history = history + trial.records
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
