"""Work in an ONNX graph: fused attention, smoothed activations, static int8 products.

Nothing here depends on what else is in a batch: activations have scales that were measured before.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from nlp_distill.exports.onnx_files import quiet
from nlp_distill.sessions import session_options

Array = NDArray[Any]
Feeds = Sequence[Mapping[str, Array]]
Ranges = dict[str, tuple[float, float]]
"""Least and greatest value of each activation that a matrix product takes."""

CONTRIB = "com.microsoft"
SAME = 1e-3
"""Largest difference of an output that fusing may make; it only changes the order of sums."""
STRENGTH, TINY = 0.75, 1e-5
TURNED = "_turned"
MOST_BYTES = (1 << 31) - (1 << 20)
"""Of a graph in one file: protobuf's limit, and room for what is no weight."""
LARGE = 1 << 10
"""Elements of a matrix from which on it is worth quantizing."""


def graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The graph and those inside its nodes: the branches of a merged decoder."""
    waiting = [model.graph]
    for graph in waiting:
        yield graph
        waiting += [part.g for node in graph.node for part in node.attribute if part.type == onnx.AttributeProto.GRAPH]


def opened(file: Path) -> onnx.ModelProto:
    """The graph of a file, in which the words' table that is tied to the output is a constant of that product, too.

    Exporters leave one table and a `Transpose`, which hides it from all that looks for weights.
    """
    return folded(onnx.load(file))


def folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model; a constant matrix that is turned for products alone is there turned, while that fits a file."""
    known, size = constants(model), model.ByteSize()
    for graph in graphs(model):
        inputs = {name: node.op_type for node in graph.node for name in node.input}
        turned = {
            node.output[0]: node.input[0]
            for node in graph.node
            if node.op_type == "Transpose"
            and inputs.get(node.output[0]) == "MatMul"
            and node.input[0] in known
            and len(known[node.input[0]].dims) == 2
        }
        for table in {*turned.values()} - {name.removesuffix(TURNED) for name in known if name.endswith(TURNED)}:
            array = np.ascontiguousarray(numpy_helper.to_array(known[table]).T)
            size += array.nbytes
            if size >= MOST_BYTES:
                turned = {name: source for name, source in turned.items() if source != table}
                continue
            model.graph.initializer.append(numpy_helper.from_array(array, table + TURNED))
        for node in graph.node:
            node.input[:] = [turned[name] + TURNED if name in turned else name for name in node.input]
        kept = [node for node in graph.node if node.output[0] not in turned]
        del graph.node[:]
        graph.node.extend(kept)
        known = constants(model)
    return rebuilt(model)


def constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Weights by name."""
    return {tensor.name: tensor for graph in graphs(model) for tensor in graph.initializer}


def products(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The matrix products of the main graph with a large constant matrix on the right."""
    large = {name for name, weight in constants(model).items() if len(weight.dims) == 2 and size_of(weight) >= LARGE}
    return [node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in large]


def run(model: onnx.ModelProto, feeds: Feeds) -> Iterator[list[Array]]:
    """The outputs for each row."""
    options = session_options()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    names = {entry.name for entry in session.get_inputs()}
    for feed in feeds:
        yield session.run(None, {name: value for name, value in feed.items() if name in names})


def fused(file: Path, feeds: Feeds) -> onnx.ModelProto:
    """The graph with an attention, a Gelu and a layer norm in one node each, where ONNX Runtime knows their pattern.

    A residual sum is written as `Sum`: ONNX Runtime would join an `Add` with the layer norm after it into a
    `SkipLayerNormalization`, which takes several times as long on a CPU.
    """
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.optimizer import optimize_model

    options = FusionOptions("bert")
    options.use_multi_head_attention = True
    options.enable_embed_layer_norm = options.enable_skip_layer_norm = options.enable_bias_gelu = False
    options.use_raw_attention_mask(True)
    plain = opened(file)
    with quiet():
        model = folded(optimize_model(str(file), "bert", opt_level=0, optimization_options=options).model)
    normed = {node.input[0] for node in model.graph.node if node.op_type == "LayerNormalization"}
    for node in model.graph.node:
        if node.op_type == "Add" and node.output[0] in normed:
            node.op_type = "Sum"
    return model if _difference(run(plain, feeds[:4]), run(model, feeds[:4])) <= SAME else plain


def _difference(ours: Iterable[list[Array]], theirs: Iterable[list[Array]]) -> float:
    """The largest difference of any output."""
    pairs = (pair for rows in zip(ours, theirs, strict=True) for pair in zip(*rows, strict=True))
    return max(float(np.abs(a - b).max()) for a, b in pairs)


