"""The `tlray` command: `commands` parses and runs, the `print_*` modules show what came of it."""

from tlray.cli.commands import main, run_command

__all__ = ["main", "run_command"]
