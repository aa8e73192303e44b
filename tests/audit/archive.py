"""A made-up archive whose true classes are known."""

import numpy as np

from tlray.audit.sampling import PrioritySample, Sizes, Totals
from tlray.metrics.census import Reviewed, take_census


class Archive:
    """Rows whose true classes are drawn from the model's probabilities, or from others where these are wrong.

    Args:
        shares: of the classes.
        sharpness: factors of the right class's logit, each for a share of the rows.
        power: the true probabilities are the model's to this power; below 1 the model is overconfident.
        hidden: share of the rows that belong to the last class whatever the model says.
    """

    def __init__(self, shares, sharpness=((8.0, 0.85), (3.0, 0.1), (1.5, 0.05)), power=1.0, hidden=0.0, rows=20_000):
        rng = np.random.default_rng(7)
        shares = np.array(shares, float) / np.sum(shares)
        self.num_classes, self.num_rows = len(shares), rows
        factors, parts = zip(*sharpness, strict=True)
        logits = rng.normal(size=(rows, len(shares))) * 0.9 + 0.35 * np.log(shares)
        logits[np.arange(rows), rng.choice(len(shares), rows, p=shares)] += rng.choice(factors, rows, p=parts)
        probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        self.predicted, self.probabilities = probabilities.argmax(axis=1), probabilities.max(axis=1)
        real = probabilities**power
        real /= real.sum(axis=1, keepdims=True)
        self.true = (real.cumsum(axis=1) < rng.random((rows, 1))).sum(axis=1).clip(max=len(shares) - 1)
        self.true = np.where(rng.random(rows) < hidden, len(shares) - 1, self.true)
        self.totals = Totals(len(shares))
        self.totals.add(self.predicted, self.probabilities)
        size = len(shares)
        right = self.true == self.predicted
        self.share = np.bincount(self.true, minlength=size) / rows
        self.accuracy = right.mean()
        self.right = np.bincount(self.predicted[right], minlength=size)
        with np.errstate(invalid="ignore", divide="ignore"):
            self.precision = self.right / self.totals.counts
            self.recall = self.right / (self.share * rows)

    def draw(self, wanted, seed, first=None):
        sizes = Sizes(self.totals, first or wanted).measure(self.predicted, self.probabilities)
        sample = PrioritySample(wanted, seed)
        sample.add(np.arange(self.num_rows), np.ones(self.num_rows, bool), sizes)
        return sample.take()

    def review(self, drawn):
        rows = drawn.row_ids
        drawn_by_class = np.bincount(self.predicted[rows], minlength=self.num_classes)
        reviewed = Reviewed(
            self.predicted[rows], self.probabilities[rows], self.true[rows], drawn.inclusion, drawn_by_class
        )
        return take_census(self.totals.counts, self.totals.confidence, reviewed)
