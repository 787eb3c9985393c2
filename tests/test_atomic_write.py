"""A save replaces a file as a whole, or not at all."""

import errno
import os
import stat
import time
from pathlib import Path

import numpy as np
import pytest
from checkpoints import SPEC, assert_same, assert_unreadable, network
from networks import build, run_together

import cnn
from cnn.files import atomic_write, safetensors_file


@pytest.fixture
def model(dtype):
    return network(dtype)


def listing(path):
    return sorted(os.listdir(path.parent))


@pytest.mark.parametrize("call", ["open", "fdopen", "fsync", "replace", "fchmod"])
def test_a_failed_write_leaves_the_old_file(path, model, monkeypatch, call):
    """Whatever fails: the old file is whole, nothing is left beside it, and the error is the system's."""
    model.save(path)
    old, state = path.read_bytes(), model.state_dict()
    model.parameters = model.parameters + 1

    def failing(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(atomic_write.os, call, failing)
        with pytest.raises(OSError, match="No space left on device"):
            model.save(path)
    assert path.read_bytes() == old
    assert listing(path) == ["model.safetensors"]
    for name, array in cnn.load(path).state_dict().items():
        np.testing.assert_array_equal(array, state[name])


def test_interrupted_write(path, model, monkeypatch):
    model.save(path)
    old = path.read_bytes()

    def interrupted(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(atomic_write.os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.save(path)
    assert path.read_bytes() == old
    assert listing(path) == ["model.safetensors"]


def test_overwriting(path, model):
    """Nothing of the longer file that was there is left."""
    path.write_bytes(b"x" * 100_000)
    model.save(path)
    assert_same(cnn.load(path), model)
    assert listing(path) == ["model.safetensors"]


def test_the_order_of_a_write(path, model, monkeypatch):
    """The content is on the disk before the file has its name, and the name before save returns."""
    calls = []

    def recorded(name):
        call = getattr(os, name)

        def record(*arguments, **keywords):
            where = arguments[0]
            folder = isinstance(where, int) and stat.S_ISDIR(os.fstat(where).st_mode)
            calls.append((name, folder))
            if name == "fsync" and not folder:
                assert os.fstat(where).st_size > 2000
            return call(*arguments, **keywords)

        return record

    for name in ("fsync", "replace"):
        monkeypatch.setattr(atomic_write.os, name, recorded(name))
    model.save(path)
    assert calls == [("fsync", False), ("replace", False), ("fsync", True)]


def test_a_folder_that_cannot_be_flushed(path, model, monkeypatch):
    """Some network file systems say so with EINVAL: all that can be done has been done. Other errors are told."""
    fsync = os.fsync

    def failing(number):
        def call(handle):
            if stat.S_ISDIR(os.fstat(handle).st_mode):
                raise OSError(number, os.strerror(number))
            fsync(handle)

        return call

    monkeypatch.setattr(atomic_write.os, "fsync", failing(errno.EINVAL))
    model.save(path)
    monkeypatch.setattr(atomic_write.os, "fsync", failing(errno.EIO))
    with pytest.raises(OSError, match=f"Input/output error: '{path}'"):
        model.save(path)
    assert_same(cnn.load(path), model)


def test_symbolic_links(path, model):
    """The link stays, its target is replaced, or made; in the target's folder, for a rename cannot leave it."""
    folder = path.parent / "elsewhere"
    folder.mkdir()
    path.symlink_to("elsewhere/file")
    for _ in range(2):  # made, replaced
        model.save(path)
        assert path.readlink() == Path("elsewhere/file")
        assert os.listdir(folder) == ["file"]
        assert_same(cnn.load(folder / "file"), model)
    loop = path.parent / "loop"
    loop.symlink_to("loop")
    with pytest.raises(OSError, match=r"symbolic links: '.*/loop'"):
        model.save(loop)
    assert loop.is_symlink()


def test_hard_links(path, model):
    model.save(path)
    old = path.read_bytes()
    os.link(path, path.parent / "other")
    model.parameters = model.parameters + 1
    model.save(path)
    assert (path.parent / "other").read_bytes() == old
    assert_same(cnn.load(path), model)


def test_what_is_no_file_is_not_replaced(path, model):
    os.mkfifo(path)
    with pytest.raises(OSError, match=f"is not a regular file: '{path}'$"):
        model.save(path)
    assert stat.S_ISFIFO(path.stat().st_mode)
    assert listing(path) == ["model.safetensors"]


def test_a_read_only_file_is_not_replaced(path, model, monkeypatch):
    model.save(path)
    old = path.read_bytes()
    # Whoever runs the tests may be root, who may write to everything.
    monkeypatch.setattr(atomic_write.os, "access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(PermissionError, match=f"is read-only: '{path}'"):
        model.save(path)
    assert path.read_bytes() == old
    assert listing(path) == ["model.safetensors"]


@pytest.mark.parametrize("owner", [None, PermissionError], ids=["may give files away", "may not"])
def test_owner(path, model, monkeypatch, owner):
    model.save(path)
    given = []

    def fchown(handle, user, group):
        given.append((user, group))
        if owner:
            raise owner

    monkeypatch.setattr(atomic_write.os, "fchown", fchown)
    model.save(path)
    assert given == [(path.stat().st_uid, path.stat().st_gid)]
    assert_same(cnn.load(path), model)


def test_stale_temporary_files_are_removed(path, model):
    """A day after the last write to them, of this version or an earlier one; nothing that only looks similar is."""
    random = "0123456789abcdef"
    stale = [f".cnn-{2 * random}.tmp", f".cnn-12345-{random}.tmp"]
    recent = f".cnn-{2 * random[::-1]}.tmp"
    others = [f".cnn-{random}.tmp.txt", f"cnn-{random}.tmp", f".cnn-{'g' * 16}.tmp", ".cnn-.tmp"]
    now = time.time()
    for name in (*stale, recent, *others):
        (path.parent / name).write_bytes(b"x")
        os.utime(path.parent / name, (0, now - atomic_write.STALE + (60 if name == recent else -60)))
    (path.parent / ".cnn-aa.tmp").symlink_to("nowhere")
    (path.parent / ".cnn-bb.tmp").mkdir()
    os.utime(path.parent / ".cnn-bb.tmp", (0, 0))
    model.save(path)
    assert listing(path) == sorted([recent, *others, ".cnn-aa.tmp", ".cnn-bb.tmp", "model.safetensors"])


def test_a_writer_is_left_alone(path, model, monkeypatch):
    """Another save into the same folder, while this one writes, does not remove its file."""
    fsync, seen = os.fsync, []

    def meanwhile(handle):
        monkeypatch.undo()
        model.save(path.parent / "other")
        seen.extend(listing(path))
        fsync(handle)

    monkeypatch.setattr(atomic_write.os, "fsync", meanwhile)
    model.save(path)
    assert [name for name in seen if atomic_write.TEMPORARY.fullmatch(name)]
    assert listing(path) == ["model.safetensors", "other"]


def test_saves_at_the_same_time(path, dtype):
    """From several threads: each is whole, and one of them is the last."""
    models = [build(SPEC, dtype=dtype, seed=seed)[0] for seed in range(4)]

    def save(model):
        for _ in range(5):
            model.save(path)
            cnn.load(path)

    run_together(*(lambda model=model: save(model) for model in models))
    assert cnn.load(path).parameters.tobytes() in {model.parameters.tobytes() for model in models}
    assert listing(path) == ["model.safetensors"]


def test_nothing_is_left_open(path, model):
    open_files = len(os.listdir("/dev/fd"))
    for _ in range(3):
        model.save(path)
        cnn.load(path)
        with pytest.raises(OSError, match="directory"):
            model.save(path.parent)
        path.write_bytes(b"damaged")
        assert_unreadable(path)
    assert len(os.listdir("/dev/fd")) == open_files


def test_a_header_that_could_not_be_read_again_is_not_written(path, monkeypatch):
    model = cnn.Sequential([cnn.Linear(1, 1) for _ in range(60)])
    monkeypatch.setattr(safetensors_file, "MOST_HEADER", 10_000)
    with pytest.raises(ValueError, match=r"a header of \d+ bytes is longer than the 10000 that can be read again"):
        model.save(path)
    assert listing(path) == []


def test_file_mode(path, model):
    """A new file's by the umask, as open() would; an old file's is kept."""
    before = os.umask(0o027)
    try:
        model.save(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        assert os.umask(0o027) == 0o027
        path.chmod(0o604)
        model.save(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o604
    finally:
        os.umask(before)


def test_where_it_cannot_be_written(path, model):
    with pytest.raises(FileNotFoundError):
        model.save(path / "no" / "such.folder")
    path.mkdir()
    with pytest.raises(OSError, match="directory"):
        model.save(path)
    assert listing(path) == ["model.safetensors"]
    assert not os.listdir(path)
