# Threads: a small pool of our own, for work that repays the hand-over.
#
# `parallel(task, argument, threads)` runs task(argument, id) on the calling thread (id 0) and on threads - 1 workers,
# and returns when all are done. Tasks share out their work through a counter, so that a thread that is held up takes
# less of it. No task's result depends on who does what: the number of threads never changes a number.
#
# Workers wait for the next task spinning for SPIN turns (about 20 microseconds: a training step follows a training
# step), then sleep. One caller at a time has the pool; another one, in another Python thread, works alone meanwhile.
# A child after fork starts with an empty pool of its own.
#
# Where a worker does not get a processor, because another process keeps it busy, waiting for it would cost more than it
# brings. So the time that the caller waits at the end of a task is measured: after a long wait tasks run on one thread
# for so long that such waits cost a tenth of the time at most, and for twice as long after each further one.

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_t:
        pass
    ctypedef struct pthread_attr_t:
        pass
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    int pthread_attr_init(pthread_attr_t*)
    int pthread_attr_destroy(pthread_attr_t*)
    int pthread_attr_setdetachstate(pthread_attr_t*, int)
    int PTHREAD_CREATE_DETACHED
    int pthread_create(pthread_t*, const pthread_attr_t*, void* (*)(void*) noexcept nogil, void*)
    int pthread_mutex_init(pthread_mutex_t*, void*)
    int pthread_mutex_lock(pthread_mutex_t*)
    int pthread_mutex_unlock(pthread_mutex_t*)
    int pthread_cond_init(pthread_cond_t*, void*)
    int pthread_cond_wait(pthread_cond_t*, pthread_mutex_t*)
    int pthread_cond_broadcast(pthread_cond_t*)
    int pthread_atfork(void (*)() noexcept nogil, void (*)() noexcept nogil, void (*)() noexcept nogil)

cdef extern from "<signal.h>" nogil:
    ctypedef struct sigset_t:
        pass
    int SIG_SETMASK
    int sigfillset(sigset_t*)
    int pthread_sigmask(int, const sigset_t*, sigset_t*)

cdef extern from *:
    """
    #include <time.h>
    /* The names that glibc had before 2.32: a wheel that is built on a new system runs on an old one (manylinux). */
    #if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    #if defined(__x86_64__)
    __asm__(".symver pthread_create, pthread_create@GLIBC_2.2.5");
    __asm__(".symver pthread_sigmask, pthread_sigmask@GLIBC_2.2.5");
    #elif defined(__aarch64__)
    __asm__(".symver pthread_create, pthread_create@GLIBC_2.17");
    __asm__(".symver pthread_sigmask, pthread_sigmask@GLIBC_2.17");
    #endif
    #endif
    static inline int64_t atomic_get(int64_t *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
    static inline void atomic_put(int64_t *p, int64_t a) { __atomic_store_n(p, a, __ATOMIC_SEQ_CST); }
    static inline int64_t atomic_add(int64_t *p, int64_t a) { return __atomic_fetch_add(p, a, __ATOMIC_SEQ_CST); }
    static inline int atomic_take(int64_t *p)           /* 0 -> 1: whether it was 0 */
    {
        int64_t free = 0;
        return __atomic_compare_exchange_n(p, &free, 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    }
    static inline void spin_pause(void)
    {
    #if defined(__x86_64__)
        __builtin_ia32_pause();
    #elif defined(__aarch64__)
        __asm__ volatile("yield");
    #endif
    }
    static inline int64_t nanoseconds(void)
    {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
    }
    """
    int64_t atomic_get(int64_t* p) nogil
    void atomic_put(int64_t* p, int64_t a) nogil
    int64_t atomic_add(int64_t* p, int64_t a) nogil         # returns what was there before
    bint atomic_take(int64_t* p) nogil
    void spin_pause() nogil
    int64_t nanoseconds() nogil

ctypedef void (*task_function)(void* argument, int thread) noexcept nogil

cdef enum:
    SPIN = 1000                 # turns of pause, about 20 microseconds
    LONG_WAIT = 100000          # nanoseconds; a wait is long if it is also half of the task's time
    ALONE = 10                  # so many times as long as the wait, tasks run on one thread after it,
    MOST_ALONE = 500000000      # nanoseconds: doubling ends here

