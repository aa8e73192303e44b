"""Run `python -m tlray` as the `tlray` command."""

import sys

from tlray.cli.commands import main

if __name__ == "__main__":
    sys.exit(main())
