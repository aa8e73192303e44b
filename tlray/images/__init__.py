"""Turn the bytes of images into pixels.

- `limits`: limits on bytes and pixels, checked before decoding.
- `decode`: decode one image.
- `batch`: read and decode many images, with a status for each.
- `thumbnail`: one image as a small JPEG inside of a page.
- `augment`: shear, zoom and flip images.

Only `augment.warp` needs TensorFlow, and imports it when called: reading processes run without.
"""
