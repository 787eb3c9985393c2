# Prediction for C and Cython programs, without Python: what include/cnn.h promises.
#
# A handle is a capsule around a struct whose first members are the public ones. It keeps a Program alive that nobody
# else knows, so that nothing can change it.

from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_New
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject

cdef extern from *:
    """
    #include "cnn.h"
    #if CNN_REAL64
    typedef cnn_model_f64 cnn_model;
    #define CNN_HANDLE CNN_HANDLE_F64
    #else
    typedef cnn_model_f32 cnn_model;
    #define CNN_HANDLE CNN_HANDLE_F32
    #endif
    """
    ctypedef struct cnn_model:
        ptrdiff_t inputs
        ptrdiff_t outputs
        ptrdiff_t scratch
        void (*predict)(const cnn_model* model, const real* x, real* y, ptrdiff_t n, void* scratch) noexcept nogil
    const char* CNN_HANDLE

cdef struct Embedded:
    cnn_model model             # the part that everyone sees
    const Network* net
    Py_ssize_t chunk            # rows that are run at a time
    PyObject* program

cdef enum:
    EMBEDDED_BYTES = 1 << 17    # of the values of a chunk


cdef inline void* next_line(const void* at) noexcept nogil:
    return <void*>((<uintptr_t>at + LINE - 1) // LINE * LINE)


cdef void embedded_predict(const cnn_model* model, const real* x, real* y, ptrdiff_t n, void* scratch) noexcept nogil:
    """y (n, outputs) = the model's outputs for x (n, inputs). The scratch holds the pointers, the values, the panel."""
    cdef const Embedded* e = <const Embedded*>model
    cdef const Network* net = e.net
    cdef Workspace ws
    cdef Pass p
    cdef Py_ssize_t size
    cdef real* at
    if n <= 0:
        return
    memset(&ws, 0, sizeof(ws))
    memset(&p, 0, sizeof(p))
    p.net = net
    p.ws = &ws
    p.batch.rows = n
    p.batch.x, p.batch.x_row = x, model.inputs
    p.batch.out, p.batch.out_row = y, model.outputs
    p.wants.threads = 1
    p.wants.gather = net.pad_input
    p.wants.forward = True
    p.phase.chunk = smaller(n, e.chunk)
    ws.threads = 1
    at = <real*>next_line(<real**>next_line(scratch) + pointers_of(net, &ws, <real**>next_line(scratch), False))
    size = lay_out(net, &ws, p.phase.chunk, False, True, at)
    memset(at, 0, size * sizeof(real))          # the padding of the values must be zero
    run_pass(&p, NULL, NULL)


cdef void release_handle(object capsule) noexcept:
    cdef Embedded* e = <Embedded*>PyCapsule_GetPointer(capsule, CNN_HANDLE)
    Py_DECREF(<object>e.program)
    free(e)


def handle(Program program):
    """The capsule of cnn.h for a program, which must not be changed any more."""
    cdef const Network* net = &program.net
    cdef Py_ssize_t row = lay_out(net, NULL, 1, False, True, NULL) * sizeof(real)
    cdef Embedded* e = <Embedded*>calloc(1, sizeof(Embedded))
    if e == NULL:
        raise MemoryError()
    e.model.inputs = net.buffers[0].width
    e.model.outputs = net.outputs
    e.model.predict = embedded_predict
    e.net = net
    e.chunk = larger(smaller(EMBEDDED_BYTES // row, LOSS_BLOCK), 1)
    e.model.scratch = (2 * LINE + pointers_of(net, NULL, NULL, False) * sizeof(real*)
                       + (lay_out(net, NULL, e.chunk, False, True, NULL) + panel_size(0, 0)) * sizeof(real))
    e.program = <PyObject*>program
    Py_INCREF(program)
    try:
        return PyCapsule_New(e, CNN_HANDLE, release_handle)
    except BaseException:
        Py_DECREF(program)
        free(e)
        raise
