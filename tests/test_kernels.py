"""Forked kernels: they are kernels like others, with the libraries loaded."""

import os
import signal
import subprocess
import sys
import time
from multiprocessing import forkserver

import pytest
from jupyter_client.manager import KernelManager
from jupyter_client.provisioning import KernelProvisionerFactory

from dfl_utils.build import kernels

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux alone")


@pytest.fixture
def start(monkeypatch, tmp_path):
    """Start a kernel of the provisioner, with two modules in the place of the libraries, which take long."""
    forkserver._forkserver._stop()  # one that runs has other modules
    KernelProvisionerFactory.clear_instance()  # it remembers the variable of the first kernel of a process
    monkeypatch.delenv("DFL_FORK", raising=False)
    monkeypatch.setattr(kernels, "GPUS", ())
    for name, value in kernels.variables().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(kernels, "PRELOADED", ["graphlib", "matplotlib.pyplot"])
    started = []

    def kernel():
        manager = KernelManager(transport="ipc", ip=str(tmp_path / "kernel"))
        manager.start_kernel(cwd=str(tmp_path), env=os.environ | {"DFL_CHAPTER": "seven"})
        client = manager.blocking_client()
        client.start_channels()
        client.wait_for_ready(timeout=60)
        started.append((manager, client))
        return manager, client

    yield kernel
    for manager, client in started:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    forkserver._forkserver._stop()
    KernelProvisionerFactory.clear_instance()


def said(client, code: str) -> str:
    """What a cell prints."""
    found = []
    client.execute_interactive(code, timeout=60, output_hook=lambda message: found.append(message["content"]))
    return "".join(content.get("text", "") for content in found)


def test_a_kernel_is_like_any_other_with_the_libraries_loaded(start, tmp_path):
    """It has its folder and its variables, shows figures although their library was there before, collects garbage."""
    _, client = start()
    code = "import os, sys\nprint(os.getcwd(), os.environ['DFL_CHAPTER'], 'graphlib' in sys.modules, os.getpid())"
    folder, chapter, loaded, pid = said(client, code).split()
    assert (folder, chapter, loaded) == (str(tmp_path), "seven", "True")
    assert int(pid) != os.getpid() and os.getpgid(int(pid)) == int(pid)
    shown = []
    code = "import matplotlib.pyplot as plt\nfigure, axis = plt.subplots()\nplt.close(figure)\nfigure"
    client.execute_interactive(code, timeout=60, output_hook=lambda message: shown.append(message["content"]))
    assert any("image/png" in content.get("data", {}) for content in shown)
    code = "import gc; print(*gc.get_threshold())"
    usual = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said(client, code) == usual.stdout


def test_a_kernel_is_interrupted_and_killed(start):
    manager, client = start()
    asked = client.execute("import time\ntime.sleep(60)", stop_on_error=False)
    time.sleep(0.5)
    manager.interrupt_kernel()
    while (reply := client.get_shell_msg(timeout=60))["parent_header"]["msg_id"] != asked:
        pass  # a slow start is asked several times whether it is ready
    assert reply["content"]["ename"] == "KeyboardInterrupt"
    assert said(client, "print('awake')") == "awake\n"
    process = manager.provisioner.process
    assert process.poll() is None
    manager.shutdown_kernel(now=True)
    assert process.wait() == -signal.SIGKILL


def test_sockets_lie_in_a_short_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "a" / ("b" * 70)))
    assert kernels.socket_folder() == "/tmp"
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(ValueError, match="TMPDIR has .* characters, too many .* set it to a folder of at most 70"):
        kernels.socket_folder()


def test_nothing_is_forked_beside_a_gpu_or_where_a_reader_says_so(monkeypatch):
    monkeypatch.delenv("DFL_FORK", raising=False)
    monkeypatch.setattr(kernels, "GPUS", ("/dev/no-such-gpu",))
    assert kernels.variables()[kernels.VARIABLE] == kernels.NAME
    monkeypatch.setattr(kernels, "GPUS", ("/dev/no-such-gpu", "/dev/null"))
    assert kernels.variables() == {}
    monkeypatch.setattr(kernels, "GPUS", ())
    monkeypatch.setenv("DFL_FORK", "0")
    assert kernels.variables() == {}
