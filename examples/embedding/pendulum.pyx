# cython: language_level=3, boundscheck=False, cdivision=True
"""A pendulum that a network drives: simulation and network run together, without Python and without its lock."""

from libc.math cimport M_PI, fmod, sin
from libc.stdlib cimport free, malloc

from cnn.embed cimport cnn_get_f32, cnn_model_f32


cdef class Pendulum:
    """Many runs of one controller, a network of three inputs (angle, speed, time) and one output, the torque.

    Parameters
    ----------
    handle
        What `model.handle()` returned.
    """
    cdef object handle                  # keeps the network alive
    cdef const cnn_model_f32* network

    def __init__(self, handle):
        self.network = cnn_get_f32(handle)
        self.handle = handle
        if self.network.inputs != 3 or self.network.outputs != 1:
            raise ValueError(f"expected a network with 3 inputs and 1 output, got {self.network.inputs} and "
                             f"{self.network.outputs}")

    def run(self, double angle, double speed, int steps, double dt=0.01):
        """Angle and speed after so many steps. Several threads may run at once: each has a scratch of its own."""
        cdef float x[3]
        cdef float torque
        cdef int i
        cdef void* scratch = malloc(self.network.scratch)
        if scratch == NULL:
            raise MemoryError()
        with nogil:
            for i in range(steps):
                x[0], x[1], x[2] = <float>angle, <float>speed, <float>(i * dt)
                self.network.predict(self.network, x, &torque, 1, scratch)
                speed += dt * (torque - sin(angle))
                angle = fmod(angle + dt * speed, 2 * M_PI)
        free(scratch)
        return angle, speed
