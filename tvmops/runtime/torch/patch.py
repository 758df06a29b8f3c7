"""`patch`: a model whose modules call a library; `workloads`: what to tune for a model."""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import fx, nn

from tvmops.errors import ArgumentError
from tvmops.runtime.load import Library
from tvmops.runtime.torch.chains import Chain, find_chains, step_of
from tvmops.runtime.torch.swapped import Swapped
from tvmops.workloads import Workload

_DROPPED = (nn.Dropout, nn.Identity)  # which do nothing when a model is not trained
# Modules that are no operator of a library, and so need no line in a report; nn.Module itself is a folder.
_PLAIN = (nn.ReLU, nn.GELU, nn.Embedding, nn.Flatten, nn.BatchNorm2d, *_DROPPED)
_PRODUCTS = (torch.matmul, torch.bmm, torch.einsum, operator.matmul, "matmul", "bmm", "__matmul__")


class Patched(nn.Module):
    """A model that computes what its library covers by it, and the rest by PyTorch.

    It shares the parameters of `original`, which is left as it was. Weights that were packed or
    folded are those of the time of `patch`.
    """

    original: nn.Module

    def __init__(self, original: nn.Module, model: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "original", original)  # not a part of this module
        self.model = model
        self._swapped = [module for module in model.modules() if isinstance(module, Swapped)]
        self._only_copies = _only_copies(model)

    def forward(self, *arguments: Any, **named: Any) -> Any:
        with self._threads():
            return self.model(*arguments, **named)

    def _threads(self) -> AbstractContextManager[None]:
        """Leave PyTorch one thread where it does nothing but copies between kernels.

        Its other threads would wait for their next copy in a loop, on cores that kernels need.
        """
        if not self._only_copies or torch.compiler.is_compiling():
            return nullcontext()
        return nullcontext() if any(each.falls_back for each in self._swapped) else _one_thread()

    def report(self) -> str:
        """Say what was swapped, by which kernel it is answered, and what was not and why.

        Which kernel answers is decided by the shapes of a call, so that lines say more after one.
        """
        return "\n".join(f"{place}: {text}" for place, text in self._lines())

    def _lines(self) -> Iterator[tuple[str, str]]:
        for place, module in _named(self.model):
            if isinstance(module, Swapped):
                answers = list(dict.fromkeys(module.answers.values())) or ["not called yet"]
                yield place, f"{module.label}: {'; '.join(answers)}"
            elif _is_left(module):
                yield place, f"{type(module).__name__}: not swapped: no operator of a library"


def _is_left(module: nn.Module) -> bool:
    """Say whether this is an operator that no library has."""
    leaf = type(module) is not nn.Module and not any(module.children())
    return leaf and not isinstance(module, (Swapped, *_PLAIN))


def _only_copies(model: nn.Module) -> bool:
    """Say whether what is left to PyTorch, as far as one can see, is no product of matrices."""
    traced = [module for module in model.modules() if isinstance(module, fx.GraphModule)]
    nodes = [node for module in traced for node in module.graph.nodes]
    products = [node for node in nodes if node.target in _PRODUCTS]
    return model in traced and not products and not any(_is_left(module) for module in model.modules())


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def patch(model: nn.Module, lib: Library, *inputs: Any, generic: bool = False) -> Patched:
    """Return `model` with the operators that `lib` covers computed by it.

    Taken are Linear, Conv2d (with a batch norm that follows, folded into its weights), LayerNorm,
    Softmax, MaxPool2d and `scaled_dot_product_attention`, with the addition and the activation that
    follow a Linear or Conv2d where nothing else reads what is between. Weights are packed once
    where the library has kernels for that. A kernel must be built for a call's shapes; where there
    is none, PyTorch computes as before. A part of the model that `torch.fx` can't trace keeps its
    forward, and what it holds is taken by itself.

    Parameters
    ----------
    model
        In eval mode. It is not changed; `patched.original` gives it back.
    inputs
        If given, the patched model is called once with these, so that all is packed and the report
        is complete.
    generic
        Let kernels answer that were not tuned for the shapes of a call.

    Raises
    ------
    ArgumentError
        The model is in training mode.
    """
    patched = Patched(model, _rewritten(model, lib, generic))
    if inputs:
        with torch.inference_mode():
            patched(*inputs)
    return patched


def workloads(model: nn.Module, *inputs: Any) -> dict[Workload, float]:
    """Return what to tune so that `patch` finds kernels for calls of `model` with `inputs`, with counts.

    `tvmops.tune(list(work), weights=work)` tunes them, `tvmops.export(list(work))` exports them.

    Raises
    ------
    ArgumentError
        The model is in training mode.
    """
    recorder = _rewritten(model, None, generic=False)
    with torch.inference_mode():
        recorder(*inputs)
    counts: dict[Workload, float] = {}
    for module in recorder.modules():
        if isinstance(module, Swapped):
            for workload, count in module.workloads.items():
                counts[workload] = counts.get(workload, 0.0) + count
    return counts


def _rewritten(model: nn.Module, lib: Library | None, generic: bool) -> nn.Module:
    if model.training:
        raise ArgumentError(argument="model", value="in training mode", expected="one in eval mode")
    step = step_of(model)
    if step is not None:
        return Swapped(step, False, lib, generic)
    try:
        traced = fx.symbolic_trace(model)
    except Exception:  # whatever a model's code makes of a proxy
        clone = copy.copy(model)
        clone._modules = {
            name: child and _rewritten(child, lib, generic) for name, child in model._modules.items()
        }
        return clone
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        if node.op == "call_module" and isinstance(modules[node.target], _DROPPED):
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)
    calls: dict[fx.Node, fx.Node] = {}  # by what they replaced
    for chain in find_chains(traced.graph, modules):
        swapped = Swapped(chain.step, chain.residual is not None, lib, generic)
        calls[chain.nodes[-1]] = _replace(traced, chain, swapped, calls)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def _replace(
    traced: fx.GraphModule, chain: Chain, swapped: Swapped, calls: dict[fx.Node, fx.Node]
) -> fx.Node:
    """Put a call of `swapped` where the nodes of `chain` are, and return it."""
    name = f"swapped_{chain.nodes[0].name}"
    traced.add_submodule(name, swapped)
    inputs = chain.inputs if chain.residual is None else (*chain.inputs, chain.residual)
    with traced.graph.inserting_before(chain.place):
        call = traced.graph.call_module(name, tuple(calls.get(each, each) for each in inputs))
    chain.nodes[-1].replace_all_uses_with(call)
    for node in reversed(chain.nodes):
        traced.graph.erase_node(node)
    return call


def _named(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        yield name.replace("swapped_", "") or "model", module
