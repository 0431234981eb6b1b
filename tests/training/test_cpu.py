"""Memory that training frees is used again without the system's help."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import resource, sys
import torch
from training.engine.cpu import keep_freed_memory, prepare_cpu

if sys.argv[1] == "kept":
    prepare_cpu(1)
    assert torch.get_num_threads() == 1
    assert keep_freed_memory()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def use():
    parts = [torch.ones(1 << 24) for _ in range(4)]  # 64 MiB each
    return sum(float(part[0]) for part in parts)

for _ in range(5):
    use()
before = faults()
for _ in range(5):
    use()
print(faults() - before)
"""


def faults(mode: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, mode], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_freed_memory_is_kept() -> None:
    """64 MiB are 16,384 pages, or 32 large ones: of 20 tensors next to none is handed out anew."""
    assert faults("kept") < 32
    assert faults("given back") > 20 * 16
