# Arenas: zeroed memory in one piece, aligned to a cache line, in huge pages where it is large, with guards around it in
# debug builds.

cdef extern from *:
    """
    #if defined(__linux__)
    #include <sys/mman.h>
    #endif
    #define HUGE_PAGE ((size_t)1 << 21)
    /* Ask for huge pages: a large matrix is read in more pages than the processor remembers addresses of. */
    static inline void use_huge_pages(void *at, size_t bytes)
    {
    #if defined(MADV_HUGEPAGE)
        madvise(at, bytes / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
    #else
        (void)at, (void)bytes;
    #endif
    }

    /* Guards, in debug builds (CNN_GUARDS): a line before and one behind each arena must stay as they were. */
    #define GUARD_LINE 64
    #define GUARD_BYTE 0xA5
    #if CNN_GUARDS
    #include <stdio.h>
    #include <stdlib.h>
    #include <string.h>
    /* The line before holds the size, then the pattern. */
    static void put_guards(void *arena, size_t size)
    {
        char *at = (char *)arena;
        memset(at - GUARD_LINE, GUARD_BYTE, GUARD_LINE);
        memcpy(at - GUARD_LINE, &size, sizeof(size));
        memset(at + size, GUARD_BYTE, GUARD_LINE);
    }
    static void check_guards(const void *arena)
    {
        const unsigned char *at = (const unsigned char *)arena;
        size_t size, i;
        if (at == NULL)
            return;
        memcpy(&size, at - GUARD_LINE, sizeof(size));
        for (i = sizeof(size); i < GUARD_LINE; i++)
            if (at[i - GUARD_LINE] != GUARD_BYTE) {
                fprintf(stderr, "cnn: something wrote before an arena of %zu bytes\\n", size);
                abort();
            }
        for (i = 0; i < GUARD_LINE; i++)
            if (at[size + i] != GUARD_BYTE) {
                fprintf(stderr, "cnn: something wrote behind an arena of %zu bytes\\n", size);
                abort();
            }
    }
    #else
    #define put_guards(arena, size)
    #define check_guards(arena)
    #endif
    """
    const int CNN_GUARDS
    size_t HUGE_PAGE
    size_t GUARD_LINE
    void use_huge_pages(void* at, size_t bytes) nogil
    void put_guards(void* arena, size_t size) nogil
    void check_guards(const void* arena) nogil


cdef enum:
    LINE = 64               # bytes of a cache line

cdef struct Arena:
    void* memory
    real* at                # the first number
    size_t bytes            # of the numbers


cdef real* allocate(Arena* arena, Py_ssize_t n) except NULL:
    """Give an empty arena n zeroed reals. Untouched pages take no memory."""
    cdef size_t unit, guard = GUARD_LINE if CNN_GUARDS else 0
    if n < 0 or n >= CNN_MOST:
        raise MemoryError("a block of memory would be too large for this machine's addresses")
    arena.bytes = n * sizeof(real)
    unit = HUGE_PAGE if arena.bytes >= 2 * HUGE_PAGE else LINE
    arena.memory = calloc(arena.bytes + unit + 2 * guard, 1)
    if arena.memory == NULL:
        n, arena.bytes = arena.bytes, 0
        raise MemoryError(f"cannot allocate {n} bytes")
    arena.at = <real*>((<uintptr_t>arena.memory + guard) // unit * unit + unit)
    if unit == HUGE_PAGE:
        use_huge_pages(arena.at, arena.bytes)
    put_guards(arena.at, arena.bytes)
    return arena.at


cdef void release(Arena* arena) noexcept nogil:
    """Free an arena, its guards checked; an empty one is left as it is."""
    if arena.memory != NULL:
        check_guards(arena.at)
    free(arena.memory)
    memset(arena, 0, sizeof(Arena))
