"""Weights in few bits: matrix products in blocks, by rounding or with their errors compensated, and small tables.

Activations stay fp32, so nothing depends on what else is in a batch. The exception are products with weights of 8 bits
(`few_bits`), for decoders alone.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from nlp_distill.exports.onnx_files import quiet
from nlp_distill.exports.onnx_graph import (
    CONTRIB,
    LARGE,
    Array,
    Feeds,
    constants,
    graphs,
    node_of,
    probed,
    products,
    rebuilt,
    size_of,
)

DAMPING = 0.01
"""Share of the mean square of all channels that is added to each one's."""
TABLE_BLOCK = 32
"""Neighbours in a row of a 4-bit table that share a scale."""
SHRUNK = (1.0, 0.93, 0.86, 0.79, 0.72)
"""Shares of a block's range that are tried: what lies outside is cut off, what lies inside is finer."""
SIDE = 8
"""A table so many times smaller than the largest (positions) keeps 8 bits: it is small, and every token reads it."""
TOKENS = 1024
"""Tokens whose moments are summed together: each sum costs a pass over all pairs of channels."""
AT_ONCE = 1 << 16
"""Blocks of a table that are rounded together."""


def few_bits(model: onnx.ModelProto, bits: int, block: int) -> onnx.ModelProto:
    """Matrix products with weights of 8 or 4 bits in blocks.

    With 4 bits products are computed in fp32. With 8 they would take several times as long so; activations become int8
    by a scale of each row's own, and as the kernel adds in another order at another place of a batch, a rounding may
    fall the other way there: logits move by thousandths.
    """
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    made = onnx.ModelProto()
    made.CopyFrom(model)
    with quiet():
        quantizer = MatMulNBitsQuantizer(made, bits, block, is_symmetric=False, accuracy_level=1 if bits == 4 else 4)
        quantizer.process()
    return rebuilt(quantizer.model.model)


def compensated(model: onnx.ModelProto, block: int, feeds: Feeds) -> onnx.ModelProto:
    """Matrix products with weights of 4 bits in blocks; what rounding one weight does, the later ones undo.

    GPTQ (Frantar et al. 2023, arXiv:2210.17323): channels one after the other, the error of each spread over those
    to come, by the second moments of what the rows gave. Products are computed in fp32. A width that blocks do not
    divide is rounded as it is.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    known, moments = constants(made), _moments(model, feeds)
    chosen = {node.output[0] for node in products(made)}
    readers: dict[str, set[str]] = {}
    for node in products(made):
        readers.setdefault(node.input[1], set()).add(node.input[0])
    nodes: list[onnx.NodeProto] = []
    written: set[str] = set()
    upper, of = np.zeros((0, 0)), set[str]()
    for node in made.graph.node:
        if node.output[0] not in chosen or known[node.input[1]].dims[0] % block:
            nodes.append(node)
            continue
        given, weight = node.input
        width, outputs = known[weight].dims
        names = [f"{weight}_q4", f"{weight}_q4_scale", f"{weight}_q4_zero"]
        if weight not in written:
            written.add(weight)
            # Weights of several layers (ALBERT) are rounded for all that they read; those that read the same follow
            # each other.
            if readers[weight] != of:
                of = readers[weight]
                upper = _inverse(np.sum([moments[name] for name in sorted(of)], axis=0))
            parts = _spread_errors(numpy_helper.to_array(known[weight]), upper, block)
            made.graph.initializer.extend(map(numpy_helper.from_array, parts, names))
        settings = {"K": width, "N": outputs, "bits": 4, "block_size": block, "accuracy_level": 1}
        nodes.append(node_of("MatMulNBits", [given, *names], node.output[0], domain=CONTRIB, **settings))
    made = rebuilt(made, nodes)
    return made if not products(made) else few_bits(made, 4, block)


def _moments(model: onnx.ModelProto, feeds: Feeds) -> dict[str, Array]:
    """Sums over all tokens of x xᵀ, [channels, channels], of every activation that a matrix product takes."""
    found: dict[str, Array] = {}
    waiting: dict[str, list[Array]] = {}

    def add(name: str) -> None:
        rows = np.concatenate(waiting.pop(name))
        found[name] = found.get(name, 0) + rows.T @ rows

    for name, values in probed(model, feeds):
        waiting.setdefault(name, []).append(values.reshape(-1, values.shape[-1]))
        if sum(map(len, waiting[name])) >= TOKENS:
            add(name)
    for name in [*waiting]:
        add(name)
    return found


def _inverse(moment: Array) -> Array:
    """Upper Cholesky factor of the inverse of damped second moments."""
    size = len(moment)
    damped = moment.astype(np.float64) / max(np.trace(moment) / size, 1e-12) + DAMPING * np.eye(size)
    upper: Array = np.linalg.cholesky(np.linalg.inv(damped)).T
    return upper


def _spread_errors(weight: Array, upper: Array, block: int) -> tuple[Array, Array, Array]:
    """A weight [in, out] as packed levels [out, blocks, block / 2], scales [out × blocks] and packed zero points."""
    left = weight.T.astype(np.float64)
    levels = np.empty_like(left)
    scales, zeros = (np.empty((len(left), left.shape[1] // block)) for _ in range(2))
    for number, start in enumerate(range(0, left.shape[1], block)):
        part, within = left[:, start : start + block], upper[start : start + block, start : start + block]
        scale, zero = scales[:, number], zeros[:, number]
        scale[:], zero[:] = _range(part)
        errors = np.empty_like(part)
        for column in range(block):
            steps = np.clip(np.round(part[:, column] / scale) + zero, 0, 15)
            levels[:, start + column] = steps
            errors[:, column] = (part[:, column] - (steps - zero) * scale) / within[column, column]
            part[:, column:] -= np.outer(errors[:, column], within[column, column:])
        left[:, start + block :] -= errors @ upper[start : start + block, start + block :]
    packed = _packed(levels).reshape(len(left), -1, block // 2)
    return packed, scales.astype(np.float32).ravel(), _packed(zeros).ravel()


def _range(blocks: Array) -> tuple[Array, Array]:
    """Scale and zero point of each block [..., block], whose range has 16 levels and 0 among them."""
    low, high = np.minimum(blocks.min(-1), 0), np.maximum(blocks.max(-1), 0)
    scale = np.maximum(high - low, 1e-8) / 15
    return scale, np.clip(np.round(-low / scale), 0, 15)


def small_tables(model: onnx.ModelProto, bits: int) -> onnx.ModelProto:
    """Embeddings as 4 bits in blocks (`GatherBlockQuantized`), or as int8 with a scale a row (plain operators)."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    known, done = constants(made), set()
    looked_up = [node for graph in graphs(made) for node in graph.node if node.op_type == "Gather"]
    tables = {table.name: table for node in looked_up if (table := known.get(node.input[0])) and len(table.dims) == 2}
    largest = max(map(size_of, tables.values()), default=0)
    for graph in graphs(made):
        nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            table = tables.get(node.input[0]) if node.op_type == "Gather" else None
            if table is None or size_of(table) < LARGE:
                nodes.append(node)
                continue
            # Two levels share a byte.
            four = table.dims[1] % 2 == 0 and SIDE * size_of(table) >= largest and _wide(table)
            fits = bits if four else 8
            if table.name not in done:
                done.add(table.name)
                made.graph.initializer.extend(_four_bits(table) if fits == 4 else _rows_int8(table))
            nodes += _look_up(node, table.name, fits)
        del graph.node[:]
        graph.node.extend(nodes)
    return rebuilt(made)


