"""Label an archive with a bundle: what `ray job submit` runs.

ray job submit --working-dir . -- python jobs/predict.py --config jobs/configs/predict.yaml
"""

import sys

from tlray.cli.commands import run_command

if __name__ == "__main__":
    sys.exit(run_command("predict", sys.argv[1:]))
