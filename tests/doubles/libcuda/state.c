/* Contexts, what is allocated, what is queued, and the report. */
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "state.h"

#define STACK 64
#define GARBAGE 0xA5

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_key_t at_thread_end;
static __thread CUcontext stack[STACK];
static __thread int depth;

static struct { int primary; } only; /* the one context is the primary one: its address */
#define PRIMARY ((CUcontext)&only)

int initialised;
static Block *blocks;
static Stream legacy;
Stream *streams;
Event *events;
static CUresult broken; /* a failed launch: every later call answers this, as with a real context */
static struct {
    size_t device_bytes, peak_device_bytes;
    long without_context, lost_with_context, threads_ended_with_context;
} seen;

long long setting(const char *name, long long otherwise) {
    const char *text = getenv(name);
    return text && *text ? atoll(text) : otherwise;
}

void capability(int *major, int *minor) {
    const char *text = getenv("ICECAM_CUDA_DOUBLE_CAPABILITY");
    if (!text || sscanf(text, "%d.%d", major, minor) != 2) {
        *major = 8;
        *minor = 7;
    }
}

size_t memory(void) { return (size_t)setting("ICECAM_CUDA_DOUBLE_MEMORY", 8LL << 30); }

size_t memory_used(void) { return seen.device_bytes; }

CUresult enter(void) {
    if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;
    pthread_mutex_lock(&lock);
    CUresult answer = CUDA_SUCCESS;
    if (!depth) {
        seen.without_context++;
        answer = CUDA_ERROR_INVALID_CONTEXT;
    } else if (!only.primary) {
        answer = CUDA_ERROR_CONTEXT_IS_DESTROYED;
    } else {
        answer = broken;
    }
    if (answer) pthread_mutex_unlock(&lock);
    return answer;
}

CUresult leave(CUresult answer) {
    pthread_mutex_unlock(&lock);
    return answer;
}

Block *block_at(const void *address, size_t bytes) {
    for (Block *block = blocks; block; block = block->next) {
        const char *start = address;
        if (start >= block->base && start + bytes <= block->base + block->bytes) return block;
    }
    return NULL;
}

int on_device(CUdeviceptr address, size_t bytes) {
    Block *block = block_at((void *)address, bytes);
    return block && (block->kind == DEVICE || block->flags & CU_MEMHOSTALLOC_DEVICEMAP);
}

Stream *stream_of(CUstream handle) {
    if (!handle || handle == CU_STREAM_LEGACY) return &legacy;
    for (Stream *stream = streams; stream; stream = stream->next)
        if (stream == (Stream *)handle) return stream;
    return NULL;
}

static CUresult perform(const Work *work) {
    switch (work->kind) {
    case COPY: memmove(work->to, work->from, work->bytes); break;
    case FILL8: memset(work->to, (int)work->value, work->bytes); break;
    case FILL32: for (size_t i = 0; i < work->bytes / 4; i++) ((unsigned *)work->to)[i] = work->value; break;
    case FAIL: return broken = (CUresult)work->value;
    }
    return CUDA_SUCCESS;
}

CUresult finish(Stream *stream) {
    while (stream->first) {
        Work *work = stream->first;
        stream->first = work->next;
        if (!broken) perform(work);
        free(work);
    }
    stream->last = &stream->first;
    return broken;
}

/* The legacy stream waits for all streams that were not made CU_STREAM_NON_BLOCKING. */
static CUresult finish_blocking(void) {
    finish(&legacy);
    for (Stream *stream = streams; stream; stream = stream->next)
        if (!(stream->flags & CU_STREAM_NON_BLOCKING)) finish(stream);
    return broken;
}

CUresult finish_all(void) {
    finish(&legacy);
    for (Stream *stream = streams; stream; stream = stream->next) finish(stream);
    return broken;
}

CUresult wait_for(Stream *stream) {
    return stream == &legacy ? finish_blocking() : finish(stream);
}

