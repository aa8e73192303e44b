"""What a command prints when it is done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich import box, filesize
from rich.table import Table
from rich.text import Text

from tlray.progress import console

if TYPE_CHECKING:
    from tlray.audit.draw import SampleSummary
    from tlray.audit.measure import AuditSummary
    from tlray.bundle import Bundle
    from tlray.demo import DemoSummary
    from tlray.evaluation import EvaluateSummary
    from tlray.importer import ImportSummary
    from tlray.prediction.job import PlanSummary
    from tlray.prediction.probe import Probe
    from tlray.prediction.run import PredictSummary
    from tlray.prediction.single import Prediction
    from tlray.prediction.verify import VerifySummary
    from tlray.training.fit import TrainSummary

_MAX_CLASSES = 30
_MAX_REASONS = 20


def print_train(summary: TrainSummary) -> None:
    """One page: epochs, accuracy by phase and class, time by stage, what to try next."""
    console.print()
    if summary.already_done:
        console.print("Already trained with this config on these images; nothing was done.")
    kept, metrics = summary.metrics["kept"], summary.metrics
    _print_history(summary.history, kept["epoch"])
    if "test" in metrics:
        _print_classes(metrics["test"]["by_class"])
    if summary.seconds:
        _print_stages(summary.seconds, summary.history)
    facts = [("bundle", summary.output), ("report", f"{summary.output}/report.html")]
    facts += [("model id", summary.model_id), ("classes", _shorten(summary.classes))]
    counts = summary.images
    facts.append(("images", ", ".join(f"{count:,} {role}" for role, count in counts.items() if count)))
    if summary.left_out:
        facts.append(("left out", f"{len(summary.left_out):,} images that cannot be decoded"))
    numbers = ["1" if name == "head" else "2" for name in metrics["phases"]]
    facts += [(f"phase {number}", text) for number, text in zip(numbers, _describe_phases(metrics), strict=True)]
    facts.append(("kept", f"epoch {kept['epoch']} (phase {'1' if kept['phase'] == 'head' else '2'}, {kept['phase']})"))
    facts += _describe_accuracy(metrics)
    facts += _describe_doubles(summary.suspects)
    facts += [("try next" if index == 0 else "", sentence) for index, sentence in enumerate(summary.advice)]
    _print_facts(facts)


def _describe_doubles(suspects: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Pictures that are there twice."""
    if suspects is None or not suspects["duplicates"]:
        return []
    pairs = suspects["duplicates"]
    both = sum(pair["first_label"] != pair["second_label"] for pair in pairs)
    told = f"{len(pairs):,} pair{'s' * (len(pairs) > 1)} of pictures that look the same"
    where = "" if both == 0 else ", under two labels" if both == len(pairs) else f", {both:,} of them under two labels"
    return [("look at", told + where)]


def _describe_phases(metrics: dict[str, Any]) -> list[str]:
    texts = []
    for name, best in metrics["phases"].items():
        if best["val_accuracy"] is None:
            texts.append(f"{name}: training accuracy {best['accuracy']:.4f} in its last epoch")
        else:
            texts.append(f"{name}: validation accuracy {best['val_accuracy']:.4f} in epoch {best['epoch']}, its best")
    if len(texts) == 2 and metrics["kept"]["phase"] == "head":
        texts[1] += "; phase 1 won"
    elif len(texts) == 2 and metrics["phases"]["finetune"]["val_accuracy"] is not None:
        texts[1] += "; phase 2 won"
    return texts


def _print_stages(seconds: dict[str, float], history: Sequence[dict[str, Any]]) -> None:
    phases = {"phase 1": "head", "phase 2": "finetune"}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("stage")
    for heading in ("seconds", "share", "images/s", "waits for input"):
        table.add_column(heading, justify="right")
    total = sum(seconds.values())
    for stage, spent in seconds.items():
        epochs = [record for record in history if record["phase"] == phases.get(stage)]
        images, trained = (sum(record[name] for record in epochs) for name in ("images", "train_seconds"))
        rate = f"{images / spent:,.1f}" if images and spent else ""
        waits = f"{sum(record.get('wait_seconds', 0.0) for record in epochs) / trained:.1%}" if trained else ""
        table.add_row(stage, f"{spent:,.1f}", f"{spent / total:.0%}", rate, waits)
    table.add_row("all", f"{total:,.1f}", "", "", "")
    console.print(table)


