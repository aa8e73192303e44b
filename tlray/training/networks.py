"""Build the part of the network that a phase trains, with the weights it starts from."""

from __future__ import annotations

from dataclasses import dataclass

import keras
import ray
import tensorflow as tf

from tlray.features.cache import OpenCache
from tlray.model.network import Entrance, Network, Tail, Weights, build_base, build_tail, find_positions
from tlray.training import steps
from tlray.training.task import PhasePlan, TrainingTask


@dataclass(frozen=True)
class OpenNetwork:
    """A network whose part that a phase trains is trainable.

    Attributes:
        initial: weights of the trainable part before any training.
        evaluate: as returned by `steps.make_evaluate_step`.
    """

    network: Network
    initial: Weights
    evaluate: steps.Function


def open_network(
    task: TrainingTask,
    phase: PhasePlan,
    strategy: tf.distribute.Strategy,
    head: list[keras.layers.Dense],
    cache: OpenCache | None,
    trained: Weights,
    before: OpenNetwork | None,
) -> OpenNetwork:
    """Build the part of the network that a phase works on.

    Args:
        phase: decides the part: the whole network without cached features, else the head, or the tail and the head.
        head: the dense layers, shared by all phases.
        trained: weights of everything trained so far.
        before: of the previous phase; a whole network is used again.
    """
    tail: Tail | None = None
    with strategy.scope():
        if not phase.cached and before is not None and before.network.entrance == "pixels":
            network = before.network
        else:
            entrance, base, positions = _build(task, phase, cache)
            if isinstance(base, Tail):
                tail = base
                base = build_tail(tail, train_batchnorm=task.train_batchnorm)
            network = Network(task.backbone, entrance, base, positions, head, train_batchnorm=task.train_batchnorm)
    if tail is not None:
        network.assign_weights(tail.weights)
    network.open_base(task.finetune_from if phase.name == "finetune" else None)
    evaluate = steps.make_evaluate_step(strategy, network)
    initial = network.read_weights(opened_only=True)
    network.assign_weights(trained)
    return OpenNetwork(network, initial, evaluate)


def _build(
    task: TrainingTask, phase: PhasePlan, cache: OpenCache | None
) -> tuple[Entrance, keras.Model | Tail | None, dict[str, int]]:
    """Return the entrance, the layers from there to pooling, and their positions in the base."""
    if not phase.cached:
        base = build_base(
            task.backbone,
            task.image_size_px,
            weights=ray.get(task.base_weights) if task.base_weights is not None else None,
            seed=task.seed,
            train_batchnorm=task.train_batchnorm,
        )
        return "pixels", base, find_positions(base)
    if phase.name == "head":
        return "pooled", None, {}
    assert cache is not None
    tail = cache.load_tail()
    return "activations", tail, tail.positions
