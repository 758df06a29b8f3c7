from __future__ import annotations

from tvm import IRModule

from tests.schedules.cuda.compiled import needs_nvcc
from tvmops.measure.cuda import compile_module
from tvmops.schedules import templates_for
from tvmops.schedules.cuda.own_names import own_names, owned
from tvmops.targets import target
from tvmops.workloads import Workload

HOPPER = target("nvidia-h200")
TEXT = """
struct Pair {{
  int x, y;
}};
__forceinline__ __device__ int sum_of(Pair pair) {{
  return pair.x + pair.y;
}}
__forceinline__ __device__ int rest(Pair pair) {{
  return sum_of(pair) % {divisor};
}}
"""


def test_names_follow_from_the_text() -> None:
    text = TEXT.format(divisor=3)
    assert owned("rest", text) == ("rest", text)
    with own_names():
        name, source = owned("rest", text)
        assert owned("rest", text) == (name, source)
        other, _ = owned("rest", TEXT.format(divisor=5))
        assert owned("make_int2", "") == ("make_int2", "")
    suffix = name.removeprefix("rest")
    assert other != name and other.startswith("rest_")
    assert source == text.replace("Pair", f"Pair{suffix}").replace("sum_of", f"sum_of{suffix}").replace(
        "int rest", f"int {name}"
    )


@needs_nvcc
def test_kernels_of_one_module_may_call_functions_of_the_same_name() -> None:
    module = IRModule()
    for number in (8, 4):
        work = Workload.parse(f"matmul_weight_only m=19 n=72 k=128 group=64 bits={number} dtype=float16")
        (template,) = (t for t in templates_for(work, HOPPER) if t.name == "cuda.weight_only")
        with own_names():
            built = template.build(work, HOPPER, template.default(work, HOPPER))
        module[f"of_{number}"] = built["main"].with_attr("global_symbol", f"of_{number}")
    _, (cubin,) = compile_module(module, HOPPER)
    assert cubin.source.count("fma_pair_float16_") > 2  # of both, told apart
