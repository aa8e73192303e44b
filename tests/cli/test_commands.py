import subprocess
import sys
import time

import pytest

from tlray.cli.commands import main

HEAVY = ("ray", "tensorflow", "keras", "sklearn")


def run(*arguments: str) -> tuple[int, str]:
    result = subprocess.run(
        [sys.executable, "-m", "tlray", *arguments], capture_output=True, text=True, check=False, timeout=60
    )
    return result.returncode, result.stdout + result.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["predict", "--help"], ["demo", "--help"]])
def test_help_exits_0(arguments):
    code, output = run(*arguments)
    assert code == 0
    assert "usage: tlray" in output


def test_an_unknown_command_suggests_the_near_one(capsys):
    assert main(["trian"]) == 2
    assert "did you mean train?" in capsys.readouterr().err


def test_no_command_prints_the_overview(capsys):
    assert main([]) == 2
    assert "predict" in capsys.readouterr().out


@pytest.fixture
def one_class(tmp_path, write_digits):
    return write_digits(tmp_path / "one", 1, 2)


@pytest.fixture
def two_classes(tmp_path, write_digits):
    return write_digits(tmp_path / "two", 2, 2)


def bad_usages(one_class, two_classes, tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "notes.txt").write_text("mine")
    new = str(tmp_path / "new")
    return {
        "missing folder": (["train", "--data", str(tmp_path / "nowhere"), "--output", new], "does not exist"),
        "one class only": (["train", "--data", str(one_class), "--output", new], "one class only"),
        "unknown flag": (["train", "--data", str(two_classes), "--output", new, "--bach-size", "8"], "--batch-size"),
        "batch size of 0": (["train", "--data", str(two_classes), "--output", new, "--batch-size", "0"], "got 0"),
        "taken output": (["train", "--data", str(two_classes), "--output", str(taken)], "already holds"),
        "not a bundle": (
            ["predict", "--model", str(taken), "--input", str(two_classes), "--output", new],
            "not a bundle",
        ),
        "no bundle there": (["show", str(tmp_path / "nowhere")], "not a bundle"),
        "weights that are a page": (
            ["train", "--data", str(two_classes), "--output", new, "--weights", str(taken / "notes.txt")],
            "not a weights file",
        ),
        "scheme": (["predict", "--model", "http://x/y", "--input", "a", "--output", new], "s3://bucket"),
        "config file": (["train", "--config", str(tmp_path / "none.yaml")], "cannot be read"),
    }


def test_bad_usage_is_one_clear_message_and_exit_2(one_class, two_classes, tmp_path):
    for name, (arguments, expected) in bad_usages(one_class, two_classes, tmp_path).items():
        began = time.monotonic()
        code, output = run(*arguments)
        spent = time.monotonic() - began
        assert code == 2, (name, output)
        assert expected in output, (name, output)
        assert "Traceback" not in output, name
        assert spent < 60, (name, spent)  # a hang guard; that nothing heavy is imported is tested below


def test_nothing_heavy_is_imported_before_the_checks(one_class, two_classes, tmp_path):
    for name, (arguments, _) in bad_usages(one_class, two_classes, tmp_path).items():
        script = (
            "import sys; from tlray.cli import main\n"
            f"try: main({arguments!r})\n"
            "except SystemExit: pass\n"
            f"print('imported:', [name for name in {HEAVY!r} if name in sys.modules])"
        )
        result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
        assert "imported: []" in result.stdout, (name, result.stdout)


def test_flags_win_over_the_file_over_the_defaults(tmp_path, monkeypatch):
    from tlray.cli import commands as cli

    seen = []
    monkeypatch.setitem(cli.COMMANDS, "train", cli.Command("TrainConfig", lambda config: seen.append(config) or 0, ""))
    path = tmp_path / "train.yaml"
    path.write_text("data: photos\noutput: bundle\nbatch_size: 8\nhead_units: [64, 32]\nhorizontal_flip: false\n")
    assert main(["train", "--config", str(path), "--batch-size", "4"]) == 0
    (config,) = seen
    assert (config.batch_size, config.head_units, config.horizontal_flip, config.recipe) == (
        4,
        (64, 32),
        False,
        "tuned",
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--data", "a", "--output", "o", "--data", "b"], ["--data", "a", "b", "--output", "o"]),
        (["--data=a", "--data", "b", "c", "--seed", "1"], ["--data", "a", "b", "c", "--seed", "1"]),
        (["--input", "a", "b", "--verbose", "--input=c"], ["--input", "a", "b", "c", "--verbose"]),
        (["bundle", "--head-units", "1", "2", "--data", "a"], ["bundle", "--head-units", "1", "2", "--data", "a"]),
        (["--data=-x", "b"], ["--data=-x", "b"]),
    ],
)
def test_a_repeated_option_keeps_all_its_values(arguments, expected):
    from tlray.cli.commands import join_repeated

    assert join_repeated(arguments) == expected


def test_several_data_are_one_tuple(tmp_path, monkeypatch):
    from tlray.cli import commands as cli

    seen = []
    monkeypatch.setitem(cli.COMMANDS, "train", cli.Command("TrainConfig", lambda config: seen.append(config) or 0, ""))
    assert main(["train", "--data", "a", "--output", "o", "--data", "b"]) == 0
    assert main(["train", "--data", "a", "--output", "o"]) == 0
    path = tmp_path / "train.yaml"
    path.write_text("data: [x, y]\noutput: o\n")
    assert main(["train", "--config", str(path)]) == 0
    assert main(["train", "--config", str(path), "--data", "z"]) == 0
    assert [config.data for config in seen] == [("a", "b"), "a", ("x", "y"), "z"]
    assert cli.expand_config_file("train", ["--config", str(path), "--data", "z"]).count("--data") == 1  # for submit


def test_a_misspelt_option_in_the_file_is_refused(tmp_path, capsys):
    path = tmp_path / "train.yaml"
    path.write_text("data: photos\noutput: bundle\nbach_size: 8\n")
    with pytest.raises(SystemExit) as caught:
        main(["train", "--config", str(path)])
    assert caught.value.code == 2
    assert "--bach-size" in capsys.readouterr().err
