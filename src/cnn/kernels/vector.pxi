# Vector mathematics: exp, expm1, log1p, tanh, sigmoid and the tail of the normal distribution, on every lane of a vf.
#
# All of it rests on one reduction, x = n ln 2 + r with n integral and |r| <= ln 2 / 2, and one polynomial for
# exp(r) - 1. Coefficients are minimax (Remez, for the relative error of what they serve), one set for float and one
# for double; CNN_REAL64 is known when the C code is compiled, so that the other set vanishes.
#
# What holds for every function below:
#     NaN gives NaN; +-inf gives the limit; results are denormal where they should be. Arguments are cut off where the
#     result no longer changes. vf_max(bound, x) and vf_min(bound, x), in this order, pass a NaN in x on.
#     "ULP" is the largest error found, float32 / float64, in units in the last place of the exact result, with and
#     without fused multiply-add: in float32 over 2**26 bit patterns spread over all of them, in float64 over 10**7
#     points.
#     "Cost" counts vector operations on AVX-512, float32 / float64. SSE2 and AVX2 need 3 to 5 more.


cdef inline vf number(double x) noexcept nogil:
    """x in every lane."""
    return vf_set(<real>x)


cdef inline vf pick(double single, double dbl) noexcept nogil:
    """One constant for float, another for double."""
    return vf_set(<real>CNN_PICK(single, dbl))


cdef inline vf clamp(vf x, vf bound) noexcept nogil:
    """x, cut off at -bound and bound."""
    return vf_min(bound, vf_max(-bound, x))


cdef inline vf minus_abs(vf x) noexcept nogil:
    """-|x|"""
    return vf_copysign(x, number(-1))


# ---- exp and its relatives

cdef inline vf exp_exponent(vf x) noexcept nogil:
    """n = x / ln 2, rounded to an integer."""
    return vf_round_product(x, number(1.4426950408889634))


cdef inline vf exp_rest(vf x, vf n) noexcept nogil:
    """r = x - n ln 2 (Cody and Waite). ln 2 is in two parts, the first so short that n times it is exact."""
    cdef vf r = vf_fma(n, pick(-0.693359375, -6.93147180369123816490e-01), x)
    return vf_fma(n, pick(2.12194440e-4, -1.90821492927058770002e-10), r)


cdef inline vf exp_minus_one(vf r) noexcept nogil:
    """exp(r) - 1 = r + r**2 q(r) for |r| <= ln 2 / 2, q of degree 4 / 9.

    Relative error of the polynomial 2**-26.1 / 2**-55.6.
    """
    cdef vf u = r * r
    cdef vf even, odd
    if CNN_REAL64:
        even = vf_fma(number(2.762639176233484e-07), u, number(2.4801504427390146e-05))
        odd = vf_fma(number(2.5053798651828857e-08), u, number(2.7557408410476663e-06))
        even = vf_fma(even, u, number(0.0013888888932226686))
        odd = vf_fma(odd, u, number(0.00019841269717153168))
        even = vf_fma(even, u, number(0.04166666666657489))
        odd = vf_fma(odd, u, number(0.0083333333333907))
        even = vf_fma(even, u, number(0.5000000000000006))
        odd = vf_fma(odd, u, number(0.16666666666666588))
        return vf_fma(vf_fma(odd, r, even), u, r)
    # few coefficients: by pairs, one multiply-add less to wait for than by even and odd powers
    even = vf_fma(number(0.16666542), r, number(0.49999997))
    odd = vf_fma(number(0.008366692), r, number(0.041667204))
    odd = vf_fma(number(0.0013882472), u, odd)
    return vf_fma(vf_fma(odd, u, even), u, r)


cdef inline vf exp_parts(vf x, vf* n) noexcept nogil:
    """exp(x) = p 2**n with p in [0.7, 1.42]: returns p. For x in reach of vf_ldexp."""
    n[0] = exp_exponent(x)
    return number(1) + exp_minus_one(exp_rest(x, n[0]))


