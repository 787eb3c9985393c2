"""Feeds damaged checkpoints to the loader.

    python tests/fuzz/fuzz_load.py [how many, 100000] [seed, 0]

Each input is a good file with one to three changes: bits flipped, bytes overwritten, cut out, doubled or taken from
another file, numbers, words and values of the header replaced, the file cut off or lengthened. `cnn.load` must raise a
ValueError or OSError that names the file, or give the model of one of the good files: compared by what it saves, which
is the same bytes for the same model. Every third input is sealed again, as if by someone who means harm: it has the
digest of its content, so that what comes after that check is reached too. Such a file may be a good file of another
model: then the model must hold the file's numbers, and be the same after it is saved and loaded again.

No input may take more than MEMORY bytes (where there is /proc). The same seed gives the same inputs. Prints the counts,
and ends with 1 at any failure; the inputs that failed are in files whose names are printed.
"""

import json
import os
import random
import re
import resource
import struct
import sys
import tempfile
import time
import warnings
from collections import Counter

import numpy as np

import cnn
from cnn.files import checkpoint, safetensors_file

MEMORY = 100 << 20
NUMBERS = (0, 1, 2, 3, 7, 8, 255, 2**16, 2**31 - 1, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64)
VALUES = (
    None,
    True,
    False,
    -1,
    0,
    1,
    2,
    17,
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    2**63,
    10**30,
    "",
    "0",
    "Linear",
)
VALUES = (*VALUES, "ReLU", "Sequential", "float64", "é\ud800", [], {}, [[]], [0, 0], {"name": "Tanh"}, {"name": "SGD"})
WORDS = (b"F32", b"F64", b"I64", b"BF16", b"0.weight", b"0.bias", b"dtype", b"shape", b"null", b"true", b"-1", b"1e9")
WORDS = (*WORDS, b"{}", b"[]", b"{", b"]", b'"', b"\\", b",", b":", b"\\u0000", b"\xff", b"\xed\xa0\x80", b"NaN", b" ")


def models():
    """Small networks that differ in all that a file can hold."""
    yield cnn.Sequential([cnn.Linear(3, 2), cnn.Tanh(), cnn.Linear(2, 1, bias=False), cnn.MSELoss()], cnn.SGD(), seed=0)
    yield cnn.Sequential(
        [cnn.ELU(0.5), cnn.Linear(2, 2), cnn.GELU("tanh"), cnn.Linear(2, 2), cnn.CrossEntropyLoss()],
        cnn.Adam(betas=(0.5, 0.75)),
        dtype="float64",
        seed=1,
    )


def corpus():
    """The content of good files, with and without a training state."""
    for model in models():
        yield b"".join(safetensors_file.pack(*checkpoint.parts_of(model, False)))
        width = next(layer for layer in model.layers if isinstance(layer, cnn.Linear)).in_features
        model.fit(np.ones((4, width)), [0, 1, 1, 0], epochs=2)
        yield checkpoint.to_bytes(model)


# changes --------------------------------------------------------------------------------------------------------------


def place(r, content):
    """A random range, likelier in the header than its length says."""
    end = len(content) if r.random() < 0.5 else min(len(content), 8 + int.from_bytes(content[:8], "little"))
    begin = r.randrange(end + 1)
    return begin, min(len(content), begin + int(2 ** r.uniform(0, 8)))


def flip(r, content, others):
    content = bytearray(content)
    for _ in range(r.choice((1, 1, 1, 2, 8))):
        if content:
            content[min(place(r, content)[0], len(content) - 1)] ^= 1 << r.randrange(8)
    return bytes(content)


def overwrite(r, content, others):
    begin, end = place(r, content)
    byte = r.choice((b"\0", b"\xff", b" ", b"9", None))
    return content[:begin] + (r.randbytes(end - begin) if byte is None else byte * (end - begin)) + content[end:]


def cut_out(r, content, others):
    begin, end = place(r, content)
    return content[:begin] + content[end:]


def double(r, content, others):
    begin, end = place(r, content)
    return content[:end] + content[begin:]


def cut_off(r, content, others):
    return content[: r.randrange(len(content) + 1)]


def lengthen(r, content, others):
    return content + r.choice((b"\0", b" ", r.randbytes(8), bytes(4096)))


def splice(r, content, others):
    other = r.choice(others)
    begin, end = place(r, content)
    start, stop = (begin, end) if r.random() < 0.5 else place(r, other)
    return content[:begin] + other[start:stop] + content[end:]


def length(r, content, others):
    n = r.choice((r.choice(NUMBERS), len(content), len(content) - 8, len(content) - 7, r.randrange(4096)))
    return struct.pack("<Q", n % 2**64) + content[8:]


def in_header(change):
    """A change of the header's text, with the length that it has then."""

    def changed(r, content, others):
        (n,) = struct.unpack_from("<Q", content.ljust(8))
        text, rest = content[8 : 8 + n], content[8 + n :]
        text = change(r, text)
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text + rest

    changed.__name__ = change.__name__
    return changed


@in_header
def number(r, text):
    found = list(re.finditer(rb"-?\d+", text))
    if not found:
        return text
    match = r.choice(found)
    n = r.choice((r.choice(NUMBERS), -r.choice(NUMBERS), int(match[0][:18]) + r.choice((-1, 1, 4, 8))))
    return text[: match.start()] + str(n).encode() + text[match.end() :]


