"""Counts rows in 64 bits: predicts more than 2**31 of them in one call. Takes no memory: they are one row, many times.

python tests/soak/sizes.py [rows, 2**31 + 100]
"""

import sys
import time

import numpy as np

import cnn


def main(rows):
    model = cnn.Sequential([cnn.Linear(1, 1)], seed=0)
    x, out = np.full((1, 1), 0.5, "f4"), np.zeros((1, 1), "f4")
    began = time.perf_counter()
    many = np.lib.stride_tricks.as_strided(out, (rows, 1), (0, 4))
    model.predict(np.broadcast_to(x, (rows, 1)), out=many, threads=1)
    right = out[0, 0] == model.predict(x)[0, 0]
    print(f"{rows} rows in {time.perf_counter() - began:.0f} s: {'right' if right else 'wrong'}")
    return not right


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:] or [2**31 + 100])))
