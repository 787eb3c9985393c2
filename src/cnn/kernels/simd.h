/* The vector type of this build: load, store, broadcast, fma, max, select, transpose; nothing more.
 *
 * Every kernel is written once, on `vf`: a register of VL numbers of type `real`. The build decides both:
 *
 *     CNN_REAL64    0: real = float    1: real = double
 *     target flags  AVX-512: 64 bytes, 32 registers    AVX2 + FMA: 32 bytes, 16 registers
 *                   otherwise 16 bytes (SSE2: 16 registers, no fused multiply-add; NEON: 32 registers)
 *
 * Arithmetic on vf is plain C (GCC and Clang vector extensions). What C has no operator for stands here, so this is the
 * only file that knows an instruction set. Multiply-add is explicit (vf_fma): the library is built with
 * -ffp-contract=off, so that a sum has one order and one rounding wherever it is computed. */
#ifndef CNN_SIMD_H
#define CNN_SIMD_H

#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

/* The micro-kernels are inline functions whose tile shape is a literal at each call: they must be inlined. */
#undef CYTHON_INLINE
#define CYTHON_INLINE inline __attribute__((always_inline, unused))
#define CNN_FN static inline __attribute__((always_inline, unused))

#if defined(__AVX512F__)
#define CNN_BYTES 64
#elif defined(__AVX2__)
#define CNN_BYTES 32
#else
#define CNN_BYTES 16
#endif

#if CNN_REAL64
typedef double real;
typedef int64_t real_int;
typedef uint64_t real_uint;
#define CNN_PICK(single, dbl) dbl
#else
typedef float real;
typedef int32_t real_int;
typedef uint32_t real_uint;
#define CNN_PICK(single, dbl) single
#endif

#define VL ((Py_ssize_t)(CNN_BYTES / sizeof(real)))
#define CNN_LANES (CNN_BYTES / (CNN_REAL64 ? 8 : 4))

typedef real vf __attribute__((vector_size(CNN_BYTES)));
typedef real_int vi __attribute__((vector_size(CNN_BYTES)));
typedef real_uint vu __attribute__((vector_size(CNN_BYTES)));
typedef real vf_unaligned __attribute__((vector_size(CNN_BYTES), aligned(sizeof(real)), may_alias));

/* The tile of the matrix products, rows x vectors, as large as the register file holds: accumulators, one row of B
 * (TILE_NV) and one broadcast of A. */
#if defined(__AVX512F__)
#define TILE_MR 8
#define TILE_NV 3
#elif defined(__aarch64__)      /* of 8 x 3, GCC 12 puts sums on the stack */
#define TILE_MR 8
#define TILE_NV 2
#elif defined(__AVX2__)
#define TILE_MR 6
#define TILE_NV 2
#else
#define TILE_MR 4
#define TILE_NV 2
#endif

CNN_FN vf vf_load(const real *p) { return *(const vf_unaligned *)p; }
CNN_FN void vf_store(real *p, vf a) { *(vf_unaligned *)p = a; }
CNN_FN vf vf_set(real a) { return a - (vf){0}; }            /* all lanes a (keeps -0.0) */

/* Fetch the line of p into L1: it will be written soon. */
CNN_FN void prefetch(const real *p) { __builtin_prefetch(p, 1); }
/* Fetch it into L2: it will be read later. */
CNN_FN void prefetch_ahead(const real *p) { __builtin_prefetch(p, 0, 2); }

/* a * b + c with one rounding (SSE2: two). */
CNN_FN vf vf_fma(vf a, vf b, vf c)
{
#if defined(__AVX512F__)
    return (vf)CNN_PICK(_mm512_fmadd_ps, _mm512_fmadd_pd)(a, b, c);
#elif defined(__FMA__)
    return (vf)CNN_PICK(_mm256_fmadd_ps, _mm256_fmadd_pd)(a, b, c);
#elif defined(__aarch64__)
    return (vf)CNN_PICK(vfmaq_f32, vfmaq_f64)(c, a, b);
#else
    return a * b + c;
#endif
}

