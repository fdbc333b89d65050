"""Settings of ONNX Runtime's sessions that every door to a graph shares."""

from __future__ import annotations

import base64
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnxruntime

WHOLE_SUMS = ("session.x64quantprecision", "1")
"""Without it an x86 CPU that has no VNNI cuts int8 sums off at 16 bits; with it one that has VNNI is half as fast."""
PRODUCT = base64.b64decode(
    "CAgSADo9ChgKAXgKAXcSAXkiDU1hdE11bEludGVnZXISAFoJCgF4EgQKAggCWgkKAXcSBAoCCANiCQoBeRIECgIIBkIECgAQDQ=="
)
"""An ONNX graph of one `MatMulInteger`: y = x (uint8) · w (int8)."""


def session_options(threads: int | None = None) -> onnxruntime.SessionOptions:
    """Options of a session: `threads` (unset: all cores), and sums of int8 products that are never cut off."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if cuts_sums():
        options.add_session_config_entry(*WHOLE_SUMS)
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    return options


@cache
def cuts_sums() -> bool:
    """Whether this machine cuts off sums of int8 products: tried, with the largest values that there are."""
    import numpy as np
    import onnxruntime

    session = onnxruntime.InferenceSession(PRODUCT, providers=["CPUExecutionProvider"])
    given = {"x": np.full((4, 64), 255, np.uint8), "w": np.full((64, 16), 127, np.int8)}
    return bool((session.run(None, given)[0] != 64 * 255 * 127).any())
