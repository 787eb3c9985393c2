"""Data-parallel training: two ranks on two cores beside one, and beside PyTorch's DDP; and the cost model.

    python bench/data_parallel.py               a step of each workload; needs mpi4py and mpiexec, and torch for DDP
    python bench/data_parallel.py --model       the model beside ranks as threads whose messages take their time
    python bench/data_parallel.py --overlap     a step of two such ranks that compute while messages are on their way,
                                                and of two that wait for them
    python bench/data_parallel.py --crossover   from how many ranks on more of them are slower, by the model

Contenders take turns, each in processes of its own with a core each; the minima count.
"""

import argparse
import contextlib
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE.parents[1] / "tests"))

from workloads import ROW  # noqa: E402

IDS = ("control32", "mnist1024", "deep128", "large1024")
LONG = 1 << 16  # bytes from which a vector is summed in parts: cnn.training.distributed.group.LONG
NETWORKS = {
    **{name: (ROW[name].widths, ROW[name].batch) for name in ("control32", "rl256", "mnist64", "mnist1024", "deep128")},
    "large1024": (ROW["large1024"].widths, 1024),
    "surrogate": ((16, 128, 128, 128, 1), 65_536),
    "logs": ((200, 256, 64, 1), 16_384),
}


def network_seconds(ranks, nbytes, latency, bandwidth):
    """What the messages of a sum of so many bytes take on their way."""
    stages = math.ceil(math.log2(ranks))
    if nbytes < LONG:
        return stages * (latency + (nbytes + 64) / bandwidth)
    return 3 * stages * latency + 2 * nbytes * (1 - 1 / ranks) / bandwidth


def added_seconds(ranks, nbytes, memory, call):
    """What a rank computes in such a sum: it adds what it receives, all of it or, of a long vector, a part."""
    stages = math.ceil(math.log2(ranks))
    if nbytes < LONG:
        return stages * (call + 3 * nbytes / memory)
    return 3 * stages * call + 3 * nbytes * (1 - 1 / ranks) / memory


def step_seconds(ranks, parameters, flops, latency, bandwidth, *, speed=1e11, memory=8e9, call=4e-6):
    """A step's time by the cost model of docs/distributed.md."""
    if ranks == 1:
        return flops / speed
    nbytes = 4 * parameters
    step = 3 * nbytes / memory / (ranks if nbytes >= LONG else 1)  # the optimiser's, of a part
    local = added_seconds(ranks, nbytes, memory, call) + step
    return flops / speed / ranks + local + network_seconds(ranks, nbytes, latency, bandwidth)


def size_of(widths):
    """Parameters, and FLOPs a row of a training step."""
    pairs = list(itertools.pairwise(widths))
    sizes = [a * b for a, b in pairs]
    return sum(sizes) + sum(widths[1:]), 6 * sum(sizes) - 2 * sizes[0]


def crossover():
    """The number of ranks, a power of two to 4,096, at which a step is fastest, and how much faster than one rank."""
    networks = [("10 us, 10 Gbit/s", 10e-6, 10e9 / 8), ("2 us, 100 Gbit/s", 2e-6, 100e9 / 8)]
    for title, latency, bandwidth in networks:
        print(f"\n| {title} | batch | parameters | best ranks | times as fast | at 4,096 |\n|---|---|---|---|---|---|")
        for name, (widths, batch) in NETWORKS.items():
            parameters, flops = size_of(widths)
            took = {
                ranks: step_seconds(ranks, parameters, flops * batch, latency, bandwidth)
                for ranks in (2**i for i in range(13))
            }
            best = min(took, key=took.get)
            print(
                f"| {name} | {batch:,} | {parameters:,} | {best:,} | {took[1] / took[best]:.3g} | "
                f"{took[1] / took[4096]:.3g} |"
            )


