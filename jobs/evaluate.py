"""Measure a bundle on class folders: what `ray job submit` runs.

ray job submit --working-dir . -- python jobs/evaluate.py --config jobs/configs/evaluate.yaml
"""

import sys

from tlray.cli.commands import run_command

if __name__ == "__main__":
    sys.exit(run_command("evaluate", sys.argv[1:]))
