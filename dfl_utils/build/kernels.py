"""Kernels that start with the libraries loaded: forked from a server that imported them once for a whole build.

Importing torch, transformers, diffusers and matplotlib takes a chapter longer than its work at the smallest scale. The
server is Python's own forkserver; jupyter_client finds the provisioner by its entry point, and a build asks for it by
`JUPYTER_DEFAULT_PROVISIONER_NAME`. What a chapter computes is the same: the server has imported and read what `preload`
names, and done nothing else.
"""

import gc
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing import forkserver, util
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import psutil
from jupyter_client.provisioning import LocalProvisioner
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import Engine, NotebookExecutionManager, papermill_engines

NAME = "dfl-forked"  # of the entry point in pyproject.toml
VARIABLE = "JUPYTER_DEFAULT_PROVISIONER_NAME"
GPUS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA's, AMD's, and either under Windows
PRELOADED = ["dfl_utils.build.preload"]
LONGEST = 70  # bytes: what follows takes 32, and macOS lets a socket's name have 103


def available() -> bool:
    """Whether kernels may be forked here: not beside a GPU, which a fork must not inherit, nor but on Linux."""
    return sys.platform == "linux" and os.environ.get("DFL_FORK") != "0" and not any(map(os.path.exists, GPUS))


def variables() -> dict[str, str]:
    """Environment of a build whose kernels are forked; empty where they are started anew.

    A kernel names matplotlib's back end before it imports that; here the server imports it first.
    """
    return {VARIABLE: NAME, "MPLBACKEND": "module://matplotlib_inline.backend_inline"} if available() else {}


def start() -> None:
    """Let the server import while the caller gets ready; without this it starts with the first kernel."""
    if available():
        multiprocessing.set_forkserver_preload(PRELOADED)
        before, tempfile.tempdir = tempfile.tempdir, socket_folder()
        try:
            util.get_temp_dir()  # it stays that of this process, whose server puts its socket there
        finally:
            tempfile.tempdir = before
        forkserver.ensure_running()


def socket_folder() -> str:
    """Where sockets are made, of whose names the system takes a hundred characters: the temporary folder, or /tmp.

    ValueError: both are too long, or cannot be written.
    """
    usual = tempfile.gettempdir()
    for place in (usual, "/tmp"):
        if len(os.fsencode(place)) <= LONGEST and os.access(place, os.W_OK | os.X_OK):
            return place
    raise ValueError(
        f"TMPDIR has {len(usual)} characters, too many for the sockets of a kernel, and /tmp cannot be written: set it "
        f"to a folder of at most {LONGEST}."
    )


def stop() -> None:
    """Kill every kernel of this process, and their server: a reader's Ctrl-C reaches none of them."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def serve(connection_file: str, environment: dict[str, str], folder: str) -> None:
    """Be a kernel, in a process that was just forked."""
    from ipykernel.kernelapp import IPKernelApp

    from dfl_utils.build import preload

    gc.set_threshold(*preload.COLLECTION)  # the server does without
    os.setsid()  # as a kernel that was launched: signals to its group reach what it starts
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    app = IPKernelApp.instance(parent_handle=os.getppid())  # it ends with the server, and the server with the build
    # No other kernel's history is read, and none is written: to a disk, after every cell.
    app.initialize(["-f", connection_file, "--HistoryManager.enabled=False"])
    app.log.addFilter(_is_no_interrupt)  # with one a manager begins to end a kernel, and nothing is wrong then
    app.start()


def _is_no_interrupt(record: logging.LogRecord) -> bool:
    return "KeyboardInterrupt" not in record.getMessage()


class Forked(ForkServerProcess):
    """A process of the fork server, with what the provisioner asks of a `subprocess.Popen` beside `pid` and `kill`."""

    stdin = stdout = stderr = None

    def poll(self) -> int | None:
        return self.exitcode

    def wait(self) -> int:
        self.join()
        return self.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


class ForkedProvisioner(LocalProvisioner):
    """Launches a kernel by `Forked` in place of a new interpreter."""

    async def launch_kernel(self, cmd: list[str], **options: Any) -> dict[str, Any]:
        connection_file = cmd[cmd.index("-f") + 1]
        task = (connection_file, options.get("env") or dict(os.environ), str(options.get("cwd") or "."))
        start()
        self.process = Forked(target=serve, args=task)
        self.process.start()
        self.pid = self.pgid = self.process.pid  # it leads a group of its own
        return self.connection_info


# --- papermill's engine, for chapters executed side by side in threads of one process.

ENGINE = "dfl"


class ChapterEngine(Engine):
    """Gives a kernel its folder and variables without changing those of this process, which other threads have too."""

    @classmethod
    def execute_managed_notebook(
        cls,
        nb_man: NotebookExecutionManager,
        kernel_name: str,
        *,
        folder: Path,
        variables: Mapping[str, str],
        start_timeout: int,
        input_path: str | None = None,
        **options,
    ) -> None:
        """Execute the cells in a kernel of `folder`, whose environment is this process's with `variables` set."""
        client = PapermillNotebookClient(nb_man, kernel_name=kernel_name, startup_timeout=start_timeout, **options)
        client.execute(cwd=str(folder), env=dict(os.environ) | variables)


papermill_engines.register(ENGINE, ChapterEngine)