def clocked(size, latency, bandwidth, work):
    """What work(comm) returns on each of so many ranks, which are threads, each with a clock of its own in comm.now.

    One rank computes at a time, and its clock goes on by the processor time that it takes; a message that it waits for
    brings its clock to when it arrives. So the cores and the load of this machine do not enter, nor how long it sleeps.
    """
    import threading

    import ranks

    turn, all_there, awaited = threading.Lock(), threading.Barrier(size), {}

    class Rank(ranks.Comm):
        def __enter__(self):
            turn.acquire()
            self.now, self.links, self.since = 0.0, {}, time.thread_time()
            return self

        def __exit__(self, *_):
            turn.release()

        def begin(self):
            """Wait for all, and set the clocks to 0."""
            turn.release()
            all_there.wait()
            turn.acquire()
            self.now, self.links, self.since = 0.0, {}, time.thread_time()

        def clock(self):
            self.now += time.thread_time() - self.since
            self.since = time.thread_time()
            return self.now

        def Send(self, buf, dest, tag=0):
            data = memoryview(buf).cast("B")
            sent = max(self.clock(), self.links.get(dest, 0.0)) + len(data) / bandwidth
            self.links[dest] = sent
            self.world.queue((self.rank, dest, tag)).put((sent + latency, bytes(data)))
            self.since = time.thread_time()  # a network copies by itself

        def allgather(self, thing):
            turn.release()
            everybody = super().allgather(thing)
            turn.acquire()
            return everybody

        def message(self, source, tag, test=False):
            """When the next arrives, which may be later than now, and what it is; test: None if its sender waits for
            one of this rank's first."""
            self.clock()
            turn.release()
            awaited[self.rank] = own = self.world.queue((source, self.rank, tag))
            while own.empty() and not (test and source in awaited and awaited[source].empty()):
                time.sleep(1e-5)
            found = None if own.empty() else own.get()
            awaited.pop(self.rank)
            turn.acquire()
            self.since = time.thread_time()
            return found

        def take(self, buf, ready, data):
            self.now = max(self.clock(), ready)
            memoryview(buf).cast("B")[: len(data)] = data
            self.since = time.thread_time()

        def Recv(self, buf, source, tag=0):
            self.take(buf, *self.message(source, tag))

        def Isend(self, buf, dest, tag=0):
            self.Send(buf, dest, tag)
            return Request()

        def Irecv(self, buf, source, tag=0):
            return Request(self, buf, source, tag)

    class Request:
        def __init__(self, comm=None, buf=None, *place):
            self.comm, self.buf, self.place, self.next = comm, buf, place, None

        def Test(self):
            if self.comm is not None:
                self.next = self.next or self.comm.message(*self.place, test=True)
                if self.next is not None and self.next[0] <= self.comm.clock():
                    self.Wait()
            return self.comm is None

        def Wait(self):
            if self.comm is not None:
                self.comm.take(self.buf, *(self.next or self.comm.message(*self.place)))
                self.comm = None

    def rank(comm):
        with Rank(comm.world, comm.rank) as own:
            return work(own)

    return ranks.ran(size, rank)


def sum_seconds(size, nbytes, latency, bandwidth, rounds=50):
    """A sum of so many bytes over so many ranks, measured: the time from when all begin to when the last has it."""
    import numpy as np

    from cnn.training.distributed.group import BATCH, Group

    def work(comm):
        group = Group(comm)
        group.reserve(nbytes)
        message, took = np.zeros(64 + nbytes, np.uint8), []
        for _ in range(rounds):
            comm.begin()
            group.add(message, np.float32, BATCH)
            took.append(comm.clock())
        return took

    return min(map(max, zip(*clocked(size, latency, bandwidth, work), strict=True)))


