"""`tlray plan`: list what `predict` would label, keep it as the output's plan, and measure a few rows of it."""

from __future__ import annotations

from dataclasses import dataclass

from tlray import storage
from tlray.config import PlanConfig
from tlray.console import say
from tlray.model.bundle import load_bundle
from tlray.output import plan as planning
from tlray.output.plan import Plan
from tlray.prediction.job import check_output, open_plan
from tlray.prediction.probe import Probe, run_probe
from tlray.storage.lock import Lock


@dataclass(frozen=True)
class PlanSummary:
    """What `plan` found.

    Attributes:
        output: where the plan lies.
        plan: its measures.
        already_there: whether it was there before.
        probe: what labelling it would take, where that was asked.
    """

    output: str
    plan: Plan
    already_there: bool
    probe: Probe | None


def make_plan(config: PlanConfig) -> PlanSummary:
    """List what `predict` would label, and keep it as the output's plan.

    Raises:
        UsageError: an input, the output or the bundle cannot be used.
        StoppedError: another driver works on the output, or no image of a probe can be labelled.
    """
    config.check()
    storage.configure(config.s3_options)
    output = storage.resolve(config.output)
    bundle = load_bundle(config.model) if config.probe is not None and config.model is not None else None
    check_output(output)
    with Lock(output):
        before = planning.open_plan(output)
        plan = open_plan(output, config)
        probe = None
        if bundle is not None and config.probe is not None:
            say(f"probing {min(config.probe, plan.num_rows):,} images")
            probe = run_probe(
                plan,
                output,
                bundle,
                config.probe,
                config.limits,
                config.batch_size,
                config.precision,
                config.price_per_hour,
            )
        return PlanSummary(output, plan, before is not None, probe)