cdef struct Pool:
    int64_t taken               # 1: a caller has it
    int64_t workers             # started
    int64_t turn                # number of the current task * 256 + its threads: workers wait for it to change
    int64_t working             # workers not done with it
    int64_t sleeping
    task_function task
    void* argument
    pthread_mutex_t mutex
    pthread_cond_t wake
    bint ready
    int64_t penalty             # nanoseconds on one thread after the last long wait; 0: there was none of late
    int64_t until               # when they end

cdef Pool POOL
cdef int64_t[256] FIRST_TURN    # the turn in which a worker was started: the next is its first (at most 255 threads)


cdef void* worker(void* argument) noexcept nogil:
    cdef int64_t thread = <int64_t>argument, seen = FIRST_TURN[thread], spins
    while True:
        spins = 0
        while atomic_get(&POOL.turn) == seen:
            spins += 1
            if spins < SPIN:
                spin_pause()
                continue
            pthread_mutex_lock(&POOL.mutex)
            atomic_add(&POOL.sleeping, 1)
            while atomic_get(&POOL.turn) == seen:
                pthread_cond_wait(&POOL.wake, &POOL.mutex)
            atomic_add(&POOL.sleeping, -1)
            pthread_mutex_unlock(&POOL.mutex)
        seen = atomic_get(&POOL.turn)
        if thread < seen % 256:
            POOL.task(POOL.argument, <int>thread)
            atomic_add(&POOL.working, -1)
    return NULL


cdef void forget_workers() noexcept nogil:
    """In the child of a fork, where no worker lives on."""
    memset(&POOL, 0, sizeof(POOL))


pthread_atfork(NULL, NULL, forget_workers)


cdef int grow(int64_t threads) noexcept nogil:
    """Start workers until there are threads - 1; how many threads there are. The caller has the pool.

    Workers take no signals: one that the program has blocked in its own threads, to wait for it, would end the process.
    """
    cdef pthread_attr_t attributes
    cdef sigset_t every, before
    cdef pthread_t thread
    if not POOL.ready:
        pthread_mutex_init(&POOL.mutex, NULL)
        pthread_cond_init(&POOL.wake, NULL)
        POOL.ready = True
    if POOL.workers < threads - 1:
        pthread_attr_init(&attributes)
        pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED)
        sigfillset(&every)
        pthread_sigmask(SIG_SETMASK, &every, &before)
        while POOL.workers < threads - 1:
            FIRST_TURN[POOL.workers + 1] = POOL.turn
            if pthread_create(&thread, &attributes, worker, <void*>(POOL.workers + 1)) != 0:
                break
            POOL.workers += 1
        pthread_sigmask(SIG_SETMASK, &before, NULL)
        pthread_attr_destroy(&attributes)
    return <int>(POOL.workers + 1)


cdef void parallel(task_function task, void* argument, int threads) noexcept nogil:
    """Run task(argument, id) for id 0 .. threads - 1 at once, or, where that does not pay, task(argument, 0)."""
    cdef int64_t began, waited, ended
    if threads <= 1 or not atomic_take(&POOL.taken):
        task(argument, 0)
        return
    began = nanoseconds()
    if began < POOL.until:
        atomic_put(&POOL.taken, 0)
        task(argument, 0)
        return
    threads = <int>smaller(threads, grow(threads))
    POOL.task = task
    POOL.argument = argument
    atomic_put(&POOL.working, threads - 1)
    atomic_put(&POOL.turn, (POOL.turn // 256 + 1) * 256 + threads)
    if atomic_get(&POOL.sleeping):
        pthread_mutex_lock(&POOL.mutex)
        pthread_cond_broadcast(&POOL.wake)
        pthread_mutex_unlock(&POOL.mutex)
    task(argument, 0)
    waited = nanoseconds()
    while atomic_get(&POOL.working):
        spin_pause()
    ended = nanoseconds()
    if ended - waited > LONG_WAIT and 2 * (ended - waited) > ended - began:
        POOL.penalty = larger(ALONE * (ended - waited), smaller(MOST_ALONE, 2 * POOL.penalty))
        POOL.until = ended + POOL.penalty
    elif POOL.penalty > 0 and ended - POOL.until > POOL.penalty:    # as long together without a long wait
        POOL.penalty = POOL.penalty // 2 if POOL.penalty > LONG_WAIT else 0
        POOL.until = ended
    atomic_put(&POOL.taken, 0)
