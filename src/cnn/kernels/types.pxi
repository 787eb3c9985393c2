# simd.h as Cython sees it, and the C library's names that the kernels use.
#
# To Cython `vf` is a number: sums, products and differences of vf variables are written in Cython and come out as
# vector arithmetic in C. What Cython would get wrong (comparisons, casts, abs) has a helper in the header.

from libc.stdint cimport int32_t, int64_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

cdef extern from "kernels/simd.h" nogil:
    ctypedef float real             # float or double, as built
    ctypedef float vf               # a register of VL reals
    const Py_ssize_t VL
    const int CNN_REAL64
    const int TILE_MR               # rows of the largest tile of a matrix product
    const int TILE_NV               # its columns, in vectors
    real CNN_PICK(double single, double dbl)
    vf vf_load(const real* p)
    void vf_store(real* p, vf a)
    vf vf_load_first(const real* p, Py_ssize_t n)
    void vf_store_first(real* p, vf a, Py_ssize_t n)
    vf vf_first(vf a, Py_ssize_t n, vf b)
    vf vf_set(real a)
    void prefetch(const real* p)
    void prefetch_ahead(const real* p)
    vf vf_fma(vf a, vf b, vf c)
    vf vf_select_gt(vf x, vf y, vf a, vf b)
    vf vf_max(vf a, vf b)
    vf vf_min(vf a, vf b)
    vf vf_largest_of(vf a, vf b)
    vf vf_abs(vf a)
    vf vf_copysign(vf a, vf sign)
    vf vf_sqrt(vf a)
    vf vf_flush(vf a)
    vf vf_round_product(vf a, vf b)
    vf vf_exp2(vf n, real offset)
    vf vf_ldexp(vf a, vf n)
    vf vf_ldexp_down(vf a, vf n)
    vf vf_square_low(vf a, vf square)
    vf vf_zip_lo(vf a, vf b)
    vf vf_zip_hi(vf a, vf b)
    vf vf_lane(vf a, Py_ssize_t i)
    vf vf_sums(vf a, Py_ssize_t n)
    real vf_sum(vf a, Py_ssize_t n)
    vf vf_sum4(vf a, vf b, vf c, vf d)
    vf vf_fold(vf a, vf b, vf c, vf d)
    vf vf_sum_folded(const vf* folded)
    real vf_largest(vf a)

cdef extern from "<math.h>" nogil:
    const double INFINITY
    const double NAN
    double fabs(double x)
    double exp(double x)
    double log(double x)
    double pow(double x, double y)
    double sqrt(double x)
    double fmin(double x, double y)
    double fmax(double x, double y)
    bint isfinite(double x)
    bint isnan(double x)


# Functions that macros choose among have a C name of their own (`cdef ... name "name"(...)`) and stand before the
# functions that use the macro. A choice among kinds ends in `missing_kernel`: with a literal kind that has a kernel the
# call is not there any more, and otherwise the compiler stops.
cdef extern from *:
    """
    __attribute__((error("there is no kernel of this kind"))) vf missing_kernel(void);
    """
    pass


cdef inline Py_ssize_t round_up(Py_ssize_t n, Py_ssize_t step) noexcept nogil:
    return (n + step - 1) // step * step


cdef extern from *:
    """
    #define CNN_MOST ((Py_ssize_t)1 << (8 * sizeof(Py_ssize_t) - 7))
    /* Sizes never wrap around: whatever is above CNN_MOST is CNN_MOST, and so refused. For a, b >= 0. */
    static inline Py_ssize_t times(Py_ssize_t a, Py_ssize_t b)
    {
        Py_ssize_t c;
        return __builtin_mul_overflow(a, b, &c) || c > CNN_MOST ? CNN_MOST : c;
    }
    static inline Py_ssize_t plus(Py_ssize_t a, Py_ssize_t b)
    {
        Py_ssize_t c;
        return __builtin_add_overflow(a, b, &c) || c > CNN_MOST ? CNN_MOST : c;
    }
    """
    const Py_ssize_t CNN_MOST       # numbers, more than any machine has addresses for
    Py_ssize_t times(Py_ssize_t a, Py_ssize_t b) nogil
    Py_ssize_t plus(Py_ssize_t a, Py_ssize_t b) nogil


cdef inline Py_ssize_t smaller(Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    return a if a < b else b


cdef inline Py_ssize_t larger(Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    return a if a > b else b


cdef void copy_rows(Py_ssize_t rows, Py_ssize_t n, const real* a, Py_ssize_t a_row, real* b,
                    Py_ssize_t b_row) noexcept nogil:
    """b[i, :n] = a[i, :n]."""
    cdef Py_ssize_t i
    if n <= 0:
        return
    if a_row == n and b_row == n:
        memcpy(b, a, rows * n * sizeof(real))
        return
    if n <= VL:             # a call of memcpy for each row takes longer than the row
        for i in range(rows):
            vf_store_first(b + i * b_row, vf_load_first(a + i * a_row, n), n)
        return
    for i in range(rows):
        memcpy(b + i * b_row, a + i * a_row, n * sizeof(real))
