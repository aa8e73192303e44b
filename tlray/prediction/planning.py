"""`tlray plan`: list the images that `predict` would take, save them as the output's plan, and probe a few."""

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
    """The result of `plan`.

    Attributes:
        already_there: whether the plan existed before.
        probe: rates and costs; None if no probe was asked for.
    """

    output: str
    plan: Plan
    already_there: bool
    probe: Probe | None


def make_plan(config: PlanConfig) -> PlanSummary:
    """Make the plan of an output, or open it if it exists; probe it on request.

    Raises:
        UsageError: an input, the output or the bundle cannot be used.
        StoppedError: another driver works on the output, or no image of the probe can be predicted.
    """
    config.check()
    storage.configure(config.s3_options)
    output = storage.resolve(config.output)
    bundle = load_bundle(config.model) if config.probe is not None and config.model is not None else None
    check_output(output)
    with Lock(output, unsafe=config.unsafe_lock) as lock:
        before = planning.open_plan(output)
        plan = open_plan(output, config)
        lock.check()
        probe = None
        if bundle is not None and config.probe is not None:
            say(f"probing {min(config.probe, plan.num_rows):,} images")
            limits, batch_size, price = config.limits, config.batch_size, config.price_per_hour
            probe = run_probe(plan, output, bundle, config.probe, limits, batch_size, config.precision, price)
        return PlanSummary(output, plan, before is not None, probe)