CUresult queue(CUstream handle, const Work *asked, int staged) {
    Stream *stream = stream_of(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    Work *work = malloc(sizeof *work + (staged ? asked->bytes : 0));
    if (!work) return CUDA_ERROR_OUT_OF_MEMORY;
    *work = *asked;
    work->next = NULL;
    if (staged) work->from = memcpy(work->staged, asked->from, asked->bytes);
    if (!stream->last) stream->last = &stream->first;
    *stream->last = work;
    stream->last = &work->next;
    return stream == &legacy ? finish_blocking() : CUDA_SUCCESS;
}

CUresult add_block(void *base, size_t bytes, BlockKind kind, unsigned flags) {
    Block *block = malloc(sizeof *block);
    if (!block) return CUDA_ERROR_OUT_OF_MEMORY;
    *block = (Block){.next = blocks, .base = base, .bytes = bytes, .kind = kind, .flags = flags};
    blocks = block;
    if (kind == DEVICE) seen.device_bytes += bytes;
    if (seen.device_bytes > seen.peak_device_bytes) seen.peak_device_bytes = seen.device_bytes;
    return CUDA_SUCCESS;
}

CUresult allocate(void **to, size_t bytes, BlockKind kind, unsigned flags) {
    if (!to || !bytes) return CUDA_ERROR_INVALID_VALUE;
    if (kind == DEVICE && (bytes > memory() || seen.device_bytes > memory() - bytes))
        return CUDA_ERROR_OUT_OF_MEMORY;
    if (posix_memalign(to, 256, bytes)) return CUDA_ERROR_OUT_OF_MEMORY;
    memset(*to, GARBAGE, bytes);
    return add_block(*to, bytes, kind, flags);
}

CUresult drop_block(const void *base, BlockKind kind, CUresult unknown) {
    for (Block **link = &blocks; *link; link = &(*link)->next) {
        Block *block = *link;
        if (block->base != base || block->kind != kind) continue;
        *link = block->next;
        if (kind == DEVICE) seen.device_bytes -= block->bytes;
        if (kind != REGISTERED) free(block->base);
        free(block);
        return CUDA_SUCCESS;
    }
    return unknown;
}

static long count_blocks(BlockKind kind) {
    long count = 0;
    for (Block *block = blocks; block; block = block->next) count += block->kind == kind;
    return count;
}

static long count_streams(void) {
    long count = 0;
    for (Stream *stream = streams; stream; stream = stream->next) count++;
    return count;
}

static long count_events(void) {
    long count = 0;
    for (Event *event = events; event; event = event->next) count++;
    return count;
}

/* The last release destroys the context, and what was made in it. */
static void destroy_primary(void) {
    finish_all();
    while (blocks) {
        seen.lost_with_context++;
        drop_block(blocks->base, blocks->kind, CUDA_SUCCESS);
    }
    for (Stream *stream; (stream = streams); free(stream)) {
        seen.lost_with_context++;
        streams = stream->next;
    }
    for (Event *event; (event = events); free(event)) events = event->next;
    broken = CUDA_SUCCESS;
}

/* Contexts. */

/* A dead context left on the stack harms nobody: pycuda's detach leaves one. */
static void thread_ended(void *pushed) {
    (void)pushed;
    pthread_mutex_lock(&lock);
    if (depth && only.primary) seen.threads_ended_with_context++;
    pthread_mutex_unlock(&lock);
}

static void first_init(void) { pthread_key_create(&at_thread_end, thread_ended); }

CUresult cuInit(unsigned flags) {
    (void)flags;
    if (setting("ICECAM_CUDA_DOUBLE_DEVICES", 1) < 1) return CUDA_ERROR_NO_DEVICE;
    pthread_once(&once, first_init);
    initialised = 1;
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;
    if (device) return CUDA_ERROR_INVALID_DEVICE;
    pthread_mutex_lock(&lock);
    only.primary++;
    *context = PRIMARY;
    return leave(CUDA_SUCCESS);
}

CUresult cuDevicePrimaryCtxRelease(CUdevice device) {
    if (device) return CUDA_ERROR_INVALID_DEVICE;
    pthread_mutex_lock(&lock);
    if (!only.primary) return leave(CUDA_ERROR_INVALID_CONTEXT);
    if (!--only.primary) destroy_primary();
    return leave(CUDA_SUCCESS);
}

CUresult cuCtxPushCurrent(CUcontext context) {
    if (context != PRIMARY || !only.primary) return CUDA_ERROR_INVALID_CONTEXT;
    if (depth == STACK) return CUDA_ERROR_INVALID_VALUE;
    stack[depth++] = context;
    pthread_setspecific(at_thread_end, stack);
    return CUDA_SUCCESS;
}

CUresult cuCtxPopCurrent(CUcontext *context) {
    if (!depth) return CUDA_ERROR_INVALID_CONTEXT;
    depth--;
    if (context) *context = stack[depth];
    return CUDA_SUCCESS;
}

/* Real CUDA detaches no primary context: it is released. */
CUresult cuCtxDetach(CUcontext context) { (void)context; return CUDA_ERROR_INVALID_CONTEXT; }

/* The report. */

/* Writes the counts as JSON; returns the length, as snprintf does. */
int cuda_double_report(char *text, size_t size) {
    pthread_mutex_lock(&lock);
    int length = snprintf(
        text, size,
        "{\"pid\": %d, \"live_allocations\": %ld, \"live_pinned\": %ld, \"live_registered\": %ld, "
        "\"live_streams\": %ld, \"live_events\": %ld, \"retains\": %d, \"device_bytes\": %zu, "
        "\"peak_device_bytes\": %zu, \"calls_without_context\": %ld, \"lost_with_context\": %ld, "
        "\"threads_ended_with_context\": %ld, \"pushed_in_this_thread\": %d}\n",
        (int)getpid(), count_blocks(DEVICE), count_blocks(PINNED), count_blocks(REGISTERED),
        count_streams(), count_events(), only.primary, seen.device_bytes, seen.peak_device_bytes,
        seen.without_context, seen.lost_with_context, seen.threads_ended_with_context, depth);
    pthread_mutex_unlock(&lock);
    return length;
}

__attribute__((destructor)) static void at_exit(void) {
    const char *path = getenv("ICECAM_CUDA_DOUBLE_REPORT");
    if (!initialised || !path || !*path) return;
    char line[1024];
    int length = cuda_double_report(line, sizeof line);
    int file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (file < 0 || write(file, line, (size_t)length) != length) perror(path);
    if (file >= 0) close(file);
}

/* What the TensorRT double asks. */

int cuda_double_has_context(void) { return depth > 0 && only.primary > 0; }

int cuda_double_stream_is_live(CUstream handle) {
    pthread_mutex_lock(&lock);
    int live = stream_of(handle) != NULL;
    pthread_mutex_unlock(&lock);
    return live;
}

/* Bytes from an address to the end of the device-accessible allocation it lies in; 0: in none. */
size_t cuda_double_bytes_from(CUdeviceptr address) {
    pthread_mutex_lock(&lock);
    Block *block = on_device(address, 1) ? block_at((void *)address, 1) : NULL;
    size_t bytes = block ? (size_t)(block->base + block->bytes - (char *)address) : 0;
    pthread_mutex_unlock(&lock);
    return bytes;
}

/* Queues work that fails with an error code; from then on the context is broken. */
CUresult cuda_double_fail(CUstream handle, CUresult code) {
    SUCCEED(enter());
    Work work = {.kind = FAIL, .value = (unsigned)code};
    return leave(queue(handle, &work, 0));
}
