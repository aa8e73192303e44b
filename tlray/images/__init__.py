"""Images from bytes to pixels: `limits` first, then `decode`, a `batch` with a status for each, and `augment`.

TensorFlow is imported only where `augment.warp` runs.
"""
