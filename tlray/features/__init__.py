"""The output of the frozen base, computed once.

- `decide`: decide whether a training uses the cache, and complete it.
- `cache`: plan, find and read cached features.
- `build`: compute missing features with Ray Data.

Ray, TensorFlow and Keras are imported inside functions: the driver only plans, and an engine prepares their import.
"""
