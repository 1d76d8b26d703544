"""A wall clock that steps, for the processes of one server alone.

The machine's own clock is everybody's. So a small library, built where the run is, is loaded before the server's own
and adds an offset, which lies in a file that is mapped, to what the C library says of the wall clock. What waits until
a point of the wall clock (absolute futexes, as grpc's core has them, and conditions) waits by the stepped clock too, as
it would after `settimeofday`. Monotonic clocks are left alone, as the kernel leaves them.
"""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
from pathlib import Path
from random import Random
from typing import Final

_OFFSET: Final = struct.Struct("=q")
_VARIABLE: Final = "FITSERVE_CHAOS_CLOCK"
_STEPS_S: Final = (0.3, 5.0, 3600.0, 86_400.0, 10 * 365 * 86_400.0)
"""A correction, a bad one, summer time, a wrong day, a machine that wakes without a battery."""

_SOURCE: Final = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const int64_t SECOND = 1000000000;
static const int64_t zero = 0;
static const volatile int64_t *offset = &zero;
static int (*real_clock_gettime)(clockid_t, struct timespec *);
static int (*real_timedwait)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
static long (*real_syscall)(long, ...);

__attribute__((constructor)) static void begin(void) {
    real_clock_gettime = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    real_timedwait = (int (*)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *))
        dlsym(RTLD_NEXT, "pthread_cond_timedwait");
    real_syscall = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    const char *path = getenv("FITSERVE_CHAOS_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *mapped = mmap(0, sizeof zero, PROT_READ, MAP_SHARED, file, 0);
    if (mapped != MAP_FAILED) offset = (const volatile int64_t *)mapped;
    close(file);
}

static struct timespec moved(const struct timespec *at, int64_t by) {
    int64_t all = (int64_t)at->tv_sec * SECOND + at->tv_nsec + by;
    if (all < 0) all = 0;
    struct timespec found = {all / SECOND, all % SECOND};
    return found;
}

int clock_gettime(clockid_t clock, struct timespec *at) {
    if (!real_clock_gettime) begin();
    int code = real_clock_gettime(clock, at);
    if (!code && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) *at = moved(at, *offset);
    return code;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    (void)zone;
    struct timespec now;
    if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *into) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (into) *into = now.tv_sec;
    return now.tv_sec;
}

int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict until) {
    /* A condition on the monotonic clock has points in time far below any of the wall clock's. */
    struct timespec real = until->tv_sec > 500000000 ? moved(until, -*offset) : *until;
    return real_timedwait(condition, mutex, &real);
}

long syscall(long number, ...) {
    va_list rest;
    va_start(rest, number);
    long a = va_arg(rest, long), b = va_arg(rest, long), c = va_arg(rest, long);
    long d = va_arg(rest, long), e = va_arg(rest, long), f = va_arg(rest, long);
    va_end(rest);
    if (!real_syscall) begin();
    if (number == SYS_futex && d && (b & FUTEX_CLOCK_REALTIME)) {
        struct timespec real = moved((const struct timespec *)d, -*offset);
        return real_syscall(number, a, b, c, (long)&real, e, f);
    }
    return real_syscall(number, a, b, c, d, e, f);
}
"""


class SteppingClock:
    """The wall clock of the processes that are started with `environment`.

    Args:
        folder: Where the library and the offset are kept.

    Raises:
        FileNotFoundError: there is no C compiler.
        subprocess.CalledProcessError: it does not take the library.
    """

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc") or shutil.which("c++")
        if compiler is None:
            raise FileNotFoundError("chaos: expected a C compiler (cc or c++) on PATH, found none")
        folder.mkdir(parents=True, exist_ok=True)
        library, offset = folder / "clock.so", folder / "offset"
        command = [compiler, "-x", "c", "-std=gnu11", "-O1", "-fPIC", "-shared", "-o", str(library), "-", "-ldl"]
        subprocess.run(command, input=_SOURCE.encode(), check=True, capture_output=True)
        offset.write_bytes(_OFFSET.pack(0))
        with offset.open("r+b") as file:
            self._offset = mmap.mmap(file.fileno(), _OFFSET.size)
        self.environment = {"LD_PRELOAD": str(library), _VARIABLE: str(offset)}

    @property
    def offset_s(self) -> float:
        """How far it is from the machine's clock, seconds."""
        (offset_ns,) = _OFFSET.unpack(self._offset[:])
        return float(offset_ns) / 1e9

    def step(self, offset_s: float) -> None:
        """Sets it so far ahead of the machine's clock, or behind it."""
        self._offset[:] = _OFFSET.pack(round(offset_s * 1e9))

    def step_by_chance(self, random: Random) -> None:
        """Sets it anywhere from a third of a second to ten years ahead or behind."""
        self.step(random.choice(_STEPS_S) * random.choice((-1, 1)) * random.uniform(0.5, 1.0))
