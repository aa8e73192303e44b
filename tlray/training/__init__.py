"""Training: `fit` on the driver, `loop` on every worker, and the schedule and inputs that both agree on."""
