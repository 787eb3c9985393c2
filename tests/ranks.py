"""Ranks as threads of one process: a communicator with the calls of mpi4py's that the library uses."""

import pickle
import queue
import random
import threading
import time

import numpy as np


class Comm:
    """One rank's communicator.

    Parameters
    ----------
    world : World
    rank : int
    """

    def __init__(self, world, rank):
        self.world, self.rank = world, rank

    def Get_rank(self):
        return self.rank

    def Get_size(self):
        return self.world.size

    def Send(self, buf, dest, tag=0):
        self.world.put(self.rank, dest, tag, np.array(buf).tobytes())

    def Recv(self, buf, source, tag=0):
        data = self.world.get(source, self.rank, tag)
        assert len(data) <= buf.nbytes, "a message is longer than its buffer"
        memoryview(buf).cast("B")[: len(data)] = data

    def Sendrecv(self, sendbuf, dest, sendtag=0, recvbuf=None, source=0, recvtag=0):
        self.Send(sendbuf, dest, sendtag)
        self.Recv(recvbuf, source, recvtag)

    def Isend(self, buf, dest, tag=0):
        self.Send(buf, dest, tag)
        return Request()

    def Irecv(self, buf, source, tag=0):
        return Request(self, buf, source, tag)

    def allgather(self, thing):
        data = pickle.dumps(thing)
        for rank in range(self.world.size):
            self.world.put(self.rank, rank, "object", data)
        return [pickle.loads(self.world.get(rank, self.rank, "object")) for rank in range(self.world.size)]

    def Allreduce(self, sendbuf, recvbuf):
        recvbuf[...] = np.sum(self.allgather(sendbuf.copy()), axis=0)


class Request:
    """A message that is on its way."""

    def __init__(self, comm=None, *receive):
        self.comm, self.receive = comm, receive

    def Wait(self):
        if self.comm is not None:
            self.comm.Recv(*self.receive)
            self.comm = None

    def Test(self):
        if self.comm is not None and self.comm.world.ready(self.receive[1], self.comm.rank, self.receive[2]):
            self.Wait()
        return self.comm is None


class World:
    """So many ranks, whose messages take a time.

    Parameters
    ----------
    size : int
    latency : float
        Seconds of a message.
    bandwidth : float
        Bytes a second.
    patience : float
        Seconds after which a rank that waits for a message gives up.
    jitter : float
        Seconds that a message takes longer, at most.
    """

    def __init__(self, size, latency=0.0, bandwidth=float("inf"), patience=60.0, jitter=0.0):
        self.size, self.latency, self.bandwidth, self.patience = size, latency, bandwidth, patience
        self.jitter, self.random = jitter, random.Random(0)
        self.queues, self.next = {}, {}  # messages by source, rank and tag; the next, if it has been looked at
        self.sent = {}  # by source and rank: when the last message is
        self.lock = threading.Lock()
        self.messages = self.bytes = 0

    def queue(self, key):
        with self.lock:
            return self.queues.setdefault(key, queue.SimpleQueue())

    def put(self, source, dest, tag, data):
        size = len(data) if isinstance(data, bytes) else 0
        self.messages += 1
        self.bytes += size
        sent = max(time.perf_counter(), self.sent.get((source, dest), 0.0)) + size / self.bandwidth
        self.sent[source, dest] = sent
        late = self.latency + self.jitter * self.random.random()
        self.queue((source, dest, tag)).put((sent + late, data))

    def ready(self, source, dest, tag):
        """Whether the next message has come."""
        key = source, dest, tag
        if key not in self.next:
            try:
                self.next[key] = self.queue(key).get_nowait()
            except queue.Empty:
                return False
        return self.next[key][0] <= time.perf_counter()

    def get(self, source, dest, tag):
        key = source, dest, tag
        try:
            ready, data = self.next.pop(key, None) or self.queue(key).get(timeout=self.patience)
        except queue.Empty:
            raise AssertionError(f"rank {dest} waits for rank {source} for ever") from None
        while (left := ready - time.perf_counter()) > 0:
            if left > 2e-4:
                time.sleep(left - 1e-4)
        return data


def run(size, work, **world):
    """What work(comm) returns, or the exception that it raises, on each of so many ranks."""
    results = [None] * size
    made = World(size, **world)

    def rank(number):
        try:
            results[number] = work(Comm(made, number))
        except BaseException as error:
            results[number] = error

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def ran(size, work, **world):
    """The same; the first exception is raised."""
    results = run(size, work, **world)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results