def _wide(table: onnx.TensorProto) -> bool:
    """Whether half precision has scales for a table's blocks."""
    return bool(np.abs(numpy_helper.to_array(table)).mean() > 8 * np.finfo(np.float16).tiny)


def _four_bits(table: onnx.TensorProto) -> list[onnx.TensorProto]:
    """Scales in half precision, as many as in single precision for blocks twice as long."""
    rows = numpy_helper.to_array(table)
    blocks = np.pad(rows, ((0, 0), (0, -rows.shape[1] % TABLE_BLOCK)), mode="edge").reshape(-1, TABLE_BLOCK)
    parts = [_closest(blocks[start : start + AT_ONCE]) for start in range(0, len(blocks), AT_ONCE)]
    levels, scale, zero = (np.concatenate(arrays).reshape(len(rows), -1) for arrays in zip(*parts, strict=True))
    return [
        numpy_helper.from_array(_packed(levels[:, : rows.shape[1]]), f"{table.name}_q4"),
        numpy_helper.from_array(scale, f"{table.name}_q4_scale"),
        numpy_helper.from_array(_packed(zero), f"{table.name}_q4_zero"),
    ]


def _closest(blocks: Array) -> tuple[Array, Array, Array]:
    """Levels, scale and zero point of each block, of those ranges that were tried the one with the least error."""
    best: tuple[Array, Array, Array] | None = None
    least = np.full(len(blocks), np.inf)
    for share in SHRUNK:
        scale, zero = _range(blocks * share)
        scale = np.maximum(scale.astype(np.float16), np.finfo(np.float16).tiny)
        wide = scale.astype(np.float32)[:, None]
        levels = np.clip(np.round(blocks / wide) + zero[:, None], 0, 15)
        error = np.square((levels - zero[:, None]) * wide - blocks).sum(1)
        found = (levels.astype(np.uint8), scale, zero.astype(np.uint8))
        better = error < least
        if best is None:
            best = found
        else:
            for kept, new in zip(best, found, strict=True):
                kept[better] = new[better]
        least = np.minimum(least, error)
    assert best is not None
    return best


def _packed(levels: Array) -> Array:
    """Two levels of 4 bits in each byte, the first in the lower half."""
    even = np.pad(levels.astype(np.uint8), ((0, 0), (0, levels.shape[1] % 2)))
    packed: Array = even[:, 0::2] | (even[:, 1::2] << 4)
    return packed


def _rows_int8(table: onnx.TensorProto) -> list[onnx.TensorProto]:
    rows = numpy_helper.to_array(table)
    scale = np.maximum(np.abs(rows).max(1, keepdims=True), 1e-8) / 127
    return [
        numpy_helper.from_array(np.round(rows / scale).astype(np.int8), f"{table.name}_q8"),
        numpy_helper.from_array(scale.astype(np.float32), f"{table.name}_q8_scale"),
    ]


def _look_up(node: onnx.NodeProto, table: str, bits: int) -> list[onnx.NodeProto]:
    output = node.output[0]
    if bits == 4:
        inputs = [f"{table}_q4", node.input[1], f"{table}_q4_scale", f"{table}_q4_zero"]
        settings = {"bits": 4, "block_size": TABLE_BLOCK, "gather_axis": 0, "quantize_axis": 1}
        half = f"{output}_half"
        return [
            node_of("GatherBlockQuantized", inputs, half, domain=CONTRIB, **settings),
            node_of("Cast", [half], output, to=TensorProto.FLOAT),
        ]
    return [
        node_of("Gather", [f"{table}_q8", node.input[1]], f"{output}_q8"),
        node_of("Gather", [f"{table}_q8_scale", node.input[1]], f"{output}_scale"),
        node_of("Cast", [f"{output}_q8"], f"{output}_cast", to=TensorProto.FLOAT),
        node_of("Mul", [f"{output}_cast", f"{output}_scale"], output),
    ]
