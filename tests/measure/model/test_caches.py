"""The caches of the plugin, on examples that can be counted by hand; count.c without an emulator."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

import tvmops.measure.model

PLUGIN = Path(tvmops.measure.model.__file__).with_name("count.c")
HARNESS = f"""
#include "{PLUGIN}"

void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id, void (*f)(plugin_id, struct qemu_plugin_tb *)) {{}}
void qemu_plugin_register_vcpu_syscall_cb(
    plugin_id id, void (*f)(plugin_id, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                            uint64_t, uint64_t, uint64_t)) {{}}
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb) {{ return 0; }}
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *tb) {{ return 0; }}
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t i) {{ return 0; }}
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *instruction) {{ return 0; }}
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *tb, int op, void *p, uint64_t by) {{}}
void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *instruction,
                                      void (*f)(unsigned, uint32_t, uint64_t, void *), int flags, int rw,
                                      void *data) {{}}
unsigned qemu_plugin_mem_size_shift(uint32_t info) {{ return info; }}

void test_start(void) {{
    make(&level1, 1024), make(&level2, 4096);
    start(0, 0);
}}
void test_access(uint64_t address, uint32_t shift) {{ on_access(0, shift, address, 0); }}
uint64_t test_l1_misses(void) {{ return level1.misses; }}
uint64_t test_l2_misses(void) {{ return level2.misses; }}
"""
VECTOR = 4  # 16 bytes, as a shift

Misses = Callable[[Iterable[int]], tuple[int, int]]


@pytest.fixture(scope="module")
def misses(tmp_path_factory: pytest.TempPathFactory) -> Misses:
    """Count what vectors at some addresses miss in caches of 1 KiB (two sets) and 4 KiB (eight sets)."""
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("needs gcc")
    folder = tmp_path_factory.mktemp("caches")
    (folder / "harness.c").write_text(HARNESS)
    command = [gcc, "-O1", "-shared", "-fPIC", "-o", folder / "harness.so", folder / "harness.c"]
    subprocess.run(command, check=True)
    library = ctypes.CDLL(str(folder / "harness.so"))

    def run(addresses: Iterable[int]) -> tuple[int, int]:
        library.test_start()
        for address in addresses:
            library.test_access(ctypes.c_uint64(address), VECTOR)
        return library.test_l1_misses(), library.test_l2_misses()

    return run


def test_each_line_of_a_sweep_misses_once(misses: Misses) -> None:
    sweep = range(0, 1024, 16)
    assert misses(sweep) == (16, 16)
    assert misses([*sweep, *sweep]) == (16, 16), "what fits stays"


def test_what_fits_the_second_cache_alone_misses_the_first_in_each_sweep(misses: Misses) -> None:
    sweep = range(0, 2048, 16)
    assert misses([*sweep, *sweep, *sweep]) == (3 * 32, 32)


def test_a_vector_over_the_end_of_a_line_takes_two(misses: Misses) -> None:
    assert misses([48]) == (1, 1)
    assert misses([56]) == (2, 2)


def test_the_least_recently_used_of_eight_ways_goes(misses: Misses) -> None:
    one_set = [128 * line for line in range(9)]  # every other line is of the other set
    assert misses(one_set[:8] * 2) == (8, 8)
    assert misses(one_set * 2) == (18, 9), "each is gone when it is needed"
    again = [*one_set[:8], one_set[0], one_set[8], one_set[0], one_set[1]]
    assert misses(again) == (10, 9), "the ninth takes the place of the second; the first was just used"


def test_where_pages_lie_does_not_count(misses: Misses) -> None:
    pages = [0, 1, 2]
    offsets = [0, 64, 1024, 4032]

    def sweeps(numbers: list[int]) -> list[int]:
        return [4096 * number + offset for number in numbers for offset in offsets] * 3

    assert misses(sweeps(pages)) == misses(sweeps([900, 5, 0x7F00_0000])) == misses(sweeps([5, 7, 6]))
