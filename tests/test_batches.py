"""Where fit takes its rows from: arrays, memory maps read block by block, iterables of batches."""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from grid import build, chain
from networks import batch_for

import cnn
from cnn.training import data as batches_module

SPEC = chain(5, 9, 3)


def model_of(loss="mse", dtype="float32", seed=0, **hyper):
    return build(SPEC, loss, dtype=dtype, seed=seed, optimizer=cnn.SGD(**(hyper or {"lr": 0.05, "momentum": 0.9})))[0]


def mapped(path, array, mode="r", offset=0):
    """The array as a memory map of a file."""
    with open(path, "wb") as file:
        file.write(b"\x7f" * offset + np.ascontiguousarray(array).tobytes())
    return np.memmap(path, dtype=array.dtype, mode=mode, offset=offset, shape=array.shape)


def assert_same(one, other):
    np.testing.assert_array_equal(one.parameters, other.parameters)


# memory maps --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("labels_mapped", [False, True])
def test_a_map_in_one_block_is_an_array(tmp_path, loss, shuffle, labels_mapped):
    x, y = batch_for(SPEC, loss, 101, np.float32)
    in_memory, from_file = model_of(loss), model_of(loss)
    history = in_memory.fit(x, y, epochs=3, batch_size=8, shuffle=shuffle, validation_data=(x[:9], y[:9]))
    x_map, y_map = mapped(tmp_path / "x", x), mapped(tmp_path / "y", y) if labels_mapped else y
    validation = (x_map[:9], y_map[:9])
    assert from_file.fit(x_map, y_map, epochs=3, batch_size=8, shuffle=shuffle, validation_data=validation) == history
    assert_same(in_memory, from_file)
    assert from_file.evaluate(x_map, y_map, metrics="top_1" if loss == "cross_entropy" else "r2") == in_memory.evaluate(
        x, y, metrics="top_1" if loss == "cross_entropy" else "r2"
    )


def rows_by_epoch(blocks, epochs, shuffle=True, seed=0, batch_size=4):
    """The rows in the order in which they are trained on, by a model that learns nothing: x holds their numbers."""
    seen = []
    model = cnn.Sequential([cnn.Linear(1, 1), cnn.MSELoss()], optimizer=cnn.SGD(lr=0.0), seed=seed)

    def record(targets, outputs):
        seen.append(targets[:, 0].astype(int).tolist())
        return 0.0

    model.fit(blocks, epochs=epochs, shuffle=shuffle, batch_size=batch_size, metrics=[record])
    return seen


def numbered(n):
    return np.arange(n, dtype=np.float32)[:, None]


