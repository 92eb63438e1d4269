"""The machine that a process runs on: its device, threads, precision and memory allocator."""

import ctypes
import gc
import platform
from pathlib import Path
from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]

# Parameters of mallopt(3), from glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4
_M_ARENA_MAX = -8


def device_name(device: torch.device) -> str:
    """The device as its maker names it, as far as it can be found out."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    # platform.processor() is empty on most Linux systems; /proc/cpuinfo is not.
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def set_threads(n: int) -> None:
    """Let torch compute with `n` threads in this process."""
    torch.set_num_threads(n)


def best_precision(device: torch.device) -> torch.dtype:
    """bfloat16 where `device` multiplies matrices in it by hardware, else float32.

    Of CPUs, those with the x86 instructions; others were not measured.
    """
    if device.type == "cuda":
        # Volta and Turing only emulate it.
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        capabilities = torch.cpu.get_capabilities()
        fast = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))
    return torch.bfloat16 if fast else torch.float32


def tune_malloc() -> None:
    """Keep freed memory in this process; elsewhere than on glibc, do nothing.

    glibc gives every freed block above 32 MiB back to the kernel at once, and most smaller ones
    soon after, so each activation of each training step would be paid for in page faults again. No
    setting raises those 32 MiB, hence no memory mappings at all: everything comes from the heap,
    which never shrinks. Threads share one heap, as their own could not hold blocks of this size.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    for parameter, value in (
        (_M_MMAP_MAX, 0),
        (_M_TRIM_THRESHOLD, -1),  # never
        (_M_TOP_PAD, 64 * 2**20),  # the heap grows by this much more than is asked for, bytes
        (_M_ARENA_MAX, 1),
    ):
        mallopt(parameter, value)


def trim_malloc() -> None:
    """Give the memory that is free in this process back to the system; on glibc alone.

    After `tune_malloc` nothing else does, and the heap of a process that does many jobs would grow
    with each.
    """
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
