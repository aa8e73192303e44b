"""Find what `backbones.json` holds of each base: its boundaries, its features and the number of its weights.

python -m tlray.model.walk    after an entry of `backbones.BACKBONES` has changed, or Keras

A boundary is a layer that every path through the base passes. Of several with hardly any multiply-adds between them,
as a convolution's BatchNorm and activation, the last with the smallest output counts, so that padding does not. Layers
that Keras numbers as it makes them are left out, since another process may give them other names.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import numpy as np

from tlray.model.backbones import BACKBONES, INPUT, WALKED, Backbone, Boundary, Walk

if TYPE_CHECKING:
    import keras


def walk(entry: Backbone) -> Walk:
    """Build a base at its published input size, and walk through its layers."""
    base, again = (entry.build(entry.image_size_px) for _ in range(2))
    num_weights = sum(int(np.prod(variable.shape)) for variable in base.variables)
    return Walk(int(base.output.shape[-1]), num_weights, find_boundaries(base, again))


def find_boundaries(base: keras.Model, again: keras.Model) -> dict[str, Boundary]:
    """Return the boundaries of a base by name; `again` is the same base, built once more."""
    lasting = {layer.name for layer in again.layers}
    layers = list(base.layers)
    position = {layer.name: number for number, layer in enumerate(layers)}
    last_use = [0] * len(layers)
    for number, layer in enumerate(layers[1:], start=1):
        for tensor in layer.input if isinstance(layer.input, list) else [layer.input]:
            source = position[tensor._keras_history.operation.name]
            last_use[source] = max(last_use[source], number)
    costs = np.cumsum([_count_multiply_adds(layer) for layer in layers])
    shares = np.round(costs / costs[-1], 3).tolist()
    by_share: dict[float, keras.Layer] = {}
    reach = 0  # the last layer that uses what layers before the current one gave
    for number, layer in enumerate(layers):
        if reach <= number and shares[number] and layer.name in lasting:
            rival = by_share.get(shares[number], layer)
            if np.prod(layer.output.shape[1:]) <= np.prod(rival.output.shape[1:]):
                by_share[shares[number]] = layer
        reach = max(reach, last_use[number])
    found = {INPUT: Boundary(int(base.input.shape[1]), 3, 0.0)}
    for share, layer in by_share.items():
        side, channels = (int(size) for size in layer.output.shape[2:])
        found[layer.name] = Boundary(side, channels, share)
    return found


def _count_multiply_adds(layer: keras.Layer) -> int:
    """Return the multiply-adds of a convolution for one image: its kernel at each place of its output."""
    if not hasattr(layer, "kernel"):
        return 0
    return int(np.prod(layer.kernel.shape)) * int(np.prod(layer.output.shape[1:3]))


def main() -> None:
    """Write the walks of all bases."""
    found = {}
    for entry in BACKBONES.values():
        walked = walk(entry)
        cuts = {name: [cut.side_px, cut.channels, cut.frozen_share] for name, cut in walked.boundaries.items()}
        found[entry.keras_name] = {
            "features": walked.num_features,
            "weights": walked.num_weights,
            "boundaries": cuts,
        }
    text = json.dumps(found, indent=1)
    WALKED.write_text(re.sub(r"\[[^]]+\]", lambda match: " ".join(match[0].split()), text) + "\n")


if __name__ == "__main__":
    main()
