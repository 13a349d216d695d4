"""Claims on a file by one process among many, on one machine or several that share a folder.

A claim is a lock file with its holder's process id, host and a heartbeat. The claim of a killed process is taken over
at once on its own machine, and after `STALE_SECONDS` without a heartbeat on another.
"""

import contextlib
import logging
import time
from pathlib import Path

from filelock import SoftFileLease, Timeout

STALE_SECONDS = 60.0  # the heartbeat comes every third of it
_log = logging.getLogger(__name__)


def claim(path: Path, wait: bool = True) -> contextlib.AbstractContextManager | None:
    """Claim `path` (a lock file that need not exist) until the returned context is left.

    Args:
        path: the lock file; its folder exists.
        wait: stay until another's claim ends, rather than give up.

    Returns:
        A context manager, already entered; None if another process holds the claim and `wait` is False.

    Raises:
        OSError: the lock file cannot be written (disk full, folder gone or read-only).
    """
    blank = None
    while True:
        blank = _drop_blank(path, blank)
        try:
            return SoftFileLease(path, lease_duration=STALE_SECONDS).acquire(timeout=STALE_SECONDS if wait else 0)
        except Timeout:
            if not wait:
                return None
            _log.info("Waiting for %s, held by another process.", path)
        except OSError as error:
            reason = error.strerror or error
            mend = "free some space, or make its folder writable (a run store is moved by DFL_STORE)"
            raise OSError(f"{path} cannot be written ({reason}): {mend}.") from error


def _drop_blank(path: Path, seen: tuple[int, int] | None) -> tuple[int, int] | None:
    """Remove a claim whose maker died before it could sign: filelock never does.

    It goes when the clock says so, or when it has outlasted a whole wait, whatever the clock of its maker's machine
    says. `seen` is what this function returned before that wait: which blank claim there is.
    """
    with contextlib.suppress(FileNotFoundError):
        state = path.stat()
        if state.st_size == 0:
            found = (state.st_ino, state.st_mtime_ns)
            if found != seen and time.time() - state.st_mtime <= STALE_SECONDS:
                return found
            path.unlink()
    return None
