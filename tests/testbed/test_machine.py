"""What is found out about, and asked of, the machine."""

import platform
import subprocess
import sys

import pytest
import torch

from testbed.machine import best_precision, set_threads

COUNT_PAGE_FAULTS = """
import resource, sys, threading
import torch
from testbed.machine import set_threads, tune_malloc

def page_faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def work():
    for step in range(20):
        if step == 10:  # the heap has its size by now
            before = page_faults()
        torch.ones(12 * 2**20)  # 48 MiB: glibc by itself gives that back to the kernel
    print(page_faults() - before)

set_threads(1)
if "tune" in sys.argv:
    tune_malloc()
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


RESIDENT = """
import torch
from testbed.machine import trim_malloc, tune_malloc

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

tune_malloc()
first = resident()
freed, kept = [], []
for _ in range(200):  # what is kept lies between what is freed, and holds the heap's end
    freed.append(torch.ones(2**18))
    kept.append(torch.ones(2**10))
full = resident()
freed.clear()
cleared = resident()
trim_malloc()
print(full - first, cleared - first, resident() - first)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="trim_malloc is for glibc")
def test_free_memory_between_what_is_kept_is_given_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", RESIDENT], capture_output=True, text=True, check=True
    )
    full, cleared, trimmed = (int(each) / 2**20 for each in done.stdout.split())
    assert full > 190 and cleared > 190  # MiB, of 200
    assert trimmed < 40


def page_faults(*arguments: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", COUNT_PAGE_FAULTS, *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="tune_malloc is for glibc")
def test_freed_memory_is_used_again_without_page_faults_in_any_thread() -> None:
    pages = 10 * 48 * 2**20 // 4096
    untuned = page_faults()
    assert untuned > pages / 1000  # huge pages would make them few, but not none
    assert page_faults("tune") < pages / 1000


def test_the_number_of_threads_is_torchs() -> None:
    before = torch.get_num_threads()
    try:
        set_threads(1)
        assert torch.get_num_threads() == 1
    finally:
        set_threads(before)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True, "avx512_bf16": False}, torch.bfloat16),
        ({"avx2": True, "avx512_bf16": False}, torch.float32),
    ],
)
def test_cpus_compute_in_bfloat16_only_where_they_multiply_in_it(
    capabilities: dict[str, bool], expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert best_precision(torch.device("cpu")) is expected


def test_gpus_compute_in_bfloat16_from_ampere_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for capability, expected in {(7, 5): torch.float32, (8, 0): torch.bfloat16}.items():
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert best_precision(torch.device("cuda", 0)) is expected
