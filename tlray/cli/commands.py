"""The `tlray` command: parse YAML and flags into a checked config, make one call, print its summary.

    tlray train --data photos/ --output bundle/
    tlray predict --model bundle/ --input s3://archive/2024/ --output s3://archive-labels/2024/

Ray and TensorFlow are imported only after all arguments have been checked.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tlray import storage
from tlray.errors import ConfigError, TlrayError, UsageError
from tlray.version import __version__

if TYPE_CHECKING:
    from tlray import config as configs


@dataclass(frozen=True)
class Command:
    """One subcommand: its dataclass in `tlray.config`, its function, which returns the exit code, and its summary."""

    config: str
    run: Callable[[Any], int]
    summary: str


def main(argv: Sequence[str] | None = None) -> int:
    """Run `tlray ARGUMENTS` and return the exit code: 0 done, 1 stopped, 2 usage or config."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        _print_overview()
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"tlray {__version__}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; commands are {', '.join(COMMANDS)}"
        return _report(UsageError(f"there is no command {name!r}{hint}"))
    return run_command(name, rest)


_REPEATABLE = ("--answers", "--data", "--input")
"""Options that take several values, and that people repeat instead."""


def run_command(name: str, arguments: Sequence[str]) -> int:
    """Run one command with its arguments, as `tlray NAME ARGUMENTS` and `python jobs/NAME.py ARGUMENTS` do."""
    verbose = "--verbose" in arguments
    try:
        config = parse(name, expand_config_file(name, join_repeated(arguments)))
        verbose = config.verbose
        return COMMANDS[name].run(config)
    except TlrayError as error:
        if verbose:
            raise
        return _report(error)
    except KeyboardInterrupt:
        print("\nstopped; run the same command to resume", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of the output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if verbose:
            raise
        text = str(error).strip().splitlines()
        message = f"{type(error).__name__}: {text[-1] if text else 'no message'}"
        return _report(TlrayError(f"unexpected failure ({message}); run again with --verbose to see where"))


def join_repeated(arguments: Sequence[str]) -> list[str]:
    """Return arguments that give the values of a repeated option at once: of `--data A --data B` only B would count."""
    options = [argument.partition("=")[0] for argument in arguments]
    repeated = [option for option in _REPEATABLE if options.count(option) > 1]
    joined: list[list[str]] = []
    places: dict[str, list[str]] = {}
    last = ""
    for argument, option in zip(arguments, options, strict=True):
        if option in repeated:
            if option not in places:
                joined.append(places.setdefault(option, [option]))
            places[option] += [argument.partition("=")[2]] if "=" in argument else []
            last = option
        elif last and not argument.startswith("--"):
            places[last].append(argument)
        else:
            last = ""
            joined.append([argument])
    return [argument for part in joined for argument in part]


def parse(name: str, flags: Sequence[str]) -> Any:
    """Return a command's flags as its checked config; an unknown flag ends the process with 2.

    Raises:
        ConfigError: values are not allowed.
    """
    import tyro

    from tlray import config as configs

    kind = getattr(configs, COMMANDS[name].config)
    config: Any = tyro.cli(kind, args=list(flags), prog=f"tlray {name}", config=(tyro.conf.FlagCreatePairsOff,))
    config.check()
    return config


def _run_train(config: configs.TrainConfig) -> int:
    from tlray.cli.print_train import print_train
    from tlray.training.train import train

    print_train(train(config))
    return 0


def _run_predict(config: configs.PredictConfig) -> int:
    from tlray.cli.print_predict import print_predict, print_prediction

    storage.configure(config.s3_options)
    if config.output is None:
        files = [storage.resolve(uri) for uri in config.input]
        if len(files) != 1 or not storage.exists(files[0]):
            got = "several inputs" if len(files) > 1 else files[0]
            raise ConfigError([f"--output may be left out for a single existing file only; got {got}"])
        from tlray.model.bundle import load_bundle
        from tlray.prediction.single_image import rank_classes

        bundle = load_bundle(config.model)
        print_prediction(files[0], rank_classes(files[0], bundle, top_k=max(1, config.top_k)))
        return 0
    from tlray.prediction.predict import predict

    summary = predict(config)
    print_predict(summary)
    return summary.exit_code


def _run_plan(config: configs.PlanConfig) -> int:
    from tlray.cli.print_predict import print_plan
    from tlray.prediction.planning import make_plan

    print_plan(make_plan(config))
    return 0


def _run_verify(config: configs.VerifyConfig) -> int:
    from tlray.cli.print_predict import print_verify
    from tlray.output.verify import verify

    summary = verify(config)
    print_verify(summary)
    return summary.exit_code


def _run_evaluate(config: configs.EvaluateConfig) -> int:
    from tlray.cli.print_bundle import print_evaluate
    from tlray.evaluation import evaluate

    print_evaluate(evaluate(config))
    return 0


def _run_import(config: configs.ImportConfig) -> int:
    from tlray.cli.print_bundle import print_import
    from tlray.importer import import_model

    print_import(import_model(config))
    return 0


def _run_audit(config: configs.AuditConfig) -> int:
    from tlray.cli.print_audit import print_audit, print_sample

    if not config.list_answers():
        from tlray.audit.draw import draw

        print_sample(draw(config))
    else:
        from tlray.audit.measure import measure

        print_audit(measure(config))
    return 0


def _run_compare(config: configs.CompareConfig) -> int:
    from tlray.cli.print_audit import print_comparison
    from tlray.comparison.compare import compare

    summary = compare(config)
    print_comparison(summary)
    return summary.exit_code


def _run_show(config: configs.ShowConfig) -> int:
    from tlray.cli.print_bundle import print_bundle
    from tlray.model.bundle import load_bundle

    storage.configure(config.s3_options)
    print_bundle(load_bundle(config.bundle))
    return 0


def _run_submit(config: configs.SubmitConfig) -> int:
    from tlray.cli.print_cluster import print_submit
    from tlray.submission import submit

    options = expand_config_file(config.command, config.options)
    summary = submit(config, parse(config.command, options), options)
    print_submit(summary)
    return summary.exit_code


def _run_doctor(config: configs.DoctorConfig) -> int:
    from tlray.cli.print_cluster import print_doctor
    from tlray.doctor import examine

    summary = examine(config)
    print_doctor(summary)
    return summary.exit_code


def _run_demo(config: configs.DemoConfig) -> int:
    from tlray.cli.print_train import print_demo
    from tlray.demo import run_demo

    print_demo(run_demo(config))
    return 0


COMMANDS = {
    "train": Command("TrainConfig", _run_train, "train a classifier on class folders, a list, archives or tables"),
    "predict": Command("PredictConfig", _run_predict, "label images: an archive into Parquet, or one file"),
    "plan": Command("PlanConfig", _run_plan, "list what predict would label, without labelling"),
    "verify": Command("VerifyConfig", _run_verify, "prove an output of predict whole"),
    "audit": Command(
        "AuditConfig",
        _run_audit,
        "tell what an archive holds and how good its labels are, by a sample you look at",
    ),
    "compare": Command("CompareConfig", _run_compare, "tell which labels change between two outputs"),
    "evaluate": Command("EvaluateConfig", _run_evaluate, "measure a bundle on labelled images"),
    "import": Command("ImportConfig", _run_import, "make a bundle of a Keras model trained elsewhere"),
    "show": Command("ShowConfig", _run_show, "print what a bundle is"),
    "submit": Command("SubmitConfig", _run_submit, "run one of these as a job of a cluster"),
    "doctor": Command("DoctorConfig", _run_doctor, "say what a cluster has, and what would go wrong on it"),
    "demo": Command("DemoConfig", _run_demo, "train and label handwritten digits, nothing to set up"),
}


def expand_config_file(name: str, arguments: Sequence[str]) -> list[str]:
    """Return a command's arguments, preceded by the options of its --config file, so that flags win.

    Raises:
        ConfigError: the file cannot be read or does not hold options.
    """
    path, flags = None, list(arguments)
    passed_on = flags[flags.index("--") :] if "--" in flags else []
    del flags[len(flags) - len(passed_on) :]
    for index, flag in enumerate(flags):
        if flag == "--config" and index + 1 < len(flags):
            path = flags[index + 1]
            del flags[index : index + 2]
            break
        if flag.startswith("--config="):
            path = flag.partition("=")[2]
            del flags[index]
            break
    if path is None:
        return [*flags, *passed_on]
    given = {flag.partition("=")[0] for flag in flags}
    return [*_read_options(name, path, given), *flags, *passed_on]


def _read_options(name: str, path: str, given: Collection[str]) -> list[str]:
    """Return a YAML file's options as flags, without those given; a switch at its default needs none."""
    import yaml

    from tlray import config as configs

    defaults = {field.name: field.default for field in fields(getattr(configs, COMMANDS[name].config))}
    try:
        options = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise ConfigError([f"--config {path} cannot be read: {error.strerror}"]) from None
    except yaml.YAMLError as error:
        raise ConfigError([f"--config {path} is not YAML: {' '.join(str(error).split())}"]) from None
    if not isinstance(options, dict):
        raise ConfigError([f"--config {path} must hold options like 'head_epochs: 5'; got {type(options).__name__}"])
    flags: list[str] = []
    for option, value in options.items():
        flag = "--" + str(option).replace("_", "-")
        if flag in given:
            continue
        if isinstance(value, bool):
            if value is not defaults.get(str(option)):
                flags.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, list):
            flags += [flag, *map(str, value)]
        elif value is not None:
            flags += [flag, str(value)]
    return flags


def _report(error: TlrayError) -> int:
    lines = storage.redact(str(error)).splitlines() or [type(error).__name__]
    for line in lines:
        print(f"tlray: {line}", file=sys.stderr)
    return error.exit_code


def _print_overview() -> None:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items())
    print(
        "usage: tlray COMMAND [OPTIONS]\n\n"
        "Train an image classifier on your own folders and label an archive of any size with it, on Ray.\n\n"
        f"{commands}\n\n"
        "tlray COMMAND --help lists a command's options; tlray --version prints the version."
    )