def check_model():
    """Sums over ranks whose messages take the latency and bandwidth given, beside the model."""
    import numpy as np

    call = sum_seconds(2, 0, 0.0, math.inf, 200)
    a, b = np.zeros((2, 1 << 18), np.float32)
    best = math.inf
    for _ in range(100):
        began = time.thread_time()
        np.add(a, b, out=a)
        best = min(best, time.thread_time() - began)
    memory = 3 * a.nbytes / best
    print(f"Here a message takes {call * 1e6:.1f} us of Python, and numbers are added at {memory / 1e9:.1f} GB/s.\n")
    print("| ranks | latency | Gbit/s | bytes | measured ms | model ms | ratio |\n|---|---|---|---|---|---|---|")
    ratios = []
    for size, latency, gigabits, nbytes in itertools.product(
        (2, 4, 8), (1e-5, 1e-4, 1e-3), (1, 10, 100), (20_000, 800_000, 3_000_000)
    ):
        took = sum_seconds(size, nbytes, latency, gigabits * 1e9 / 8)
        model = added_seconds(size, nbytes, memory, call) + network_seconds(size, nbytes, latency, gigabits * 1e9 / 8)
        ratios.append(took / model)
        print(
            f"| {size} | {latency * 1e6:.0f} us | {gigabits} | {nbytes:,} | {took * 1e3:.3f} | {model * 1e3:.3f} | "
            f"{took / model:.2f} |",
            flush=True,
        )
    near = sum(1 / 1.25 <= ratio <= 1.25 for ratio in ratios)
    print(f"\n{near} of {len(ratios)} within 25 %, ratios from {min(ratios):.2f} to {max(ratios):.2f}")


# a step ---------------------------------------------------------------------------------------------------------------


