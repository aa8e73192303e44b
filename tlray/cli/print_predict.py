"""Print the summaries of predict, plan and verify."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import filesize
from rich.text import Text

from tlray.cli.tables import print_facts
from tlray.console import console
from tlray.sources.candidates import REFUSED, SourceKind

if TYPE_CHECKING:
    from tlray.output.verify import VerifySummary
    from tlray.prediction.planning import PlanSummary
    from tlray.prediction.probe import Probe
    from tlray.prediction.single_image import Prediction
    from tlray.prediction.summary import PredictSummary

_MAX_REASONS = 20


def print_predict(summary: PredictSummary) -> None:
    """Print counts, failures by code, speed, and the folder of the labels."""
    receipt = summary.receipt
    console.print()
    if summary.already_done:
        console.print("Already labelled; nothing was done.")
    elif summary.resumed_rows:
        console.print(f"{summary.resumed_rows:,} rows were done before.")
    facts = [("labels", f"{summary.output}/labels"), ("report", f"{summary.output}/report.html")]
    facts += [("rows", f"{receipt.planned:,} in {len(receipt.parts):,} parts"), ("labelled", f"{receipt.labelled:,}")]
    if receipt.failed:
        codes = ", ".join(f"{code} {count:,}" for code, count in receipt.failed_by_code.items())
        facts.append(("failed", f"{receipt.failed:,} ({codes})"))
    if receipt.excluded:
        facts.append(("excluded", f"{receipt.excluded:,} (see {summary.output}/_plan)"))
    if receipt.update is not None:
        facts.append(("update", f"{receipt.update}; from {receipt.update.earlier}"))
    if receipt.needs_review is not None:
        share = receipt.needs_review / max(receipt.labelled, 1)
        facts.append(("needs review", f"{receipt.needs_review:,} ({share:.1%} of the labels)"))
    if receipt.retries:
        facts.append(("retries", f"{receipt.retries:,} requests were asked again"))
    if not summary.already_done and receipt.first_label_s is not None:
        speed = f"{receipt.images_per_s:,.1f} images/s over all, the first label after {receipt.first_label_s:.1f} s"
        if receipt.images_per_s_steady != receipt.images_per_s:  # more than one batch
            speed += f"; {receipt.images_per_s_steady:,.1f} images/s from there on"
        facts.append(("speed", speed))
    if receipt.engines and not summary.already_done:
        facts.append(("engines", "; ".join(f"{count} in {form}" for form, count in receipt.engines.items())))
    if receipt.probe is not None and receipt.probe.estimated:
        share = receipt.probe.measured / receipt.probe.estimated
        facts.append(("probe", f"estimated {receipt.probe.estimated:,.1f} images/s; {share:.0%} of that was reached"))
    facts.append(("model id", receipt.model_id))
    if summary.verdict is not None:
        facts.append(("beside training", summary.verdict))
    print_facts(facts)


def print_plan(summary: PlanSummary) -> None:
    """Print the counts of a plan, and of left-out files by reason."""
    plan = summary.plan
    console.print()
    if summary.already_there:
        console.print("Already planned; nothing was listed.")
    facts = [
        ("plan", plan.address),
        ("images", f"{plan.num_rows:,}"),
        ("bytes", f"{filesize.decimal(plan.measures.num_bytes)}, as far as sizes are known"),
        ("left out", f"{plan.measures.num_excluded:,}"),
    ]
    facts += [
        ("", f"{count:,}  {reason}") for reason, count in list(plan.measures.excluded_by_reason.items())[:_MAX_REASONS]
    ]
    for kind, count in plan.measures.refused_by_kind.items():
        facts.append(("will fail", f"{count:,}  {REFUSED[SourceKind(kind)][1]}"))
    if summary.probe is not None:
        facts += _describe_probe(summary.probe)
    print_facts(facts)


def _describe_probe(probe: Probe) -> list[tuple[str, str]]:
    where = f"{probe.gpus} GPU, {probe.cores} cores" if probe.gpus else f"{probe.cores} cores"
    per = "GPU" if probe.gpus else "core"
    facts = [
        ("probed", f"{probe.images:,} images, {probe.failed:,} of them without a label"),
        ("engine", probe.engine),
        ("fetch", f"{_milli(probe.fetch_s)}, {_milli(probe.fetch_cpu_s)} of it on a core"),
        ("decode", f"{_milli(probe.decode_cpu_s)} of a core"),
        ("infer", f"{_milli(probe.infer_s)} of a {per}"),
        ("write", _milli(probe.write_s)),
        ("speed", f"{probe.images_per_s:,.1f} images/s on this machine ({where}), limited by {probe.limited_by}"),
    ]
    if probe.cpus_per_gpu is not None:
        facts.append(("balance", f"{probe.cpus_per_gpu:g} cores keep a GPU busy"))
    facts.append(("time", f"{probe.hours:,.2f} hours for the whole plan"))
    if probe.cost is not None:
        facts.append(("cost", f"{probe.cost:,.2f}"))
    return facts


def _milli(seconds: float) -> str:
    return f"{seconds * 1000:,.3g} ms an image"


def print_verify(summary: VerifySummary) -> None:
    """Print counts and faults."""
    codes = ", ".join(f"{code} {count:,}" for code, count in summary.failed_by_code.items())
    console.print()
    print_facts(
        [
            ("output", summary.output),
            ("planned", f"{summary.planned:,}"),
            ("labelled", f"{summary.labelled:,}"),
            ("failed", f"{summary.failed:,}" + (f" ({codes})" if codes else "")),
            ("parts", f"{summary.parts:,}"),
            ("model id", summary.model_id or "-"),
        ]
    )
    for fault in summary.faults[:_MAX_REASONS]:
        console.print(Text(f"wrong: {fault}", style="red"))
    if len(summary.faults) > _MAX_REASONS:
        console.print(f"... and {len(summary.faults) - _MAX_REASONS:,} more")
    if not summary.faults:
        console.print(Text("Whole: every planned row is there exactly once, by one model.", style="green"))


def print_prediction(path: str, ranked: Sequence[Prediction]) -> None:
    """Print one file's most probable classes."""
    console.print(Text(path))
    for prediction in ranked:
        console.print(Text(f"  {prediction.class_name}  {prediction.probability:.4f}  (index {prediction.index})"))
