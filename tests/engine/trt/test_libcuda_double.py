"""The libcuda double refuses what a driver would refuse, and counts what is left behind."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.doubles.child import Child
    from tests.engine.trt.conftest import CudaReport


def test_whatever_needs_a_context_is_refused_in_a_thread_without_one(child: Child) -> None:
    told = child.run("""
cuda.init()
context = cuda.Device(0).retain_primary_context()
calls = {
    "memory": lambda: cuda.mem_alloc(8),
    "pinned": lambda: cuda.pagelocked_empty(8, np.uint8),
    "stream": cuda.Stream,
    "event": cuda.Event,
    "copy": lambda: cuda.memcpy_htod(0, np.zeros(8)),
    "wait": cuda.Context.synchronize,
}
context.push()
elsewhere = {}
def work():
    elsewhere.update({name: error_of(call) for name, call in calls.items()})
thread = threading.Thread(target=work)
thread.start(); thread.join()
here = {name: error_of(call) for name, call in calls.items() if name != "copy"}
cuda.Context.pop()
context.detach()
tell([elsewhere, here])
""")
    elsewhere, here = told
    assert len(elsewhere) == 6
    assert all("invalid device context" in error for error in elsewhere.values())
    assert set(here.values()) == {""}


PUSHED = "cuda.init(); context = cuda.Device(0).retain_primary_context(); context.push()\n"
RELEASED = "\ncuda.Context.pop(); context.detach()\n"


def test_queued_copies_are_done_no_earlier_than_something_waits_for_them(child: Child) -> None:
    code = """
stream, memory = cuda.Stream(), cuda.mem_alloc(4)
there, back = cuda.pagelocked_empty(4, np.uint8), cuda.pagelocked_empty(4, np.uint8)
there[:] = 7
cuda.memcpy_htod_async(memory, there, stream)
cuda.memcpy_dtoh_async(back, memory, stream)
before = back.tolist()
there[:] = 9
WAIT
tell([before, back.tolist()])
"""
    ways = ["stream.synchronize()", "memory.free()", "cuda.Context.synchronize()"]
    told = [child.run(PUSHED + code.replace("WAIT", one)) for one in ways]
    assert told == [[[0xA5] * 4, [9] * 4]] * 3  # read when they are done, not when queued


def test_addresses_outside_live_allocations_are_refused(child: Child) -> None:
    told = child.run(
        PUSHED
        + """
memory = cuda.mem_alloc(8)
freed = cuda.mem_alloc(8)
address = int(freed)
freed.free()
content = np.zeros(8, np.uint8)
tell([
    error_of(cuda.memcpy_htod, int(memory), content),
    error_of(cuda.memcpy_htod, int(memory) + 1, content),
    error_of(cuda.memcpy_htod, address, content),
    error_of(cuda.memcpy_dtoh, content, content.ctypes.data),
    error_of(cuda.memset_d8, int(memory), 1, 9),
])
"""
    )
    assert told[0] == ""
    assert all("invalid argument" in error for error in told[1:])


def test_device_memory_ends_where_it_is_set_to_end(child: Child) -> None:
    told = child.run(
        PUSHED
        + """
first = cuda.mem_alloc(600)
full = error_of(cuda.mem_alloc, 401)
first.free()
tell([full, error_of(cuda.mem_alloc, 1000), cuda.mem_get_info(), report()["peak_device_bytes"]])
""",
        memory=1000,
    )
    assert told[0] == "MemoryError: cuMemAlloc failed: out of memory"
    assert told[1:3] == ["", [1000, 1000]]
    assert told[3] == 1000


def test_the_device_is_what_the_settings_say(child: Child) -> None:
    ask = """
cuda.init()
device = cuda.Device(0)
integrated = device.get_attribute(cuda.device_attribute.INTEGRATED)
tell([device.name(), device.compute_capability(), integrated, device.total_memory()])
"""
    assert child.run(ask) == ["Double of a GPU", [8, 7], 0, 8 << 30]
    settings: dict[str, str | int] = {"name": "Orin", "capability": "7.2", "integrated": 1}
    assert child.run(ask, **settings, memory=1 << 20) == ["Orin", [7, 2], 1, 1 << 20]
    assert "no CUDA-capable device" in child.run("tell(error_of(cuda.init))", devices=0)


def test_only_mapped_pinned_memory_has_an_address_on_the_device(child: Child) -> None:
    told = child.run(
        PUSHED
        + """
flags = cuda.host_alloc_flags.DEVICEMAP
mapped = cuda.pagelocked_empty(4, np.uint8, mem_flags=flags)
plain = cuda.pagelocked_empty(4, np.uint8)
cuda.memset_d8(mapped.base.get_device_pointer(), 3, 4)
tell([mapped.tolist(), error_of(plain.base.get_device_pointer)])
"""
    )
    assert told[0] == [3, 3, 3, 3]
    assert "invalid argument" in told[1]


def test_what_the_double_does_not_do_says_so(child: Child) -> None:
    told = child.run(PUSHED + 'tell(error_of(cuda.module_from_buffer, b"code"))')
    assert "operation not supported" in told


def test_the_report_tells_what_was_left_behind(child: Child, cuda_report: CudaReport) -> None:
    child.run(PUSHED + "kept = [cuda.mem_alloc(8), cuda.Stream()]; tell(0); os._exit(0)")
    assert cuda_report() == []  # a process that is cut off reports nothing
    child.run(
        "lib = ctypes.CDLL('libcuda.so.1'); context = ctypes.c_void_p()\n"
        "lib.cuInit(0); lib.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)\n"
        "lib.cuCtxPushCurrent_v2(context)\n"
        "memory, stream = ctypes.c_uint64(), ctypes.c_void_p()\n"
        "lib.cuMemAlloc_v2(ctypes.byref(memory), ctypes.c_size_t(8))\n"
        "lib.cuStreamCreate(ctypes.byref(stream), 0); tell(0)"
    )
    (left,) = cuda_report()
    assert (left["live_allocations"], left["live_streams"], left["retains"]) == (1, 1, 1)


def test_what_lives_when_the_context_is_released_is_counted_as_lost(child: Child) -> None:
    code = PUSHED + "memory = cuda.mem_alloc(8)\nFREE\n" + RELEASED + "tell(report())"
    freed = child.run(code.replace("FREE", "memory.free()"))
    kept = child.run(code.replace("FREE", "address = int(memory)"))
    assert (freed["lost_with_context"], freed["live_allocations"], freed["retains"]) == (0, 0, 0)
    assert (kept["lost_with_context"], kept["live_allocations"], kept["retains"]) == (1, 0, 0)


def test_a_thread_that_ends_with_a_context_is_counted_and_with_pycuda_ends_the_process(
    child: Child,
) -> None:
    counted = child.run("""
lib = ctypes.CDLL("libcuda.so.1")
context = ctypes.c_void_p()
lib.cuInit(0)
lib.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
for pop in (True, False):
    def work():
        lib.cuCtxPushCurrent_v2(context)
        pop and lib.cuCtxPopCurrent_v2(None)
    thread = threading.Thread(target=work)
    thread.start(); thread.join()
tell(report()["threads_ended_with_context"])
""")
    assert counted == 1
    ended = child.end("""
cuda.init()
context = cuda.Device(0).retain_primary_context()
thread = threading.Thread(target=context.push)
thread.start(); thread.join()
""")
    assert ended.returncode == -signal.SIGABRT
    assert "context stack was not empty" in ended.stderr
