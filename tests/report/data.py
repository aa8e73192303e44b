"""Made-up runs for the tests of the pages: realistic numbers, hostile names where asked."""

from __future__ import annotations

from typing import Any

import numpy as np

MODEL_ID = "5dc4d1ca5bbdcef6d43c8a96f7df53855188da61741f9f5e1c3229d2eca96d04"
CLASSES = ["cardboard", "glass", "metal", "paper", "plastic", "trash"]
HOSTILE = [
    "<script>alert(1)</script>",
    "a \"quoted\" & 'odd' class",
    "up/../../and\\down",
    "\N{RIGHT-TO-LEFT OVERRIDE}gpj.exe",
    "\N{HEBREW LETTER ALEF}\N{HEBREW LETTER BET} \N{CJK UNIFIED IDEOGRAPH-4E00}\x1b[31m\x00\ud800",
    "x" * 5000,
]
HOSTILE_URI = "/data/<script>alert(2)</script>/" + "y" * 5000 + '"\N{RIGHT-TO-LEFT OVERRIDE}\n\x07.jpg'


def make_measurement(classes: list[str], images: int, accuracy: float, seed: int = 0) -> dict[str, Any]:
    """A `Measurement` as a dict."""
    rng = np.random.default_rng(seed)
    size = len(classes)
    true = rng.integers(0, size, images)
    guess = np.where(rng.random(images) < accuracy, true, rng.integers(0, size, images))
    confusion = np.zeros((size, size), int)
    np.add.at(confusion, (true, guess), 1)
    by_class = {}
    for index, name in enumerate(classes):
        right, own, predicted = (
            int(confusion[index, index]),
            int(confusion[index].sum()),
            int(confusion[:, index].sum()),
        )
        values: dict[str, float] = {"f1": 2 * right / max(own + predicted, 1), "images": own, "predicted": predicted}
        for key, total in (("precision", predicted), ("recall", own)):
            share = right / max(total, 1)
            values |= {key: share, f"{key}_low": max(0.0, share - 0.09), f"{key}_high": min(1.0, share + 0.05)}
        by_class[name] = values
    confidence = np.clip(1 - rng.exponential(0.12, images), 1 / size, 1)
    number = np.clip((confidence * 15).astype(int), 0, 14)
    bins = [
        {
            "low": one / 15,
            "high": (one + 1) / 15,
            "images": int((number == one).sum()),
            "confidence": float(confidence[number == one].mean()),
            "accuracy": float(np.clip(confidence[number == one].mean() + rng.normal(0, 0.03), 0, 1)),
        }
        for one in range(15)
        if (number == one).any()
    ]
    share = float(np.trace(confusion) / max(images, 1))
    return {
        "images": images,
        "accuracy": share,
        "accuracy_low": max(0.0, share - 0.045),
        "accuracy_high": min(1.0, share + 0.034),
        "top_k": min(5, size),
        "top_k_accuracy": 0.994,
        "log_loss": 0.2871,
        "ece": 0.0213,
        "bins": bins,
        "by_class": by_class,
        "macro_f1": float(np.mean([values["f1"] for values in by_class.values()])),
        "confusion": confusion.tolist(),
        "confidences": np.histogram(confidence, 20, (0, 1))[0].tolist(),
    }


def make_history(head: int = 4, finetune: int = 8) -> list[dict[str, Any]]:
    """Two phases that learn."""
    history = []
    for epoch in range(1, head + finetune + 1):
        first = epoch <= head
        loss = 1.6 * 0.72**epoch + 0.12
        history.append(
            {
                "phase": "head" if first else "finetune",
                "epoch": epoch,
                "loss": loss,
                "accuracy": 1 - 0.52 * 0.76**epoch,
                "val_loss": loss * 1.12 + 0.02 * (epoch % 3),
                "val_accuracy": 0.93 - 0.5 * 0.72**epoch + 0.006 * (epoch % 3),
                "images": 459,
                "steps": 15,
                "seconds": 31.5,
                "train_seconds": 28.0,
                "wait_seconds": 0.4,
                "learning_rate": 1e-3,
            }
        )
    return history


def make_thresholds(classes: list[str]) -> dict[str, Any]:
    """One class never reaches the target."""
    reached = {"probability": 0.8124, "precision": 0.953, "low": 0.911, "high": 0.977, "kept": 0.783, "images": 141}
    by_class: dict[str, Any] = {
        name: {**reached, "probability": 0.61 + 0.05 * (index % 7)} for index, name in enumerate(classes)
    }
    by_class[classes[-1]] = None
    return {"target_precision": 0.95, "overall": reached, "by_class": by_class}


def make_suspects(uris: list[str], classes: list[str]) -> dict[str, Any]:
    """Half of the images as listed, all of them as pairs."""
    listed = [
        {
            "uri": uri,
            "label": classes[index % len(classes)],
            "suggested": classes[(index + 1) % len(classes)],
            "score": 0.97 - 0.005 * index,
        }
        for index, uri in enumerate(uris[::2])
    ]
    duplicates = [
        {
            "first": first,
            "second": second,
            "first_label": classes[index % len(classes)],
            "second_label": classes[(index * 2) % len(classes)],
            "similarity": 0.9991 - 0.001 * index,
        }
        for index, (first, second) in enumerate(zip(uris[::2], uris[1::2], strict=False))
    ]
    return {"checked": 539, "contradicted": len(listed), "listed": listed, "duplicates": duplicates}


