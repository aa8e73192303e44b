"""Solve a head: a multinomial logistic regression on the features of the training images.

The features are standardized, wholly, by the square root of their deviations, or not at all, and the weights decay;
both are chosen by cross-validated log-loss on the images as they are. The chosen head is then solved on augmented views
too, and the standardization is folded into its weights.

Each problem is convex, and solved by majorization (Böhning, "Multinomial logistic regression algorithm", 1992): with
the features' covariance diagonal, a bound on the curvature, the same in every step, gives each weight its own step
size. Nesterov's momentum, restarted when it leads astray (O'Donoghue, Candès, 2015), makes tens of steps enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Features = npt.NDArray[np.float32]
"""Pooled features, `[N, D]`."""

Labels = npt.NDArray[np.integer]
"""`[N]`, indices of the true classes."""

MAX_WORK = 2_000_000_000
"""Most multiply-adds of images, features and classes: 0.2 s a step on 2 cores, minutes for all settings."""

_MAX_NUMBERS = 100_000_000
"""Most features of a view: float32, 400 MB; about ten such arrays are held at once."""

_ONE_FOLD_WORK = 200_000_000
"""Multiply-adds from which one fold validates instead of five."""

_MIN_IMAGES_A_CLASS = 10
"""Least images of a class in the sample of a large set, if it has as many."""

NUM_FOLDS = 5
"""Folds of the cross-validation that chooses the settings, where no other number is asked for."""

_POWERS = (0.0, 0.5, 1.0)
_DECAYS = (10.0**0.5, 1e-4)
"""The strongest and the weakest."""

_DEFAULT_POWER, _DEFAULT_DECAY = 0.5, 0.1
_PATIENCE = 2
"""Settings without a better log-loss after which weaker decays are not tried."""

_CHOICE_STEPS, _FINAL_STEPS = 40, 300
_TOLERANCE = 1e-3
_LEAST_DEVIATION = 1e-3
_LEAST_VARIANCE = 1e-7
_LEAST_PROBABILITY = 1e-12


@dataclass(frozen=True)
class LinearHead:
    """A solved head, logits = features @ kernel + bias.

    Attributes:
        kernel, bias: float32 `[D, C]` and `[C]`, for features as they are.
        power: standardization; features are divided by their deviations to this power.
        decay: penalty of the standardized features' weights, decay / 2 times the sum of their squares.
        log_loss: cross-validated mean log-loss; None if there were too few images to choose by it.
        images: training images that it was solved on.
        folds: int64 `[N]`, fold of each image.
        without: kernels and biases of the heads that were solved without one fold each, in the folds' order; empty
            if not asked for.
    """

    kernel: Features
    bias: Features
    power: float
    decay: float
    log_loss: float | None
    images: int
    folds: npt.NDArray[np.int64]
    without: list[tuple[Features, Features]]

    def predict_out_of_fold(self, plain: Features) -> Features:
        """Return the probabilities of each image by the head that was solved without its fold, `[N, C]`."""
        logits = np.empty((len(plain), len(self.bias)), np.float32)
        for fold, (kernel, bias) in enumerate(self.without):
            held = self.folds == fold
            logits[held] = plain[held] @ kernel + bias
        return _softmax(logits)


def can_solve(num_images: int, num_features: int, num_classes: int) -> bool:
    """Return whether a head is small enough to be solved, perhaps on a sample of the images."""
    return choose_sample(num_images, num_features, num_classes) > 0


def choose_sample(num_images: int, num_features: int, num_classes: int) -> int:
    """Return how many images a head is solved on; 0 if there are too many classes for it."""
    most = min(MAX_WORK // (num_features * num_classes), _MAX_NUMBERS // num_features)
    return min(num_images, most) if most >= min(num_images, _MIN_IMAGES_A_CLASS * num_classes) else 0


def draw_sample(
    rows: npt.NDArray[np.int64], labels: npt.NDArray[np.int32], most: int, seed: int
) -> npt.NDArray[np.int64]:
    """Return a sample of at most `most` rows, sorted: 10 random images of each class or all it has, then any others.

    Args:
        labels: by row id.
    """
    drawn = np.random.default_rng(seed).permutation(rows)
    by_class = np.argsort(labels[drawn], kind="stable")
    counts = np.bincount(labels[drawn])
    turns = np.empty(len(drawn), np.int64)
    turns[by_class] = np.arange(len(drawn)) - np.repeat(np.cumsum(counts) - counts, counts)
    first = np.argsort(turns >= _MIN_IMAGES_A_CLASS, kind="stable")
    return np.sort(drawn[first][:most])


def solve_head(
    plain: Features,
    views: Sequence[Features],
    labels: Labels,
    groups: npt.NDArray[np.integer],
    class_weights: npt.NDArray[np.float32],
    seed: int,
    num_settings: int = 30,
    num_folds: int = 0,
) -> LinearHead:
    """Choose a head's settings by cross-validation, and solve it.

    Args:
        plain: of the images as they are, by which settings are chosen.
        views: of augmented views of the same images, which the chosen head is solved on too.
        labels: of the images.
        groups: `[N]`, images of one number stay in one fold.
        class_weights: `[C]`, weight of an image by its label.
        seed: of the folds.
        num_settings: number of settings to choose among, at least one for each standardization.
        num_folds: solve a head without each fold too; 0 for the folds that settings are chosen by alone.
    """
    weights = class_weights[labels]
    one_hot = np.eye(len(class_weights), dtype=np.float32)[labels]
    work = plain.size * len(class_weights)
    folds = draw_folds(labels, groups, num_folds or NUM_FOLDS, seed)
    filled = sorted({*folds.tolist()})
    held_out = filled[:1] if work > _ONE_FOLD_WORK else filled
    power, decay, log_loss = _DEFAULT_POWER, _DEFAULT_DECAY, None
    # strongest first: each solution is the start of the next
    decays = np.geomspace(*_DECAYS, num_settings // len(_POWERS)).tolist()
    if len(filled) == (num_folds or NUM_FOLDS):
        tried = [_validate(plain, one_hot, weights, folds, held_out, power, decays) for power in _POWERS]
        losses = np.array([[*found, *[np.inf] * (len(decays) - len(found))] for found in tried])
        best = np.unravel_index(losses.argmin(), losses.shape)
        if np.isfinite(losses[best]):
            power, decay, log_loss = _POWERS[best[0]], decays[best[1]], float(losses[best])
    mean, scale = _standardize(plain, power)
    stacked = np.concatenate([(part - mean) / scale for part in (plain, *views)])
    times = 1 + len(views)
    problem = _Problem(stacked, np.tile(one_hot, (times, 1)), np.tile(weights, times))

    def solve(kept: npt.NDArray[np.bool_] | None) -> tuple[Features, Features]:
        kernel, bias = problem.expand(problem.solve(decay, _FINAL_STEPS, kept=kept))
        kernel = kernel / scale[:, None]
        return kernel.astype(np.float32), (bias - mean @ kernel).astype(np.float32)

    without = [solve(np.tile(folds != fold, times)) for fold in filled if num_folds]
    return LinearHead(*solve(None), power, decay, log_loss, len(plain), folds, without)


def draw_folds(labels: Labels, groups: npt.NDArray[np.integer], num_folds: int, seed: int) -> npt.NDArray[np.int64]:
    """Return the fold of each image, `[N]`: classes are spread evenly, and a group stays together."""
    _, first, members = np.unique(groups, return_index=True, return_inverse=True)
    order = np.lexsort((np.random.default_rng(seed).random(len(first)), labels[first]))
    fold_of_group = np.empty(len(first), np.int64)
    fold_of_group[order] = np.arange(len(first)) % num_folds
    return fold_of_group[members]


def _standardize(features: Features, power: float) -> tuple[Features, Features]:
    """Return what to subtract and to divide by, `[D]` each, for a mean square of 1 over all features."""
    mean = features.mean(axis=0)
    deviations = features.std(axis=0)
    deviations = np.maximum(deviations, _LEAST_DEVIATION * max(float(deviations.mean()), _LEAST_PROBABILITY))
    scale = deviations**power
    scale *= max(float(np.sqrt(np.mean(((features - mean) / scale) ** 2))), _LEAST_PROBABILITY)
    return mean, scale.astype(np.float32)


def _validate(
    features: Features,
    one_hot: Features,
    weights: npt.NDArray[np.float32],
    folds: npt.NDArray[np.int64],
    held_out: Sequence[int],
    power: float,
    decays: Sequence[float],
) -> list[float]:
    """Return the log-loss on the folds held out by decay, in the order given, until it rises.

    Infinity if no held-out image is of a class that another fold has.
    """
    mean, scale = _standardize(features, power)
    scaled = (features - mean) / scale
    problems, solutions = [], []
    for fold in held_out:
        rest = folds != fold
        problems.append(_Problem(scaled[rest], one_hot[rest], weights[rest]))
        solutions.append(problems[-1].start())
    # a class whose only images are held out cannot be known
    held = [(folds == fold) & (one_hot @ one_hot[folds != fold].max(axis=0) > 0) for fold in held_out]
    total = sum(float(weights[images].sum()) for images in held)
    losses: list[float] = [] if total else [np.inf]
    for decay in decays if total else ():
        loss = 0.0
        for index, (images, problem) in enumerate(zip(held, problems, strict=True)):
            solutions[index] = problem.solve(decay, _CHOICE_STEPS, solutions[index])
            kernel, bias = problem.expand(solutions[index])
            chances = (_softmax(scaled[images] @ kernel + bias) * one_hot[images]).sum(axis=1)
            loss += float(-(weights[images] * np.log(np.maximum(chances, _LEAST_PROBABILITY))).sum())
        losses.append(loss / total)
        if len(losses) - 1 - int(np.argmin(losses)) >= _PATIENCE:
            break
    return losses


class _Problem:
    """Minimize the weighted mean cross-entropy plus decay / 2 times the sum of the kernel's squares.

    Solutions are float32 `[R + 1, C]`: the kernel in the covariance's axes, and the bias.
    """

    def __init__(self, features: Features, one_hot: Features, weights: npt.NDArray[np.float32]) -> None:
        """Find the axes of the features `[N, D]` whose variance is not negligible."""
        self._shares = (weights / weights.sum())[:, None].astype(np.float32)
        self._mean = (self._shares * features).sum(axis=0)
        centred = features - self._mean
        variances, axes = _find_axes((centred * np.sqrt(self._shares)).astype(np.float64))
        self._variances = variances.astype(np.float32)
        self._axes = axes.astype(np.float32)
        self._rotated = centred @ self._axes
        self._one_hot = one_hot

    def start(self) -> Features:
        """Return the solution without any decision: zeros."""
        return np.zeros((len(self._variances) + 1, self._one_hot.shape[1]), np.float32)

    def solve(
        self,
        decay: float,
        max_steps: int,
        start: Features | None = None,
        kept: npt.NDArray[np.bool_] | None = None,
    ) -> Features:
        """Take steps until the largest is a thousandth of the largest weight.

        Args:
            start: a solution to begin with.
            kept: `[N]`, images to solve on; None for all.
        """
        shares, total = self._shares, 1.0
        if kept is not None:
            shares = shares * kept[:, None]
            total = float(shares.sum())
            shares /= np.float32(total)
        # softmax curves by at most 1/2 (Böhning, 1992, equation 3.3); a part of the images by no more than all do
        step_sizes = np.append(1 / (0.5 / total * self._variances + decay), 2.0 * total).astype(np.float32)[:, None]
        now = self.start() if start is None else start
        before, momentum = now, 1.0
        for _ in range(max_steps):
            following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
            ahead = now + np.float32((momentum - 1) / following) * (now - before)
            residuals = (_softmax(self._rotated @ ahead[:-1] + ahead[-1]) - self._one_hot) * shares
            gradient = np.vstack([self._rotated.T @ residuals + np.float32(decay) * ahead[:-1], residuals.sum(axis=0)])
            before, now, momentum = now, ahead - step_sizes * gradient, following
            move = now - before
            if float((gradient * move).sum()) > 0:
                momentum = 1.0
            if np.abs(move).max() <= _TOLERANCE * np.abs(now).max():
                break
        return now

    def expand(self, solution: Features) -> tuple[Features, Features]:
        """Return kernel `[D, C]` and bias `[C]` for the features given."""
        kernel = self._axes @ solution[:-1]
        return kernel, solution[-1] - self._mean @ kernel


def _find_axes(rows: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the variances `[R]` and axes `[D, R]` of centred rows `[N, D]`, from the smaller of the two products."""
    if len(rows) >= rows.shape[1]:
        variances, axes = np.linalg.eigh(rows.T @ rows)
        kept = variances > _LEAST_VARIANCE * variances[-1]
        return variances[kept], axes[:, kept]
    variances, places = np.linalg.eigh(rows @ rows.T)
    kept = variances > _LEAST_VARIANCE * variances[-1]
    return variances[kept], rows.T @ (places[:, kept] / np.sqrt(variances[kept]))


def _softmax(logits: Features) -> Features:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    scaled: Features = powers / powers.sum(axis=1, keepdims=True)
    return scaled
