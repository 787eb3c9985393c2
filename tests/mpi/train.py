"""What the ranks of test_mpi.py run: a model is trained, with a checkpoint, and its bits are printed.

python train.py FOLDER EPOCHS [SHARDS [DEADLY]]: DEADLY: the rank that kills itself in the third epoch.
"""

import hashlib
import os
import signal
import sys
import time

import numpy as np
from mpi4py import MPI

import cnn
from cnn.training.distributed import parts, program

# as with larger models, more batches and several machines
parts.BUCKET, program.MANY, parts.overlaps = 1 << 13, 1, lambda group: True
folder, epochs = sys.argv[1], int(sys.argv[2])
shards = int(sys.argv[3]) if len(sys.argv) > 3 else 8
deadly = int(sys.argv[4]) if len(sys.argv) > 4 else -1
comm = MPI.COMM_WORLD
random = np.random.default_rng(0)
x, y = random.normal(size=(211, 20)), random.integers(0, 3, 211)
model = cnn.Sequential(
    [
        *(cnn.Linear(20, 128), cnn.BatchNorm1d(128), cnn.Tanh(), cnn.Dropout(0.2)),
        *(cnn.Linear(128, 128), cnn.ReLU(), cnn.Linear(128, 3), cnn.CrossEntropyLoss()),
    ],
    optimizer=cnn.AdamW(lr=0.01, clip_norm=1.0, ema_decay=0.9),
    seed=1,
)


class Die(cnn.Callback):
    def on_epoch_begin(self, epoch, logs):
        if comm.Get_rank() == 0:
            print("epoch", epoch, "of", *comm.allgather(os.getpid()), flush=True)
        else:
            comm.allgather(os.getpid())
        time.sleep(0.005)  # to be interrupted within
        if comm.Get_rank() == deadly and epoch == 3:
            os.kill(os.getpid(), signal.SIGKILL)


options = {} if folder == "-" else {"checkpoint": folder, "resume": True, "callbacks": [Die()]}
history = model.fit(
    *(x, y),
    epochs=epochs,
    batch_size=50,
    accumulation_steps=2,
    validation_data=(x, y),
    comm=comm,
    shards=shards,
    shard="auto",
    progress=False,
    **options,
)
local = cnn.Sequential(
    [cnn.Linear(20, 300), cnn.Tanh(), cnn.Dropout(0.2), cnn.Linear(300, 80), cnn.Linear(80, 3), cnn.CrossEntropyLoss()],
    optimizer=cnn.Adam(),
    seed=1,
)
local.fit(x, y, epochs=2, batch_size=50, average_every=3, comm=comm, shards=shards, shard="auto", progress=False)
whole = cnn.Sequential(
    [cnn.Linear(20, 8), cnn.Tanh(), cnn.Linear(8, 3), cnn.CrossEntropyLoss()],
    optimizer=cnn.LevenbergMarquardt(),
    seed=1,
)
whole.fit(x, y, epochs=3, comm=comm, shards=shards, shard="auto", progress=False)
once = cnn.Sequential(
    [
        cnn.Linear(20, 200),
        cnn.LayerNorm(200),
        cnn.Linear(200, 200),
        cnn.ReLU(),
        cnn.Linear(200, 3),
        cnn.CrossEntropyLoss(),
    ],
    optimizer=cnn.Adam(lr=0.01),
    seed=1,
)
once.fit(x, y, epochs=3, batch_size=50, comm=comm, shards=shards, shard="auto", progress=False)
arrays = whole.parameters, once.parameters, model.averaged_parameters, model.parameters
text = repr((history["loss"], history["val_loss"], [array.tobytes() for array in arrays]))
digests = comm.gather(hashlib.sha256(text.encode() + local.parameters.tobytes()).hexdigest())
if comm.Get_rank() == 0:
    print("bits", *set(digests), "threads", cnn.get_num_threads(), flush=True)
