"""papermill's engine, for chapters executed side by side in threads of one process, and saved now and then."""

import os
import threading
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from weakref import WeakSet

from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import Engine, NotebookExecutionManager, papermill_engines

NAME = "dfl"
EVERY = timedelta(seconds=10)

_running: WeakSet[PapermillNotebookClient] = WeakSet()
_stopped = threading.Event()


def start() -> None:
    """Let chapters run, also after a `stop`."""
    _stopped.clear()


def stop() -> None:
    """Kill the kernels of all chapters that run in this process, and let no other cell begin."""
    _stopped.set()
    for client in list(_running):
        process = getattr(getattr(client.km, "provisioner", None), "process", None)
        if process is not None:
            process.kill()


class ChapterEngine(Engine):
    """Gives a kernel its folder and variables without changing those of this process, which other threads have too.

    papermill writes the whole notebook, pictures and all, when a cell starts and when it ends, while the kernel waits;
    this writes it at most every ten seconds, and at the end, after a failure too.
    """

    @classmethod
    def execute_managed_notebook(
        cls,
        nb_man: NotebookExecutionManager,
        kernel_name: str,
        *,
        folder: Path,
        variables: Mapping[str, str],
        start_timeout: int,
        execution_timeout: int | None = None,
        input_path: str | None = None,
        **options,
    ) -> None:
        """Execute the cells in a kernel of `folder`, whose environment is this process's with `variables` set."""
        save = nb_man.save

        def sometimes(**changes) -> None:  # before and after every cell
            if _stopped.is_set():
                raise RuntimeError("the build was stopped")
            if nb_man.now() - nb_man.last_save_time >= EVERY:
                save(**changes)

        nb_man.save = sometimes
        try:
            client = PapermillNotebookClient(
                nb_man,
                kernel_name=kernel_name,
                timeout=execution_timeout,
                startup_timeout=start_timeout,
                **options,
            )
            _running.add(client)
            client.execute(cwd=str(folder), env=dict(os.environ) | variables)
        finally:
            nb_man.save = save


papermill_engines.register(NAME, ChapterEngine)
