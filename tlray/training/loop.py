"""The training loop: the phases and epochs of a task, from its latest checkpoint to the end.

Every epoch ends with a checkpoint, and long ones have some within. Workers that are started again, here or by a later
command, resume after it; it is all they need, since order, views and dropout depend on seed, epoch and step alone.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import numpy as np
import numpy.typing as npt
import ray
import ray.train
import ray.train.collective
import tensorflow as tf

from tlray import storage
from tlray.config import SelectName
from tlray.errors import DivergedError, StoppedError
from tlray.features.cache import PLAIN, OpenCache
from tlray.metrics.classification import compute_macro_f1
from tlray.metrics.intervals import LossGain, measure_gain
from tlray.model.manifest import EpochRecord
from tlray.model.network import Network, Weights, build_head, make_optimizer
from tlray.training import steps
from tlray.training.channel import ChannelHandle, EpochEnded, PartSaved, Resumed, StageBegan, WorkerReporter
from tlray.training.checkpoint import EpochPart, TrainingState, load_state, save_state
from tlray.training.interim import InterimClock
from tlray.training.loader import BatchSource, FeatureSource, Inputs, RowBatch
from tlray.training.networks import OpenNetwork, open_network
from tlray.training.predictions import RowPredictions, Validated, join_predictions, validate_predictions
from tlray.training.schedule import (
    StepRows,
    cut_steps,
    draw_dropout,
    draw_mixing,
    is_exhausted,
    make_rates,
    pair_neighbours,
    permute,
)
from tlray.training.task import PhasePlan, TrainingTask


@dataclass(frozen=True)
class Group:
    """The workers that train together, as one of them sees them."""

    rank: int
    num_workers: int
    strategy: tf.distribute.Strategy
    channel: ChannelHandle
    reporter: WorkerReporter


class TrainingLoop:
    """The training of one task by one worker of a group, which all must call the same methods."""

    def __init__(
        self, task: TrainingTask, group: Group, cache: OpenCache | None, checkpoints: str, trial: int = 0
    ) -> None:
        """Load the task's latest state.

        Args:
            checkpoints: folder of the task's states.
            trial: number of the task among the `trials` of another, from 1.
        """
        self.task = task
        self._group = group
        self._rank, self._num_workers, self._strategy = group.rank, group.num_workers, group.strategy
        self._channel, self._reporter = group.channel, group.reporter
        self._cache = cache
        self._checkpoints = checkpoints
        self._trial = trial
        self.state = self._load_state()

    def _load_state(self) -> TrainingState:
        """Load the latest state, which must be the same on all workers."""
        state = load_state(self._checkpoints, self.task.split, self.task.plan, is_trial=self._trial > 0)
        names = {phase.name for phase in self.task.phases}
        begun = state.phase == len(names) and state.part is not None
        if begun or any(record.phase not in names for record in state.history):
            raise StoppedError(
                f"the checkpoints in {self._checkpoints} are of a phase 2 that its trial leaves out now; remove the "
                "folder to start over"
            )
        if state.is_new and self.task.head_start is not None:
            state.weights = self.task.head_start
        ours = (state.epoch, state.part)
        first = ray.train.collective.broadcast_from_rank_zero(ours)
        if ours != first:
            raise RuntimeError(f"rank {self._rank} finds the state {ours}, rank 0 {first}")
        images = state.part.images if state.part else 0
        self._reporter.report(Resumed(state.history, self._num_workers, images, self._trial))
        return state

    def run(self) -> OpenNetwork:
        """Run the remaining epochs; return the network that the last phase trains."""
        task, state = self.task, self.state
        with self._strategy.scope():
            head = build_head(task.backbone, task.head_units, len(task.classes), seed=task.seed)
        opened: OpenNetwork | None = None
        while state.phase < len(task.phases):
            phase = task.phases[state.phase]
            opened = open_network(task, phase, self._strategy, head, self._cache, state.weights, opened)
            self._run_phase(phase, opened)
        if opened is None:  # all epochs were finished before
            opened = open_network(task, task.phases[-1], self._strategy, head, self._cache, state.weights, None)
        return opened

    def _run_phase(self, phase: PhasePlan, opened: OpenNetwork) -> None:
        """Run the remaining epochs of a phase, each with its validation and checkpoint."""
        task, state, network = self.task, self.state, opened.network
        done = [record for record in state.history if record.phase == phase.name]
        num_steps = len(self._cut(task.train_rows).rows)
        num_warmup_steps = round(phase.warmup_epochs * num_steps)
        rates = make_rates(phase.learning_rate, phase.epochs * num_steps, phase.schedule, num_warmup_steps)
        with self._strategy.scope():
            optimizer = make_optimizer(phase.optimizer, steps.RateTable(rates), nesterov=phase.nesterov)
            optimizer.build(network.trainable_variables)
            if state.slots:
                for variable, value in zip(optimizer.variables, state.slots, strict=True):
                    variable.assign(value)
            # the saved count is wrong if the number of workers, and so of steps in an epoch, has changed
            begun = num_steps - len(self._cut_epoch(state.epoch, state.part.images).rows) if state.part else 0
            optimizer.iterations.assign(len(done) * num_steps + begun)
        train_step = steps.TrainStep(
            self._strategy, network, optimizer, label_smoothing=task.label_smoothing, clip_norm=task.clip_norm or None
        )
        if state.slots:
            train_step.loss_scale = state.loss_scale
        batches = self._list_batches(phase, state.epoch, phase.epochs - len(done))
        self._clock = InterimClock(
            task.checkpoint_every_s, lambda: bool(ray.get(self._channel.take_save_request.remote()))
        )
        if not self._trial:
            self._reporter.report(StageBegan("phase 1" if phase.name == "head" else "phase 2"))
        with contextlib.closing(self._choose_source(phase).stream(batches)) as inputs:
            while not self._is_over(phase, done):
                rate = float(rates[(len(done) + 1) * num_steps - 1])
                record = self._run_epoch(phase, opened, train_step, inputs, rate)
                done.append(record)
                weights = network.read_weights(opened_only=True)
                select: SelectName | None = task.select
                folded = self._trial > 0 or task.out_of_fold is not None
                if folded or (task.must_gain and phase.name == "finetune"):
                    select = None  # a cosine ends with the best, and a few images cannot tell otherwise
                state.take_epoch(record, weights, optimizer, train_step.loss_scale, select)
                if self._is_over(phase, done):
                    state.end_phase(is_last=state.phase + 1 == len(task.phases))
                self._save_state(record)

    def _is_over(self, phase: PhasePlan, done: list[EpochRecord]) -> bool:
        return len(done) >= phase.epochs or is_exhausted(done, self.task.early_stopping, self.task.select)

    def _run_epoch(
        self, phase: PhasePlan, opened: OpenNetwork, train_step: steps.TrainStep, inputs: Iterator[Inputs], rate: float
    ) -> EpochRecord:
        task, epoch, network = self.task, self.state.epoch, opened.network
        before = self.state.part or EpochPart(0, 0.0, 0.0, 0.0, 0.0)
        started = time.monotonic() - before.seconds
        plan = self._cut_epoch(epoch, before.images)
        first_step = len(self._cut(task.train_rows).rows) - len(plan.rows)
        sums = np.zeros(2)
        waited_s = before.waited
        for index, rows in enumerate(plan.rows):
            wait_started = time.monotonic()
            batch_inputs = next(inputs)
            waited_s += time.monotonic() - wait_started
            step_sums = train_step.step(self._make_batch(phase, network, plan, index, first_step, rows, batch_inputs))
            if not np.isfinite(step_sums).all():
                raise DivergedError(
                    f"the loss is not finite in phase {phase.name}, epoch {epoch + 1}, step {first_step + index + 1}; "
                    "lower the learning rate; the last checkpoint stays"
                )
            sums += step_sums
            self._reporter.count(int(plan.totals[index]))
            if index + 1 < len(plan.rows) and self._clock.count_step():
                images = before.images + int(plan.totals[: index + 1].sum())
                now = EpochPart(images, before.loss, before.hits, time.monotonic() - started, waited_s)
                self._save_part(network, train_step, now, sums)
        summed = steps.sum_over_workers(self._strategy, sums) + np.array([before.loss, before.hits])
        loss, accuracy = summed / len(task.train_rows)
        if task.train_batchnorm:
            steps.average_statistics(self._strategy, network)
        steps.check_replicas(self._strategy, network)
        trained_s = time.monotonic() - started
        validated = self._validate(phase, opened, inputs)
        return EpochRecord(
            phase=phase.name,
            epoch=epoch + 1,
            loss=float(loss),
            accuracy=float(accuracy),
            val_loss=validated.loss if validated else None,
            val_accuracy=validated.accuracy if validated else None,
            val_macro_f1=validated.macro_f1 if validated else None,
            val_weighted_loss=validated.weighted_loss if validated else None,
            images=len(task.train_rows),
            steps=first_step + len(plan.rows),
            seconds=round(time.monotonic() - started, 3),
            train_seconds=round(trained_s, 3),
            wait_seconds=round(waited_s, 3),
            learning_rate=rate,
        )

    def _save_part(
        self,
        network: Network,
        train_step: steps.TrainStep,
        part: EpochPart,
        sums: npt.NDArray[np.float64],
    ) -> None:
        """Write a checkpoint within the epoch if one is due; every worker must call it after the same step.

        Args:
            part: with the sums at the worker's start.
            sums: this worker's since then.
        """
        proposed = self._clock.propose() if self._rank == 0 else (False, 0)
        due, num_steps, loss, hits = steps.sum_over_workers(self._strategy, np.array([*proposed, *sums], np.float64))
        self._clock.agree(int(num_steps))
        if not due:
            return
        if self.task.train_batchnorm:
            steps.average_statistics(self._strategy, network)
        if self._rank == 0:
            part = replace(part, loss=part.loss + float(loss), hits=part.hits + float(hits))
            weights = network.read_weights(opened_only=True)
            self.state.take_part(part, weights, train_step.optimizer, train_step.loss_scale)
            save_state(self._checkpoints, self.state)
            self._reporter.report(PartSaved(part.images))
        self._clock.note_saved()

    def _make_batch(
        self,
        phase: PhasePlan,
        network: Network,
        plan: StepRows,
        index: int,
        first_step: int,
        rows: npt.NDArray[np.int64],
        inputs: Inputs,
    ) -> steps.Batch:
        task, epoch = self.task, self.state.epoch
        batch: steps.Batch = {
            "inputs": inputs,
            "labels": task.labels[rows],
            "weights": plan.weights[index] * task.class_weights[task.labels[rows]],
            "counts": plan.weights[index],
            "total": plan.totals[index],
        }
        if network.entrance == "pixels":
            batch["transforms"] = task.augmentation.draw(task.keys[rows], epoch, task.image_size_px)
        place = (task.seed, epoch, first_step + index, self._num_workers * task.batch_size)
        ours = slice(self._rank * task.batch_size, (self._rank + 1) * task.batch_size)
        units = task.head_units or ((network.num_features,) if phase.name == "finetune" else ())
        if task.dropout and units:
            batch["masks"] = draw_dropout(*place, units, task.dropout)[ours]
        if phase.mixup:
            partners = pair_neighbours(len(rows))
            batch["partners"], batch["shares"] = partners, draw_mixing(*place, phase.mixup)[ours]
            batch["partner_weights"] = plan.weights[index] * task.class_weights[task.labels[rows[partners]]]
        return batch

    def _validate(self, phase: PhasePlan, opened: OpenNetwork, inputs: Iterator[Inputs]) -> Validated | None:
        """Measure the validation rows of all workers; without any, phase 1 has the figures of its folds, or None."""
        task = self.task
        if len(self._validated_rows) == 0:
            if task.out_of_fold is None or phase.name != "head":
                return None
            return validate_predictions(task.out_of_fold, task.labels, task.class_weights)
        num_classes = len(task.classes)
        sums = np.zeros(2)
        counts = np.zeros((3, num_classes))
        plan = self._cut(task.val_rows)
        for index, rows in enumerate(plan.rows):
            logs = opened.evaluate(next(inputs))[0].numpy()
            labels, weights = task.labels[rows], plan.weights[index]
            losses, predicted = -logs[np.arange(len(rows)), labels].astype(np.float64), logs.argmax(1)
            sums += [(losses * weights).sum(), (losses * weights * task.class_weights[labels]).sum()]
            for row, (found, kept) in enumerate(
                [(labels, weights * (predicted == labels)), (predicted, weights), (labels, weights)]
            ):
                counts[row] += np.bincount(found, kept, num_classes)
            self._reporter.count(int(plan.totals[index]))
        summed = steps.sum_over_workers(self._strategy, np.concatenate([sums, counts.ravel()]))
        right, predictions, images = summed[2:].reshape(counts.shape)
        return Validated(
            loss=float(summed[0] / images.sum()),
            weighted_loss=float(summed[1] / (images @ task.class_weights)),
            accuracy=float(right.sum() / images.sum()),
            macro_f1=compute_macro_f1(right, predictions, images),
        )

    def _save_state(self, record: EpochRecord) -> None:
        """Write the checkpoint on rank 0, and report it to the driver and to Ray Train."""
        checkpoint = None
        if self._rank == 0:
            filesystem, path = storage.make_arrow_filesystem(save_state(self._checkpoints, self.state))
            checkpoint = ray.train.Checkpoint(path, filesystem)
        self._clock.note_saved()
        self._reporter.report(EpochEnded(record))
        ray.train.report(asdict(record), checkpoint, checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD)

    def choose_epoch(self, opened: OpenNetwork) -> tuple[EpochRecord, Weights, LossGain | None]:
        """Return the epoch to keep, its weights, and what phase 2 gained; every worker must call it.

        Where the recipe asks for it, phase 2's last epoch is kept only if the validation images gain by it on average.
        """
        task, state = self.task, self.state
        assert state.best is not None
        weights = state.best_weights or state.weights
        rival = state.before
        if not task.must_gain or rival is None or rival.phase == state.best.phase or not len(task.calibration_rows):
            return state.best, weights, None
        losses = [self._compute_losses(opened, tried) for tried in (state.before_weights, weights)]
        mean_weight = task.class_weights[task.labels[task.calibration_rows]].mean()
        gains = (losses[0] - losses[1]) / mean_weight
        sums = np.array([len(gains), gains.sum(), (gains**2).sum()])
        gain = measure_gain(*steps.sum_over_workers(self._strategy, sums).tolist())
        return (state.best, weights, gain) if gain.mean > 0 else (rival, state.before_weights, gain)

    def _compute_losses(self, opened: OpenNetwork, weights: Weights) -> npt.NDArray[np.float64]:
        """Return the weighted log-loss of this worker's share of the calibration rows."""
        task = self.task
        opened.network.assign_weights({**opened.initial, **weights})
        plan = self._cut(task.calibration_rows)
        batches = [RowBatch(task.val_role, 0, rows) for rows in plan.rows]
        losses = []
        with contextlib.closing(self._choose_source(task.phases[-1]).stream(batches)) as inputs:
            for rows, counts in zip(plan.rows, plan.weights, strict=True):
                logs, labels = opened.evaluate(next(inputs))[0].numpy(), task.labels[rows]
                weighted = -logs[np.arange(len(rows)), labels].astype(np.float64) * task.class_weights[labels]
                losses.append(weighted[counts > 0])
        return np.concatenate(losses) if losses else np.zeros(0)

    def predict(self, opened: OpenNetwork, weights: Weights) -> dict[str, RowPredictions]:
        """Predict this worker's share of the known rows, by role; roles without rows are left out."""
        task, phase = self.task, self.task.phases[-1]
        opened.network.assign_weights({**opened.initial, **weights})  # if phase 1 won, with the initial base
        parts: dict[str, list[RowPredictions]] = {}
        roles = [
            ("reference", PLAIN, task.reference_rows),
            ("val", task.val_role, task.calibration_rows),
            ("test", "test", task.test_rows),
        ]
        plans = [(role, cached, self._cut(rows)) for role, cached, rows in roles if len(rows)]
        batches = [RowBatch(cached, 0, rows) for _, cached, plan in plans for rows in plan.rows]
        with contextlib.closing(self._choose_source(phase).stream(batches)) as inputs:
            for role, _, plan in plans:
                with_features = task.reference_rows if role == "reference" else task.held_rows
                for rows, counts in zip(plan.rows, plan.weights, strict=True):
                    logs, features = (output.numpy() for output in opened.evaluate(next(inputs)))
                    probabilities = np.exp(logs)
                    counted = counts > 0
                    kept = counted & np.isin(rows, with_features)
                    if role == "reference":  # only their features are used
                        probabilities = probabilities[:, :0]
                    predicted = RowPredictions(rows[counted], probabilities[counted], rows[kept], features[kept])
                    parts.setdefault(role, []).append(predicted)
        return {role: join_predictions(batches_of_role) for role, batches_of_role in parts.items()}

    def _choose_source(self, phase: PhasePlan) -> BatchSource:
        if not phase.cached:
            return self.task.images
        assert self._cache is not None
        return FeatureSource(self._cache, "pooled" if phase.name == "head" else "activations")

    @property
    def _validated_rows(self) -> npt.NDArray[np.int64]:
        """Rows to measure after each epoch; of a trial only the ends of the phases matter."""
        return self.task.val_rows[: 0 if self._trial else None]

    def _list_batches(self, phase: PhasePlan, first_epoch: int, num_epochs: int) -> list[RowBatch]:
        """List this worker's training and validation batches of some epochs, in the order of the loop."""
        val = [RowBatch(self.task.val_role, 0, rows) for rows in self._cut(self._validated_rows).rows]
        batches = []
        for epoch in range(first_epoch, first_epoch + num_epochs):
            view = epoch % self.task.num_views if phase.cached else epoch
            begun = self.state.part.images if self.state.part is not None and epoch == first_epoch else 0
            batches += [RowBatch("train", view, rows) for rows in self._cut_epoch(epoch, begun).rows] + val
        return batches

    def _cut_epoch(self, epoch: int, begun: int) -> StepRows:
        """Cut what is to train of an epoch, without the images that its beginning has taken."""
        return self._cut(permute(self.task.train_rows, self.task.seed, epoch)[begun:])

    def _cut(self, rows: npt.NDArray[np.int64]) -> StepRows:
        return cut_steps(rows, self._rank, self._num_workers, self.task.batch_size)
