"""The `tlray` command.

commands: parse the arguments and run the command.
print_train, print_predict, print_bundle, print_cluster, tables: print its summary.

`commands` imports everything that a command needs inside functions: `tlray --help` takes no second of imports, and Ray
is imported only after all arguments have been checked.
"""

from tlray.cli.commands import main, run_command

__all__ = ["main", "run_command"]
