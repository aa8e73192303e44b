"""A command that is watched while it runs, so that its processes can be killed at a known moment."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


class Watched:
    """`tlray ARGUMENTS` in a process and on a Ray of its own, its output read line by line."""

    def __init__(self, *arguments, env=None):
        self._token = f"TLRAY_TEST_TOKEN={os.getpid()}-{time.monotonic_ns()}"
        name, _, value = self._token.partition("=")
        self._process = subprocess.Popen(
            [sys.executable, "-u", "-m", "tlray", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "RAY_ADDRESS": "local", **(env or {}), name: value},
        )
        self.output = ""

    def wait_for(self, text, timeout_s=240):
        """Read until a line holds `text`."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            line = self._process.stdout.readline()
            self.output += line
            if text in line:
                return
            if not line:
                break
        raise AssertionError(f"no {text!r} in:\n{self.output}")

    def wait_for_any(self, texts, pause_s):
        """Read until a line holds one of the texts, then let `pause_s` pass; whether the command still runs."""
        for line in self._process.stdout:
            self.output += line
            if any(text in line for text in texts):
                break
        time.sleep(pause_s)
        return self._process.poll() is None

    @staticmethod
    def read_peak_bytes(pid):
        """Most resident memory that a process has had."""
        fields = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
        )
        return int(fields["VmHWM"].split()[0]) * 1024

    def finish(self, expect=0, timeout_s=400):
        """Read to the end."""
        rest, _ = self._process.communicate(timeout=timeout_s)
        self.output += rest
        assert self._process.returncode == expect, self.output
        assert "Traceback" not in self.output, self.output
        return self.output

    def find_workers(self):
        """Process ids of the training workers."""
        return [pid for pid, command in self._list_family() if command.startswith("ray::RayTrainWorker")]

    def find_channel(self):
        """Process id of the actor that carries the messages of driver and training workers."""
        return next(pid for pid, command in self._list_family() if command.startswith("ray::Channel"))

    def find_labellers(self):
        """Process ids of the labelling run's readers and engines."""
        return [pid for pid, command in self._list_family() if command.startswith(("ray::Map", "ray::Dispatcher"))]

    def find_engines(self):
        """Process ids of the engines."""
        return [pid for pid, command in self._list_family() if "EngineActor" in command]

    def wait_until(self, condition, timeout_s=240, pause_s=0.05):
        """Wait for a condition; False where the command ended before."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if self._process.poll() is not None:
                return False
            assert time.monotonic() < deadline, "it never came true"
            time.sleep(pause_s)
        return True

    @property
    def pid(self):
        """Of the command itself."""
        return self._process.pid

    def stop_driver(self):
        """SIGSTOP the command: it lives, and does nothing."""
        self._process.send_signal(signal.SIGSTOP)

    def terminate(self):
        """SIGTERM, as before a spot machine is taken away."""
        self._process.terminate()

    def kill_driver(self):
        """SIGKILL the command; returns when its workers have ended too, by themselves."""
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        deadline = time.monotonic() + 60
        while self.find_workers() or self.find_labellers():
            assert time.monotonic() < deadline, self._list_family()
            time.sleep(0.2)
        for pid, _ in self._list_family():  # Ray's agents linger for minutes
            with contextlib.suppress(ProcessLookupError):
                kill(pid)

    def stop(self, pid):
        """SIGSTOP: it stays, and answers nothing; it is killed when the command has ended."""
        os.kill(pid, signal.SIGSTOP)

    def _list_family(self):
        """All processes that carry this command's token, with their command lines."""
        family = []
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                if self._token.encode() in (folder / "environ").read_bytes():
                    family.append((int(folder.name), (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()))
            except OSError:  # it has just ended, or is someone else's
                continue
        return family


def kill(pid):
    os.kill(pid, signal.SIGKILL)
