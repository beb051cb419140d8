/* The driver's API: devices, memory, copies, streams, events. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "state.h"

CUresult cuDriverGetVersion(int *version) { *version = CUDA_VERSION; return CUDA_SUCCESS; }

CUresult cuGetErrorString(CUresult error, const char **text) {
    switch ((int)error) {
    case CUDA_SUCCESS: *text = "no error"; break;
    case CUDA_ERROR_INVALID_VALUE: *text = "invalid argument"; break;
    case CUDA_ERROR_OUT_OF_MEMORY: *text = "out of memory"; break;
    case CUDA_ERROR_NOT_INITIALIZED: *text = "initialization error"; break;
    case CUDA_ERROR_NO_DEVICE: *text = "no CUDA-capable device is detected"; break;
    case CUDA_ERROR_INVALID_DEVICE: *text = "invalid device ordinal"; break;
    case CUDA_ERROR_INVALID_CONTEXT: *text = "invalid device context"; break;
    case CUDA_ERROR_INVALID_HANDLE: *text = "invalid resource handle"; break;
    case CUDA_ERROR_ILLEGAL_ADDRESS: *text = "an illegal memory access was encountered"; break;
    case CUDA_ERROR_CONTEXT_IS_DESTROYED: *text = "context is destroyed"; break;
    case CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED: *text = "part or all of the requested memory range is already mapped"; break;
    case CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED: *text = "pointer does not correspond to a registered memory region"; break;
    case CUDA_ERROR_LAUNCH_FAILED: *text = "unspecified launch failure"; break;
    case CUDA_ERROR_NOT_SUPPORTED: *text = "operation not supported"; break;
    default: *text = "unknown error"; break;
    }
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int *count) {
    if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;
    *count = 1;
    return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    if (!initialised) return CUDA_ERROR_NOT_INITIALIZED;
    *device = ordinal;
    return ordinal ? CUDA_ERROR_INVALID_DEVICE : CUDA_SUCCESS;
}

CUresult cuDeviceGetName(char *name, int length, CUdevice device) {
    const char *text = getenv("ICECAM_CUDA_DOUBLE_NAME");
    snprintf(name, (size_t)length, "%s", text && *text ? text : "Double of a GPU");
    return device ? CUDA_ERROR_INVALID_DEVICE : CUDA_SUCCESS;
}

CUresult cuDeviceComputeCapability(int *major, int *minor, CUdevice device) {
    capability(major, minor);
    return device ? CUDA_ERROR_INVALID_DEVICE : CUDA_SUCCESS;
}

CUresult cuDeviceTotalMem(size_t *bytes, CUdevice device) {
    *bytes = memory();
    return device ? CUDA_ERROR_INVALID_DEVICE : CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    int major, minor;
    capability(&major, &minor);
    switch ((int)attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = major; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = minor; break;
    case CU_DEVICE_ATTRIBUTE_INTEGRATED: *value = setting("ICECAM_CUDA_DOUBLE_INTEGRATED", 0) != 0; break;
    case CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY: *value = 1; break;
    case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING: *value = 1; break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 8; break;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
    default: *value = 0; break;
    }
    return device ? CUDA_ERROR_INVALID_DEVICE : CUDA_SUCCESS;
}

CUresult cuCtxGetDevice(CUdevice *device) { SUCCEED(enter()); *device = 0; return leave(CUDA_SUCCESS); }
CUresult cuCtxSynchronize(void) { SUCCEED(enter()); return leave(finish_all()); }

CUresult cuCtxGetApiVersion(CUcontext context, unsigned *version) {
    (void)context;
    *version = 3020;
    return CUDA_SUCCESS;
}

CUresult cuMemGetInfo(size_t *available, size_t *total) {
    SUCCEED(enter());
    *total = memory();
    *available = *total - memory_used();
    return leave(CUDA_SUCCESS);
}

CUresult cuMemAlloc(CUdeviceptr *address, size_t bytes) {
    SUCCEED(enter());
    return leave(allocate((void **)address, bytes, DEVICE, 0));
}

CUresult cuMemFree(CUdeviceptr address) {
    SUCCEED(enter());
    finish_all();
    return leave(drop_block((void *)address, DEVICE, CUDA_ERROR_INVALID_VALUE));
}

CUresult cuMemHostAlloc(void **address, size_t bytes, unsigned flags) {
    SUCCEED(enter());
    return leave(allocate(address, bytes, PINNED, flags));
}

CUresult cuMemFreeHost(void *address) {
    SUCCEED(enter());
    finish_all();
    return leave(drop_block(address, PINNED, CUDA_ERROR_INVALID_VALUE));
}

CUresult cuMemHostRegister(void *address, size_t bytes, unsigned flags) {
    SUCCEED(enter());
    if (!bytes) return leave(CUDA_ERROR_INVALID_VALUE);
    if (block_at(address, 1)) return leave(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
    return leave(add_block(address, bytes, REGISTERED, flags));
}

CUresult cuMemHostUnregister(void *address) {
    SUCCEED(enter());
    finish_all();
    return leave(drop_block(address, REGISTERED, CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED));
}

CUresult cuMemHostGetDevicePointer(CUdeviceptr *device, void *address, unsigned flags) {
    SUCCEED(enter());
    *device = (CUdeviceptr)address;
    return leave(on_device(*device, 1) && !flags ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE);
}

CUresult cuMemHostGetFlags(unsigned *flags, void *address) {
    SUCCEED(enter());
    Block *block = block_at(address, 1);
    if (block) *flags = block->flags;
    return leave(block ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE);
}

static int pageable(const void *address, size_t bytes) { return !block_at(address, bytes); }

/* Copies and fills: ``now`` for the calls without a stream, which wait for the work. */
static CUresult copy(void *to, const void *from, size_t bytes, CUstream stream, int now) {
    Work work = {.kind = COPY, .to = to, .from = from, .bytes = bytes};
    SUCCEED(queue(stream, &work, pageable(from, bytes)));
    return now || pageable(to, bytes) ? wait_for(stream_of(stream)) : CUDA_SUCCESS;
}

