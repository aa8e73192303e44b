"""What every training worker runs: the phases and epochs of a training, from wherever it stands to its end.

Every epoch ends with a checkpoint. A worker group that is started again, here or by a later command, reads the latest
and goes on behind it; nothing else has to be remembered, since order, views and dropout depend on seed and epoch alone.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import ray
import ray.train
import ray.train.collective

from tlray import storage
from tlray.errors import DivergedError
from tlray.model.engine import limit_threads
from tlray.model.network import (
    Entrance,
    Network,
    Tail,
    Weights,
    build_base,
    build_head,
    build_tail,
    find_positions,
    make_optimizer,
)
from tlray.training import steps
from tlray.training.channel import Message
from tlray.training.checkpoint import TrainingState, load_state, save_state
from tlray.training.loader import BatchSource, FeatureSource, RowBatch
from tlray.training.results import RowPredictions, fit_calibration, join_predictions
from tlray.training.schedule import (
    StepRows,
    cut_steps,
    draw_dropout,
    is_exhausted,
    make_rates,
    permute,
    score_epoch,
)
from tlray.training.task import PhasePlan, TrainingTask, WorkerSettings

_PROGRESS_INTERVAL_S = 0.5
_POLL_S = 0.2


class Worker:
    """One rank, with the state that all ranks share."""

    def __init__(self, setting: WorkerSettings) -> None:
        """Find the other workers."""
        context = ray.train.get_context()
        self.rank, self.num_workers = context.get_world_rank(), context.get_world_size()
        self.checkpoints = setting.checkpoints
        self.channel = setting.channel
        self.reporter = _WorkerReporter(self.channel, self.rank)
        limit_threads(max(1, setting.num_threads // context.get_local_world_size()))
        self.strategy = steps.make_strategy(setting.collective_timeout_s)

    def run(self, task: TrainingTask) -> None:
        """All phases that are left, then the test data, then the model's files."""
        self.task = task
        if task.precision.step != "float32":
            keras.config.set_dtype_policy(f"mixed_{task.precision.step}")
        self.initial: Weights = {}
        self.cache = task.cache.open() if task.cache is not None else None
        state = self.state = self._find_state()
        with self.strategy.scope():
            self.head = build_head(task.backbone, task.head_units, len(task.classes), seed=task.seed)
        network: Network | None = None
        while state.phase < len(task.phases):
            network = self._open_network(task.phases[state.phase], network)
            self._run_phase(task.phases[state.phase], network)
        if network is None:  # all epochs were done before
            network = self._open_network(task.phases[-1], None)
        assert state.best is not None
        weights = state.best_weights or state.weights
        self.reporter.say("stage", {"name": "saving"})
        ray.get(self.channel.put_predictions.remote(self.rank, self._predict(network, weights)))
        if self.rank == 0:
            from tlray.training.export import export_model

            predictions = self._collect_predictions()
            calibration = fit_calibration(predictions["reference"], predictions.get("val"), task.labels)
            files, architecture = export_model(task, weights, state.history, calibration)
            # behind a reference: the driver reads a few hundred MB where they lie, while this process lives
            body = {
                "files": [ray.put(files)],
                "architecture": architecture,
                "kept": state.best,
                "calibration": calibration,
                "predictions": [ray.put(predictions)],
            }
            self.reporter.say("model", body)
            self.reporter.wait_for_end()

    def _find_state(self) -> TrainingState:
        """The run's latest state; rank 0 decides which, so that all go on from the same."""
        state = load_state(self.checkpoints)
        epoch = ray.train.collective.broadcast_from_rank_zero(state.epoch)
        if state.epoch != epoch:
            raise RuntimeError(f"rank {self.rank} finds the state of epoch {state.epoch}, rank 0 that of {epoch}")
        self.reporter.say("resumed", {"history": state.history, "num_workers": self.num_workers})
        return state

    def _open_network(self, phase: PhasePlan, before: Network | None) -> Network:
        """The part of the network that a phase works on, with the weights that it starts from."""
        task = self.task
        tail: Tail | None = None
        with self.strategy.scope():
            if not phase.cached and before is not None and before.entrance == "pixels":
                network = before
            else:
                base: Any = None
                positions: dict[str, int] = {}
                entrance: Entrance = "pooled"
                if not phase.cached:
                    weights = ray.get(task.base_weights) if task.base_weights is not None else None
                    base = build_base(
                        task.backbone,
                        task.image_size_px,
                        weights=weights,
                        seed=task.seed,
                        train_batchnorm=task.train_batchnorm,
                    )
                    entrance, positions = "pixels", find_positions(base)
                elif phase.name == "finetune":
                    assert self.cache is not None
                    tail = self.cache.load_tail()
                    base = build_tail(tail, train_batchnorm=task.train_batchnorm)
                    entrance, positions = "activations", tail.positions
                network = Network(
                    task.backbone, entrance, base, positions, self.head, train_batchnorm=task.train_batchnorm
                )
        if tail is not None:
            network.assign_weights(tail.weights)
        network.open_base(task.finetune_from if phase.name == "finetune" else None)
        self.evaluate = steps.make_evaluate_step(self.strategy, network)
        self.initial = network.read_weights(opened_only=True)
        network.assign_weights(self.state.weights)
        return network

    def _run_phase(self, phase: PhasePlan, network: Network) -> None:
        """Epochs of one phase, from where the state stands."""
        task, state = self.task, self.state
        done = [record for record in state.history if record["phase"] == phase.name]
        num_steps = len(cut_steps(task.train_rows, self.rank, self.num_workers, task.batch_size).rows)
        rates = make_rates(
            phase.learning_rate, phase.epochs * num_steps, phase.schedule, round(phase.warmup_epochs * num_steps)
        )
        with self.strategy.scope():
            optimizer = make_optimizer(phase.optimizer, steps.RateTable(rates))
            optimizer.build(network.trainable_variables)
            if state.slots:
                for variable, value in zip(optimizer.variables, state.slots, strict=True):
                    variable.assign(value)
            # with another number of workers an epoch has another number of steps
            optimizer.iterations.assign(len(done) * num_steps)
        trainer = steps.TrainStep(
            self.strategy,
            network,
            optimizer,
            label_smoothing=task.label_smoothing,
            clip_norm=task.clip_norm,
        )
        if state.slots:
            trainer.loss_scale = state.loss_scale
        batches = self._list_batches(phase, state.epoch, phase.epochs - len(done))
        self.reporter.say("stage", {"name": "phase 1" if phase.name == "head" else "phase 2"})
        with contextlib.closing(self._find_source(phase).stream(batches)) as inputs:
            while not self._is_over(phase, done):
                rate = float(rates[(len(done) + 1) * num_steps - 1])
                record = self._run_epoch(phase, network, trainer, inputs, rate)
                done.append(record)
                state.history.append(record)
                self._take_state(network, optimizer, trainer, record)
                if self._is_over(phase, done):
                    self._end_phase()
                self._save_state(record)

    def _is_over(self, phase: PhasePlan, done: list[dict[str, Any]]) -> bool:
        return len(done) >= phase.epochs or is_exhausted(done, self.task.early_stopping)

    def _run_epoch(
        self,
        phase: PhasePlan,
        network: Network,
        trainer: Any,
        inputs: Iterator[npt.NDArray[Any]],
        learning_rate: float,
    ) -> dict[str, Any]:
        """One epoch and its validation; returns its record."""
        task, epoch = self.task, self.state.epoch
        started = time.monotonic()
        plan = self._cut_epoch(epoch)
        sums = np.zeros(2)
        waited_s = 0.0
        for index, rows in enumerate(plan.rows):
            asked = time.monotonic()
            images = next(inputs)
            waited_s += time.monotonic() - asked
            batch = {
                "inputs": images,
                "labels": task.labels[rows],
                "weights": plan.weights[index] * task.class_weights[task.labels[rows]],
                "counts": plan.weights[index],
                "total": plan.totals[index],
            }
            if network.entrance == "pixels":
                batch["transforms"] = task.augmentation.draw(rows, epoch, task.image_size_px)
            if task.dropout and task.head_units:
                share = slice(self.rank * task.batch_size, (self.rank + 1) * task.batch_size)
                whole = self.num_workers * task.batch_size
                batch["masks"] = draw_dropout(task.seed, epoch, index, whole, task.head_units, task.dropout)[share]
            result = trainer.step(batch)
            if not np.isfinite(result).all():
                raise DivergedError(
                    f"the loss is not finite in phase {phase.name}, epoch {epoch + 1}, step {index + 1}; "
                    "lower the learning rate; the checkpoint of the last finished epoch stays"
                )
            sums += result
            self.reporter.count(int(plan.totals[index]))
        loss, accuracy = steps.sum_over_workers(self.strategy, sums) / len(task.train_rows)
        if task.train_batchnorm:
            steps.average_statistics(self.strategy, network)
        steps.check_replicas(self.strategy, network)
        trained_s = time.monotonic() - started
        val_loss, val_accuracy = self._validate(inputs)
        return {
            "phase": phase.name,
            "epoch": epoch + 1,
            "loss": float(loss),
            "accuracy": float(accuracy),
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
            "images": len(task.train_rows),
            "steps": len(plan.rows),
            "seconds": round(time.monotonic() - started, 3),
            "train_seconds": round(trained_s, 3),
            "wait_seconds": round(waited_s, 3),
            "learning_rate": learning_rate,
        }

    def _take_state(self, network: Network, optimizer: Any, trainer: Any, record: dict[str, Any]) -> None:
        """Bring the state up to the epoch that has just ended."""
        state = self.state
        if state.best is not None and not state.best_weights and score_epoch(record) <= score_epoch(state.best):
            state.best_weights = state.weights  # those of the epoch before, which were the best so far
        state.weights = {**state.weights, **network.read_weights(opened_only=True)}
        if state.best is None or score_epoch(record) > score_epoch(state.best):
            state.best, state.best_weights = record, {}
        state.slots = [np.array(variable) for variable in optimizer.variables]
        state.loss_scale = trainer.loss_scale

    def _end_phase(self) -> None:
        """The next phase starts from the best epoch so far."""
        state = self.state
        if state.best_weights:
            state.weights, state.best_weights = state.best_weights, {}
        state.slots = []
        state.phase += 1

    def _save_state(self, record: dict[str, Any]) -> None:
        """Rank 0 writes the checkpoint and tells the driver; all ranks report it to Ray Train."""
        checkpoint = None
        if self.rank == 0:
            filesystem, path = storage.make_arrow_filesystem(save_state(self.checkpoints, self.state))
            checkpoint = ray.train.Checkpoint(path, filesystem)
        self.reporter.say("epoch", record)
        ray.train.report(record, checkpoint, checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD)

    def _find_source(self, phase: PhasePlan) -> BatchSource:
        if not phase.cached:
            return self.task.images
        assert self.cache is not None
        return FeatureSource(self.cache, "pooled" if phase.name == "head" else "activations")

    def _list_batches(self, phase: PhasePlan, first_epoch: int, num_epochs: int) -> list[RowBatch]:
        """This worker's batches of some epochs, in the order in which the loop takes them."""
        val = [RowBatch("val", 0, rows) for rows in self._cut(self.task.val_rows).rows]
        batches = []
        for epoch in range(first_epoch, first_epoch + num_epochs):
            view = epoch % self.task.num_views if phase.cached else epoch
            batches += [RowBatch("train", view, rows) for rows in self._cut_epoch(epoch).rows] + val
        return batches

    def _cut_epoch(self, epoch: int) -> StepRows:
        return self._cut(permute(self.task.train_rows, self.task.seed, epoch))

    def _cut(self, rows: npt.NDArray[np.int64]) -> StepRows:
        return cut_steps(rows, self.rank, self.num_workers, self.task.batch_size)

    def _validate(self, inputs: Iterator[npt.NDArray[Any]]) -> tuple[float | None, float | None]:
        """Mean cross-entropy and accuracy over all validation rows of all workers; None where there are none."""
        task = self.task
        if len(task.val_rows) == 0:
            return None, None
        sums = np.zeros(2)
        plan = self._cut(task.val_rows)
        for index, rows in enumerate(plan.rows):
            probabilities = self.evaluate(next(inputs))[0].numpy()
            labels, weights = task.labels[rows], plan.weights[index]
            chances = probabilities[np.arange(len(rows)), labels].astype(np.float64)
            sums += [
                -(np.log(np.maximum(chances, 1e-7)) * weights).sum(),
                ((probabilities.argmax(1) == labels) * weights).sum(),
            ]
            self.reporter.count(int(plan.totals[index]))
        loss, accuracy = steps.sum_over_workers(self.strategy, sums) / len(task.val_rows)
        return float(loss), float(accuracy)

    def _predict(self, network: Network, weights: Weights) -> dict[str, RowPredictions]:
        """This worker's share of what the kept weights answer, by role; a role without rows is left out."""
        task = self.task
        network.assign_weights({**self.initial, **weights})  # where phase 1 won, the base as it was
        phase = task.phases[-1]
        # a view that the last phase has trained on is in the cache, and so is its kind of features
        view = (sum(phase.epochs for phase in task.phases) - 1) % task.num_views if phase.cached else 0
        given: dict[str, list[RowPredictions]] = {}
        roles = [
            ("reference", "train", view, task.reference_rows),
            ("val", "val", 0, task.calibration_rows),
            ("test", "test", 0, task.test_rows),
        ]
        plans = [(role, kind, seen, self._cut(rows)) for role, kind, seen, rows in roles if len(rows)]
        batches = [RowBatch(kind, seen, rows) for _, kind, seen, plan in plans for rows in plan.rows]
        with contextlib.closing(self._find_source(phase).stream(batches)) as inputs:
            for role, _, _, plan in plans:
                for rows, counts in zip(plan.rows, plan.weights, strict=True):
                    probabilities, features = (output.numpy() for output in self.evaluate(next(inputs)))
                    kept = (counts > 0) & np.isin(rows, task.reference_rows if role == "reference" else task.held_rows)
                    own = RowPredictions(rows[counts > 0], probabilities[counts > 0], rows[kept], features[kept])
                    given.setdefault(role, []).append(own)
        return {role: join_predictions(parts) for role, parts in given.items()}

    def _collect_predictions(self) -> dict[str, RowPredictions]:
        """What all workers answered."""
        while ray.get(self.channel.count_predicted.remote()) < self.num_workers:
            time.sleep(_POLL_S)
        predicted: dict[int, dict[str, RowPredictions]] = ray.get(self.channel.get_predictions.remote())
        roles = dict.fromkeys(role for rank in sorted(predicted) for role in predicted[rank])
        return {role: join_predictions(one[role] for one in predicted.values() if role in one) for role in roles}


class _WorkerReporter:
    """Rank 0's voice; the other ranks only send what is theirs alone."""

    def __init__(self, channel: Any, rank: int) -> None:
        self._channel = channel
        self._rank = rank
        self._count = 0
        self._last = time.monotonic()

    def count(self, images: int) -> None:
        self._count += images
        if time.monotonic() - self._last >= _PROGRESS_INTERVAL_S:
            self.say("images", {"count": self._count})
            self._count = 0
            self._last = time.monotonic()

    def say(self, kind: str, body: dict[str, Any]) -> None:
        if self._rank == 0:
            self.send(kind, body)

    def wait_for_end(self) -> None:
        """Until the driver has all that it needs."""
        while not ray.get(self._channel.is_closed.remote()):
            time.sleep(_POLL_S)

    def send(self, kind: str, body: dict[str, Any]) -> None:
        ray.get(self._channel.send.remote(Message(kind, body, time.time())))
