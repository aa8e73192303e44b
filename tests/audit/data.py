"""Made-up samples for the tests of the audit."""

from tlray.audit.sample import FORMAT, Drawn, Sample


def make_sample(rows, classes=("glass", "metal", "paper"), in_archive=None):
    """A sample of `(row_id, uri, class_name, inside)` rows; by default the archive holds ten times as many."""
    drawn = [Drawn(row_id, uri, name, 0.5 + row_id / 1000, inside) for row_id, uri, name, inside in rows]
    names = [row.class_name for row in drawn]
    return Sample(
        format=FORMAT,
        run_id="run",
        model_id="m" * 64,
        finished="2025-01-01T00:00:00Z",
        asked=len(drawn),
        seed=0,
        classes=list(classes),
        rows_by_class=in_archive or {name: 10 * names.count(name) for name in classes if name in names},
        rows=drawn,
    )
