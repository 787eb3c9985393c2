# Threads: a small pool of our own, for work large enough to outweigh waking a thread.
#
# `parallel(task, argument, threads)` runs task(argument, id) on the calling thread (id 0) and on threads - 1 workers,
# and returns when all are done. Tasks share out their work through a counter, so that a thread that is held up takes
# less of it. No task's result depends on who does what: the number of threads never changes a number.
#
# Workers wait for the next task spinning for SPIN turns (about 20 microseconds: a training step follows a training
# step), then sleep. One caller at a time has the pool; another one, in another Python thread, works alone meanwhile.
# A child after fork starts with an empty pool of its own.
#
# A task has a gate. A worker that comes while it is open goes in and takes its share; when the caller has nothing left
# to do it closes the gate and waits for those inside only: a worker that was slow to wake up is not waited for.
#
# One that is inside and does not get a processor, because another process keeps it busy, costs more than it brings. So
# the time that the caller waits at the end of its tasks is measured, and that of tasks to which no worker came: where
# it is more than a third of WINDOW, tasks run on one thread for so long that such waits cost a tenth of the time at
# most, and for twice as long if the next window is no better. One long wait says little: the first task on a core that
# was idle takes a millisecond longer.

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

cdef extern from "<sched.h>" nogil:
    int sched_yield()

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
    static inline int64_t atomic_or(int64_t *p, int64_t a) { return __atomic_fetch_or(p, a, __ATOMIC_SEQ_CST); }
    static inline int atomic_swap(int64_t *p, int64_t from, int64_t to)     /* whether it was `from` */
    {
        return __atomic_compare_exchange_n(p, &from, to, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
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
    int64_t atomic_or(int64_t* p, int64_t a) nogil
    bint atomic_swap(int64_t* p, int64_t before, int64_t after) nogil
    void spin_pause() nogil
    int64_t nanoseconds() nogil

ctypedef void (*task_function)(void* argument, int thread) noexcept nogil

cdef enum:
    SPIN = 1000                 # turns of pause, about 20 microseconds
    WINDOW = 20000000           # nanoseconds of tasks, after which the waits in them are judged
    TOO_LONG = 3                # waits are, if so many times their length is more than the window
    ALONE = 10                  # so many times as long as the waits, tasks run on one thread after them
    MOST_ALONE = 500000000      # nanoseconds: doubling ends here

# Parts of the gate: workers inside (at most MOST_THREADS), whether it is closed, whether any has come, threads of the
# task, number of the task.
cdef enum:
    MOST_THREADS = 255
    INSIDE = MOST_THREADS       # the bits below CLOSED
    CLOSED = MOST_THREADS + 1
    COME = 2 * CLOSED
    THREADS = 2 * COME          # times the number of threads
    TASK = THREADS * CLOSED     # times the number of the task

cdef struct Pool:
    int64_t taken               # 1: a caller has it
    int64_t workers             # started
    int64_t gate                # of the current task
    int64_t sleeping            # workers
    task_function task
    void* argument
    pthread_mutex_t mutex
    pthread_cond_t wake
    bint ready
    int64_t spent               # nanoseconds in this window
    int64_t waited              # of them, waiting
    int64_t penalty             # nanoseconds on one thread after the last bad window; 0: there was none of late
    int64_t until               # when they end

cdef Pool POOL
cdef int64_t[MOST_THREADS + 1] FIRST_TASK       # the task in which a worker was started: the next is its first


cdef inline bint is_open(int64_t gate, int64_t thread) noexcept nogil:
    """Whether the task wants this thread, and has work left."""
    return thread < gate // THREADS % CLOSED and not gate & CLOSED


cdef void* worker(void* argument) noexcept nogil:
    cdef int64_t thread = <int64_t>argument, seen = FIRST_TASK[thread], gate, spins
    while True:
        spins = 0
        while atomic_get(&POOL.gate) // TASK == seen:
            spins += 1
            if spins < SPIN:
                spin_pause()
                continue
            pthread_mutex_lock(&POOL.mutex)
            atomic_add(&POOL.sleeping, 1)
            while atomic_get(&POOL.gate) // TASK == seen:
                pthread_cond_wait(&POOL.wake, &POOL.mutex)
            atomic_add(&POOL.sleeping, -1)
            pthread_mutex_unlock(&POOL.mutex)
        gate = atomic_get(&POOL.gate)
        while is_open(gate, thread) and not atomic_swap(&POOL.gate, gate, (gate + 1) | COME):
            gate = atomic_get(&POOL.gate)
        seen = gate // TASK
        if is_open(gate, thread):       # and now inside
            POOL.task(POOL.argument, <int>thread)
            atomic_add(&POOL.gate, -1)
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
            FIRST_TASK[POOL.workers + 1] = POOL.gate // TASK
            if pthread_create(&thread, &attributes, worker, <void*>(POOL.workers + 1)) != 0:
                break
            POOL.workers += 1
        pthread_sigmask(SIG_SETMASK, &before, NULL)
        pthread_attr_destroy(&attributes)
    return <int>(POOL.workers + 1)


cdef void parallel(task_function task, void* argument, int threads) noexcept nogil:
    """Run task(argument, id) for id 0 .. threads - 1 at once, or, where that does not pay, task(argument, 0)."""
    cdef int64_t began, waited, ended, spins
    if threads <= 1 or not atomic_swap(&POOL.taken, 0, 1):
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
    atomic_put(&POOL.gate, (POOL.gate // TASK + 1) * TASK + threads * THREADS)
    if atomic_get(&POOL.sleeping):
        pthread_mutex_lock(&POOL.mutex)
        pthread_cond_broadcast(&POOL.wake)
        pthread_mutex_unlock(&POOL.mutex)
    task(argument, 0)
    waited = nanoseconds()
    atomic_or(&POOL.gate, CLOSED)
    spins = 0
    while atomic_get(&POOL.gate) & INSIDE:
        spins += 1
        if spins < SPIN:
            spin_pause()
        else:
            sched_yield()       # the worker may be waiting for this very processor
    ended = nanoseconds()
    POOL.spent += ended - began
    POOL.waited += ended - (waited if atomic_get(&POOL.gate) & COME else began)
    if POOL.spent > WINDOW:
        if TOO_LONG * POOL.waited > POOL.spent:
            POOL.penalty = larger(ALONE * POOL.waited, smaller(MOST_ALONE, 2 * POOL.penalty))
            POOL.until = ended + POOL.penalty
        else:
            POOL.penalty //= 2
        POOL.spent = POOL.waited = 0
    atomic_put(&POOL.taken, 0)


def forget_waits():
    """Let the next tasks be shared, whatever waits there were: for tests of several threads."""
    POOL.spent = POOL.waited = POOL.penalty = POOL.until = 0
