"""Predict the classes of many images on Ray.

- `predict`: the driver, `tlray predict`; `summary`: its result.
- `job`, `resume`, `update`: identify a job, find its finished rows, copy unchanged rows of an earlier output.
- `pipeline`, `batches`, `dispatcher`, `engine_actor`: the Ray Data pipeline, and what its processes run.
- `monitor`, `reach`, `finish`: watch a run, wait for its inputs, and close it with report and receipt.
- `planning`, `probe`: `tlray plan`.
- `single_image`: predict one file without Ray.

`predict` imports the modules that import Ray inside functions, once all options are checked: Ray takes 1 s to import.
The engine's modules are imported where an engine is opened, since TensorFlow takes 5 s.
"""
