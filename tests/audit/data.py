"""Made-up samples for the tests of the audit."""

from tlray.audit.sample import FORMAT, Drawn, Sample


def make_sample(rows, classes=("glass", "metal", "paper"), in_archive=None, rounds=None):
    """A sample of `(row_id, uri, class_name, inside)` rows; by default the archive holds ten times as many.

    `rounds` says of each row which round drew it.
    """
    names = [row[2] for row in rows]
    counts = in_archive or {name: 10 * names.count(name) for name in classes if name in names}
    numbers = rounds or [1] * len(rows)
    drawn = [
        Drawn(row_id, uri, name, 0.5 + row_id / 1000, inside, number, len(rows) / sum(counts.values()))
        for (row_id, uri, name, inside), number in zip(rows, numbers, strict=True)
    ]
    return Sample(
        format=FORMAT,
        run_id="run",
        model_id="m" * 64,
        finished="2025-01-01T00:00:00Z",
        rounds=[sum(each <= number for each in numbers) for number in sorted(set(numbers))],
        seed=0,
        classes=list(classes),
        rows_by_class=counts,
        confidence_by_class={name: 0.9 * count for name, count in counts.items()},
        rows=drawn,
    )
