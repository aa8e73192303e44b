"""Train a classifier: `train` on the driver, `worker` on every Ray Train worker.

train: check, list and inspect the images, run the workers, save the bundle.
launch: start Ray Train's workers and follow them; channel: messages between workers and driver.
dataset, results, tracking: images and their roles, metrics and advice, MLflow.
task: everything a worker needs to know; ray_train: its entry point.
worker, steps, networks, loader, export: phases and epochs, distributed steps, networks, batches, the finished model.
schedule, checkpoint, predictions: order and rates, saved states, predictions on known images.

`train` imports Ray inside functions: it must not be imported before `cluster.connect` has set its environment.
`ray_train` imports `worker`, which imports TensorFlow, only when there is a task to train.
"""
