/* Prediction with a model of cnn, and derivatives, from C, C++ and Cython, without Python and without its lock.
 *
 *     handle = model.handle()                                      in Python: a snapshot of the model, immutable
 *
 *     const cnn_model_f32 *model = cnn_get_f32(handle);            with the lock; NULL with an exception: not a handle
 *     void *scratch = malloc(model->scratch);                      one for each thread
 *     model->predict(model, x, y, n, scratch);                     without the lock
 *
 * predict computes what `model.predict` computes, with the same kernels and to the bit: x is (n, inputs), y (n, outputs),
 * row after row; they may not overlap. It allocates nothing, keeps no state, starts no threads and cannot
 * fail: any number of threads may call it at once, each with a scratch of its own. The model is valid as long as the
 * handle is referenced. A float64 model has a cnn_model_f64.
 *
 * The derivatives are those in x, row by row, of the model in evaluation mode, with the same promises; their scratch has
 * derivative_scratch bytes. v and y are (n, outputs), all else is (n, inputs); a result that is NULL is not written:
 *
 *     vjp    y, and g = v J, the gradient of v y           `model.vjp`
 *     jvp    y, and dy = J dx, (n, outputs)                `model.jvp`
 *     hvp    y, g, and h, the derivative of g along dx     `model.hvp_input(x, dx, grad_output=v)`
 */
#ifndef CNN_H
#define CNN_H

#include <Python.h>
#include <stddef.h>

#define CNN_HANDLE_F32 "cnn.model_f32.2" /* names of the capsules: the last number is that of the layout below */
#define CNN_HANDLE_F64 "cnn.model_f64.2"

typedef struct cnn_model_f32 {
    ptrdiff_t inputs;  /* numbers in a row of x */
    ptrdiff_t outputs; /* numbers in a row of y */
    ptrdiff_t scratch; /* bytes of memory that predict works in, whatever n is */
    void (*predict)(const struct cnn_model_f32 *model, const float *x, float *y, ptrdiff_t n, void *scratch);
    ptrdiff_t derivative_scratch; /* bytes of memory that derivatives work in */
    void (*vjp)(const struct cnn_model_f32 *model, const float *x, const float *v, float *y, float *g, ptrdiff_t n,
                void *scratch);
    void (*jvp)(const struct cnn_model_f32 *model, const float *x, const float *dx, float *y, float *dy,
                ptrdiff_t n, void *scratch);
    void (*hvp)(const struct cnn_model_f32 *model, const float *x, const float *v, const float *dx, float *y,
                float *g, float *h, ptrdiff_t n, void *scratch);
} cnn_model_f32;

typedef struct cnn_model_f64 {
    ptrdiff_t inputs;
    ptrdiff_t outputs;
    ptrdiff_t scratch;
    void (*predict)(const struct cnn_model_f64 *model, const double *x, double *y, ptrdiff_t n, void *scratch);
    ptrdiff_t derivative_scratch;
    void (*vjp)(const struct cnn_model_f64 *model, const double *x, const double *v, double *y, double *g, ptrdiff_t n,
                void *scratch);
    void (*jvp)(const struct cnn_model_f64 *model, const double *x, const double *dx, double *y, double *dy,
                ptrdiff_t n, void *scratch);
    void (*hvp)(const struct cnn_model_f64 *model, const double *x, const double *v, const double *dx, double *y,
                double *g, double *h, ptrdiff_t n, void *scratch);
} cnn_model_f64;

static inline void *cnn_get(PyObject *handle, const char *name, const char *dtype)
{
    if (!PyCapsule_IsValid(handle, name)) {
        PyErr_Format(PyExc_TypeError, "handle: expected what model.handle() of a %s model of this cnn returns, got %R",
                     dtype, handle);
        return NULL;
    }
    return PyCapsule_GetPointer(handle, name);
}

static inline const cnn_model_f32 *cnn_get_f32(PyObject *handle)
{
    return (const cnn_model_f32 *)cnn_get(handle, CNN_HANDLE_F32, "float32");
}

static inline const cnn_model_f64 *cnn_get_f64(PyObject *handle)
{
    return (const cnn_model_f64 *)cnn_get(handle, CNN_HANDLE_F64, "float64");
}

#endif
