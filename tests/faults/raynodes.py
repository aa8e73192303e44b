"""Several Ray nodes on this machine: raylets of their own, also in network namespaces with an address each."""

import contextlib
import functools
import itertools
import json
import os
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

BIN = Path(sys.executable).parent
HEAD = "head"
_OBJECT_STORE_BYTES = 150 * 2**20


def find_free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Bridge:
    """A network that joins network namespaces and this machine; a context manager."""

    def __init__(self):
        self._name = f"tl{secrets.token_hex(3)}"
        taken = subprocess.run(["ip", "-o", "address"], capture_output=True, text=True, check=True).stdout
        networks = (f"10.97.{number}" for number in range(61, 255))
        self._network = next(network for network in networks if f" {network}." not in taken)
        self._numbers = itertools.count(2)
        self._names = set()

    @property
    def gateway(self):
        """This machine's own address on the network."""
        return f"{self._network}.1"

    def __enter__(self):
        run("ip", "link", "add", self._name, "type", "bridge")
        run("ip", "address", "add", f"{self.gateway}/24", "dev", self._name)
        run("ip", "link", "set", self._name, "up")
        return self

    def __exit__(self, *_):
        for name in list(self._names):
            self.remove(name)
        run("ip", "link", "delete", self._name)

    def add(self, name):
        """Make a namespace, joined to the network; returns its address there."""
        index = next(self._numbers)
        space, link, address = f"{self._name}-{name}", f"{self._name}{index}", f"{self._network}.{index}"
        run("ip", "netns", "add", space)
        self._names.add(name)
        run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
        run("ip", "link", "set", link, "master", self._name, "up")
        for words in (f"address add {address}/24 dev eth0", "link set eth0 up", "link set lo up"):
            run("ip", "-n", space, *words.split())
        return address

    def remove(self, name):
        """Delete a namespace that no process is in."""
        run("ip", "netns", "delete", f"{self._name}-{name}")
        self._names.remove(name)

    def enter(self, name, command):
        """The command line that runs a command in a namespace."""
        return ["ip", "netns", "exec", f"{self._name}-{name}", *command]


@functools.cache
def explain_no_namespaces():
    """Why processes in a network namespace cannot reach this machine here; None where they can."""
    if shutil.which("ip") is None:
        return "network namespaces need the ip command"
    try:
        with Bridge() as bridge, socket.create_server((bridge.gateway, 0)) as server:
            bridge.add("probe")
            connect = f"import socket; socket.create_connection({server.getsockname()}, 5)"
            run(*bridge.enter("probe", [sys.executable, "-c", connect]))
    except subprocess.CalledProcessError as error:
        reason = error.stderr.decode().strip().splitlines()[-1:]
        return f"network namespaces do not work here ({''.join(reason)})"
    return None