def test_blocks_come_whole_and_in_random_order():
    """Each row once an epoch; the rows of a block together, shuffled; another order in each epoch; the same again."""
    x = numbered(50)
    epochs = rows_by_epoch(cnn.Blocks(x, x, rows=12), 6)
    block_orders = set()
    for rows in epochs:
        assert sorted(rows) == list(range(50))
        blocks = [row // 12 for row in rows]
        turns = [block for i, block in enumerate(blocks) if i == 0 or block != blocks[i - 1]]
        assert sorted(turns) == [0, 1, 2, 3, 4]  # none comes back
        block_orders.add(tuple(turns))
        inside = {block: [row % 12 for row in rows if row // 12 == block] for block in range(4)}
        assert all(order != sorted(order) for order in inside.values())
        assert len(set(map(tuple, inside.values()))) == 4
    assert len(block_orders) > 1
    assert len(set(map(tuple, epochs))) == 6
    assert rows_by_epoch(cnn.Blocks(x, x, rows=12), 6) == epochs
    assert rows_by_epoch(cnn.Blocks(x, x, rows=12), 6, seed=1) != epochs
    assert rows_by_epoch(cnn.Blocks(x, x, rows=12), 2, shuffle=False) == [list(range(50))] * 2


def test_blocks_are_whole_batches():
    """So that no batch is cut short in the middle of an epoch."""
    sizes = []
    x = numbered(50)
    model = cnn.Sequential([cnn.Linear(1, 1), cnn.MSELoss()], optimizer=cnn.SGD(lr=0.0), seed=0)
    count = cnn.LambdaCallback(on_batch_end=lambda batch, logs: sizes.append((batch, logs["rows"])))
    model.fit(cnn.Blocks(x, x, rows=9), batch_size=4, callbacks=[count], shuffle=False)
    assert sizes == [*((i, 4) for i in range(12)), (12, 2)]


@pytest.mark.parametrize("dtype", ["u1", ">f4", "<f8", "i2", "f2"])
def test_converted_block_by_block(tmp_path, dtype):
    """As if the whole array had been converted; only a block is in memory."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 100, (103, 5)).astype(dtype)
    y = rng.standard_normal((103, 3))
    one, other = model_of(lr=1e-5), model_of(lr=1e-5)
    history = one.fit(cnn.Blocks(x.astype("f4"), y.astype("f4"), rows=16), epochs=2, batch_size=8)
    blocks = cnn.Blocks(mapped(tmp_path / "x", x, offset=3), mapped(tmp_path / "y", y), rows=16)
    assert other.fit(blocks, epochs=2, batch_size=8) == history
    assert_same(one, other)


@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_views_of_maps(tmp_path, mode):
    """Slices, columns, steps, reversed rows, plain arrays over a map: the rows that they show."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((120, 9)).astype(np.float32)
    offset = 12 if mode == "r" else 5000  # beyond a page
    whole = mapped(tmp_path / "table", table, mode, offset)
    if mode != "r":
        whole[3] += 1  # in the file, or with "c" in memory alone
        table[3] += 1
    views = {
        "columns": lambda a: (a[:, :5], a[:, 5:8]),
        "rows": lambda a: (a[17:99, 1:6], a[17:99, 6:]),
        "step": lambda a: (a[1::3, :5], a[1::3, 6:]),
        "reversed": lambda a: (a[::-1, :5], a[::-1, 5:8]),
        "reversed columns": lambda a: (a[:, 4::-1], a[:, 8:5:-1]),
        "every other column": lambda a: (a[:, ::2], a[:, 1:6:2]),
        "array": lambda a: (np.asarray(a)[:, :5], np.asarray(a)[:, 5:8]),
    }
    for name, view in views.items():
        one, other = model_of(), model_of()
        one.fit(cnn.Blocks(*view(table), rows=16), epochs=2, batch_size=8)
        other.fit(cnn.Blocks(*view(whole), rows=16), epochs=2, batch_size=8)
        np.testing.assert_array_equal(one.parameters, other.parameters, err_msg=name)


def test_memory_that_was_copied_from_a_map_is_no_map(tmp_path):
    x, _ = batch_for(SPEC, "mse", 20, np.float32)
    there = mapped(tmp_path / "x", x)
    assert batches_module.mapped(there) is there
    assert batches_module.mapped(there[3:]) is not None
    assert batches_module.mapped(np.asarray(there)[:, 1]) is not None
    for copy in (np.array(there), there + 1, there[[1, 2]], there.astype("f8"), x, [1.0]):
        assert batches_module.mapped(copy) is None


def test_blocks_of_other_arrays():
    """Whatever has shape, dtype and slices, as a dataset of h5py."""

    class Dataset:
        def __init__(self, array):
            self.array, self.shape, self.dtype, self.most = array, array.shape, array.dtype, 0

        def __getitem__(self, rows):
            self.most = max(self.most, len(self.array[rows]))
            return self.array[rows]

    x, y = batch_for(SPEC, "mse", 50, np.float64)
    one, other = model_of(), model_of()
    w = np.linspace(0.5, 1, 50)
    one.fit(cnn.Blocks(x, y, rows=8), epochs=2, batch_size=8)
    dataset = Dataset(x)
    other.fit(cnn.Blocks(dataset, y, rows=8), epochs=2, batch_size=8)
    assert dataset.most == 8
    assert_same(one, other)
    weighted = model_of()
    weighted.fit(cnn.Blocks(x, y, w, rows=8), epochs=2, batch_size=8)
    assert (weighted.parameters != one.parameters).any()


def test_validation_split_of_a_map(tmp_path):
    x, y = batch_for(SPEC, "mse", 100, np.float32)
    one, other = model_of(), model_of()
    history = one.fit(cnn.Blocks(x[:75], y[:75], rows=32), epochs=2, batch_size=8, validation_data=(x[75:], y[75:]))
    blocks = cnn.Blocks(mapped(tmp_path / "x", x), mapped(tmp_path / "y", y), rows=32)
    again = other.fit(blocks, epochs=2, batch_size=8, validation_split=0.25)
    assert again["loss"] == history["loss"]
    assert again["val_loss"] == pytest.approx(history["val_loss"], rel=1e-12)
    assert_same(one, other)


@pytest.mark.parametrize("when", ["before", "meanwhile"])
@pytest.mark.parametrize("mode", ["r", "c"])
@pytest.mark.parametrize("left", [0, 700])
def test_a_map_that_is_cut_short(tmp_path, when, mode, left):
    """An error, where touching the map would end the process; the model is as it was before the epoch."""
    x, y = batch_for(SPEC, "mse", 400, np.float32)
    there = mapped(tmp_path / "x", x, mode)
    model, expected = model_of(), model_of()
    blocks = cnn.Blocks(there, y, rows=16)
    cut = {"before": lambda *_: None, "meanwhile": lambda epoch, _: epoch == 2 and os.truncate(tmp_path / "x", left)}
    if when == "before":
        os.truncate(tmp_path / "x", left)
    else:
        expected.fit(cnn.Blocks(x, y, rows=16), epochs=1, batch_size=8)
    with pytest.raises(OSError, match=rf"^x: .*x was truncated while it was mapped: rows \d+ to \d+ .* {left} b"):
        model.fit(blocks, epochs=5, batch_size=8, callbacks=[cnn.LambdaCallback(on_epoch_begin=cut[when])])
    assert_same(model, expected)
    assert model._core.program.steps == expected._core.program.steps
    assert np.isfinite(model.fit(x, y)["loss"]).all()


def test_a_file_that_is_gone(tmp_path):
    x, y = batch_for(SPEC, "mse", 40, np.float32)
    there = mapped(tmp_path / "x", x)
    os.unlink(tmp_path / "x")
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "x")):
        model_of().fit(there, y)


def test_columns_that_lie_far_apart(tmp_path):
    x, y = batch_for(SPEC, "mse", 40, np.float32)
    with pytest.raises(ValueError, match=r"^x: expected a memory map whose rows lie one after another, got strides"):
        model_of().fit(mapped(tmp_path / "x", x.T.copy()).T, y)


def test_a_wrong_label_in_the_last_block_is_found_first(tmp_path):
    """Before anything is trained; its place is named."""
    x, y = batch_for(SPEC, "cross_entropy", 100, np.float32)
    y[90] = 3
    model = model_of("cross_entropy")
    with pytest.raises(ValueError, match=r"^y\[80:\]\[10\] is 3, expected a class index from 0 to 2"):
        model.fit(cnn.Blocks(mapped(tmp_path / "x", x), mapped(tmp_path / "y", y), rows=16), batch_size=8)
    assert model._core.program.steps == 0


def test_a_map_ten_times_the_memory(tmp_path):
    """What a process may have for its data is 16 MB more than it has after the import; the file has 160 MB."""
    script = f"""
        import resource
        import numpy as np
        import cnn
        rows, width = 625_000, 64
        x = np.memmap({str(tmp_path / "x")!r}, np.float32, "w+", shape=(rows, width))
        y = np.zeros(rows, np.float32)
        layers = [cnn.Linear(width, 1), cnn.MSELoss()]
        model = cnn.Sequential(layers, optimizer=cnn.SGD(lr=0.1), seed=0)
        with open("/proc/self/status") as file:
            used = next(int(line.split()[1]) for line in file if line.startswith("VmData")) << 10
        resource.setrlimit(resource.RLIMIT_DATA, (used + (16 << 20),) * 2)
        try:
            np.ones((rows, width), np.float32)
        except MemoryError:
            print("limited")
        print(model.fit(cnn.Blocks(x, y, rows=20_000), batch_size=1000)["loss"][0] < 1)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.stdout.split() == ["limited", "True"], run.stderr


# iterables ----------------------------------------------------------------------------------------


class Again:
    """Batches without a length, anew in each epoch."""

    def __init__(self, batches):
        self.batches = batches
        self.begun = 0

    def __iter__(self):
        self.begun += 1
        yield from self.batches


def cut(x, y, *sizes):
    at = 0
    found = []
    for size in sizes:
        found.append((x[at : at + size], y[at : at + size]))
        at += size
    return found


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("kind", [list, tuple, Again])
def test_batches_are_steps(loss, kind):
    """Of any size, lists of numbers as well; each a step of train_step."""
    x, y = batch_for(SPEC, loss, 60, np.float64)
    found = cut(x, y, 7, 1, 32, 20)
    found[1] = (x[7:8].tolist(), y[7:8].tolist())
    model, looped = (model_of(loss, "float64") for _ in range(2))
    history = model.fit(kind(found), epochs=3, shuffle=False, metrics=["f1"] if loss == "cross_entropy" else ["mae"])
    for epoch in range(3):
        total = sum(looped.train_step(*batch) * len(batch[0]) for batch in found)
        assert history["loss"][epoch] == pytest.approx(total / 60, rel=1e-12)
    assert_same(model, looped)
    assert model.evaluate(kind(found))["loss"] == pytest.approx(model.evaluate(x, y)["loss"], rel=1e-12)


def test_a_sequence_is_shuffled_by_batch():
    x, y = batch_for(SPEC, "mse", 40, np.float32)
    found = cut(x, y, *[4] * 10)
    model, looped, ordered = (model_of() for _ in range(3))
    model.fit(found, epochs=2)
    for epoch in range(2):
        for i in looped._core.kernels.permutation(10, 0, epoch):
            looped.train_step(*found[i])
    assert_same(model, looped)
    ordered.fit(Again(found), epochs=2)  # no Sequence: as it comes
    expected = model_of()
    expected.fit(found, epochs=2, shuffle=False)
    assert_same(ordered, expected)


def test_an_iterable_is_gone_over_once_an_epoch():
    x, y = batch_for(SPEC, "mse", 40, np.float32)
    source, validation = Again(cut(x, y, 20, 20)), Again(cut(x, y, 40))
    history = model_of().fit(source, epochs=4, validation_data=validation)
    assert source.begun == validation.begun == 4
    assert len(history["val_loss"]) == 4


def test_validation_batches():
    x, y = batch_for(SPEC, "mse", 40, np.float32)
    expected = model_of().fit(x, y, epochs=2, validation_data=(x[:30], y[:30]))
    for validation in (cut(x, y, 10, 20), Again(cut(x, y, 10, 20)), cnn.Blocks(x[:30], y[:30], rows=7)):
        history = model_of().fit(x, y, epochs=2, validation_data=validation)
        assert history["loss"] == expected["loss"]
        assert history["val_loss"] == pytest.approx(expected["val_loss"], rel=1e-6)
    assert model_of().fit(x, y, epochs=2, validation_data=[x[:30], y[:30]]) == expected


def test_a_generator_is_good_for_one_epoch():
    x, y = batch_for(SPEC, "mse", 40, np.float32)
    model, expected = model_of(), model_of()
    expected.fit(cut(x, y, 20, 20), shuffle=False)
    model.fit(iter(cut(x, y, 20, 20)))
    assert_same(model, expected)
    for data in ({"epochs": 3}, {"epochs": 5, "initial_epoch": 2}):
        with pytest.raises(ValueError, match=r"^x: list_iterator is an iterator, .* epochs is 3: pass a list"):
            model.fit(iter(cut(x, y, 20, 20)), **data)
    with pytest.raises(ValueError, match=r"^validation_data: generator is an iterator, which can be read only once"):
        model.fit(x, y, epochs=2, validation_data=(b for b in cut(x, y, 40)))
    assert_same(model, expected)


def test_an_iterable_that_runs_dry():
    x, y = batch_for(SPEC, "mse", 40, np.float32)

    class Once:
        def __init__(self):
            self.rest = iter(cut(x, y, 20, 20))

        def __iter__(self):
            return self.rest

    model, expected = model_of(), model_of()
    expected.fit(cut(x, y, 20, 20), shuffle=False)
    with pytest.raises(ValueError, match=r"^x: gave no batches\. An iterator can be read only once: pass a list"):
        model.fit(Once(), epochs=2)
    assert_same(model, expected)
    assert len(model.history["loss"]) == 1


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        (3, TypeError, r"^x: batch 2: expected \(x, y\) or \(x, y, sample_weight\), got int"),
        ((np.ones((2, 5)),), TypeError, r"^x: batch 2: expected \(x, y\) or .*, got a tuple of 1"),
        ((np.ones((2, 4)), np.ones((2, 3))), ValueError, r"^x: batch 2: x: expected shape \(batch, 5\) .*got \(2, 4\)"),
        ((np.ones((2, 5)), np.ones((3, 3))), ValueError, r"^x: batch 2: y: expected 2 rows, as many as x has, got 3"),
        ((np.ones((0, 5)), np.ones((0, 3))), ValueError, r"^x: batch 2: expected at least one row, got none"),
        ((np.ones((2, 5)), np.ones((2, 3), complex)), TypeError, r"^x: batch 2: y: expected real numbers"),
    ],
    ids=str,
)
def test_a_bad_batch(batch, error, message):
    """The model is as it was before the epoch."""
    x, y = batch_for(SPEC, "mse", 40, np.float32)
    model, expected = model_of(), model_of()
    for each in (model, expected):
        each.fit(cut(x, y, 20, 20), shuffle=False)
    with pytest.raises(error, match=message):
        model.fit([*cut(x, y, 20, 20), batch], epochs=2, shuffle=False)
    assert_same(model, expected)
    assert model._core.program.steps == 2


def test_an_exception_of_the_iterable():
    x, y = batch_for(SPEC, "mse", 40, np.float32)
    model, expected = model_of(), model_of()

    def failing():
        yield x, y
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        model.fit(failing())
    assert_same(model, expected)


def test_a_bad_batch_of_validation():
    x, y = batch_for(SPEC, "mse", 40, np.float32)
    model, expected = model_of(), model_of()
    validation = Again([(x, y), (x[:, :4], y)])
    with pytest.raises(ValueError, match=r"^validation_data: batch 1: x: expected shape"):
        model.fit(x, y, validation_data=validation)
    assert_same(model, expected)
    assert model.fit(x, y, epochs=2) == expected.fit(x, y, epochs=2)


def test_a_metric_that_fails():
    x, y = batch_for(SPEC, "mse", 40, np.float32)
    model, expected = model_of(), model_of()

    def failing(targets, outputs):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        model.fit(x, y, metrics=[failing])
    assert_same(model, expected)


@pytest.mark.parametrize("batches", [False, True])
def test_batch_norm_needs_two_rows(batches):
    """A last batch of one row is refused before anything is trained; of an iterable when it comes."""
    layers = [cnn.Linear(5, 4), cnn.BatchNorm1d(4), cnn.Linear(4, 3), cnn.MSELoss()]
    model = cnn.Sequential(layers, optimizer=cnn.SGD(lr=0.1), seed=0)
    x, y = batch_for(SPEC, "mse", 17, np.float32)
    before = model.state_dict()
    data = (cut(x, y, 8, 8, 1),) if batches else (x, y)
    with pytest.raises(ValueError, match="BatchNorm1d"):
        model.fit(*data, batch_size=8, shuffle=False)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, before[name])
    assert model._core.program.steps == 0
    assert np.isfinite(model.fit(x, y, batch_size=6)["loss"]).all()


def test_no_batches():
    with pytest.raises(ValueError, match=r"^x: training needs at least one row, got none"):
        model_of().fit([])
    with pytest.raises(ValueError, match=r"^validation_data: expected at least one row, got none"):
        model_of().fit(np.ones((4, 5)), np.ones((4, 3)), validation_data=cnn.Blocks(np.ones((0, 5)), np.ones((0, 3))))


@pytest.mark.parametrize("x", [np.ones((4, 5)), {"x": 1}, "text", 3, None], ids=str)
def test_no_targets(x):
    with pytest.raises(TypeError, match=r"^y: expected targets, or an iterable of batches \(x, y\) as x, got None"):
        model_of().fit(x)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"rows": 0}, ValueError, "^rows: expected at least 1, got 0"),
        ({"rows": 2.0}, TypeError, "^rows: expected an int, got 2.0"),
        ({"x": [[1.0]]}, TypeError, "^x: expected an array with shape, dtype and slices, got list"),
        ({"y": (1, 2)}, TypeError, "^y: expected an array with shape, dtype and slices, got tuple"),
    ],
    ids=str,
)
def test_blocks_that_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        cnn.Blocks(**{"x": np.ones((4, 5)), "y": np.ones((4, 3)), **arguments})


def test_blocks_that_do_not_fit():
    model = model_of()
    for x, y, message in (
        (np.ones((4, 6)), np.ones((4, 3)), r"^x: expected shape \(batch, 5\) for layer 0, .* got \(0, 6\)"),
        (np.ones((4, 5)), np.ones((4, 2)), r"^y: expected shape \(batch, 3\)"),
        (np.ones((4, 5)), np.ones((5, 3)), r"^y: expected 4 rows, as many as x has, got 5"),
        (np.ones((0, 5)), np.ones((0, 3)), r"^x: training needs at least one row, got none"),
    ):
        with pytest.raises(ValueError, match=message):
            model.fit(cnn.Blocks(x, y))
    with pytest.raises(ValueError, match=r"^y: expected none with Blocks"):
        model.fit(cnn.Blocks(np.ones((4, 5)), np.ones((4, 3))), np.ones((4, 3)))