def print_predict(summary: PredictSummary) -> None:
    """Counts, failures by code, rate, where the labels lie."""
    receipt = summary.receipt
    console.print()
    if summary.already_done:
        console.print("Already labelled; nothing was done.")
    elif summary.resumed_rows:
        console.print(f"{summary.resumed_rows:,} rows were done before.")
    facts = [("labels", f"{summary.output}/labels"), ("report", f"{summary.output}/report.html")]
    facts += [("rows", f"{receipt.planned:,} in {len(receipt.parts):,} parts")]
    facts.append(("labelled", f"{receipt.labelled:,}"))
    if receipt.failed:
        codes = ", ".join(f"{code} {count:,}" for code, count in receipt.failed_by_code.items())
        facts.append(("failed", f"{receipt.failed:,} ({codes})"))
    if receipt.excluded:
        facts.append(("excluded", f"{receipt.excluded:,} (see {summary.output}/_plan)"))
    if receipt.update is not None:
        told = ", ".join(f"{receipt.update[name]:,} {name}" for name in ("kept", "new", "changed", "vanished"))
        facts.append(("update", f"{told}; from {receipt.update['from']}"))
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
    if receipt.probe is not None and receipt.probe["told"]:
        promised, came = receipt.probe["told"], receipt.probe["came"]
        facts.append(("probe", f"told {promised:,.1f} images/s; {came / promised:.0%} of that came"))
    facts.append(("model id", receipt.model_id))
    if summary.verdict is not None:
        facts.append(("beside training", summary.verdict))
    _print_facts(facts)


