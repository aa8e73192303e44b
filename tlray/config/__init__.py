"""The options of each command: frozen dataclasses whose attribute docstrings are the command line's help.

- `train`: `tlray train`; `recipes`: its defaults on learning.
- `predict`: `tlray predict`, `plan` and `verify`.
- `audit`: `tlray audit` and `compare`.
- `evaluate`: `tlray evaluate`, `import`, `show` and `demo`.
- `cluster`: `tlray submit` and `doctor`.
- `shared`: options that several commands take, and checks.

`check()` looks at values only (no file, no network, no Ray) and reports all faults at once as one `ConfigError`. In the
help, a line break inside an attribute docstring stays one.
"""

from tlray.config.audit import AuditConfig, CompareConfig
from tlray.config.cluster import DoctorConfig, SubmitConfig
from tlray.config.evaluate import DemoConfig, EvaluateConfig, ImportConfig, ShowConfig
from tlray.config.predict import InputsConfig, PlanConfig, PredictConfig, VerifyConfig
from tlray.config.recipes import OptimizerName, Recipe, ScheduleName
from tlray.config.shared import LimitsConfig, RunConfig, S3Config, count_allowed, describe, list_path_options
from tlray.config.train import SelectName, TrainConfig, describe_run, resolve

__all__ = [
    "AuditConfig",
    "CompareConfig",
    "DemoConfig",
    "DoctorConfig",
    "EvaluateConfig",
    "ImportConfig",
    "InputsConfig",
    "LimitsConfig",
    "OptimizerName",
    "PlanConfig",
    "PredictConfig",
    "Recipe",
    "RunConfig",
    "S3Config",
    "ScheduleName",
    "SelectName",
    "ShowConfig",
    "SubmitConfig",
    "TrainConfig",
    "VerifyConfig",
    "count_allowed",
    "describe",
    "describe_run",
    "list_path_options",
    "resolve",
]
