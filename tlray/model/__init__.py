"""The network, and the bundle that holds a trained one.

- `backbones`: the convolutional bases.
- `network`: build a network, and the part that a phase trains.
- `weights`: load pre-trained weights.
- `precision`: choose floating-point types.
- `manifest`: the records of a bundle.
- `bundle`: write, verify and open bundles.
- `class_tables`: metrics and thresholds by class, as Parquet.
- `safety`: find code in a bundle's model files.
- `graph_ops`: find the operations of a SavedModel that do more than compute.
- `card`: the model card.
- `serving`: a frozen graph, its SavedModel and golden images.
- `engine`: predict with a bundle.
- `tf_imports`: import TensorFlow and Keras faster.

`network`, `serving` and `engine` import Keras or TensorFlow (5 s); other modules import them inside functions.
"""