/* Lanes of a where the condition of the name holds for x, of b elsewhere. NaN satisfies no condition. */
CNN_FN vf vf_blend(vi mask, vf a, vf b)
{
#if defined(__AVX2__) && !defined(__AVX512F__)
    return (vf)CNN_PICK(_mm256_blendv_ps, _mm256_blendv_pd)(b, a, (vf)mask);
#elif defined(__SSE2__) && !defined(__AVX512F__)    /* in plain C, GCC 12 fails on masks of doubles (in isel) */
    return (vf)CNN_PICK(_mm_or_ps, _mm_or_pd)(CNN_PICK(_mm_and_ps, _mm_and_pd)((vf)mask, a),
                                              CNN_PICK(_mm_andnot_ps, _mm_andnot_pd)((vf)mask, b));
#else
    return (vf)((mask & (vi)a) | (~mask & (vi)b));
#endif
}
CNN_FN vf vf_select_gt(vf x, vf y, vf a, vf b)
{
#if defined(__AVX512F__)
    return (vf)CNN_PICK(_mm512_mask_blend_ps, _mm512_mask_blend_pd)(
        CNN_PICK(_mm512_cmp_ps_mask, _mm512_cmp_pd_mask)(x, y, _CMP_GT_OQ), b, a);
#else
    return vf_blend(x > y, a, b);
#endif
}

/* max and min that give b where either is NaN (x86's maxps): vf_max(limit, x) passes a NaN in x on. */
CNN_FN vf vf_max(vf a, vf b)
{
#if defined(__AVX512F__)
    return (vf)CNN_PICK(_mm512_max_ps, _mm512_max_pd)(a, b);
#elif defined(__AVX2__)
    return (vf)CNN_PICK(_mm256_max_ps, _mm256_max_pd)(a, b);
#elif defined(__SSE2__)
    return (vf)CNN_PICK(_mm_max_ps, _mm_max_pd)(a, b);
#else
    return vf_blend(a > b, a, b);
#endif
}
CNN_FN vf vf_min(vf a, vf b)
{
#if defined(__AVX512F__)
    return (vf)CNN_PICK(_mm512_min_ps, _mm512_min_pd)(a, b);
#elif defined(__AVX2__)
    return (vf)CNN_PICK(_mm256_min_ps, _mm256_min_pd)(a, b);
#elif defined(__SSE2__)
    return (vf)CNN_PICK(_mm_min_ps, _mm_min_pd)(a, b);
#else
    return vf_blend(a < b, a, b);
#endif
}

/* max that gives NaN where either is NaN. */
CNN_FN vf vf_largest_of(vf a, vf b) { return vf_blend(a != a, a, vf_max(a, b)); }

CNN_FN vf vf_abs(vf a) { return (vf)((vi)a & ~(vi)vf_set((real)-0.0)); }
CNN_FN vf vf_copysign(vf a, vf sign)
{
    vi bit = (vi)vf_set((real)-0.0);
    return (vf)(((vi)a & ~bit) | ((vi)sign & bit));
}
CNN_FN vf vf_sqrt(vf a)
{
#if defined(__AVX512F__)
    return (vf)CNN_PICK(_mm512_sqrt_ps, _mm512_sqrt_pd)(a);
#elif defined(__AVX2__)
    return (vf)CNN_PICK(_mm256_sqrt_ps, _mm256_sqrt_pd)(a);
#elif defined(__SSE2__)
    return (vf)CNN_PICK(_mm_sqrt_ps, _mm_sqrt_pd)(a);
#else
    return (vf)CNN_PICK(vsqrtq_f32, vsqrtq_f64)(a);
#endif
}

/* a, with zeros for subnormal numbers: a division or square root of one takes three times as long (Zen 4). */
CNN_FN vf vf_flush(vf a)
{
    const vi exponent = (vi)vf_set(CNN_PICK(__builtin_inff(), __builtin_inf()));
#if defined(__AVX512F__)
    return (vf)CNN_PICK(_mm512_maskz_mov_ps(_mm512_test_epi32_mask((__m512i)a, (__m512i)exponent), a),
                        _mm512_maskz_mov_pd(_mm512_test_epi64_mask((__m512i)a, (__m512i)exponent), a));
#else
    return (vf)((vi)a & (((vi)a & exponent) != 0));
#endif
}

