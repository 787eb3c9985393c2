# Random order for `fit`: counter-based, so that the order of an epoch depends on the seed and the epoch alone.

cdef extern from *:
    """
    /* High half of the 128-bit product; the low half goes to *low. */
    static inline uint64_t multiply_high(uint64_t a, uint64_t b, uint64_t *low)
    {
        unsigned __int128 product = (unsigned __int128)a * b;
        *low = (uint64_t)product;
        return (uint64_t)(product >> 64);
    }
    """
    uint64_t multiply_high(uint64_t a, uint64_t b, uint64_t* low) nogil


cdef inline uint64_t random_bits(uint64_t seed, uint64_t counter) noexcept nogil:
    """64 random bits: output number `counter` of SplitMix64 (Steele, Lea and Flood, 2014) started at `seed`."""
    cdef uint64_t z = seed + (counter + 1) * <uint64_t>0x9E3779B97F4A7C15
    z = (z ^ (z >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * <uint64_t>0x94D049BB133111EB
    return z ^ (z >> 31)


cdef void shuffle(int64_t* order, Py_ssize_t n, uint64_t seed, uint64_t epoch) noexcept nogil:
    """Fill `order` with a random permutation of 0 .. n-1 (Fisher and Yates), all of them equally likely.

    Numbers below a bound by Lemire's multiplication with rejection (ACM TOMACS 29, 2019).
    """
    cdef Py_ssize_t i
    cdef uint64_t counter = 0, bound, low, pick, key = random_bits(seed, epoch)
    for i in range(n):
        order[i] = i
    for i in range(n - 1, 0, -1):
        bound = i + 1
        pick = multiply_high(random_bits(key, counter), bound, &low)
        counter += 1
        if low < bound:
            while low < (0 - bound) % bound:
                pick = multiply_high(random_bits(key, counter), bound, &low)
                counter += 1
        order[i], order[pick] = order[pick], order[i]