def make_manifest(classes: list[str] = CLASSES, *, validation: bool = True, test: bool = True) -> dict[str, Any]:
    """A `bundle.json`."""
    before = make_measurement(classes, 81, 0.9, seed=3)
    for entry in before["bins"]:
        entry["accuracy"] = max(0.0, entry["accuracy"] - 0.11)
    metrics: dict[str, Any] = {
        "kept": {"phase": "finetune", "epoch": 10},
        "phases": {
            "head": {"epoch": 4, "loss": 0.55, "accuracy": 0.83, "val_loss": 0.6, "val_accuracy": 0.827},
            "finetune": {"epoch": 10, "loss": 0.19, "accuracy": 0.97, "val_loss": 0.29, "val_accuracy": 0.926},
        },
        "uncalibrated": {key: before[key] for key in ("images", "log_loss", "bins")} | {"ece": 0.094},
        "ood_score": {"percentiles": {"50": 0.6, "90": 0.8, "95": 0.9, "99": 1.0}},
    }
    if validation:
        metrics["validation"] = make_measurement(classes, 81, 0.92, seed=1) | {"loss": 0.29}
    else:
        metrics["uncalibrated"] = None
        for best in metrics["phases"].values():
            best |= {"val_loss": None, "val_accuracy": None}
    if test:
        metrics["test"] = make_measurement(classes, 179, 0.91, seed=2)
    return {
        "format": 1,
        "model_id": MODEL_ID,
        "architecture": {
            "backbone": "inception_v3",
            "head_units": [1024],
            "num_classes": len(classes),
            "weights_sha256": "f" * 64,
        },
        "classes": classes,
        "preprocessing": {"image_size": 299},
        "calibration": {"temperature": 1.3471, "images": 81 if validation else 0, "ood_score": None},
        "thresholds": make_thresholds(classes) if validation else {},
        "training": {
            "data": "s3://waste-photos/2026/train",
            "val_data": None,
            "test_data": "s3://waste-photos/2026/test",
            "weights": "/weights/inception_v3_notop.h5",
            "head_optimizer": "rmsprop",
            "finetune_optimizer": "sgd",
            "finetune_from": None,
            "lr_head": None,
            "lr_finetune": 0.001,
            "batch_size": 16,
            "num_workers": 2,
            "precision": "auto",
            "seed": 0,
            "counts": {"train": 459, "validation": 81 if validation else 0, "test": 179 if test else 0},
            "left_out": 1,
            "resolved": {"image_size": 299, "finetune_from": "mixed8", "lr_head": 0.001, "lr_finetune": 0.001},
        },
        "metrics": metrics,
        "versions": {"tlray": "0.2.0", "tensorflow": "2.21.0", "keras": "3.15.1", "ray": "2.60.0"},
        "files": {},
    }


def make_evaluation(classes: list[str], uris: list[str], images: int = 179) -> dict[str, Any]:
    """An `evaluation.json`."""
    measured = make_measurement(classes, images, 0.9, seed=5)
    return {
        "model_id": MODEL_ID,
        "data": "/photos/test",
        "classes": classes,
        "failed_by_code": {"TRUNCATED": 2},
        "measured": "2026-11-23T06:03:35Z",
        **measured,
        "most_confused": [{"true": classes[0], "predicted": classes[1], "images": 4}],
        "thresholds": make_thresholds(classes),
        "uncalibrated": None,
        "ood_score": {"median": 0.71, "above_1": 0.021},
        "worst": [
            {
                "uri": uri,
                "true": classes[index % len(classes)],
                "predicted": classes[(index + 2) % len(classes)],
                "probability": 0.99 - 0.01 * index,
                "true_probability": 0.004 * index,
            }
            for index, uri in enumerate(uris[:24])
        ],
        "label_errors": make_suspects(uris[:16], classes),
    }


def make_receipt(planned: int, failed: dict[str, int], parts: list[dict[str, Any]]) -> dict[str, Any]:
    """A `Receipt` as a dict."""
    return {
        "format": 1,
        "run_id": "59bd67fd84444d2fa206deab9c5d1c23",
        "model_id": MODEL_ID,
        "planned": planned,
        "labelled": planned - sum(failed.values()),
        "failed": sum(failed.values()),
        "failed_by_code": failed,
        "excluded": 12,
        "retries": 3,
        "update": None,
        "parts": parts,
        "config": {"input": ["s3://waste-photos/archive"], "top_k": 0},
        "started": "2026-11-23T06:03:35Z",
        "finished": "2026-11-23T06:41:57Z",
        "images_per_s": 51.1,
        "images_per_s_steady": 56.4,
        "first_label_s": 16.2,
        "stages": {"planning": 0.6, "ray": 5.4, "labelling": 2290.0},
        "versions": {"tlray": "0.2.0", "ray": "2.60.0"},
        "engines": {"bfloat16 on 1 thread": 2},
        "probe": None,
    }
