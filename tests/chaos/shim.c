/* Preloaded into what `logweir up` starts: steps a process's clock, and delays its fsync.

   CHAOS_SHIM names a file of slots, one a process of `up` (shims.py has their order and writes
   them). Servers are told their slot by CHAOS_SLOT; a forked role is known by the name that it
   gave itself ("lw-ingest"). Only the wall clock steps: CLOCK_MONOTONIC never does. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { SLOTS = 7, UNKNOWN = -1 };
static const char *const ROLES[SLOTS] = {"",         "",         "lw-ingest",  "lw-collector",
                                         "lw-query", "lw-keeper", "lw-operator"};

struct slot {
  int64_t step_ns;
  int64_t fsync_ms;
};

static volatile struct slot *slots;
static int own = UNKNOWN;
static int is_told;

static int (*next_clock_gettime)(clockid_t, struct timespec *);
static int (*next_fsync)(int);
static int (*next_fdatasync)(int);

static void in_child(void) {
  if (!is_told) own = UNKNOWN;
}

__attribute__((constructor)) static void begin(void) {
  const char *path = getenv("CHAOS_SHIM"), *slot = getenv("CHAOS_SLOT");
  next_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
  next_fsync = dlsym(RTLD_NEXT, "fsync");
  next_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
  if (slot) own = atoi(slot), is_told = 1;
  pthread_atfork(NULL, NULL, in_child);
  int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  if (file < 0) return;
  void *found = mmap(NULL, SLOTS * sizeof(struct slot), PROT_READ, MAP_SHARED, file, 0);
  close(file);
  if (found != MAP_FAILED) slots = found;
}

static volatile struct slot *mine(void) {
  if (!slots) return NULL;
  if (own == UNKNOWN) {
    char name[16] = "";
    prctl(PR_GET_NAME, name);
    for (int i = 0; i < SLOTS; i++)
      if (*ROLES[i] && !strcmp(name, ROLES[i])) own = i;
  }
  return own == UNKNOWN ? NULL : slots + own;
}

static void delay(void) {
  volatile struct slot *slot = mine();
  int64_t ms = slot ? slot->fsync_ms : 0;
  struct timespec wait = {ms / 1000, ms % 1000 * 1000000};
  if (ms > 0) nanosleep(&wait, NULL);
}

int fsync(int file) {
  delay();
  return next_fsync(file);
}

int fdatasync(int file) {
  delay();
  return next_fdatasync(file);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  if (!next_clock_gettime) next_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
  int failed = next_clock_gettime(clock, now);
  if (failed || (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE)) return failed;
  volatile struct slot *slot = mine();
  if (!slot || !slot->step_ns) return 0;
  int64_t nanos = now->tv_sec * INT64_C(1000000000) + now->tv_nsec + slot->step_ns;
  now->tv_sec = nanos / 1000000000;
  now->tv_nsec = nanos % 1000000000;
  return 0;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  (void)zone;
  struct timespec exact;
  int failed = clock_gettime(CLOCK_REALTIME, &exact);
  now->tv_sec = exact.tv_sec;
  now->tv_usec = exact.tv_nsec / 1000;
  return failed;
}

time_t time(time_t *out) {
  struct timespec exact;
  clock_gettime(CLOCK_REALTIME, &exact);
  if (out) *out = exact.tv_sec;
  return exact.tv_sec;
}