def print_plan(summary: PlanSummary) -> None:
    """What would be labelled, and what was left out for which reason."""
    plan = summary.plan
    console.print()
    if summary.already_there:
        console.print("Already planned; nothing was listed.")
    facts = [
        ("plan", plan.address),
        ("images", f"{plan.num_rows:,}"),
        ("bytes", f"{filesize.decimal(plan.num_bytes)}, as far as sizes are known"),
        ("left out", f"{plan.num_excluded:,}"),
    ]
    facts += [("", f"{count:,}  {reason}") for reason, count in list(plan.excluded_by_reason.items())[:_MAX_REASONS]]
    if summary.probe is not None:
        facts += _describe_probe(summary.probe)
    _print_facts(facts)


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
    """Counts, and what is wrong."""
    codes = ", ".join(f"{code} {count:,}" for code, count in summary.failed_by_code.items())
    console.print()
    _print_facts(
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
    """One file's most probable classes."""
    console.print(Text(path))
    for prediction in ranked:
        console.print(Text(f"  {prediction.class_name}  {prediction.probability:.4f}  (index {prediction.index})"))


def print_evaluate(summary: EvaluateSummary) -> None:
    """Accuracy, a line for each class, what was confused most."""
    measured = summary.measurement
    console.print()
    _print_classes(measured.by_class)
    facts = [
        (
            "accuracy",
            f"{measured.accuracy:.4f} ({measured.images:,} images; 95% interval {measured.accuracy_low:.3f} to "
            f"{measured.accuracy_high:.3f})",
        ),
        ("macro F1", f"{measured.macro_f1:.4f}"),
    ]
    if measured.top_k < len(summary.classes):
        facts.append((f"top-{measured.top_k} accuracy", f"{measured.top_k_accuracy:.4f}"))
    facts.append(("calibration", f"probabilities are off by {measured.ece:.3f} on average (ECE)"))
    facts.append(("to be right", _describe_threshold(summary.result["thresholds"])))
    if worst := summary.result["most_confused"][:3]:
        told = "; ".join(f"{pair['true']} taken for {pair['predicted']} {pair['images']:,}x" for pair in worst)
        facts.append(("most confused", told))
    facts += _describe_doubles(summary.result["suspects"])
    if summary.failed:
        facts.append(("not measured", ", ".join(f"{code} {count:,}" for code, count in summary.failed.items())))
    if summary.output:
        facts.append(("written", f"{summary.output}/report.html, evaluation.json, conflicts.csv, confusion.png"))
    facts.append(("model id", summary.model_id))
    _print_facts(facts)


def _describe_threshold(thresholds: dict[str, Any]) -> str:
    overall, target = thresholds["overall"], thresholds["target_precision"]
    if overall is None:
        return f"no probability is enough to be right in {target:.0%} of cases"
    return (
        f"in {target:.0%} of cases, a label needs a probability of {overall['probability']:.3f}, as "
        f"{overall['kept']:.0%} of them have (95% interval of the precision {overall['low']:.3f} to "
        f"{overall['high']:.3f})"
    )


def print_import(summary: ImportSummary) -> None:
    """What the new bundle holds, and how good it is where that could be told."""
    console.print()
    facts = [("bundle", summary.output), ("model id", summary.manifest["model_id"])]
    facts += _describe_network(summary.manifest)
    facts += _describe_accuracy(summary.manifest["metrics"])
    if summary.failed:
        facts.append(("left out", f"{summary.failed:,} images that cannot be decoded"))
    if "validation" not in summary.manifest["metrics"]:
        facts.append(("try next", "--val-data calibrates its probabilities and says how good it is"))
    _print_facts(facts)


def _describe_network(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    architecture, size = manifest["architecture"], manifest["preprocessing"]["image_size"]
    head = " -> ".join(map(str, [*architecture["head_units"], f"{architecture['num_classes']} classes"]))
    return [
        ("network", f"{architecture['backbone']} -> pooling -> {head}"),
        ("input", f"RGB, {size} x {size} pixels, uint8"),
        ("classes", _shorten(manifest["classes"])),
    ]


def _describe_accuracy(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """Accuracy by role, and what the probabilities are worth."""
    facts = []
    for role in ("validation", "test"):
        if role in metrics:
            measured = metrics[role]
            facts.append((f"{role} accuracy", f"{measured['accuracy']:.4f} ({measured['images']:,} images)"))
    if metrics.get("uncalibrated"):
        before, after = metrics["uncalibrated"]["ece"], metrics["validation"]["ece"]
        facts.append(("calibration", f"probabilities are off by {after:.3f} on average, {before:.3f} before (ECE)"))
    return facts


def print_sample(summary: SampleSummary) -> None:
    """What was drawn, and what a reviewer does with it."""
    sample = summary.sample
    drawn = Counter(row.class_name for row in sample.rows)
    console.print()
    if summary.already_drawn:
        console.print("Already drawn; nothing was done.")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("class")
    for heading in ("labelled", "drawn"):
        table.add_column(heading, justify="right")
    for name, rows in list(sample.rows_by_class.items())[:_MAX_CLASSES]:
        table.add_row(Text(name), f"{rows:,}", f"{drawn[name]:,}")
    console.print(table)
    if len(sample.rows_by_class) > _MAX_CLASSES:
        console.print(f"... and {len(sample.rows_by_class) - _MAX_CLASSES:,} more classes")
    facts = [("rows", f"{len(sample.rows):,} of {sum(sample.rows_by_class.values()):,}")]
    facts.append(("look at", f"{summary.folder}/sheet.html"))
    if not summary.already_drawn and summary.pictures < len(sample.rows):
        facts.append(("", f"{summary.pictures:,} of the rows have a picture there"))
    facts.append(("fill", f"{summary.folder}/sample.csv: correct_label is . where the label is right, else the right"))
    facts.append(("", "class, or ? for none of them; a row left empty doesn't count"))
    elsewhere = "" if summary.folder == f"{summary.output}/audit" else f" --output {summary.folder}"
    facts.append(("then", f"tlray audit {summary.output} --answers {summary.folder}/sample.csv{elsewhere}"))
    _print_facts(facts)


def print_audit(summary: AuditSummary) -> None:
    """The precision of each class and of the archive, what was confused, where the corrections lie."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("class")
    for heading in ("precision", "95% interval", "right", "reviewed", "labelled"):
        table.add_column(heading, justify="right")
    for name, one in list(summary.by_class.items())[:_MAX_CLASSES]:
        precision = "-" if one.precision is None else f"{one.precision:.3f}"
        interval = f"{one.precision_low:.3f} to {one.precision_high:.3f}"
        counts = (f"{count:,}" for count in (one.right, one.reviewed, one.rows))
        table.add_row(Text(name), precision, interval, *counts)
    console.print()
    console.print(table)
    if len(summary.by_class) > _MAX_CLASSES:
        console.print(f"... and {len(summary.by_class) - _MAX_CLASSES:,} more classes")
    accuracy = f"{summary.accuracy:.4f} of the labels are right (95% interval {summary.accuracy_low:.4f} to "
    facts = [("archive", f"{accuracy}{summary.accuracy_high:.4f})")]
    if summary.covered < 1:
        facts.append(("", f"of the classes that were reviewed, which have {summary.covered:.1%} of the labelled rows"))
    facts.append(("reviewed", f"{summary.reviewed:,} of {summary.sampled:,} rows, {summary.right:,} of them right"))
    if summary.none_of_them:
        facts.append(("no class", f"{summary.none_of_them:,} of them"))
    if summary.most_confused:
        worst = summary.most_confused[:3]
        told = "; ".join(f"{pair['true']} taken for {pair['predicted']} {pair['images']:,}x" for pair in worst)
        facts.append(("most confused", told))
    left_out = f"; {summary.inside:,} more lie inside archives or tables, so no address leads to them"
    told = f"{summary.folder}/corrections.csv ({summary.corrections:,} rows, for tlray train --data)"
    facts.append(("corrections", told + (left_out if summary.inside else "")))
    facts.append(("written", f"{summary.folder}/audit.json"))
    facts.append(("model id", summary.model_id))
    _print_facts(facts)


def print_bundle(bundle: Bundle) -> None:
    """What a verified bundle is."""
    manifest = bundle.manifest
    training, metrics = manifest["training"], manifest["metrics"]
    facts = [
        ("bundle", f"{bundle.uri} (verified: {len(manifest['files'])} files)"),
        ("model id", bundle.model_id),
        *_describe_network(manifest),
    ]
    if training:
        facts += [
            ("trained on", f"{training['data']} ({training['counts']['train']:,} images)"),
            ("kept", f"epoch {metrics['kept']['epoch']} (phase {metrics['kept']['phase']})"),
        ]
    facts += _describe_accuracy(metrics)
    if manifest["thresholds"]:
        facts.append(("to be right", _describe_threshold(manifest["thresholds"])))
    facts.append(("versions", ", ".join(f"{name} {version}" for name, version in manifest["versions"].items())))
    if training:
        _print_history(bundle.load_history(), metrics["kept"]["epoch"])
    _print_facts(facts)


def print_demo(summary: DemoSummary) -> None:
    """A few labels beside the truth, the accuracy, where everything lies."""
    table = Table(title="a few of the held-out images", box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    for heading in ("image", "true", "predicted"):
        table.add_column(heading)
    table.add_column("probability", justify="right")
    table.add_column("")
    for row in summary.examples:
        right = row["true"] == row["predicted"]
        mark = Text("right", style="green") if right else Text("wrong", style="red")
        table.add_row(row["image"], row["true"], row["predicted"], f"{row['probability']:.3f}", mark)
    console.print()
    console.print(table)
    _print_facts(
        [
            ("accuracy", f"{summary.accuracy:.4f} on {summary.images:,} images that training never saw"),
            ("weights", summary.weights),
            ("images", f"{summary.output}/train, {summary.output}/test"),
            ("bundle", f"{summary.output}/bundle  (tlray show {summary.output}/bundle)"),
            ("labels", f"{summary.output}/labels/labels  (Parquet)"),
            ("time", f"{summary.seconds:.0f} s"),
        ]
    )


def _print_history(history: Sequence[dict[str, Any]], kept: int) -> None:
    if not history:
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("epoch", justify="right")
    table.add_column("phase")
    for heading in ("loss", "accuracy", "val loss", "val accuracy", "images/s"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for record in history:
        values = [record["loss"], record["accuracy"], record["val_loss"], record["val_accuracy"]]
        numbers = ["-" if value is None else f"{value:.4f}" for value in values]
        rate = record["images"] / max(record["seconds"], 1e-9)
        mark = "kept" if record["epoch"] == kept else ""
        table.add_row(str(record["epoch"]), record["phase"], *numbers, f"{rate:,.1f}", mark)
    console.print(table)


def _print_classes(by_class: dict[str, dict[str, float]]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("class")
    for heading in ("precision", "recall", "F1", "images"):
        table.add_column(heading, justify="right")
    for name, values in list(by_class.items())[:_MAX_CLASSES]:
        numbers = (f"{values[key]:.3f}" for key in ("precision", "recall", "f1"))
        table.add_row(Text(name), *numbers, f"{values['images']:,.0f}")
    console.print(table)
    if len(by_class) > _MAX_CLASSES:
        console.print(f"... and {len(by_class) - _MAX_CLASSES:,} more classes")


def _print_facts(facts: Sequence[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        line = Text(f"{name:>{width}}  ", style="dim")
        line.append(value, style="not dim")
        console.print(line)


def _shorten(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MAX_CLASSES])
    return f"{len(names)}: {shown}" + (", ..." if len(names) > _MAX_CLASSES else "")
