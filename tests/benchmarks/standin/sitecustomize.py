"""Put on PYTHONPATH, this gives every process of a run `engine.py` beside it for tlray's engine, and no TensorFlow.

What is left is all of tlray and Ray but the arithmetic, so that a few cores can play a cluster. It must reach Ray's
workers: from the environment that the cluster's own processes are started in.
"""

import importlib.abc
import importlib.util
import sys
from pathlib import Path


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "tlray.model.engine":
            return importlib.util.spec_from_file_location(name, Path(__file__).with_name("engine.py"))
        if name != "tlray.model.tf_imports":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        sys.meta_path.insert(0, self)
        load = spec.loader.exec_module

        def load_and_patch(module):
            load(module)
            module.import_tensorflow = lambda: None

        spec.loader.exec_module = load_and_patch
        return spec


sys.meta_path.insert(0, Finder())