def probed(model: onnx.ModelProto, feeds: Feeds) -> Iterator[tuple[str, Array]]:
    """Every activation that a matrix product takes, (name, values), row by row."""
    inside = onnx.ModelProto()
    inside.CopyFrom(model)
    names = sorted({node.input[0] for node in products(model)})
    if not names:
        return
    del inside.graph.output[:]
    inside.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    for outputs in run(inside, feeds):
        yield from zip(names, outputs, strict=True)


@dataclass
class Channels:
    """Of each channel of an activation: least and greatest value (0 within) and mean square, over all rows."""

    low: Array
    high: Array
    square: Array

    def divided(self, factor: Array) -> Channels:
        """The same with each channel divided by its factor."""
        return Channels(self.low / factor, self.high / factor, self.square / factor**2)

    def noise(self, power: Array) -> float:
        """What one scale for all channels does to a product, as a share of its variance, but for a constant.

        `power`: sum of the squared weights of each channel.
        """
        span = float(self.high.max() - self.low.min())
        return span**2 * float(power.sum()) / max(float((self.square * power).sum()), TINY)


def _channels(model: onnx.ModelProto, feeds: Feeds) -> dict[str, Channels]:
    """Of every activation that a matrix product takes."""
    found: dict[str, Channels] = {}
    tokens: dict[str, int] = {}
    for name, values in probed(model, feeds):
        rows = values.reshape(-1, values.shape[-1])
        zeros = np.zeros(rows.shape[1])
        before = found.setdefault(name, Channels(zeros, zeros, zeros))
        low, high = np.minimum(before.low, rows.min(0)), np.maximum(before.high, rows.max(0))
        found[name] = Channels(low, high, before.square + np.square(rows, dtype=np.float64).sum(0))
        tokens[name] = tokens.get(name, 0) + len(rows)
    return {name: replace(entry, square=entry.square / tokens[name]) for name, entry in found.items()}


def ranges(model: onnx.ModelProto, feeds: Feeds) -> Ranges:
    """Least and greatest value of each activation that a matrix product takes; 0 is always within."""
    return {name: (float(c.low.min()), float(c.high.max())) for name, c in _channels(model, feeds).items()}


def smoothed(model: onnx.ModelProto, feeds: Feeds, share: float = 1.0) -> onnx.ModelProto:
    """The same answers; channels with outlying activations are divided by what their weights are multiplied with.

    A few channels of a transformer are tens of times as large as the rest, so one scale for all is coarse. The price is
    one more multiplication for each activation; `share`: of them, those that gain most. SmoothQuant (Xiao et al. 2023,
    arXiv:2211.10438); the strength, 0.75, left the least error here. An activation whose weights have other uses
    (ALBERT) stays as it is.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    known, takers = constants(made), products(made)
    uses = [(name, node.input[0]) for graph in graphs(made) for node in graph.node for name in node.input]
    gains: dict[str, tuple[float, Array]] = {}
    for given, channels in _channels(model, feeds).items():
        weights = {node.input[1] for node in takers if node.input[0] == given}
        if any(first != given for name, first in uses if name in weights):
            continue
        arrays = [numpy_helper.to_array(known[name]).astype(np.float64) for name in sorted(weights)]
        activation = np.maximum(np.maximum(-channels.low, channels.high), TINY)
        weight = np.maximum(np.max([np.abs(array).max(1) for array in arrays], 0), TINY)
        factor = activation**STRENGTH / weight ** (1 - STRENGTH)
        factor /= np.exp(np.log(factor).mean())
        power = sum(np.square(array).sum(1) for array in arrays)
        gains[given] = channels.noise(power) - channels.divided(factor).noise(power * factor**2), factor
    order = sorted(gains, key=lambda name: (-gains[name][0], name))
    nodes = list(made.graph.node)
    for given in order[: math.ceil(share * len(order))]:
        factor = gains[given][1].astype(np.float32)
        mine = [node for node in takers if node.input[0] == given]
        for name in {node.input[1] for node in mine}:
            known[name].CopyFrom(numpy_helper.from_array(numpy_helper.to_array(known[name]) * factor[:, None], name))
        made.graph.initializer.append(numpy_helper.from_array(1 / factor, f"{given}_factor"))
        nodes.insert(nodes.index(mine[0]), node_of("Mul", [given, f"{given}_factor"], f"{given}_smooth"))
        for node in mine:
            node.input[0] = f"{given}_smooth"
    return rebuilt(made, nodes)


def static_int8(model: onnx.ModelProto, found: Ranges, plain: bool, without: Iterable[str] = ()) -> onnx.ModelProto:
    """Matrix products in int8: weights per channel, activations by the scale that their range gives.

    `without`: products (by output) that stay. `plain`: as the quantize–dequantize pairs of the ONNX standard; else
    as ONNX Runtime's own operator, which also adds the bias.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    known, kept = constants(made), set(without)
    chosen = {node.output[0]: node for node in products(made) if node.output[0] not in kept}
    biases = {} if plain else _biases(made, chosen, known)
    added = {id(node) for node, _ in biases.values()}
    nodes: list[onnx.NodeProto] = []
    quantized: set[str] = set()
    for node in made.graph.node:
        if id(node) in added:
            continue
        if node.output[0] not in chosen:
            nodes.append(node)
            continue
        given, weight = node.input
        if given not in quantized:
            quantized.add(given)
            made.graph.initializer.extend(_activation(given, found[given]))
            nodes.append(node_of("QuantizeLinear", [given, f"{given}_scale", f"{given}_zero"], f"{given}_int8"))
            if plain:
                pair = [f"{given}_int8", f"{given}_scale", f"{given}_zero"]
                nodes.append(node_of("DequantizeLinear", pair, f"{given}_back"))
        names = [f"{weight}_int8", f"{weight}_scale", f"{weight}_zero"]
        if names[0] not in known:
            tensors = _per_channel(numpy_helper.to_array(known[weight]), names)
            made.graph.initializer.extend(tensors)
            known |= {tensor.name: tensor for tensor in tensors}
            if plain:
                nodes.append(node_of("DequantizeLinear", names, f"{weight}_back", axis=1))
        if plain:
            nodes.append(node_of("MatMul", [f"{given}_back", f"{weight}_back"], node.output[0]))
            continue
        bias_node, bias = biases.get(node.output[0], (node, ""))
        inputs = [f"{given}_int8", names[0], f"{given}_scale", names[1], f"{given}_zero", names[2], bias]
        nodes.append(node_of("MatMulIntegerToFloat", inputs, bias_node.output[0], domain=CONTRIB))
    return rebuilt(made, nodes)