/* The integer nearest to a * b, ties to even, for |a * b| < 2**(mantissa bits - 2): added to a number whose last bit
 * counts ones, it is rounded to ones. */
CNN_FN vf vf_round_product(vf a, vf b)
{
    vf magic = vf_set(CNN_PICK(12582912.0f, 6755399441055744.0));    /* 1.5 * 2**23, 1.5 * 2**52 */
    return vf_fma(a, b, magic) - magic;
}

/* 2**(n + offset), a normal number, for an integral n. */
CNN_FN vf vf_exp2(vf n, real offset)
{
    /* the low bits of magic + bias + n are bias + n: shifted to the exponent, they are 2**n */
    vf k = n + (CNN_PICK(12582912.0f + 127, 6755399441055744.0 + 1023) + offset);
    return (vf)((vi)k << CNN_PICK(23, 52));
}

/* a * 2**n for an integral n with |n| at most twice the exponent's range: in two steps, so that a result may be
 * denormal and 2**n alone may overflow. */
CNN_FN vf vf_ldexp(vf a, vf n)
{
#if defined(__AVX512F__)
    return (vf)CNN_PICK(_mm512_scalef_ps, _mm512_scalef_pd)(a, n);
#else
    vf k = n + (real)CNN_PICK(12582912.0f + 2 * 127, 6755399441055744.0 + 2 * 1023);
    vi half = (vi)((vu)k >> 1), rest = (vi)k - half;
    return a * (vf)(half << CNN_PICK(23, 52)) * (vf)(rest << CNN_PICK(23, 52));
#endif
}

/* The same for n <= 0, cheaper. */
CNN_FN vf vf_ldexp_down(vf a, vf n)
{
#if defined(__AVX512F__)
    return vf_ldexp(a, n);
#else
    return a * vf_exp2(n, CNN_PICK(64, 512)) * (real)CNN_PICK(0x1p-64, 0x1p-512);
#endif
}

/* a * a - square, exactly, where square is a * a rounded; |a| < 2**(exponent range / 2). */
CNN_FN vf vf_square_low(vf a, vf square)
{
#if defined(__FMA__) || defined(__aarch64__)
    return vf_fma(a, a, -square);
#else
    vf wide = a * (real)CNN_PICK(4097, 134217729);              /* Veltkamp: a = high + low, half the bits each */
    vf high = wide - (wide - a), low = a - high;
    return high * high - square + (real)2 * (high * low) + low * low;
#endif
}

/* The first n lanes (1 <= n <= VL) of memory that may end there; zero in the others. */
#if defined(__AVX512F__)
#define CNN_FIRST(n) CNN_PICK((__mmask16), (__mmask8))((1u << (n)) - 1)
#elif defined(__AVX2__)
#define CNN_FIRST(n) CNN_PICK(_mm256_cmpgt_epi32(_mm256_set1_epi32((int)(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)), \
                              _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3)))
#endif
CNN_FN vf vf_load_first(const real *p, Py_ssize_t n)
{
#if defined(__AVX512F__)
    return (vf)CNN_PICK(_mm512_maskz_loadu_ps, _mm512_maskz_loadu_pd)(CNN_FIRST(n), p);
#elif defined(__AVX2__)
    return (vf)CNN_PICK(_mm256_maskload_ps, _mm256_maskload_pd)(p, CNN_FIRST(n));
#else
    vf a = {0};
    for (int i = 0; i < CNN_LANES; i++)
        if (i < n)
            a[i] = p[i];
    return a;
#endif
}
CNN_FN void vf_store_first(real *p, vf a, Py_ssize_t n)
{
#if defined(__AVX512F__)
    CNN_PICK(_mm512_mask_storeu_ps, _mm512_mask_storeu_pd)(p, CNN_FIRST(n), a);
#elif defined(__AVX2__)
    CNN_PICK(_mm256_maskstore_ps, _mm256_maskstore_pd)(p, CNN_FIRST(n), a);
#else
    for (int i = 0; i < CNN_LANES; i++)
        if (i < n)
            p[i] = a[i];
#endif
}

