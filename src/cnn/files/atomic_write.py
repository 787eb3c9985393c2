"""Atomic replacement of a file: after a crash or a power cut, either the old or the new content is complete.

The content goes to a temporary file in the same folder, is flushed to disk and takes the file's name by a rename; then
the folder is flushed. Without the first flush a file system may keep the rename and lose the content, without the
second it may lose the rename (Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014).

A process that is killed while it writes leaves its temporary file. Later writes into the folder remove such files once
nothing has been written to them for a day.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import time
from collections.abc import Iterable

TEMPORARY = re.compile(r"\.cnn-[0-9a-f-]+\.tmp")
STALE = 24 * 3600  # seconds without a write: no writer takes that long from one piece to the next


def replace(path: str | os.PathLike[str], pieces: Iterable[bytes | memoryview]) -> None:
    """Write the pieces, one after the other, to the file at `path`: all of them, or none.

    An existing file keeps its mode and, if the process may change it, its owner. Other names of a hard-linked file keep
    the old content. A symbolic link is kept, and its target is replaced.

    Parameters
    ----------
    path : str or path
    pieces : iterable of bytes or memoryview
        The content.

    Raises
    ------
    OSError
        Names `path`. An existing file is unchanged, and no temporary file remains. If only the last flush, of the
        folder, fails, the new file is in place but may not survive a power cut.
    """
    try:
        _replace(os.path.realpath(path), pieces)
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from None


def _replace(target: str, pieces: Iterable[bytes | memoryview]) -> None:
    parent = os.path.dirname(target)
    folder = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        old = _writable(target)
        _remove_stale(parent)
        temporary = os.path.join(parent, f".cnn-{os.urandom(16).hex()}.tmp")
        # The system applies the umask to a new file's mode; an old file's is set below, before there is any content.
        mode = 0o666 if old is None else 0o600
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            with os.fdopen(handle, "wb") as file:
                if old is not None:
                    with contextlib.suppress(PermissionError):
                        os.fchown(handle, old.st_uid, old.st_gid)
                    os.fchmod(handle, stat.S_IMODE(old.st_mode))
                for piece in pieces:
                    file.write(piece)
                file.flush()
                _flush(handle)
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        _flush(folder)
    finally:
        os.close(folder)


def _writable(target: str) -> os.stat_result | None:
    """The status of the file that is to be replaced, None if there is none; OSError if it must not be."""
    try:
        old = os.lstat(target)
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(old.st_mode):
        raise IsADirectoryError(errno.EISDIR, "is a directory")
    if stat.S_ISLNK(old.st_mode):  # realpath has followed all links that lead somewhere
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    if not stat.S_ISREG(old.st_mode):
        raise OSError(errno.EINVAL, "is not a regular file")
    if not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, "is read-only")
    return old


def _flush(handle: int) -> None:
    """Wait until a file or folder is on the disk."""
    if hasattr(fcntl, "F_FULLFSYNC"):  # macOS: its fsync leaves the content in the drive's cache
        with contextlib.suppress(OSError):
            fcntl.fcntl(handle, fcntl.F_FULLFSYNC)
            return
    try:
        os.fsync(handle)
    except OSError as error:
        if not (error.errno == errno.EINVAL and stat.S_ISDIR(os.fstat(handle).st_mode)):
            raise  # some network file systems cannot flush folders


def _remove_stale(folder: str) -> None:
    """Remove temporary files that nobody has written to for a day."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if TEMPORARY.fullmatch(entry.name):
                with contextlib.suppress(OSError):  # another process may have removed it
                    if time.time() - entry.stat(follow_symlinks=False).st_mtime > STALE:
                        os.unlink(entry.path)
