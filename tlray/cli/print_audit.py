"""Print the summaries of audit and compare."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from tlray.cli.tables import print_facts, print_rows_by_class
from tlray.console import console

if TYPE_CHECKING:
    from tlray.audit.draw import SampleSummary
    from tlray.audit.estimate import AuditSummary
    from tlray.comparison.summary import CompareSummary


def print_sample(summary: SampleSummary) -> None:
    """Print the last round's rows by class, and instructions for the reviewer."""
    sample = summary.sample
    fresh = sample.list_round(len(sample.rounds))
    drawn = Counter(row.class_name for row in fresh)
    console.print()
    if summary.already_drawn:
        console.print("Already drawn; nothing was done.")
    rows = {name: (f"{labelled:,}", f"{drawn[name]:,}") for name, labelled in sample.rows_by_class.items()}
    print_rows_by_class(rows, "labelled>", "drawn>")
    facts = [("rows", f"{len(fresh):,} of {sum(sample.rows_by_class.values()):,}")]
    if len(sample.rounds) > 1:
        facts.append(("round", f"{len(sample.rounds)}; {len(sample.rows):,} rows in all"))
    facts.append(("review", summary.page))
    if not summary.already_drawn and summary.pictures < len(fresh):
        facts.append(("", f"{summary.pictures:,} of the rows have a picture there"))
    facts.append(("", "open it in a browser, answer by keys, and save its CSV over the empty one:"))
    facts.append(("answers", summary.form))
    facts.append(("", "or fill in correct_label in a spreadsheet: . if the label is right, the right class if not,"))
    facts.append(("", "? if no class fits; a row left empty doesn't count"))
    facts.append(("then", summary.command))
    print_facts(facts)


def print_audit(summary: AuditSummary) -> None:
    """Print each class's count and quality, the accuracy, the confused classes, the files, and the next round."""
    rows = {
        name: (
            f"{one.rows:,}",
            "?" if one.count is None else f"{one.count:,}",
            "" if one.count is None else f"{one.count_low:,}-{one.count_high:,}",
            _format_share(one.precision, one.precision_low, one.precision_high),
            _format_share(one.recall, one.recall_low, one.recall_high),
        )
        for name, one in summary.by_class.items()
    }
    console.print()
    print_rows_by_class(rows, "labels>", "rows>", "95%>", "precision>", "recall>")
    accuracy = f"{summary.accuracy:.4f} of the labels are right (95% interval {summary.accuracy_low:.4f} to "
    facts = [("archive", f"{accuracy}{summary.accuracy_high:.4f})")]
    if summary.covered < 1:
        facts.append(("", f"of the classes that were reviewed, which have {summary.covered:.1%} of the labelled rows"))
    facts.append(("reviewed", f"{summary.reviewed:,} of {summary.sampled:,} rows, {summary.right:,} of them right"))
    if summary.none_of_them:
        share = f"{summary.no_class:.2%} of the archive (95% interval {summary.no_class_low:.2%} to "
        facts.append(("no class", f"{summary.none_of_them:,} of them, {share}{summary.no_class_high:.2%})"))
    if summary.most_confused:
        worst = summary.most_confused[:3]
        text = "; ".join(f"{pair.true} taken for {pair.predicted} {pair.images:,}x" for pair in worst)
        facts.append(("most confused", text))
    left_out = f"; {summary.inside:,} more lie in tables or packed archives, which no list for training can name"
    text = f"{summary.folder}/corrections.csv ({summary.corrections:,} rows, for tlray train --data)"
    facts.append(("corrections", text + (left_out if summary.inside else "")))
    facts.append(("written", f"{summary.folder}/report.html and audit.json"))
    facts.append(("model id", summary.model_id))
    facts.append(("widest", f"the share of {summary.widest} is known to {summary.width:.4f} (width of its interval)"))
    if summary.verdict is not None:
        facts.append(("until", summary.verdict))
    print_facts(facts)
    if summary.next_round is not None:
        print_sample(summary.next_round)


def _format_share(value: float | None, low: float, high: float) -> str:
    return "-" if value is None else f"{value:.3f} ({low:.2f}-{high:.2f})"


def print_comparison(summary: CompareSummary) -> None:
    """Print the changes by class, the most frequent transitions, agreement, and rows that one output has alone."""
    rows = {
        name: (f"{one.old:,}", f"{one.new:,}", f"{one.kept:,}", f"{one.old - one.kept:,}", f"{one.new - one.kept:,}")
        for name, one in summary.by_class.items()
    }
    console.print()
    print_rows_by_class(rows, "old>", "new>", "in both>", "leave>", "join>")
    share = f"{summary.changed_share:.2%}"
    neither = f"{summary.unlabelled:,} of them without a label in either output"
    facts = [("compared", f"{summary.compared:,} rows, {neither}")]
    facts.append(("changed", f"{summary.changed:,} of {summary.labelled:,} labels ({share})"))
    if summary.agreement is not None:
        interval = f"95% interval {summary.agreement_low:.4f} to {summary.agreement_high:.4f}"
        facts.append(("agreement", f"{summary.agreement:.4f} of {summary.labelled_by_both:,} rows ({interval})"))
    if summary.transitions:
        most = summary.transitions[:3]
        facts.append(("transitions", "; ".join(f"{one.old} to {one.new} {one.rows:,}x" for one in most)))
    for name, counts in (("lost", summary.lost), ("gained", summary.gained)):
        if counts:
            codes = ", ".join(f"{code} {count:,}" for code, count in counts.items())
            facts.append((name, f"{sum(counts.values()):,} labels ({codes})"))
    if summary.only_old or summary.only_new:
        facts.append(("alone", f"{summary.only_old:,} rows in the old output, {summary.only_new:,} in the new"))
    if summary.same:
        moved = f"{summary.mean_difference:.4f} on average, at most {summary.largest_difference:.4f}"
        facts.append(("probability", f"moves by {moved} where the label stays"))
    if summary.output is not None:
        facts.append(("written", f"{summary.output}/report.html, compare.json and changes.parquet"))
    if summary.exceeds:
        facts.append(("too many", f"more labels change than --max-changed {summary.max_changed:g} allows"))
    print_facts(facts)
