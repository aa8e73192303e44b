"""The frozen base's output, computed once: `decide` says whether, `cache` where it lies, `build` computes it.

Ray and TensorFlow are imported inside functions: the driver only plans, and engines import what they run.
"""