cdef inline vf v_exp(vf x) noexcept nogil:
    """exp(x) = 2**n exp(r).

    ULP 1.1 / 1.1. Cost 14 / 19.
    """
    cdef vf n, p
    p = exp_parts(vf_min(pick(89, 710), vf_max(pick(-104, -746), x)), &n)
    return vf_ldexp(p, n)


cdef inline vf v_expm1(vf x) noexcept nogil:
    """exp(x) - 1 = 2**n (exp(r) - 1) + (2**n - 1), for x < 88 / 709; beyond, anything. expm1(-0.0) is 0.0.

    2**n - 1 is exact until exp(x) is all of the result, or 1 is.
    ULP for x <= 0 1.2 / 1.2, for x > 0 1.9 / 2.4. Cost 15 / 20.
    """
    cdef vf n, s, e
    x = vf_max(number(-40), x)
    n = exp_exponent(x)
    e = exp_minus_one(exp_rest(x, n))
    s = vf_exp2(n, 0)
    return vf_fma(e, s, s - number(1))


cdef inline vf v_log1p(vf x) noexcept nogil:
    """log(1 + x) for 0 <= x <= 1.

    With s = x / (2 + x), log(1 + x) = 2 atanh(s) = x - s (x - R(s**2)), where R(u) = 2 u / 3 + 2 u**2 / 5 + ... is of
    degree 4 / 10.
    The last step adds a small correction to an exact x: the error of s hardly counts.
    ULP 1.3 / 1.2. Cost 8 / 14, one of them a division.
    """
    cdef vf s = x / (number(2) + x)
    cdef vf u = s * s
    cdef vf p
    if CNN_REAL64:
        p = vf_fma(number(0.17010836063337753), u, number(0.08344404082406102))
        p = vf_fma(p, u, number(0.12105071158630387))
        p = vf_fma(p, u, number(0.13301105902214852))
        p = vf_fma(p, u, number(0.15386549532053545))
        p = vf_fma(p, u, number(0.18181744427598268))
        p = vf_fma(p, u, number(0.2222222395504445))
        p = vf_fma(p, u, number(0.2857142854809667))
        p = vf_fma(p, u, number(0.4000000000015527))
        p = vf_fma(p, u, number(0.6666666666666631))
    else:
        p = vf_fma(number(0.28012687), u, number(0.28001672))
        p = vf_fma(p, u, number(0.40021536))
        p = vf_fma(p, u, number(0.6666642))
    return vf_fma(-s, vf_fma(-p, u, x), x)


cdef inline vf v_sigmoid(vf x) noexcept nogil:
    """1 / (1 + exp(-x)), computed as (1 or e) / (1 + e) with e = exp(-|x|) <= 1, so that nothing overflows.

    ULP 2.4 / 2.4. Cost 18 / 23, one of them a division.
    """
    cdef vf n
    cdef vf e = exp_parts(vf_max(pick(-104, -746), minus_abs(x)), &n)
    e = vf_ldexp_down(e, n)
    return vf_select_gt(x, number(0), number(1), e) / (number(1) + e)


cdef inline vf v_tanh(vf x) noexcept nogil:
    """tanh(x) = sign(x) m / (2 - m) with m = 1 - exp(-2 |x|) by expm1's formula: small x lose nothing.

    r needs only one part of ln 2 here: its error is scaled by exp(-2 |x|), which shrinks faster than n grows.
    ULP 2.5 / 2.6. Cost 19 / 24, one of them a division.
    """
    cdef vf a = vf_min(pick(10, 20), vf_abs(x))
    cdef vf n = vf_round_product(a, number(-2 * 1.4426950408889634))
    cdef vf r = vf_fma(n, number(-0.6931471805599453), number(-2) * a)
    cdef vf s = vf_exp2(n, 0)
    cdef vf m = vf_fma(-exp_minus_one(r), s, number(1) - s)
    return vf_copysign(m / (number(2) - m), x)


# ---- x times sigmoid(v): SiLU, and GELU in its tanh form