/* The first n lanes (1 <= n <= VL) of a, the others of b. */
CNN_FN vf vf_first(vf a, Py_ssize_t n, vf b)
{
#if defined(__AVX512F__)
    return (vf)CNN_PICK(_mm512_mask_blend_ps, _mm512_mask_blend_pd)(CNN_FIRST(n), b, a);
#elif defined(__AVX2__)
    return vf_blend((vi)CNN_FIRST(n), a, b);
#else
    vi lane = {0};
    for (int i = 0; i < CNN_LANES; i++)
        lane[i] = i;
    return vf_blend(lane < (real_int)n, a, b);
#endif
}

/* Lanes of the first halves (lo) or second halves (hi) of a and b in turn: a0 b0 a1 b1 ... Log2(VL) rounds of these
 * transpose a block of VL x VL. */
#if defined(__clang__)
#define CNN_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define CNN_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (vi){__VA_ARGS__})
#endif
#if CNN_LANES == 16
#define CNN_XOR(s) 0 ^ s, 1 ^ s, 2 ^ s, 3 ^ s, 4 ^ s, 5 ^ s, 6 ^ s, 7 ^ s, \
                   8 ^ s, 9 ^ s, 10 ^ s, 11 ^ s, 12 ^ s, 13 ^ s, 14 ^ s, 15 ^ s
#define CNN_EACH(f, o) f(0) + o, f(1) + o, f(2) + o, f(3) + o, f(4) + o, f(5) + o, f(6) + o, f(7) + o, \
                       f(8) + o, f(9) + o, f(10) + o, f(11) + o, f(12) + o, f(13) + o, f(14) + o, f(15) + o
#define CNN_LO 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define CNN_HI 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif CNN_LANES == 8
#define CNN_XOR(s) 0 ^ s, 1 ^ s, 2 ^ s, 3 ^ s, 4 ^ s, 5 ^ s, 6 ^ s, 7 ^ s
#define CNN_EACH(f, o) f(0) + o, f(1) + o, f(2) + o, f(3) + o, f(4) + o, f(5) + o, f(6) + o, f(7) + o
#define CNN_LO 0, 8, 1, 9, 2, 10, 3, 11
#define CNN_HI 4, 12, 5, 13, 6, 14, 7, 15
#elif CNN_LANES == 4
#define CNN_XOR(s) 0 ^ s, 1 ^ s, 2 ^ s, 3 ^ s
#define CNN_EACH(f, o) f(0) + o, f(1) + o, f(2) + o, f(3) + o
#define CNN_LO 0, 4, 1, 5
#define CNN_HI 2, 6, 3, 7
#else
#define CNN_XOR(s) 0 ^ s, 1 ^ s
#define CNN_EACH(f, o) f(0) + o, f(1) + o
#define CNN_LO 0, 2
#define CNN_HI 1, 3
#endif
CNN_FN vf vf_zip_lo(vf a, vf b) { return CNN_SHUFFLE(a, b, CNN_LO); }
CNN_FN vf vf_zip_hi(vf a, vf b) { return CNN_SHUFFLE(a, b, CNN_HI); }

/* All lanes = lane i of a. */
CNN_FN vf vf_lane(vf a, Py_ssize_t i)
{
#if defined(__AVX512F__)
    return (vf)CNN_PICK(_mm512_permutexvar_ps(_mm512_set1_epi32((int)i), (__m512)a),
                        _mm512_permutexvar_pd(_mm512_set1_epi64(i), (__m512d)a));
#elif defined(__AVX2__) && !CNN_REAL64
    return (vf)_mm256_permutevar8x32_ps((__m256)a, _mm256_set1_epi32((int)i));
#else
    return vf_set(a[i]);
#endif
}

/* In each of the first n lanes their sum, the others being zero. Pairwise, lane i with lanes i ^ 1, i ^ 2, i ^ 4, i ^ 8:
 * always in the same order, and no more rounds than n needs. */
