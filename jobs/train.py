"""Train a classifier on class folders: what `ray job submit` runs.

ray job submit --working-dir . -- python jobs/train.py --config jobs/configs/train.yaml
"""

import sys

from tlray.cli.commands import run_command

if __name__ == "__main__":
    sys.exit(run_command("train", sys.argv[1:]))