cdef inline vf gated(vf x, vf low, vf v) noexcept nogil:
    """x sigmoid(-sign(x) v), where v <= 0 is a function of |x|: x or x exp(v), divided by 1 + exp(v).

    low is x, cut off where the result is x or 0; v is at least -110 / -760. low is multiplied before 2**n is: exp(v)
    may be denormal where the result is not.
    """
    cdef vf n
    cdef vf p = exp_parts(v, &n)
    return vf_select_gt(x, number(0), x, vf_ldexp_down(low * p, n)) / (number(1) + vf_ldexp_down(p, n))


cdef inline vf gated_derivative(vf x, vf v, vf w) noexcept nogil:
    """The derivative of x sigmoid(t), t = -sign(x) v, with w = x dt/dx finite.

    sigmoid(t) (1 + w (1 - sigmoid(t))) = (c + e w q) q, where e = exp(v), q = 1 / (1 + e), c = 1 for x > 0 and else e.
    """
    cdef vf n
    cdef vf p = exp_parts(v, &n)
    cdef vf e = vf_ldexp_down(p, n)
    cdef vf q = number(1) / (number(1) + e)
    return vf_fma(e * w, q, vf_select_gt(x, number(0), number(1), e)) * q


# ---- the normal distribution, for the exact GELU

cdef inline vf bell(vf a, vf* n) noexcept nogil:
    """exp(-a**2 / 2) = p 2**n for 0 <= a <= 40: returns p.

    What rounding takes from a**2 goes into r: without it, the relative error would be a**2 / 2 roundings.
    """
    cdef vf square = a * a
    cdef vf x = number(-0.5) * square
    n[0] = exp_exponent(x)
    return number(1) + exp_minus_one(vf_fma(number(-0.5), vf_square_low(a, square), exp_rest(x, n[0])))


cdef inline vf tail_ratio(vf a) noexcept nogil:
    """(1 - Phi(a)) / exp(-a**2 / 2) = erfcx(a / sqrt(2)) / 2 for 0 <= a <= 15 / 40; Phi is the normal distribution.

    A quotient of polynomials of degree 4 and 5 / 10 and 11; all coefficients are positive, so nothing cancels.
    Relative error of the quotient 2**-27.3 / 2**-59.9; at 0 it is exactly 1/2.
    """
    cdef vf p, q
    if CNN_REAL64:
        p = vf_fma(number(2.2362398256636753e-07), a, number(6.9611775605670245e-06))
        q = vf_fma(number(5.605421975863143e-07), a, number(1.7449084498074822e-05))
        p = vf_fma(p, a, number(0.0001063803886155989))
        q = vf_fma(q, a, number(0.00026721663216444007))
        p = vf_fma(p, a, number(0.001038127300248215))
        q = vf_fma(q, a, number(0.00261964832817499))
        p = vf_fma(p, a, number(0.00711376884583364))
        q = vf_fma(q, a, number(0.018097109124542102))
        p = vf_fma(p, a, number(0.03563033781923441))
        q = vf_fma(q, a, number(0.0918793135834411))
        p = vf_fma(p, a, number(0.1319356576641125))
        q = vf_fma(q, a, number(0.34801750998551934))
        p = vf_fma(p, a, number(0.3571186552609421))
        q = vf_fma(q, a, number(0.9794459654010989))
        p = vf_fma(p, a, number(0.6793147390895139))
        q = vf_fma(q, a, number(2.000462892217375))
        p = vf_fma(p, a, number(0.8277354234549585))
        q = vf_fma(q, a, number(2.8161238801552684))
        q = vf_fma(q, a, number(2.453355407712783))
    else:
        p = vf_fma(number(0.0041237194), a, number(0.040683072))
        q = vf_fma(number(0.010336514), a, number(0.10198372))
        p = vf_fma(p, a, number(0.18338288))
        q = vf_fma(q, a, number(0.4698607))
        p = vf_fma(p, a, number(0.4384942))
        q = vf_fma(q, a, number(1.2031165))
        q = vf_fma(q, a, number(1.6748734))
    return vf_fma(p, a, number(0.5)) / vf_fma(q, a, number(1))
