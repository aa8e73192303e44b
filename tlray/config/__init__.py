"""What each command can be told: frozen dataclasses whose attribute docstrings are the command line's help.

`check()` looks at values only (no file, no network, no Ray) and reports every fault at once as one `ConfigError`.
"""

from tlray.config.cluster import DoctorConfig, SubmitConfig
from tlray.config.evaluate import DemoConfig, EvaluateConfig, ImportConfig, ShowConfig
from tlray.config.predict import AuditConfig, InputsConfig, PlanConfig, PredictConfig, VerifyConfig
from tlray.config.shared import LimitsConfig, RunConfig, S3Config, describe, list_path_options
from tlray.config.train import DEFAULT_RATES, OptimizerName, TrainConfig, describe_run, resolve

__all__ = [
    "DEFAULT_RATES",
    "AuditConfig",
    "DemoConfig",
    "DoctorConfig",
    "EvaluateConfig",
    "ImportConfig",
    "InputsConfig",
    "LimitsConfig",
    "OptimizerName",
    "PlanConfig",
    "PredictConfig",
    "RunConfig",
    "S3Config",
    "ShowConfig",
    "SubmitConfig",
    "TrainConfig",
    "VerifyConfig",
    "describe",
    "describe_run",
    "list_path_options",
    "resolve",
]
