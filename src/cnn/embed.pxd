# Prediction from Cython without Python: what include/cnn.h declares, which says how it is used.
#
#     from cnn.embed cimport cnn_get_f32, cnn_model_f32
#
# The extension module is compiled with `include_dirs=[cnn.get_include()]`; examples/embedding is a whole project.

cdef extern from "cnn.h":
    ctypedef struct cnn_model_f32:
        const ptrdiff_t inputs
        const ptrdiff_t outputs
        const ptrdiff_t scratch
        void (*predict)(const cnn_model_f32* model, const float* x, float* y, ptrdiff_t n,
                        void* scratch) noexcept nogil

    ctypedef struct cnn_model_f64:
        const ptrdiff_t inputs
        const ptrdiff_t outputs
        const ptrdiff_t scratch
        void (*predict)(const cnn_model_f64* model, const double* x, double* y, ptrdiff_t n,
                        void* scratch) noexcept nogil

    const cnn_model_f32* cnn_get_f32(object handle) except NULL
    const cnn_model_f64* cnn_get_f64(object handle) except NULL