CNN_FN vf vf_sums(vf a, Py_ssize_t n)
{
    if (n > 1)
        a = a + CNN_SHUFFLE(a, a, CNN_XOR(1));
#if CNN_LANES > 2
    if (n > 2)
        a = a + CNN_SHUFFLE(a, a, CNN_XOR(2));
#endif
#if CNN_LANES > 4
    if (n > 4)
        a = a + CNN_SHUFFLE(a, a, CNN_XOR(4));
#endif
#if CNN_LANES > 8
    if (n > 8)
        a = a + CNN_SHUFFLE(a, a, CNN_XOR(8));
#endif
    return a;
}
CNN_FN real vf_sum(vf a, Py_ssize_t n) { return vf_sums(a, n)[0]; }

/* Sums of neighbours in a and b, where a unit of lanes is a number, 16 bytes or half a vector: for each group of units
 * a's sums and then b's. Log2(VL) rounds of these sum VL vectors into the vector of their sums, in rising order of the
 * units, for which the cheapest shuffles do. */
#define CNN_BLOCK (CNN_LANES * 16 / CNN_BYTES)
#define CNN_NEIGHBOURS(i, unit, group)                                                                   \
    ((i) / (group) * (group) + (i) % (group) / (unit) * 2 % ((group) / (unit)) * (unit) + (i) % (unit) + \
     ((i) % (group) < (group) / 2 ? 0 : CNN_LANES))
#define CNN_IN_BLOCK(i) CNN_NEIGHBOURS(i, 1, CNN_BLOCK)
#define CNN_IN_32(i) CNN_NEIGHBOURS(i, CNN_BLOCK, 2 * CNN_BLOCK)
#define CNN_QUARTERS(i) CNN_NEIGHBOURS(i, CNN_BLOCK, 4 * CNN_BLOCK)
#define CNN_HALVES(i) CNN_NEIGHBOURS(i, CNN_LANES / 2, CNN_LANES)
#define CNN_ADD(a, b, map, unit) (CNN_SHUFFLE(a, b, CNN_EACH(map, 0)) + CNN_SHUFFLE(a, b, CNN_EACH(map, unit)))

/* Four vectors in one: in lanes i, i + 4, i + 8, ... parts of the sum of the i-th. Two with VL = 2. */
CNN_FN vf vf_fold(vf a, vf b, vf c, vf d)
{
    a = CNN_ADD(a, b, CNN_IN_BLOCK, 1);
#if CNN_LANES == 2
    (void)c, (void)d;
    return a;
#else
    c = CNN_ADD(c, d, CNN_IN_BLOCK, 1);
#if CNN_REAL64
    return CNN_ADD(a, c, CNN_IN_32, CNN_BLOCK);
#else
    return CNN_ADD(a, c, CNN_IN_BLOCK, 1);
#endif
#endif
}
/* From VL vectors folded by fours the vector of their sums. In the order of vf_sum. */
CNN_FN vf vf_sum_folded(const vf *folded)
{
#if CNN_LANES == 16
    vf a = CNN_ADD(folded[0], folded[1], CNN_QUARTERS, CNN_BLOCK);
    vf b = CNN_ADD(folded[2], folded[3], CNN_QUARTERS, CNN_BLOCK);
    return CNN_ADD(a, b, CNN_QUARTERS, CNN_BLOCK);
#elif CNN_LANES == 8
    return CNN_ADD(folded[0], folded[1], CNN_HALVES, CNN_LANES / 2);
#else
    return folded[0];
#endif
}
/* The sums of four vectors in lanes 0 to 3, and again in every four lanes; VL >= 4. In the order of vf_sum. */
CNN_FN vf vf_sum4(vf a, vf b, vf c, vf d)
{
    a = vf_fold(a, b, c, d);
#if CNN_LANES > 4
    a = a + CNN_SHUFFLE(a, a, CNN_XOR(4));
#endif
#if CNN_LANES > 8
    a = a + CNN_SHUFFLE(a, a, CNN_XOR(8));
#endif
    return a;
}
CNN_FN real vf_largest(vf a)
{
    for (int n = 1; n < CNN_LANES; n *= 2)
        a = vf_max(vf_zip_lo(a, a), vf_zip_hi(a, a));
    return a[0];
}

#endif
