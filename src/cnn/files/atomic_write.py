"""Replacing a file so that at every moment, after a crash or a power cut too, the old one or the new one is whole.

The content goes to a temporary file in the same folder, is flushed to disk and takes the file's name by a rename; then
the folder is flushed. Without the first flush a file system may keep the rename and lose the content, without the
second it may lose the rename (Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterable

TEMPORARY = re.compile(r"\.cnn-(\d{1,10})-[0-9a-f]{16}\.tmp")  # the number is the writer's process


def replace(path: str | os.PathLike, pieces: Iterable[bytes | memoryview]) -> None:
    """Write the pieces, one after the other, to the file at `path`: all of them, or none.

    A file that is there keeps its mode and, where the process may give files away, its owner; the other names of a
    hard-linked file keep the old content. A symbolic link stays, and what it points to is replaced. Temporary files
    that dead writers have left in the folder are removed.

    Raises
    ------
    OSError
        Names `path`. The file that was there is untouched, and nothing is left beside it; unless it is the last flush
        that fails, that of the folder: then the new file is there, and may not outlast a power cut.
    """
    try:
        _replace(os.path.realpath(path), pieces)
    except OSError as error:
        error.filename, error.filename2 = os.fspath(path), None
        raise


def _replace(target: str, pieces: Iterable[bytes | memoryview]) -> None:
    parent = os.path.dirname(target)
    folder = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        old = _writable(target)
        sweep(parent)
        temporary = os.path.join(parent, f".cnn-{os.getpid()}-{os.urandom(8).hex()}.tmp")
        # The system applies the umask to a new file's mode; an old file's is set below, before there is any content.
        mode = 0o666 if old is None else 0o600
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            with os.fdopen(handle, "wb") as file:
                with contextlib.suppress(OSError):  # no locks on this file system: then `sweep` gets none either
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
    """The state of the file that is to be replaced, None if there is none; OSError if it must not be."""
    try:
        old = os.lstat(target)
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(old.st_mode):
        raise IsADirectoryError(errno.EISDIR, "is a directory")
    if stat.S_ISLNK(old.st_mode):  # realpath has followed all that lead somewhere
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    if not stat.S_ISREG(old.st_mode):
        raise OSError(errno.EINVAL, "is no regular file")
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


def sweep(folder: str) -> None:
    """Remove the temporary files of writers that are dead.

    A writer lives as long as it holds its lock; the number of its process says so too where file systems have no
    locks, but means nothing on another machine or in another container.
    """
    with os.scandir(folder) as entries:
        found = [(entry.path, match) for entry in entries if (match := TEMPORARY.fullmatch(entry.name))]
    for path, match in found:
        if not _lives(int(match[1])):
            with contextlib.suppress(OSError):  # locked, or removed by another sweeper
                handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(path)
                finally:
                    os.close(handle)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
