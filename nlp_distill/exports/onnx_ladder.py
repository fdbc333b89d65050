"""What is tried for each profile of ONNX, in order: the next rung only where the one before lost too much."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from nlp_distill.exports import onnx_bits, onnx_graph
from nlp_distill.exports.format import Attempt, Form, Work
from nlp_distill.exports.onnx_files import export
from nlp_distill.exports.onnx_graph import Feeds

CALIBRATION_ROWS = 128
SENSITIVITY_ROWS = 8
WITHOUT = 3
"""Products that stay fp32 when int8 loses too much; where that is too few, half of them."""

MOST = 0.25
"""Share of the activations that is smoothed before anything was lost: half of the noise goes, for no time."""
SMOOTHED = {"activations": "outlying channels smoothed into the weights"}
QUARTER = {"activations": "of the quarter that gains most, outlying channels smoothed into the weights"}
BLOCK = 64
"""Weights of 4 bits that share a scale, in training (`compress.rounding`) and export."""
_FOUR_BITS = "weights of 4 bits in blocks of {}, activations fp32"
_COMPENSATED = _FOUR_BITS + ", errors compensated (GPTQ)"
_EIGHT_BITS = "weights of 8 bits in blocks of {}, activations int8 by row"


def rungs(work: Work, form: Form, files: list[Path]) -> Iterator[Attempt]:
    """Ways to make a form of some fp32 files."""
    if len(files) > 1:
        yield from _by_weights_alone(form, files)
        return
    yield from LADDERS[form.profile](work, form, files[0], calibration(work))


def calibration(work: Work) -> Feeds:
    """Rows of the selection slice as a user would ask them, one at a time: short and long ones alike."""
    order = np.argsort(work.rows.lengths, kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, min(len(order), CALIBRATION_ROWS)).round().astype(np.int64)]
    rows = work.rows.take(chosen, seed=0)
    return [_inputs(row) for row in rows]


def _inputs(row: dict[str, Any]) -> dict[str, NDArray[np.int64]]:
    ids = np.array([row["input_ids"]], np.int64)
    types = np.array([row["token_type_ids"]], np.int64) if "token_type_ids" in row else np.zeros_like(ids)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": types}


def _fast(work: Work, form: Form, file: Path, feeds: Feeds) -> Iterator[Attempt]:
    plain = onnx_graph.fused(file, feeds)
    first = onnx_graph.smoothed(plain, feeds, MOST)
    says = "static int8, weights per channel"

    def static(model: onnx.ModelProto, bits: int, without: list[str]) -> Callable[[Path], None]:
        def make(folder: Path) -> None:
            found = onnx_graph.ranges(model, feeds)
            quantized = onnx_graph.static_int8(model, found, plain=False, without=without)
            _save(onnx_bits.small_tables(quantized, bits), folder, file, form)

        return make

    yield Attempt(_said(says, feeds, embeddings=4) | QUARTER, static(first, 4, []))
    # As fast, and larger: what the embeddings lost needs nothing else.
    yield Attempt(_said(says, feeds, embeddings=8) | QUARTER, static(first, 8, []))
    smooth = onnx_graph.smoothed(plain, feeds)
    said = _said(says, feeds, embeddings=8) | SMOOTHED
    yield Attempt(said, static(smooth, 8, []))
    worst = _worst(smooth, feeds)
    yield Attempt(said | {"not_quantized": worst[:WITHOUT]}, static(smooth, 8, worst[:WITHOUT]))
    if work.retrained:
        yield Attempt(
            _said(says, feeds, embeddings=8) | {"trained": "one epoch, quantization-aware"},
            partial(_retrained_int8, work, form, file, feeds, False),
        )
    many = worst[: len(worst) // 2]
    if len(many) > WITHOUT:
        yield Attempt(said | {"not_quantized": many}, static(smooth, 8, many))


def _worst(model: onnx.ModelProto, feeds: Feeds) -> list[str]:
    """All products, the one whose int8 moves the answers most first."""
    few = feeds[:: max(1, len(feeds) // SENSITIVITY_ROWS)]
    return onnx_graph.most_sensitive(model, onnx_graph.ranges(model, feeds), few)


def _small(work: Work, form: Form, file: Path, feeds: Feeds) -> Iterator[Attempt]:
    plain = onnx_graph.fused(file, feeds)

    def compensated(block: int, folder: Path) -> None:
        quantized = onnx_bits.compensated(plain, block, feeds)
        _save(onnx_bits.small_tables(quantized, 4), folder, file, form)

    for block in (BLOCK, BLOCK // 2):
        yield Attempt(_said(_COMPENSATED.format(block), feeds, embeddings=4), partial(compensated, block))
    if work.retrained:

        def retrained(folder: Path) -> None:
            with _exported_anew(work, 4) as trained:
                # It learnt with these very roundings.
                quantized = onnx_bits.few_bits(onnx_graph.fused(trained, feeds), 4, BLOCK)
                _save(onnx_bits.small_tables(quantized, 4), folder, file, form)

        yield Attempt({"quantization": _FOUR_BITS.format(BLOCK), "trained": "one epoch, quantization-aware"}, retrained)
    smooth = onnx_graph.smoothed(plain, feeds)

    def eight_bits(folder: Path) -> None:
        quantized = onnx_graph.static_int8(smooth, onnx_graph.ranges(smooth, feeds), plain=False)
        _save(onnx_bits.small_tables(quantized, 4), folder, file, form)

    said = _said("static int8, weights per channel", feeds, embeddings=4) | SMOOTHED
    yield Attempt(said | {"precision": "int8"}, eight_bits)


def _retrained_int8(work: Work, form: Form, file: Path, feeds: Feeds, plain: bool, folder: Path) -> None:
    with _exported_anew(work, 8) as trained:
        model = onnx_graph.opened(trained) if plain else onnx_graph.fused(trained, feeds)
        quantized = onnx_graph.static_int8(model, onnx_graph.ranges(model, feeds), plain)
        _save(onnx_bits.small_tables(quantized, 8), folder, file, form)


@contextmanager
def _exported_anew(work: Work, bits: int) -> Iterator[Path]:
    """The fp32 graph of the student that was trained to be rounded."""
    assert work.retrained is not None
    with tempfile.TemporaryDirectory() as scratch:
        export(work.retrained(bits), work.task, Path(scratch))
        yield Path(scratch) / "model.onnx"


def _mobile(work: Work, form: Form, file: Path, feeds: Feeds) -> Iterator[Attempt]:
    plain = onnx_graph.opened(file)

    def static(model: onnx.ModelProto, without: list[str]) -> Callable[[Path], None]:
        def make(folder: Path) -> None:
            found = onnx_graph.ranges(model, feeds)
            quantized = onnx_graph.static_int8(model, found, plain=True, without=without)
            _save(onnx_bits.small_tables(quantized, 8), folder, file, form)

        return make

    said = _said("static int8 (quantize–dequantize pairs), weights per channel", feeds, embeddings=8)
    yield Attempt(said | QUARTER, static(onnx_graph.smoothed(plain, feeds, MOST), []))
    smooth = onnx_graph.smoothed(plain, feeds)
    yield Attempt(said | SMOOTHED, static(smooth, []))
    worst = _worst(smooth, feeds)[:WITHOUT]
    yield Attempt(said | SMOOTHED | {"not_quantized": worst}, static(smooth, worst))
    if work.retrained:
        yield Attempt(
            said | {"trained": "one epoch, quantization-aware"},
            partial(_retrained_int8, work, form, file, feeds, True),
        )


LADDERS: dict[str, Callable[[Work, Form, Path, Feeds], Iterator[Attempt]]] = {
    "fast": _fast,
    "small": _small,
    "mobile": _mobile,
}


def _by_weights_alone(form: Form, files: list[Path]) -> Iterator[Attempt]:
    """Encoder and decoder: what a decoder will see while it generates is not known from rows."""
    for bits, block in {"small": ((4, 128), (4, 32), (8, 128))}.get(form.profile, ((8, 128), (8, 32))):

        def make(folder: Path, bits: int = bits, block: int = block) -> None:
            for file in files:
                quantized = onnx_bits.few_bits(onnx_graph.opened(file), bits, block)
                _save(onnx_bits.small_tables(quantized, 4 if bits == 4 else 8), folder, file, form)

        said = _FOUR_BITS if bits == 4 else _EIGHT_BITS
        precision = "int4" if bits == 4 else "int8"
        yield Attempt({"quantization": said.format(block), "precision": precision}, make)


def _said(quantization: str, feeds: Feeds, embeddings: int) -> dict[str, Any]:
    return {"quantization": quantization, "embedding_bits": embeddings, "calibration": {"rows": len(feeds)}}


def _save(model: onnx.ModelProto, folder: Path, file: Path, form: Form) -> None:
    onnx.save(model, folder / f"{file.stem}{form.suffix}.onnx")
