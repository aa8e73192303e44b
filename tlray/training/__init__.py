"""Train a classifier: `train` on the driver, `worker` on every Ray Train worker.

train, launch, channel, monitor: the driver, its control of Ray Train's workers, their messages, what is printed.
dataset, inspection, results: images and their roles; what is wrong with them; metrics, advice, and the log for MLflow.
linear_head, solved_heads: the solver of a head; the heads of a training, its folds and its trial.
task: everything a worker needs to know; ray_train: its entry point.
worker, loop: a trial, the training and the finished model; the phases and epochs of each.
steps, networks, loader, export: distributed steps, networks, batches, model files.
schedule, checkpoint, interim: order and rates, saved states, the times to save one within an epoch.
predictions: of known images.

`train` imports Ray inside functions: it must not be imported before `cluster.connect` has set its environment.
`ray_train` imports `worker`, which imports TensorFlow, only when there is a task to train.
"""