def _biases(
    model: onnx.ModelProto, chosen: Mapping[str, onnx.NodeProto], known: Mapping[str, onnx.TensorProto]
) -> dict[str, tuple[onnx.NodeProto, str]]:
    """The sums with a constant vector that follow a product alone: output of the product → (sum, vector)."""
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    biases = {}
    for output in chosen:
        for node in users.get(output, []):
            other = [name for name in node.input if name != output]
            vector = len(other) == 1 and other[0] in known and len(known[other[0]].dims) == 1
            if node.op_type == "Add" and vector and len(users[output]) == 1:
                biases[output] = (node, other[0])
    return biases


def _activation(name: str, limits: tuple[float, float]) -> list[onnx.TensorProto]:
    low, high = limits
    scale = max(high - low, 1e-8) / 255
    zero = round(float(np.clip(-low / scale, 0, 255)))
    return [
        numpy_helper.from_array(np.array(scale, np.float32), f"{name}_scale"),
        numpy_helper.from_array(np.array(zero, np.uint8), f"{name}_zero"),
    ]


def _per_channel(weight: Array, names: list[str]) -> list[onnx.TensorProto]:
    scale = np.maximum(np.abs(weight).max(0), 1e-8) / 127
    rounded = np.clip(np.round(weight / scale), -127, 127).astype(np.int8)
    parts = (rounded, scale.astype(np.float32), np.zeros(weight.shape[1], np.int8))
    return [numpy_helper.from_array(part, name) for part, name in zip(parts, names, strict=True)]


def node_of(kind: str, inputs: list[str], output: str, **settings: Any) -> onnx.NodeProto:
    """A node named after its only output."""
    return helper.make_node(kind, inputs, [output], name=f"{output}/{kind}", **settings)


def size_of(tensor: onnx.TensorProto) -> int:
    """Elements of a tensor."""
    return int(np.prod(tensor.dims))


def rebuilt(model: onnx.ModelProto, nodes: list[onnx.NodeProto] | None = None) -> onnx.ModelProto:
    """The model with other nodes, each weight once, and without weights that nobody uses any more."""
    if nodes is not None:
        del model.graph.node[:]
        model.graph.node.extend(nodes)
    used = {name for graph in graphs(model) for part in (*graph.node,) for name in part.input}
    used |= {entry.name for graph in graphs(model) for entry in graph.output}
    for graph in graphs(model):
        kept = {tensor.name: tensor for tensor in graph.initializer if tensor.name in used}
        del graph.initializer[:]
        graph.initializer.extend(kept.values())
    if not any(entry.domain == CONTRIB for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(CONTRIB, 1))
    return model


def most_sensitive(model: onnx.ModelProto, found: Ranges, feeds: Feeds) -> list[str]:
    """The products (by output) whose int8 alone moves the answers most, the worst first."""
    everything = [node.output[0] for node in products(model)]
    exact = list(run(model, feeds))
    moved = {}
    for name in everything:
        alone = static_int8(model, found, plain=False, without=[other for other in everything if other != name])
        pairs = zip(exact, run(alone, feeds), strict=True)
        moved[name] = max(
            float(np.abs(a - b).max()) for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True)
        )
    return sorted(moved, key=lambda name: -moved[name])
