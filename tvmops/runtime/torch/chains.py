"""Chains in a traced model: an operator and what one kernel can compute with it.

A chain begins with a convolution, a linear layer or another operator of a library, and goes on,
where nobody else reads what is between, with a batch norm (folded into the weights), the addition
of another tensor, and an activation.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from tvmops.runtime.torch.steps import Attention, Conv2d, LayerNorm, Linear, MaxPool2d, Softmax, Step

_ADDITIONS: tuple[Any, ...] = (operator.add, operator.iadd, torch.add, "add", "add_")
_FUNCTIONS: dict[Any, str] = {
    functional.relu: "relu",
    torch.relu: "relu",
    "relu": "relu",
    "relu_": "relu",
    functional.relu6: "relu6",
    functional.silu: "silu",
    functional.hardswish: "hardswish",
    functional.sigmoid: "sigmoid",
    torch.sigmoid: "sigmoid",
    "sigmoid": "sigmoid",
    functional.tanh: "tanh",
    torch.tanh: "tanh",
    "tanh": "tanh",
}
_MODULES: dict[type, str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
}
_GELUS = {"none": "gelu", "tanh": "gelu_tanh"}


@dataclass(frozen=True)
class Chain:
    """Nodes of a graph that one call of a library may replace."""

    step: Step
    inputs: tuple[fx.Node, ...]  # of the first node
    residual: fx.Node | None
    nodes: tuple[fx.Node, ...]  # the last one's result is the chain's
    place: fx.Node  # before which everything that the chain reads is there


def find_chains(graph: fx.Graph, modules: dict[str, nn.Module]) -> list[Chain]:
    """Return the chains of `graph`, in order; none has a node of another."""
    taken: set[fx.Node] = set()
    chains = []
    for node in graph.nodes:
        found = None if node in taken else _begin(node, modules)
        if found is not None:
            chain = _extended(node, *found, modules, taken)
            taken.update(chain.nodes)
            chains.append(chain)
    return chains


def step_of(module: nn.Module) -> Step | None:
    """Return how a library may compute a module of PyTorch; None for one that it has no op for."""
    if type(module) is nn.Linear:
        return Linear(module)
    if type(module) is nn.Conv2d and module.padding_mode == "zeros":
        return Conv2d(module)
    if type(module) is nn.LayerNorm:
        return LayerNorm(module)
    if type(module) is nn.Softmax and module.dim is not None:
        return Softmax(module.dim)
    if type(module) is nn.MaxPool2d and not module.return_indices:
        return MaxPool2d(module)
    return None


def _begin(node: fx.Node, modules: dict[str, nn.Module]) -> tuple[Step, tuple[fx.Node, ...]] | None:
    """Return the operator that `node` is, and the nodes that it reads."""
    if node.op == "call_module":
        step = step_of(modules[str(node.target)])
        return None if step is None or not _are_nodes(node.args) else (step, node.args)
    if node.target in (functional.softmax, torch.softmax, "softmax"):
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
        plain = set(node.kwargs) <= {"dim", "_stacklevel", "dtype"} and node.kwargs.get("dtype") is None
        if plain and isinstance(dim, int) and len(node.args) <= 2 and _are_nodes(node.args[:1]):
            return Softmax(dim), node.args[:1]
    if node.target is functional.scaled_dot_product_attention and _are_nodes(node.args[:3]):
        names = ("attn_mask", "dropout_p", "is_causal")
        given = {**dict(zip(names, node.args[3:])), **node.kwargs}
        mask, causal, scale = given.get("attn_mask"), given.get("is_causal", False), given.get("scale")
        constant = isinstance(causal, bool) and isinstance(scale, float | None)
        if len(node.args) >= 3 and constant and given.get("dropout_p", 0) == 0:
            attention = Attention(causal, scale, bool(given.get("enable_gqa", False)))
            if mask is None:
                return attention, node.args[:3]
            if isinstance(mask, fx.Node):
                return attention, (*node.args[:3], mask)
    return None


def _extended(
    first: fx.Node,
    step: Step,
    inputs: tuple[fx.Node, ...],
    modules: dict[str, nn.Module],
    taken: set[fx.Node],
) -> Chain:
    """Return the longest chain from `first` on."""
    nodes, residual, place = [first], None, first
    if isinstance(step, Conv2d):
        following = _only_user(first)
        norm = _module(following, modules)
        if following is not None and isinstance(norm, nn.BatchNorm2d) and norm.track_running_stats:
            step.fold(norm)
            nodes.append(following)
    if step.takes_residual:
        following = _only_user(nodes[-1])
        other = None if following in taken else _added(following, nodes[-1])
        free = following is not None and not _mutated_between(first, following, nodes, modules)
        if following is not None and other is not None and free:
            residual, place = other, following
            nodes.append(following)
    if step.takes_activation:
        following = _only_user(nodes[-1])
        name = _activation(following, modules)
        if following is not None and following not in taken and name is not None:
            step.activation = name
            nodes.append(following)
    return Chain(step, inputs, residual, tuple(nodes), place)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _module(node: fx.Node | None, modules: dict[str, nn.Module]) -> nn.Module | None:
    return modules[str(node.target)] if node is not None and node.op == "call_module" else None


def _added(node: fx.Node | None, one: fx.Node) -> fx.Node | None:
    """Return what `node` adds to `one`; None if it does something else."""
    if node is None or node.target not in _ADDITIONS or node.kwargs or len(node.args) != 2:
        return None
    first, second = node.args
    in_place = node.target in (operator.iadd, "add_")
    if first is one and isinstance(second, fx.Node) and second is not one:
        return second
    return first if second is one and isinstance(first, fx.Node) and not in_place else None


def _activation(node: fx.Node | None, modules: dict[str, nn.Module]) -> str | None:
    if node is None:
        return None
    if node.op == "call_module":
        module = modules[str(node.target)]
        return _GELUS[module.approximate] if type(module) is nn.GELU else _MODULES.get(type(module))
    if node.target is functional.gelu:
        return _GELUS.get(str(node.kwargs.get("approximate", "none"))) if len(node.args) == 1 else None
    return _FUNCTIONS.get(node.target) if len(node.args) == 1 else None


def _mutated_between(
    first: fx.Node, last: fx.Node, own: list[fx.Node], modules: dict[str, nn.Module]
) -> bool:
    """True if a node between the two may change a tensor that the chain reads where it now begins later."""
    node = first.next
    while node is not last:
        if node not in own and _mutates(node, modules):
            return True
        node = node.next
    return False


def _mutates(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    in_place = name.endswith("_") or bool(node.kwargs.get("inplace")) or "out" in node.kwargs
    return node.op in ("call_method", "call_function") and (in_place or _is_augmented(node.target))


def _is_augmented(target: Callable[..., Any] | str) -> bool:
    """True for the functions behind += and such."""
    name = getattr(target, "__name__", "")
    return (
        name.startswith("i") and getattr(operator, name, None) is target and hasattr(operator, f"__{name}__")
    )


def _are_nodes(arguments: tuple[Any, ...]) -> bool:
    return bool(arguments) and all(isinstance(each, fx.Node) for each in arguments)