@in_header
def word(r, text):
    found = list(re.finditer(rb"[\w.]+|[^\w\s]", text))
    if not found:
        return text
    match = r.choice(found)
    return text[: match.start()] + r.choice((r.choice(WORDS), r.choice(found)[0])) + text[match.end() :]


@in_header
def tree(r, text):
    """A value somewhere in the header, or in the JSON inside it, is replaced, removed, doubled or moved."""
    try:
        header = json.loads(text)
        inner = header["__metadata__"]
        names = [name for name in ("config", "training") if name in inner]
        if names and r.random() < 0.7:
            name = r.choice(names)
            value = json.loads(inner[name])
            change_value(r, value)
            inner[name] = json.dumps(value)
        else:
            change_value(r, header)
    except (ValueError, TypeError, KeyError):  # earlier changes have left no such tree
        return text
    return json.dumps(header).encode()


def change_value(r, root):
    """Change one value in a tree of dicts and lists."""
    tables, found = [root], []
    while tables:
        table = tables.pop()
        for key in list(table) if isinstance(table, dict) else range(len(table)):
            found.append((table, key))
            if isinstance(table[key], (dict, list)):
                tables.append(table[key])
    if not found:
        return
    table, key = r.choice(found)
    other_table, other = r.choice(found)
    what = r.randrange(5)
    if what == 0:
        del table[key]
    elif what == 1:
        table[key] = json.loads(json.dumps(other_table[other]))
    elif what == 2 and isinstance(table, dict):
        table[r.choice(("name", "a", "dtype", "seed", "2.weight"))] = table.pop(key)
    elif what == 3 and isinstance(table, list):
        table.insert(key, json.loads(json.dumps(table[key])))
    else:
        table[key] = r.choice(VALUES)


CHANGES = (
    flip,
    overwrite,
    cut_out,
    double,
    cut_off,
    lengthen,
    splice,
    length,
    number,
    number,
    word,
    word,
    tree,
    tree,
    tree,
)


def sealed(content):
    """The content with its own digest, if it is whole enough for that."""
    try:
        (n,) = struct.unpack_from("<Q", content)
        header = json.loads(content[8 : 8 + n])
        sha = safetensors_file._digest_of_header(header)
        sha.update(content[8 + n :])
        header["__metadata__"]["digest"] = sha.hexdigest()
        text = json.dumps(header).encode()
    except Exception:
        return content
    return struct.pack("<Q", len(text)) + text + content[8 + n :]


# judgement ------------------------------------------------------------------------------------------------------------


def packed(model, training):
    return b"".join(safetensors_file.pack(*checkpoint.parts_of(model, training)))


def numbers_of(content):
    """The numbers of the parameters that lie in a file, in the order of their names."""
    (n,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + n])
    return {
        name: content[8 + n + entry["data_offsets"][0] : 8 + n + entry["data_offsets"][1]]
        for name, entry in header.items()
        if name != "__metadata__" and not name.startswith(checkpoint.TRAINING)
    }


def judged(path, content, again, good):
    """What came of an input: "refused", "the same model", "another model"; AssertionError if that must not be."""
    try:
        model, has_state = checkpoint.read(path)
    except (ValueError, OSError) as error:
        if path not in str(error):
            raise AssertionError("does not name the file") from error
        return "refused"
    content_now = packed(model, has_state)
    if content_now in good:
        return "the same model"
    assert again, "another model"
    for name, array in model.state_dict().items():
        assert numbers_of(content)[name] == np.asarray(array.T, order="C").tobytes(), name
    with open(path, "wb") as file:
        file.write(content_now)
    twice = cnn.load(path)
    assert packed(twice, has_state) == content_now, "not the same after it was saved and loaded"
    return "another model"


def main(count=100_000, seed=0):
    warnings.simplefilter("error")
    good = list(corpus())
    results, failures, slowest = Counter(), [], 0.0
    if os.path.exists("/proc/self/statm"):
        with open("/proc/self/statm") as file:  # in pages; the first number is the address space
            limit = int(file.read().split()[0]) * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        path = os.path.join(folder, "input.safetensors")
        for content in good:
            with open(path, "wb") as file:
                file.write(content)
            assert judged(path, content, False, [content]) == "the same model"
        for i in range(count):
            r = random.Random(f"{seed} {i}")
            content = r.choice(good)
            again = i % 3 == 0
            for _ in range(r.choice((1, 1, 2, 3))):
                change = tree if again and r.random() < 0.6 else r.choice(CHANGES)
                content = change(r, content, good)
            if again:
                content = sealed(content)
            with open(path, "wb") as file:
                file.write(content)
            began = time.perf_counter()
            try:
                result = judged(path, content, again, good)
            except Exception as error:  # whatever else is raised is a failure too
                result = "failure"
                failures.append(os.path.join(tempfile.gettempdir(), f"fuzz_load-{seed}-{i}.safetensors"))
                with open(failures[-1], "wb") as file:
                    file.write(content)
                print(f"input {i}, {failures[-1]}: {error!r}", file=sys.stderr)
            slowest = max(slowest, time.perf_counter() - began)
            results["sealed again: " * again + result] += 1
    counts = ", ".join(f"{n} {result}" for result, n in sorted(results.items()))
    print(f"{count} inputs: {counts}; the slowest took {slowest:.2f} s; {len(failures)} failures")
    return len(failures)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])) > 0)