class RayNodes:
    """A cluster whose head takes no work, with token authentication; a context manager.

    Args:
        folder: for logs.
        environment: what the nodes' processes see beside this one's.
        bridge: gives each node a namespace and an address of its own.
        growing: types of machines that an autoscaler adds, by name: `{"cpu": {"CPU": 1, "most": 2}}`.
    """

    def __init__(self, folder, environment=None, *, bridge=None, growing=None):
        self._folder = folder
        self._bridge = bridge
        self._growing = growing
        self._nodes = {}
        self._addresses = {} if bridge else {HEAD: "127.0.0.1"}
        self._dashboard_port = find_free_port()
        self._gcs_port = find_free_port()
        self.token = secrets.token_hex(16)
        self.environment = {
            **os.environ,
            **(environment or {}),
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_BACKEND_LOG_LEVEL": "fatal",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_health_check_period_ms": "1000",  # a lost machine is noticed in seconds
            "RAY_health_check_timeout_ms": "3000",
        }
        self.environment.pop("RAY_ADDRESS", None)

    @property
    def address(self):
        """To join as a driver."""
        return f"{self.get_address(HEAD)}:{self._gcs_port}"

    def get_address(self, name):
        """A node's own address."""
        return self._addresses[name]

    @property
    def job_server(self):
        """To submit to, from the head's own network."""
        return f"http://127.0.0.1:{self._dashboard_port}"

    def __enter__(self):
        self.start_head()
        return self

    def __exit__(self, *_):
        for name in list(self._nodes):
            self.kill(name)

    def start_head(self):
        options = ["--head", f"--port={self._gcs_port}", "--num-cpus=0", "--dashboard-host=127.0.0.1"]
        options += [f"--dashboard-port={self._dashboard_port}", "--include-dashboard=true"]
        if self._growing is not None:
            options.append(f"--autoscaling-config={self._write_autoscaling()}")
        self._start(HEAD, options)

    def add(self, name, cpus, *, gpus=0, hide=()):
        """Start a worker node; `gpus` are claimed only, `hide` names folders whose content it doesn't see."""
        self._start(name, [f"--address={self.address}", f"--num-cpus={cpus}", f"--num-gpus={gpus}"], hide)

    def _start(self, name, options, hide=()):
        self._addresses[name] = self._bridge.add(name) if self._bridge else "127.0.0.1"
        command = [str(BIN / "ray"), "start", "--block", "--disable-usage-stats", *options]
        command += [f"--object-store-memory={_OBJECT_STORE_BYTES}", "--min-worker-port=0", "--max-worker-port=0"]
        command.append(f"--node-ip-address={self._addresses[name]}")
        if self._bridge is None:
            command.append(f"--dashboard-agent-listen-port={find_free_port()}")
        if hide:
            mounts = "".join(f"mount -t tmpfs none {shlex.quote(str(folder))} && " for folder in hide)
            command = ["unshare", "--mount", "sh", "-c", f'{mounts} exec "$@"', "sh", *command]
        log = (self._folder / f"{name}-{time.monotonic_ns()}.log").open("w")
        with log:
            process = subprocess.Popen(
                self.enter(name, command), env=self.environment, stdout=log, stderr=subprocess.STDOUT
            )
        self._nodes[name] = process
        deadline = time.monotonic() + 60
        while "Ray runtime started" not in Path(log.name).read_text():
            assert process.poll() is None, Path(log.name).read_text()
            assert time.monotonic() < deadline, Path(log.name).read_text()
            time.sleep(0.2)

    def enter(self, name, command):
        """The command line that runs a command in a node's own network."""
        return self._bridge.enter(name, command) if self._bridge else command

    def run(self, command):
        """Any command on the head."""
        command = self.enter(HEAD, command)
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)

    def run_tlray(self, *arguments, expect=0, timeout_s=300):
        """`tlray` on the head."""
        with self.start_tlray(*arguments) as process:
            try:
                output, _ = process.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        assert process.returncode == expect, output
        assert "Traceback" not in output, output
        return output

    def start_tlray(self, *arguments):
        """The same, while it runs."""
        # what runs in the background may ignore Ctrl-C, and would pass that on
        command = ["env", "--default-signal=INT", sys.executable, "-u", "-m", "tlray", *map(str, arguments)]
        return subprocess.Popen(
            self.enter(HEAD, command),
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def submit(self, command, *options, expect=0, more=()):
        """`tlray submit` on the head."""
        return self.run_tlray("submit", command, "--address", self.job_server, *more, "--", *options, expect=expect)

    def find(self, word):
        """Names of the nodes that run a process with a word in its title, such as "EngineActor"."""
        return sorted(
            name for name in self._nodes if any(word in title for title in map(read_title, self._list_processes(name)))
        )

    def kill(self, name):
        """SIGKILL everything on a node at once, as when a machine is lost."""
        processes = self._list_processes(name)
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(processes, timeout=20)
        self._nodes.pop(name).wait()
        if self._bridge:
            self._bridge.remove(name)

    def _list_processes(self, name):
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(self._nodes[name].pid)
            return [*root.children(recursive=True), root]
        return []

    def _write_autoscaling(self):
        """What `ray up` would write, for a provider that starts raylets here."""
        types = {
            name: {"resources": {"CPU": kind["CPU"], "object_store_memory": _OBJECT_STORE_BYTES}, "node_config": {},
                   "min_workers": 0, "max_workers": kind["most"]}
            for name, kind in self._growing.items()
        }  # fmt: skip
        types["head"] = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
        empty = ("auth", "docker", "file_mounts")
        lists = (
            "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
            "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude",
            "rsync_filter",
        )  # fmt: skip
        config = {
            "cluster_name": "growing", "max_workers": 8, "upscaling_speed": 10.0, "idle_timeout_minutes": 5,
            "provider": {
                "type": "fake_multinode", "gcs_address": self.address, "use_node_id_as_ip": True,
                "disable_node_updaters": True, "disable_launch_config_check": True,
            },
            "head_node_type": "head",
            "available_node_types": types, "file_mounts_sync_continuously": False,
            **{name: {} for name in empty}, **{name: [] for name in lists},
        }  # fmt: skip
        path = self._folder / "autoscaling.json"
        path.write_text(json.dumps(config))
        self.environment["RAY_FAKE_CLUSTER"] = "1"
        return path


def read_title(process):
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def run(*command):
    subprocess.run(command, check=True, capture_output=True)
