"""What the training page and the evaluation page share: measurements and label_errors, ready for their templates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tlray.metrics.label_errors import LIKELY_ERROR
from tlray.report.page import MAX_CLASSES, clean, format_decimal, format_percent, keep_frequent, shorten

MAX_LABEL_ERRORS = 40
MAX_DUPLICATES = 20

_MAX_PAIRS = 20
_GOOD_ECE = 0.05
_STRONG = 0.75  # opacity of the colour from which text on it is written in the colour of the page
_WIDE_CLASSES = 8  # up to so many classes have their names side by side
_WIDE_COLUMNS = 11


def describe_accuracy(measurement: Mapping[str, Any], which: str) -> dict[str, Any]:
    """The first screen's number.

    Args:
        measurement: whose accuracy it is.
        which: what its images are called: "test", "validation" or "labelled".
    """
    return {
        "accuracy": measurement["accuracy"],
        "low": measurement["accuracy_low"],
        "high": measurement["accuracy_high"],
        "images": measurement["images"],
        "which": which,
        "top_k": measurement["top_k"],
        "top_k_accuracy": measurement["top_k_accuracy"],
        "macro_f1": measurement["macro_f1"],
        "log_loss": measurement["log_loss"],
        "ece": measurement["ece"],
    }


def list_points(measurement: Mapping[str, Any], label_errors: Mapping[str, Any] | None) -> list[dict[str, str]]:
    """Sentences on how far to trust a measurement, each with its tone: "good", "bad" or ""."""
    points = []
    ece = measurement["ece"]
    error = f"{ece * 100:.1f} percentage points"
    if ece <= _GOOD_ECE:
        text = f"Probabilities can be taken at their word: on average they differ from the accuracy by {error}."
        points.append({"tone": "good", "text": text})
    else:
        text = f"Probabilities cannot be taken at their word: on average they differ from the accuracy by {error}."
        points.append({"tone": "bad", "text": text})
    seen = {name: values for name, values in measurement["by_class"].items() if values["images"]}
    if len(seen) > 1:
        name = min(seen, key=lambda name: seen[name]["recall"])
        worst = seen[name]
        whole = shorten(clean(name), 40)
        text = (
            f"The class found least often is \N{LEFT DOUBLE QUOTATION MARK}{whole}\N{RIGHT DOUBLE QUOTATION MARK}: "
            f"{format_percent(worst['recall'])} of its {worst['images']:,} images are recognised."
        )
        points.append({"tone": "bad" if worst["recall"] < 0.5 else "", "text": text})
    missing = len(measurement["by_class"]) - len(seen)
    if missing:
        text = f"{_count(missing, 'class', 'classes')} without images here: nothing is known about them."
        points.append({"tone": "bad", "text": text})
    if label_errors is not None:
        listed, duplicates = label_errors["contradicted"], len(label_errors["duplicates"])
        if listed or duplicates:
            found = []
            if listed:
                found.append(
                    _count(listed, "label is contradicted", "labels are contradicted")
                    + " by the images most like "
                    + ("it" if listed == 1 else "them")
                )
            if duplicates:
                found.append(
                    _count(duplicates, "pair of images is nearly the same", "pairs of images are nearly the same")
                )
            text = f"{' and '.join(found)}; they are shown below."
            points.append({"tone": "bad" if listed else "", "text": text})
        elif label_errors["checked"]:
            text = f"No label of {label_errors['checked']:,} checked images is contradicted by those most like it."
            points.append({"tone": "good", "text": text})
    return points


def point_at_threshold(thresholds: Mapping[str, Any]) -> list[dict[str, str]]:
    """A sentence on the probability from which labels are good enough; none without thresholds."""
    if not thresholds:
        return []
    overall, target = thresholds["overall"], format_percent(thresholds["target_precision"], 0)
    if overall is None:
        text = f"No probability is high enough for {target} of the labels above it to be right: review them."
        return [{"tone": "bad", "text": text}]
    text = (
        f"Keep labels with a probability of at least {format_decimal(overall['probability'])}: "
        f"{format_percent(overall['precision'])} of those are right, "
        f"and {format_percent(overall['kept'])} of the images are kept."
    )
    return [{"tone": "good", "text": text}]


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def list_classes(measurement: Mapping[str, Any]) -> dict[str, Any]:
    """Rows of the table of classes, and how many more there are."""
    by_class = measurement["by_class"]
    names = keep_frequent(list(by_class), [values["images"] for values in by_class.values()])
    rows = []
    for name in names:
        values = by_class[name]
        rows.append(
            {
                "name": name,
                "precision": _bound(values, "precision") if values["predicted"] else None,
                "recall": _bound(values, "recall") if values["images"] else None,
                "f1": values["f1"],
                "images": values["images"],
                "predicted": values["predicted"],
            }
        )
    return {"rows": rows, "more": len(by_class) - len(rows)}


def _bound(values: Mapping[str, float], key: str) -> dict[str, float]:
    return {"value": values[key], "low": values[f"{key}_low"], "high": values[f"{key}_high"]}


def make_confusion(measurement: Mapping[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    """The matrix where there are few enough classes, and the pairs that are confused most."""
    counts = measurement["confusion"]
    rows = []
    for row, name in enumerate(classes if len(classes) <= MAX_CLASSES else ()):
        total = sum(counts[row])
        cells = []
        for column, count in enumerate(counts[row]):
            share = count / total if total else 0.0
            opacity = share if row == column else math.sqrt(share)  # few mistakes are to be seen too
            kind = "same" if row == column else "other"
            kind += " zero" if not count else " strong" if opacity > _STRONG else ""
            title = f"{_label(name)} taken for {_label(classes[column])}: {count:,} of {total:,}"
            cells.append({"count": count, "opacity": opacity, "kind": kind, "title": title if count else ""})
        rows.append({"name": name, "cells": cells})
    wide = len(classes) <= _WIDE_CLASSES and all(len(name) <= _WIDE_COLUMNS for name in classes)
    return {"rows": rows, "classes": list(classes), "tall": not wide, "pairs": _list_pairs(counts, classes)}


def _label(name: str) -> str:
    return shorten(clean(name), 40)


def _list_pairs(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> list[dict[str, Any]]:
    pairs: list[dict[str, Any]] = [
        {"true": classes[row], "predicted": classes[column], "images": count, "share": count / sum(counts[row])}
        for row in range(len(classes))
        for column, count in enumerate(counts[row])
        if row != column and count
    ]
    return sorted(pairs, key=lambda pair: -pair["images"])[:_MAX_PAIRS]


def list_thresholds(thresholds: Mapping[str, Any], measurement: Mapping[str, Any]) -> dict[str, Any] | None:
    """Rows of the table of thresholds, None where there are none."""
    if not thresholds:
        return None
    by_class = thresholds["by_class"]
    images = {name: values["images"] for name, values in measurement["by_class"].items()}
    names = keep_frequent(list(by_class), [images.get(name, 0) for name in by_class])
    return {
        "target": thresholds["target_precision"],
        "overall": thresholds["overall"],
        "rows": [{"name": name, "threshold": by_class[name]} for name in names],
        "more": len(by_class) - len(names),
    }


def pick_label_errors(label_errors: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What of the label_errors is shown; None without a look for them."""
    if label_errors is None:
        return None
    duplicates = label_errors["duplicates"]
    listed = [error for error in label_errors["listed"] if error["score"] >= LIKELY_ERROR]
    return {
        "checked": label_errors["checked"],
        "listed": listed[:MAX_LABEL_ERRORS],
        "more_listed": max(0, label_errors["contradicted"] - MAX_LABEL_ERRORS),
        "duplicates": duplicates[:MAX_DUPLICATES],
        "more_duplicates": max(0, len(duplicates) - MAX_DUPLICATES),
    }


def list_label_error_uris(shown: Mapping[str, Any] | None) -> list[str]:
    """The images of what `pick_label_errors` gave."""
    if shown is None:
        return []
    uris = [error["uri"] for error in shown["listed"]]
    for pair in shown["duplicates"]:
        uris += [pair["first"], pair["second"]]
    return uris