static CUresult fill(CUdeviceptr to, int kind, unsigned value, size_t bytes, CUstream stream, int now) {
    SUCCEED(enter());
    if (!on_device(to, bytes)) return leave(CUDA_ERROR_INVALID_VALUE);
    Work work = {.kind = kind, .to = (char *)to, .bytes = bytes, .value = value};
    CUresult answer = queue(stream, &work, 0);
    return leave(answer || !now ? answer : wait_for(stream_of(stream)));
}

static CUresult to_device(CUdeviceptr to, const void *from, size_t bytes, CUstream stream, int now) {
    SUCCEED(enter());
    if (!on_device(to, bytes)) return leave(CUDA_ERROR_INVALID_VALUE);
    return leave(copy((void *)to, from, bytes, stream, now));
}

static CUresult to_host(void *to, CUdeviceptr from, size_t bytes, CUstream stream, int now) {
    SUCCEED(enter());
    if (!on_device(from, bytes)) return leave(CUDA_ERROR_INVALID_VALUE);
    return leave(copy(to, (void *)from, bytes, stream, now));
}

static CUresult within(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream, int now) {
    SUCCEED(enter());
    if (!on_device(to, bytes) || !on_device(from, bytes)) return leave(CUDA_ERROR_INVALID_VALUE);
    return leave(copy((void *)to, (void *)from, bytes, stream, now));
}

