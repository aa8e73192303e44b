"""The output of the frozen base, computed once.

- `decide`: decide whether a training uses the cache, and where it is computed.
- `cache`: plan, find and read cached features.
- `build`: compute missing features, with Ray Data or in training workers.

Ray, TensorFlow and Keras are imported inside functions: the driver only plans, and others prepare their import.
"""
