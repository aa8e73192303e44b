"""The model card: `README.md` of a bundle in the form that Hugging Face's hub reads.

Mitchell et al.: "Model cards for model reporting" (FAT* 2019).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

_MAX_CLASSES = 60
_LINE_BREAKS = re.compile(r"\s+")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|!~])")


def write_card(manifest: dict[str, Any]) -> str:
    """The card of a bundle, filled from its manifest."""
    metrics, training = manifest["metrics"], manifest["training"]
    sections = [
        _write_front_matter(manifest),
        f"# {_escape(manifest['architecture']['backbone'])}, {len(manifest['classes'])} classes",
        _describe(manifest),
        "## Uses\n\n"
        "Sorting images into the classes below, and into no others: an image of something else gets one of them too. "
        "`ood_score` above 1 says that an image is less like the training images than 99% of the validation images "
        "were. "
        "It has not been tried on other sources of images than those named here.",
        _show_use(manifest),
        _describe_training(training, metrics),
        _describe_evaluation(manifest),
        "## Classes\n\n" + _list_classes(manifest["classes"]),
        "## Versions\n\n" + ", ".join(f"{name} {version}" for name, version in manifest["versions"].items()),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _write_front_matter(manifest: dict[str, Any]) -> str:
    """YAML that the hub indexes; JSON strings are YAML ones."""
    lines = ["---", "library_name: keras", "pipeline_tag: image-classification", "tags:", "- tlray"]
    results = [
        (role, measured)
        for role in ("validation", "test")
        if (measured := manifest["metrics"].get(role)) and measured["images"]
    ]
    if results:
        lines += ["model-index:", f"- name: {json.dumps(manifest['model_id'][:12])}", "  results:"]
    for role, measured in results:
        lines += [
            "  - task:",
            "      type: image-classification",
            "    dataset:",
            f"      name: {role} images",
            "      type: private",
            "    metrics:",
            "    - type: accuracy",
            f"      value: {measured['accuracy']:.4f}",
        ]
    return "\n".join([*lines, "---"])


def _describe(manifest: dict[str, Any]) -> str:
    architecture, size = manifest["architecture"], manifest["preprocessing"]["image_size"]
    head = " -> ".join(map(str, [*architecture["head_units"], len(manifest["classes"])]))
    return (
        f"An image classifier made by tlray {manifest['versions']['tlray']}.\n\n"
        f"- Model id: `{manifest['model_id']}`\n"
        f"- Network: {_escape(architecture['backbone'])}, average pooling, dense {head}, softmax\n"
        f"- Input: RGB, {size} x {size} pixels, squashed to the square, uint8\n"
        f"- Output: probabilities of {len(manifest['classes'])} classes"
        + (f", calibrated (temperature {manifest['calibration']['temperature']:.3f})" * bool(_is_calibrated(manifest)))
    )


def _is_calibrated(manifest: dict[str, Any]) -> bool:
    return bool(manifest["calibration"].get("images"))


def _show_use(manifest: dict[str, Any]) -> str:
    size = manifest["preprocessing"]["image_size"]
    return (
        "## How to use it\n\n"
        "```python\n"
        "import tlray\n\n"
        'print(tlray.predict_image("photo.jpg", "path/of/this/folder"))\n'
        "```\n\n"
        "An archive: `tlray predict --model path/of/this/folder --input ARCHIVE --output LABELS`. "
        "With TensorFlow alone:\n\n"
        "```python\n"
        "import tensorflow as tf\n\n"
        'model = tf.saved_model.load("path/of/this/folder/saved_model")\n'
        f"probabilities = model.serve(pixels)  # uint8 [N, {size}, {size}, 3] -> float32 [N, "
        f"{len(manifest['classes'])}]\n"
        "```"
    )


def _describe_training(training: dict[str, Any], metrics: dict[str, Any]) -> str:
    if not training:
        return "## Training\n\nNot known: the model was imported."
    counts, kept = training["counts"], metrics["kept"]
    resolved = {**training, **training.get("resolved", {})}
    rows = [
        ("images", ", ".join(f"{count:,} {role}" for role, count in counts.items() if count)),
        ("from", f"`{training['data']}`"),
        ("left out", f"{training['left_out']:,} that cannot be decoded"),
        ("base", f"{resolved['backbone']}, weights `{resolved['weights']}`"),
        ("phase 1, the head", f"{resolved['head_epochs']} epochs of {resolved['head_optimizer']}"),
        (
            "phase 2, fine-tuning",
            f"{resolved['finetune_epochs']} epochs of {resolved['finetune_optimizer']} "
            f"behind layer {resolved['finetune_from']}",
        ),
        ("kept", f"epoch {kept['epoch']}"),
        ("augmentation", f"shear {resolved['shear']}, zoom {resolved['zoom']}, flip {resolved['horizontal_flip']}"),
        ("seed", str(resolved["seed"])),
    ]
    return "## Training\n\n" + _make_table(("", ""), rows)


def _describe_evaluation(manifest: dict[str, Any]) -> str:
    metrics, thresholds = manifest["metrics"], manifest["thresholds"]
    rows = [
        (
            role,
            f"{measured['images']:,}",
            f"{measured['accuracy']:.4f} ({measured['accuracy_low']:.3f} to {measured['accuracy_high']:.3f})",
            f"{measured['macro_f1']:.4f}",
            f"{measured['log_loss']:.4f}",
            f"{measured['ece']:.4f}",
        )
        for role in ("validation", "test")
        if (measured := metrics.get(role))
    ]
    if not rows:
        return "## Evaluation\n\nNone: there were no held-out images. `tlray evaluate` measures it on class folders."
    text = "## Evaluation\n\n" + _make_table(
        ("images of", "count", "accuracy (95% interval)", "macro F1", "log-loss", "ECE"), rows
    )
    if metrics.get("uncalibrated"):
        text += f"\n\nBefore calibration the ECE on validation was {metrics['uncalibrated']['ece']:.4f}."
    overall = thresholds.get("overall")
    if overall:
        text += (
            f"\n\nLabels with a probability of {overall['probability']:.3f} or more, {overall['kept']:.0%} of the "
            f"validation images, were right in {overall['precision']:.1%} of cases (95% interval {overall['low']:.3f} "
            f"to {overall['high']:.3f}). `tlray predict --min-probability auto` marks the others for review."
        )
    return text


def _list_classes(classes: list[str]) -> str:
    shown = ", ".join(_escape(name) for name in classes[:_MAX_CLASSES])
    return shown + (f", and {len(classes) - _MAX_CLASSES:,} more" if len(classes) > _MAX_CLASSES else "")


def _make_table(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [headings, ("---",) * len(headings), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _escape(text: str) -> str:
    """A name as plain text of one line."""
    return _MARKDOWN.sub(r"\\\1", _LINE_BREAKS.sub(" ", text))
