"""Make a bundle of a Keras classifier that was trained elsewhere.

`files` reads the model and its class names, and says what another file is; `network` finds probabilities, logits and
features in the model; `import_model` puts the bundle together.
"""

from tlray.importer.import_model import ImportSummary, import_model

__all__ = ["ImportSummary", "import_model"]