def data_of(row, rank, ranks):
    import numpy as np

    n = row.batch * max(1, row.steps // 2)
    random = np.random.default_rng(0)
    x = random.normal(size=(n, row.widths[0])).astype("f4")
    y = random.normal(size=(n, row.widths[-1])).astype("f4")
    rows = slice(n * rank // ranks, n * (rank + 1) // ranks)
    return x[rows], y[rows], n // row.batch


def run_cnn(row, comm, shards):
    import cnn

    rank, ranks = (0, 1) if comm is None else (comm.Get_rank(), comm.Get_size())
    x, y, steps = data_of(row, rank, ranks)
    layers = []
    for a, b in itertools.pairwise(row.widths):
        layers += [cnn.Linear(a, b), cnn.ReLU()]
    optimizer = cnn.Adam(lr=1e-3) if row.optimizer == "adam" else cnn.SGD(lr=1e-3)
    model = cnn.Sequential([*layers[:-1], cnn.MSELoss()], optimizer=optimizer, seed=0)
    best = [math.inf, 0.0]

    clock, begin = getattr(comm, "clock", time.perf_counter), getattr(comm, "begin", lambda: None)

    class Clock(cnn.Callback):
        def on_epoch_begin(self, epoch, logs):
            begin()
            best[1] = clock()

        def on_epoch_end(self, epoch, logs):
            best[0] = min(best[0], clock() - best[1])

    options = {} if comm is None else {"comm": comm, "shards": shards}
    epochs = 2 if row.flops > 1e10 else 8
    model.fit(x, y, epochs=epochs, batch_size=row.batch, threads=1, callbacks=[Clock()], progress=False, **options)
    return best[0] / steps


def run_ddp(row, rank):
    import torch

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    x, y, steps = data_of(row, rank, 2)
    layers = []
    for a, b in itertools.pairwise(row.widths):
        layers += [torch.nn.Linear(a, b), torch.nn.ReLU()]
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Sequential(*layers[:-1]))
    kind = torch.optim.Adam if row.optimizer == "adam" else torch.optim.SGD
    optimizer = kind(model.parameters(), lr=1e-3)
    x, y, half, best = torch.from_numpy(x), torch.from_numpy(y), row.batch // 2, math.inf
    for _ in range(2 if row.flops > 1e10 else 8):
        began = time.perf_counter()
        for at in range(0, len(x), half):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(model(x[at : at + half]), y[at : at + half]).backward()
            optimizer.step()
        best = min(best, time.perf_counter() - began)
    torch.distributed.destroy_process_group()
    return best / steps


def check_overlap(rounds):
    """A step of two ranks with and without overlap, with clocks of their own."""
    from cnn.training.distributed import parts

    print("| | latency | Gbit/s | ms overlapping | ms waiting | times as fast |\n|---|---|---|---|---|---|")
    for name in ("mnist1024", "deep128"):
        for latency, gigabits in ((2e-6, 100), (1e-5, 25), (1e-5, 10), (1e-4, 10), (1e-4, 1)):
            best = [math.inf, math.inf]
            for turn in range(2 * rounds):
                parts.overlaps = lambda group, turn=turn: turn % 2 == 0
                work = lambda comm, name=name: run_cnn(ROW[name], comm, 2)  # noqa: E731
                took = max(clocked(2, latency, gigabits * 1e9 / 8, work))
                best[turn % 2] = min(best[turn % 2], took)
            print(
                f"| {name} | {latency * 1e6:.0f} us | {gigabits} | {best[0] * 1e3:.3f} | {best[1] * 1e3:.3f} | "
                f"{best[1] / best[0]:.2f} |",
                flush=True,
            )


def contender(kind, row, rank):
    """A process: its step, in seconds."""
    if kind.startswith("mpi"):
        from mpi4py import MPI

        from cnn.training.distributed import parts

        rank = MPI.COMM_WORLD.Get_rank()
        os.sched_setaffinity(0, {rank % 2})
        if kind.endswith("o"):
            parts.overlaps = lambda group: True
        took = run_cnn(row, MPI.COMM_WORLD, int(kind[3:].rstrip("o")))
    else:
        os.sched_setaffinity(0, {rank % 2})
        took = run_ddp(row, rank) if kind == "ddp" else run_cnn(row, None, 0)
    if rank == 0:
        print(json.dumps(took))


def started(kind, name):
    """The seconds of a step, of a contender in processes of its own; infinity if it cannot run."""
    own = [sys.executable, str(HERE), "--contender", kind, "--workload", name]
    environment = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    beside = Path(sys.executable).parent / "mpiexec"
    mpiexec = str(beside) if beside.exists() else shutil.which("mpiexec")
    if kind.startswith("mpi"):
        commands = [[mpiexec, "-n", "2", *own]] if mpiexec else []
    else:
        commands = [[*own, "--rank", str(rank)] for rank in range(2 if kind == "ddp" else 1)]
    running = [subprocess.Popen(c, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for c in commands]
    said = [process.communicate()[0] for process in running]
    with contextlib.suppress(IndexError, ValueError):
        return float(said[0].decode().split()[-1])
    return math.inf


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", action="store_true")
    parser.add_argument("--overlap", action="store_true")
    parser.add_argument("--crossover", action="store_true")
    parser.add_argument("--contender")
    parser.add_argument("--workload", choices=IDS)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.contender:
        contender(options.contender, ROW[options.workload], options.rank)
    elif options.model:
        check_model()
    elif options.overlap:
        check_overlap(options.rounds)
    elif options.crossover:
        crossover()
    else:
        print(
            "ms a step; mpi2, mpi8: two ranks, 2 and 8 shards; mpi2o: they compute while messages are on their way\n"
            "| | one | mpi2 | mpi2o | mpi8 | ddp | one / mpi2 | ddp / mpi2 |\n|---|---|---|---|---|---|---|---|"
        )
        for name in IDS if options.workload is None else [options.workload]:
            best = dict.fromkeys(("one", "mpi2", "mpi2o", "mpi8", "ddp"), math.inf)
            for _ in range(options.rounds):
                best = {kind: min(took, started(kind, name)) for kind, took in best.items()}
            cells = [f"{took * 1e3:.4g}" for took in best.values()]
            cells += [f"{best['one'] / best['mpi2']:.2f}", f"{best['ddp'] / best['mpi2']:.2f}"]
            print("|", name, "|", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
