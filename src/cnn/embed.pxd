# Prediction and derivatives from Cython without Python: what include/cnn.h declares, which says how it is used.
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
        const ptrdiff_t derivative_scratch
        void (*vjp)(const cnn_model_f32* model, const float* x, const float* v, float* y, float* g, ptrdiff_t n,
                    void* scratch) noexcept nogil
        void (*jvp)(const cnn_model_f32* model, const float* x, const float* dx, float* y, float* dy, ptrdiff_t n,
                    void* scratch) noexcept nogil
        void (*hvp)(const cnn_model_f32* model, const float* x, const float* v, const float* dx, float* y,
                    float* g, float* h, ptrdiff_t n, void* scratch) noexcept nogil

    ctypedef struct cnn_model_f64:
        const ptrdiff_t inputs
        const ptrdiff_t outputs
        const ptrdiff_t scratch
        void (*predict)(const cnn_model_f64* model, const double* x, double* y, ptrdiff_t n,
                        void* scratch) noexcept nogil
        const ptrdiff_t derivative_scratch
        void (*vjp)(const cnn_model_f64* model, const double* x, const double* v, double* y, double* g, ptrdiff_t n,
                    void* scratch) noexcept nogil
        void (*jvp)(const cnn_model_f64* model, const double* x, const double* dx, double* y, double* dy, ptrdiff_t n,
                    void* scratch) noexcept nogil
        void (*hvp)(const cnn_model_f64* model, const double* x, const double* v, const double* dx, double* y,
                    double* g, double* h, ptrdiff_t n, void* scratch) noexcept nogil

    const cnn_model_f32* cnn_get_f32(object handle) except NULL
    const cnn_model_f64* cnn_get_f64(object handle) except NULL
