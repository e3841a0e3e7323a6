"""Locks on folders, so that only one process at a time writes to them.

A folder is claimed before anything in it is created, changed or removed. The claim is a lock of the operating system
(``flock`` on the folder), which ends with the process, however the process ends.
"""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sbridge.errors import FileFormatError, InvalidInputError, SbridgeWarning, cut

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

CONFIG, REPORT = "config.json", "report.json"
_PARTS = ".*.part"  # what a write leaves behind when its process is killed
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EBADF, errno.EINVAL}


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Makes the folder ``path`` if it does not exist, and locks it against other processes.

    A folder that was made here and is still empty at the end is removed again.

    Raises:
        InvalidInputError: if another process has claimed the folder, or ``path`` is a file.
        OSError: if the folder cannot be made.
    """
    handle, made = _locked(path)
    try:
        yield
    finally:
        if made:
            # Removed while the lock is held. A process that waits with the old folder open sees that it is gone.
            with suppress(OSError):
                path.rmdir()
        if handle is not None:
            os.close(handle)


def check_vacant(path: Path) -> None:
    """Raises InvalidInputError unless ``path`` is free for a new run: it does not exist, or is an empty folder."""
    if path.is_dir() and any(not entry.match(_PARTS) for entry in path.iterdir()):
        if not (path / CONFIG).exists():
            raise InvalidInputError(f"{path} is not empty. Choose another --out.")
        unfinished = not (path / REPORT).exists()
        raise InvalidInputError(
            f"{path} holds {'an unfinished' if unfinished else 'another'} run. Choose another --out, or delete the "
            f"folder first{'; --resume with the same command continues it' if unfinished else ''}."
        )
    check_folder(path)


def check_startable(path: Path, *, resume: bool = False) -> None:
    """Checks as :func:`check_vacant` for a process that has not claimed the folder: another one may be using it.

    Args:
        path: the folder.
        resume: whether a run in it is resumed, so that it need not be empty.

    Raises:
        InvalidInputError: if the folder cannot be used.
    """
    try:
        check_folder(path) if resume else check_vacant(path)
    except InvalidInputError:
        if path.is_dir() and fcntl is not None:
            handle = os.open(path, os.O_RDONLY)
            try:
                _lock(handle, path)
            finally:
                os.close(handle)
        raise


def check_folder(path: Path) -> None:
    """Raises InvalidInputError if ``path`` is something other than a folder."""
    if os.path.lexists(path) and not path.is_dir():
        raise InvalidInputError(f"{path} is a file; --out needs a folder.")


def check_run(path: Path) -> None:
    """Raises FileFormatError unless ``path`` is a run folder."""
    if not os.path.isdir(path):  # False, too, for a name that the system refuses
        raise FileFormatError(f"{cut(str(path))} is not a run folder: it does not exist.")
    if not (path / CONFIG).exists():
        raise FileFormatError(f"{path} is not a run folder: it has no {CONFIG}.")


def remove_parts(path: Path) -> None:
    """Removes leftovers of killed writes in and below the folder ``path``, which the caller has claimed."""
    for part in path.rglob(_PARTS):
        if part.is_file() and not part.is_symlink():
            part.unlink(missing_ok=True)


def _locked(path: Path) -> tuple[int | None, bool]:
    """Returns an open handle of the locked folder (none on Windows), and whether the folder was made here."""
    while True:
        made = _made(path)
        if fcntl is None:
            return None, made
        try:
            handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            _lock(handle, path)
            # The process that had the lock before may have removed the folder. Then the lock is on nothing.
            if _same(handle, path):
                return handle, made
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _made(path: Path) -> bool:
    """Makes the folder; returns whether it is new."""
    check_folder(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True


def _lock(handle: int, path: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # pyright: ignore[reportOptionalMemberAccess]
    except BlockingIOError as error:
        raise InvalidInputError(
            f"another process is using {path}. Wait until it ends, stop it first, or choose another --out."
        ) from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        warnings.warn(
            f"the file system of {path} has no locks ({error.strerror}), so a second process in the same folder would "
            "not be detected. Run only one process at a time there.",
            SbridgeWarning,
            stacklevel=2,
        )


def _same(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False
