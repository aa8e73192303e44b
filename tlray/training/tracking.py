"""Log a finished training to MLflow: parameters, metrics of every epoch, final metrics."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from tlray.config import TrainConfig, describe, resolve

if TYPE_CHECKING:
    from tlray.training.results import TrainSummary


def log_run(config: TrainConfig, summary: TrainSummary) -> None:
    """Log a training to `--mlflow-uri`, as one run of the experiment "tlray"."""
    import mlflow

    mlflow.set_tracking_uri(config.mlflow_uri)
    mlflow.set_experiment("tlray")
    with mlflow.start_run(run_name=summary.model_id[:12]):
        mlflow.log_params({**describe(config), **resolve(config)})
        for record in summary.history:
            numbers = {name: value for name, value in asdict(record).items() if isinstance(value, int | float)}
            mlflow.log_metrics(numbers, step=numbers.pop("epoch"))
        for role, measured in summary.metrics.list_measured():
            mlflow.log_metric(f"{role}_accuracy", measured.accuracy)
        mlflow.log_metrics({f"seconds {stage}": spent for stage, spent in summary.seconds.items()})
        mlflow.set_tags({"model_id": summary.model_id, "bundle": summary.output})
