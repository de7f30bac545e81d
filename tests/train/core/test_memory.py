"""Memory: the counted peak of a computation against the process's, and memory kept between steps."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from tests.helpers.runs import REPO, make_environment
from train.core.memory import PeakMemory, peak_memory_bytes
from train.run.preflight import USABLE_FRACTION


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "settings", [{}, {"gradient_checkpointing": True}, {"arch": "modern", "optimizer": "muon"}], ids=str
)
def test_peak_memory_agrees_with_the_process(settings: dict[str, object]) -> None:
    """Compare the counted peak of a large pass with the growth of the process."""
    measured = (
        "import pathlib, sys; sys.path[:0] = [sys.argv[1]]\nimport torch; from train.config import Config; "
        "from train.core.memory import PeakMemory; from train.model import "
        "make_model\ntorch.set_num_threads(1); torch.manual_seed(0)\nmodel = make_model(Config(data='x', "
        f"out_dir='y', n_layer=4, n_head=2, n_embd=64, block_size=256, **{settings!r}), 20_000)\nids = "
        "torch.randint(20_000, (32, 257))\nmodel(ids[:1, :-1], ids[:1, 1:])[0].backward(); "
        "model.zero_grad()\ndef peak(): return "
        "int(pathlib.Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\nbefore = "
        "peak()\nwith PeakMemory() as memory: model(ids[:, :-1], ids[:, "
        "1:])[0].backward()\nprint(memory.peak_bytes, (peak() - before) * 1024)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", measured, str(REPO)], capture_output=True, text=True, env=make_environment(), check=True
    )
    counted, grown = map(int, done.stdout.split())
    fixed_bytes = 30e6  # of libraries, and the first holes in the heap
    assert counted > 20e6 and 0.4 * counted < grown < counted / USABLE_FRACTION + fixed_bytes


def test_peak_memory_subtracts_freed_tensors() -> None:
    with PeakMemory() as memory:
        for _ in range(10):
            tensor = torch.zeros(1000)
            tensor.view(10, 100).add_(1)
        kept = [torch.zeros(500) for _ in range(2)]
    assert len(kept) == 2 and 4000 <= memory.peak_bytes <= 8000


@pytest.mark.skipif(sys.platform == "win32", reason="reads the peak by another module")
def test_peak_memory_of_a_cpu_is_that_of_the_process() -> None:
    """It stays after memory is freed, and does not contain that of the process that started this one."""
    program = (
        "import resource, subprocess, sys; sys.path[:0] = [sys.argv[1]]\nimport torch\n"
        "from train.core.memory import peak_memory_bytes\ndef peak(): return peak_memory_bytes(torch.device('cpu'))\n"
        "before = peak(); block = torch.ones(50_000_000); del block; print(before, peak())\n"
        "if len(sys.argv) == 2: subprocess.run([sys.executable, '-c', sys.orig_argv[2], sys.argv[1], 'child'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(REPO)], capture_output=True, text=True, env=make_environment(), check=True
    )
    (before, after), (child_before, _) = (map(int, line.split()) for line in done.stdout.splitlines())
    assert 50e6 < before < 2e9 and 180e6 < after - before < 220e6
    if sys.platform == "linux":
        assert abs(child_before - before) < 50e6


def test_peak_memory_of_other_devices_is_not_known() -> None:
    assert peak_memory_bytes(torch.device("meta")) is None


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_keep_freed_memory_avoids_page_faults() -> None:
    program = (
        "import resource, sys; sys.path[:0] = [sys.argv[1]]\n"
        "import torch; from train.core.memory import keep_freed_memory\n"
        "def faults():\n"
        "    begin = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(20):\n"
        "        blocks = [torch.zeros(1 << 20) for _ in range(4)]; del blocks\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begin\n"
        "before = faults(); keep_freed_memory(); faults(); print(before, faults())"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(REPO)], env=make_environment(), capture_output=True, text=True, check=True
    )
    before, after = map(int, result.stdout.split())
    if before < 1_000:
        pytest.skip(f"{before} page faults: this allocator or huge pages keep the memory anyway")
    assert after < before / 10
