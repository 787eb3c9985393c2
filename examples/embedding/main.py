"""Runs the pendulum in four threads and compares it with the same loop in Python.

The build needs setuptools, Cython and cnn in this environment, since it compiles against the installed cnn:

    pip install "setuptools>=77" "Cython>=3.1" cnn
    pip install --no-build-isolation .
    python main.py
"""

import math
import threading
import time

import numpy as np
import pendulum

import cnn

STEPS = 2000


def in_python(model, angle, speed, dt=0.01):
    for i in range(STEPS):
        torque = model.predict(np.array([[angle, speed, i * dt]], np.float32))[0, 0]
        speed += dt * (float(torque) - math.sin(angle))
        angle = math.fmod(angle + dt * speed, 2 * math.pi)
    return angle, speed


def main():
    model = cnn.Sequential([cnn.Linear(3, 64), cnn.Tanh(), cnn.Linear(64, 64), cnn.Tanh(), cnn.Linear(64, 1)], seed=0)
    controlled = pendulum.Pendulum(model.handle())
    starts = [0.1, 0.2, 0.3, 0.4]
    results = {}

    def work(start):
        results[start] = controlled.run(start, 0.0, STEPS)

    began = time.perf_counter()
    threads = [threading.Thread(target=work, args=(start,)) for start in starts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - began
    print(f"{len(starts)} runs of {STEPS} steps: {seconds / len(starts) / STEPS * 1e9:.0f} ns a step")
    for start in starts:
        assert np.allclose(results[start], in_python(model, start, 0.0), rtol=1e-9), "not what predict computes"
    print("the same as with model.predict")


if __name__ == "__main__":
    main()