CUresult cuMemcpyHtoD(CUdeviceptr to, const void *from, size_t n) { return to_device(to, from, n, NULL, 1); }
CUresult cuMemcpyDtoH(void *to, CUdeviceptr from, size_t n) { return to_host(to, from, n, NULL, 1); }
CUresult cuMemcpyDtoD(CUdeviceptr to, CUdeviceptr from, size_t n) { return within(to, from, n, NULL, 1); }
CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void *from, size_t n, CUstream s) { return to_device(to, from, n, s, 0); }
CUresult cuMemcpyDtoHAsync(void *to, CUdeviceptr from, size_t n, CUstream s) { return to_host(to, from, n, s, 0); }
CUresult cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t n, CUstream s) { return within(to, from, n, s, 0); }
CUresult cuMemsetD8(CUdeviceptr to, unsigned char v, size_t n) { return fill(to, FILL8, v, n, NULL, 1); }
CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char v, size_t n, CUstream s) { return fill(to, FILL8, v, n, s, 0); }
CUresult cuMemsetD32(CUdeviceptr to, unsigned v, size_t n) { return fill(to, FILL32, v, 4 * n, NULL, 1); }
CUresult cuMemsetD32Async(CUdeviceptr to, unsigned v, size_t n, CUstream s) { return fill(to, FILL32, v, 4 * n, s, 0); }

CUresult cuStreamCreate(CUstream *handle, unsigned flags) {
    SUCCEED(enter());
    Stream *stream = calloc(1, sizeof *stream);
    if (!stream) return leave(CUDA_ERROR_OUT_OF_MEMORY);
    stream->next = streams;
    stream->flags = flags;
    *handle = (CUstream)(streams = stream);
    return leave(CUDA_SUCCESS);
}

CUresult cuStreamDestroy(CUstream handle) {
    SUCCEED(enter());
    for (Stream **link = &streams; *link; link = &(*link)->next) {
        Stream *stream = *link;
        if (stream != (Stream *)handle) continue;
        finish(stream);
        *link = stream->next;
        free(stream);
        return leave(CUDA_SUCCESS);
    }
    return leave(CUDA_ERROR_INVALID_HANDLE);
}

CUresult cuStreamSynchronize(CUstream handle) {
    SUCCEED(enter());
    Stream *stream = stream_of(handle);
    return leave(stream ? wait_for(stream) : CUDA_ERROR_INVALID_HANDLE);
}

CUresult cuStreamQuery(CUstream handle) { return cuStreamSynchronize(handle); }

CUresult cuEventCreate(CUevent *handle, unsigned flags) {
    (void)flags;
    SUCCEED(enter());
    Event *event = calloc(1, sizeof *event);
    if (!event) return leave(CUDA_ERROR_OUT_OF_MEMORY);
    event->next = events;
    *handle = (CUevent)(events = event);
    return leave(CUDA_SUCCESS);
}

static Event **event_of(CUevent handle) {
    Event **link = &events;
    while (*link && *link != (Event *)handle) link = &(*link)->next;
    return link;
}

CUresult cuEventDestroy(CUevent handle) {
    SUCCEED(enter());
    Event **link = event_of(handle), *event = *link;
    if (!event) return leave(CUDA_ERROR_INVALID_HANDLE);
    *link = event->next;
    free(event);
    return leave(CUDA_SUCCESS);
}

CUresult cuEventRecord(CUevent handle, CUstream on) {
    SUCCEED(enter());
    Event *event = *event_of(handle);
    Stream *stream = stream_of(on);
    if (!event || !stream) return leave(CUDA_ERROR_INVALID_HANDLE);
    event->stream = stream;
    return leave(CUDA_SUCCESS);
}

/* Does at least what the event waits for. */
CUresult cuEventSynchronize(CUevent handle) {
    SUCCEED(enter());
    Event *event = *event_of(handle);
    if (!event) return leave(CUDA_ERROR_INVALID_HANDLE);
    return leave(event->stream ? finish_all() : CUDA_SUCCESS);
}

CUresult cuEventQuery(CUevent handle) { return cuEventSynchronize(handle); }

CUresult cuStreamWaitEvent(CUstream handle, CUevent event, unsigned flags) {
    (void)flags;
    SUCCEED(cuEventSynchronize(event));
    SUCCEED(enter());
    return leave(stream_of(handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE);
}

CUresult cuEventElapsedTime(float *milliseconds, CUevent start, CUevent end) {
    SUCCEED(cuEventSynchronize(start));
    *milliseconds = 0.1F;
    return cuEventSynchronize(end);
}
