"""The model card: `README.md` of a bundle in the form that Hugging Face's hub reads.

Mitchell et al.: "Model cards for model reporting" (FAT* 2019).
"""

from __future__ import annotations

import re
from functools import cache

import jinja2

from tlray.model.manifest import Manifest

_MAX_CLASSES = 60
_LINE_BREAKS = re.compile(r"\s+")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|!~])")


def write_card(manifest: Manifest) -> str:
    """Return the card of a bundle, filled from its manifest: YAML front matter, then Markdown.

    Class names come from folders, so that they are escaped everywhere.
    """
    card = _open_template().render(
        manifest=manifest,
        architecture=manifest.architecture,
        calibration=manifest.calibration,
        training=manifest.training,
        options=manifest.training.options if manifest.training else {},
        metrics=manifest.metrics,
        measured=[(role, one) for role, one in manifest.metrics.list_measured() if one.images],
        thresholds=manifest.thresholds,
        widths=[*manifest.architecture.head_units, len(manifest.classes)],
        size=manifest.preprocessing.image_size,
        num_classes=len(manifest.classes),
        max_classes=_MAX_CLASSES,
    )
    return card + "\n"


@cache
def _open_template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tlray.model"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=False,
    )
    environment.filters |= {"plain": _escape, "cell": _escape_pipes}
    return environment.get_template("card.md")


def _escape(text: str) -> str:
    """Return a name as plain Markdown text of one line."""
    return _MARKDOWN.sub(r"\\\1", _LINE_BREAKS.sub(" ", text))


def _escape_pipes(text: object) -> str:
    """Return a text that stays inside its table cell."""
    return _LINE_BREAKS.sub(" ", str(text)).replace("|", "\\|")
