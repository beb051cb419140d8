/* The libcuda double: a libcuda.so.1 in host memory, for real pycuda on a machine without a GPU.
 *
 * Contexts, memory, streams and events only; preparation adds every other symbol that pycuda asks
 * for as a stub that answers CUDA_ERROR_NOT_SUPPORTED. Stricter than a GPU wherever a GPU would
 * hide a mistake: fresh memory holds garbage, addresses must lie in live allocations, and work
 * queued on a stream is done no earlier than something waits for it. Work that the driver does at
 * once (copies from or to pageable memory) is done at once here too.
 *
 * Settings, from the environment:
 *   ICECAM_CUDA_DOUBLE_DEVICES     0: no device (default 1)
 *   ICECAM_CUDA_DOUBLE_MEMORY      device memory in bytes (default 8 GiB)
 *   ICECAM_CUDA_DOUBLE_CAPABILITY  default 8.7
 *   ICECAM_CUDA_DOUBLE_NAME        default "Double of a GPU"
 *   ICECAM_CUDA_DOUBLE_INTEGRATED  1: shares memory with the host, as a Jetson's does
 *   ICECAM_CUDA_DOUBLE_REPORT      file to which a process that used it appends one JSON line
 */
#pragma once
#include <cuda.h>
#include <stddef.h>

#define SUCCEED(call) do { CUresult result_ = (call); if (result_) return result_; } while (0)

#pragma GCC visibility push(hidden)

typedef enum { DEVICE, PINNED, REGISTERED } BlockKind;

typedef struct Block {
    struct Block *next;
    char *base;
    size_t bytes;
    BlockKind kind;
    unsigned flags; /* of cuMemHostAlloc or cuMemHostRegister */
} Block;

typedef struct Work {
    struct Work *next;
    enum { COPY, FILL8, FILL32, FAIL } kind;
    char *to;
    const char *from;
    size_t bytes;
    unsigned value;
    char staged[]; /* what was in pageable memory when the work was queued */
} Work;

typedef struct Stream {
    struct Stream *next;
    unsigned flags;
    Work *first, **last;
} Stream;

typedef struct Event {
    struct Event *next;
    Stream *stream;
} Event;

extern int initialised;
long long setting(const char *name, long long otherwise);
void capability(int *major, int *minor);
size_t memory(void);
size_t memory_used(void);

/* What a call needs before it may do anything; takes the lock where it answers success. */
CUresult enter(void);
CUresult leave(CUresult answer);

/* Under the lock: */
extern Stream *streams;
extern Event *events;
Block *block_at(const void *address, size_t bytes);
int on_device(CUdeviceptr address, size_t bytes);
CUresult allocate(void **to, size_t bytes, BlockKind kind, unsigned flags);
CUresult add_block(void *base, size_t bytes, BlockKind kind, unsigned flags);
CUresult drop_block(const void *base, BlockKind kind, CUresult unknown);
Stream *stream_of(CUstream handle);
CUresult queue(CUstream handle, const Work *asked, int staged);
CUresult finish(Stream *stream);
CUresult finish_all(void);
CUresult wait_for(Stream *stream);

#pragma GCC visibility pop
