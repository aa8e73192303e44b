"""The audit that takes no probabilities: simple random samples within each predicted class, as an oracle."""

import numpy as np

from tlray.metrics.intervals import wilson

MIN_ROWS = 5


def allocate(counts, wanted):
    """Rows of each class: proportional to its share, but at least `MIN_ROWS` or all that it has."""
    return np.minimum(counts, np.maximum(MIN_ROWS, np.round(wanted * counts / counts.sum()).astype(int)))


def estimate_share(rows, reviewed, right):
    """Share of right rows over all classes, with its 95% interval: Wilson's on the effective sample size."""
    weights, guesses = rows / rows.sum(), (right + 1) / (reviewed + 2)
    variance = (weights**2 * guesses * (1 - guesses) / reviewed).sum()
    smooth = (weights * guesses).sum()
    share = min(1.0, (weights * right / reviewed).sum())
    size = smooth * (1 - smooth) / variance
    return share, *wilson(share * size, size)


def review(rng, rows, right_rows, wanted):
    """Interval of the accuracy and of each class's precision of one audit."""
    reviewed = allocate(rows, wanted)
    right = rng.hypergeometric(right_rows, rows - right_rows, reviewed)
    return estimate_share(rows, reviewed, right)[1:], [wilson(*pair) for pair in zip(right, reviewed, strict=True)]
