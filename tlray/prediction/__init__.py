"""PredictionPipeline: `run` drives it, `pipeline` is Ray Data's part, `parts` and `receipt` are what it leaves.

`single` answers for one file without Ray.
"""
