# Prediction and derivatives for C and Cython programs, without Python: what include/cnn.h promises.
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
        ptrdiff_t derivative_scratch
        void (*vjp)(const cnn_model* model, const real* x, const real* v, real* y, real* g, ptrdiff_t n,
                    void* scratch) noexcept nogil
        void (*jvp)(const cnn_model* model, const real* x, const real* dx, real* y, real* dy, ptrdiff_t n,
                    void* scratch) noexcept nogil
        void (*hvp)(const cnn_model* model, const real* x, const real* v, const real* dx, real* y, real* g, real* h,
                    ptrdiff_t n, void* scratch) noexcept nogil
    const char* CNN_HANDLE

cdef struct Embedded:
    cnn_model model             # the part that everyone sees
    const Network* net
    Py_ssize_t chunk            # rows that are run at a time
    Py_ssize_t derivative_chunk
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


cdef Py_ssize_t lay_out_tangents(const Network* net, Tangents* t, Py_ssize_t rows, real* at) noexcept nogil:
    """Reals that the tangents of so many rows take. With at, let the pointers of t, which are there, lead there."""
    cdef Py_ssize_t n = rows * net.widest
    cdef int b, part
    for part in range(3):
        for b in range(net.n_buffers):
            if at != NULL:
                t.value[part * net.n_buffers + b] = at + n
            n += rows * net.buffers[b].row
    if at != NULL:
        t.capacity, t.scratch = rows, at
    return n


cdef void embedded_derivatives(const cnn_model* model, const real* x, const real* v, const real* dx, real* y, real* g,
                               real* dy, real* h, ptrdiff_t n, void* scratch) noexcept nogil:
    """Forward; with dx the tangents; with v backward, or with both the walk `second`.

    The scratch holds the pointers, the values and gradients, the panel, the tangents, and a block for the parts of the
    gradients of parameters that nobody asked for.
    """
    cdef const Embedded* e = <const Embedded*>model
    cdef const Network* net = e.net
    cdef Py_ssize_t first, size, inputs = model.inputs, outputs = model.outputs
    cdef int last = net.n_buffers - 1
    cdef Workspace ws
    cdef Tangents t
    cdef Chunk c
    cdef real** pointers = <real**>next_line(scratch)
    cdef real* at
    if n <= 0:
        return
    memset(&ws, 0, sizeof(ws))
    memset(&t, 0, sizeof(t))
    memset(&c, 0, sizeof(c))
    ws.threads = 1
    t.value = pointers + pointers_of(net, &ws, pointers, True)
    t.before, t.grad = t.value + net.n_buffers, t.value + 2 * net.n_buffers
    at = <real*>next_line(t.value + 3 * net.n_buffers)
    size = lay_out(net, &ws, e.derivative_chunk, True, True, at) + panel_size(e.derivative_chunk, net.widest)
    size += lay_out_tangents(net, &t, e.derivative_chunk, at + size)
    memset(at, 0, size * sizeof(real))          # the padding of the values must be zero
    t.grads = at + size
    t.inputs = True
    use_running(net, &ws)
    c.net, c.ws, c.t, c.panel = net, &ws, &t, ws.panel
    c.keep, c.input_grad, c.few = True, True, n <= FEW_ROWS
    c.x, c.x_row = ws.value[0], net.buffers[0].row
    for first from 0 <= first < n by e.derivative_chunk:
        c.batch = c.all_rows = smaller(e.derivative_chunk, n - first)
        put_rows(net, ws.value, 0, 0, c.batch, x + first * inputs, inputs)
        walk_forward(&c, 0, net.n_ops)
        if y != NULL:
            take_rows(net, ws.value, last, 0, c.batch, y + first * outputs)
        if dx != NULL:
            put_rows(net, t.value, 0, 0, c.batch, dx + first * inputs, inputs)
            walk_tangent(&c)
            if dy != NULL:
                take_rows(net, t.value, last, 0, c.batch, dy + first * outputs)
        if v != NULL:
            put_rows(net, ws.grad, last, 0, c.batch, v + first * outputs, outputs)
            if dx == NULL:
                walk_backward(&c, net.n_ops, 0)
            else:
                memset(t.grad[last], 0, c.batch * net.buffers[last].row * sizeof(real))
                walk_second(&c)
            if g != NULL:
                take_rows(net, ws.grad, 0, 0, c.batch, g + first * inputs)
            if h != NULL:
                take_rows(net, t.grad, 0, 0, c.batch, h + first * inputs)


cdef void embedded_vjp(const cnn_model* model, const real* x, const real* v, real* y, real* g, ptrdiff_t n,
                       void* scratch) noexcept nogil:
    embedded_derivatives(model, x, v, NULL, y, g, NULL, NULL, n, scratch)


cdef void embedded_jvp(const cnn_model* model, const real* x, const real* dx, real* y, real* dy, ptrdiff_t n,
                       void* scratch) noexcept nogil:
    embedded_derivatives(model, x, NULL, dx, y, NULL, dy, NULL, n, scratch)


cdef void embedded_hvp(const cnn_model* model, const real* x, const real* v, const real* dx, real* y, real* g, real* h,
                       ptrdiff_t n, void* scratch) noexcept nogil:
    embedded_derivatives(model, x, v, dx, y, g, NULL, h, n, scratch)


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
    row = (lay_out(net, NULL, 1, True, True, NULL) + lay_out_tangents(net, NULL, 1, NULL)) * sizeof(real)
    e.derivative_chunk = larger(smaller(EMBEDDED_BYTES // row, LOSS_BLOCK), 1)
    e.model.derivative_scratch = (
        2 * LINE + (pointers_of(net, NULL, NULL, True) + 3 * net.n_buffers) * sizeof(real*)
        + (lay_out(net, NULL, e.derivative_chunk, True, True, NULL) + panel_size(e.derivative_chunk, net.widest)
           + lay_out_tangents(net, NULL, e.derivative_chunk, NULL) + net.n_block) * sizeof(real))
    e.model.vjp, e.model.jvp, e.model.hvp = embedded_vjp, embedded_jvp, embedded_hvp
    e.program = <PyObject*>program
    Py_INCREF(program)
    try:
        return PyCapsule_New(e, CNN_HANDLE, release_handle)
    except BaseException:
        Py_DECREF(program)
        free(e)
        raise
