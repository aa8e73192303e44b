"""Train a classifier: `train` on the driver, `worker` on every Ray Train worker.

train, launch, channel: the driver, its control of Ray Train's workers, and the messages between both.
dataset, inspection, results: images and their roles; what is wrong with them; metrics, advice, and the log for MLflow.
task: everything a worker needs to know; ray_train: its entry point.
worker, steps, networks, loader, export: phases and epochs, distributed steps, networks, batches, the finished model.
schedule, checkpoint, interim: order and rates, saved states, the times to save one within an epoch.
predictions: of known images.

`train` imports Ray inside functions: it must not be imported before `cluster.connect` has set its environment.
`ray_train` imports `worker`, which imports TensorFlow, only when there is a task to train.
"""
