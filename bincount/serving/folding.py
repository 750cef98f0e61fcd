"""A network for prediction on a CPU: fewer layers, and convolutions whose weights lie as the processor wants them.

Each batch normalisation becomes part of the convolution before it. A convolution then takes the activation after it
along, and keeps its weights in oneDNN's own layout, into which it would otherwise bring them at every call: for
ResNet-34 that is 85 MB, however few pictures there are. torch.compile does the same two things when it freezes a
network; this needs no compiler where the service runs, and no half a minute at its start.
"""

import copy
import threading
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node, Tracer
from torch.fx.experimental.optimization import fuse

from bincount.training.spec import ModelSpec

PIXELS_AT_ONCE = 4 * 224 * 224  # that go through the network on a CPU together
ACTIVATIONS = {  # by oneDNN's names, with their parameters
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.SiLU: ("swish", []),
    nn.Hardswish: ("hardswish", []),
}


_one_trace = threading.Lock()  # a trace puts back what it found, which must not be the patch of another one


def largest_part(spec: ModelSpec) -> int:
    """Return how many pictures go through the network together at most, with all views of them: a power of two."""
    at_once = PIXELS_AT_ONCE // ((1 + spec.flip_at_test) * spec.image_size**2)
    return 1 << (max(1, at_once).bit_length() - 1)


def part_sizes(num_pictures: int, spec: ModelSpec) -> list[int]:
    """Return the sizes of the parts in which a batch goes through the network.

    All are powers of two: oneDNN compiles code for each size of input that it meets, and keeps it. Parts of 1 to 32
    pictures take 45 MB (the small network, 64 pixels), by which a service would grow in its first thousands of
    requests.
    """
    largest = largest_part(spec)
    rest = num_pictures % largest
    smaller = [1 << bit for bit in reversed(range(rest.bit_length())) if rest >> bit & 1]
    return [largest] * (num_pictures // largest) + smaller


def fold(network: nn.Module, spec: ModelSpec) -> nn.ModuleList:
    """Return copies of the members of a network that predict what these do, faster and without gradients."""
    members = network if spec.members > 1 else [network]
    folded = nn.ModuleList(fuse(trace(copy.deepcopy(member).eval()), inplace=True, no_trace=True) for member in members)
    folded = folded.to(memory_format=torch.channels_last).eval().requires_grad_(False)
    if torch.backends.mkldnn.is_available():
        num_inputs = largest_part(spec) * (1 + spec.flip_at_test)
        for member, own in zip(folded, spec.each_network(), strict=True):
            example = torch.zeros(num_inputs, 3, own.image_size, own.image_size)
            pack(member, example.contiguous(memory_format=torch.channels_last))
    return folded


def trace(network: nn.Module) -> GraphModule:
    """Return a network as a graph of its layers, while networks in other threads go on predicting."""
    with _one_trace:
        return GraphModule(network, ThreadTracer().trace(network))


class ThreadTracer(Tracer):
    """A tracer of its own thread alone.

    While torch.fx traces, it patches nn.Module for the whole process, so that a network which another thread calls
    meanwhile would come here, and fail.
    """

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def call_module(self, m: nn.Module, forward: Any, args: tuple, kwargs: dict) -> Any:
        """Record the call of a layer, or make it where it is another thread's."""
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict) -> Any:
        """Return what stands for an attribute of a layer, or the attribute where it is another thread's."""
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


def pack(network: GraphModule, example: Tensor) -> None:
    """Replace the convolutions of a network, and the activations that follow them, by packed ones.

    example (N, 3, S, S) is as large as most inputs will be; others are correct too.
    """
    layers = dict(network.named_modules())
    for name, size in _input_sizes(network, example).items():
        [node] = [node for node in network.graph.nodes if node.target == name]
        activation = _only_activation(node, layers)
        packed = PackedConv2d(layers[name], size, activation and layers[activation.target])
        network.set_submodule(name, packed)
        if activation is not None:
            activation.replace_all_uses_with(node)
            network.graph.erase_node(activation)
    network.recompile()


class PackedConv2d(nn.Module):
    """A convolution with the activation after it, by oneDNN; size is that of its usual input."""

    def __init__(self, layer: nn.Conv2d, size: torch.Size, activation: nn.Module | None) -> None:
        super().__init__()
        self.geometry = (layer.padding, layer.stride, layer.dilation, layer.groups)
        self.activation = ACTIVATIONS[type(activation)] if activation is not None else ("none", [])
        weight = torch._C._nn.mkldnn_reorder_conv2d_weight(layer.weight.detach().to_mkldnn(), *self.geometry, size)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach())

    def forward(self, images: Tensor) -> Tensor:
        return torch.ops.mkldnn._convolution_pointwise(
            *(images, self.weight, self.bias), *self.geometry, *self.activation, ""
        )


def _input_sizes(network: GraphModule, example: Tensor) -> dict[str, torch.Size]:
    """Return the size of the input of each convolution, by its name."""
    sizes: dict[str, torch.Size] = {}
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_pre_hook(lambda _, args, name=name: sizes.update({name: args[0].shape}))
    with torch.inference_mode():
        network(example)
    return sizes


def _only_activation(node: Node, layers: dict[str, nn.Module]) -> Node | None:
    """Return the activation after a layer, if nothing else takes what comes from it and oneDNN knows it."""
    followers = list(node.users)
    if len(followers) == 1 and followers[0].op == "call_module" and type(layers[followers[0].target]) in ACTIVATIONS:
        return followers[0]
    return None
