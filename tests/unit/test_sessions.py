"""Every door opens graphs with the same settings, and int8 sums are whole on this machine too."""

import numpy as np
import onnxruntime
import pytest

from nlp_distill import sessions
from nlp_distill.sessions import PRODUCT, WHOLE_SUMS, cuts_sums, session_options


@pytest.mark.parametrize(("rows", "inner"), [(1, 384), (4, 64), (33, 1536)])
def test_the_largest_sums_are_whole(rows, inner):
    session = onnxruntime.InferenceSession(PRODUCT, session_options(1), ["CPUExecutionProvider"])
    given = {"x": np.full((rows, inner), 255, np.uint8), "w": np.full((inner, 48), 127, np.int8)}
    assert (session.run(None, given)[0] == inner * 255 * 127).all()


def test_what_it_costs_is_paid_only_where_sums_are_cut_off(monkeypatch):
    monkeypatch.setattr(sessions, "cuts_sums", lambda: True)
    assert session_options().get_session_config_entry(WHOLE_SUMS[0]) == "1"
    monkeypatch.setattr(sessions, "cuts_sums", lambda: False)
    options = session_options(3)
    with pytest.raises(RuntimeError, match="does not have"):
        options.get_session_config_entry(WHOLE_SUMS[0])
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)


def test_a_machine_that_cuts_sums_off_is_noticed(monkeypatch):
    """As AVX2 without VNNI does: pairs of products end at 32,767."""

    class Saturating:
        def __init__(self, *arguments, **settings):
            pass

        def run(self, outputs, given):
            x, w = given["x"].astype(int), given["w"].astype(int)
            pairs = x[:, ::2, None] * w[None, ::2] + x[:, 1::2, None] * w[None, 1::2]
            return [np.minimum(pairs, 32767).sum(1)]

    cuts_sums.cache_clear()
    monkeypatch.setattr(onnxruntime, "InferenceSession", Saturating)
    assert cuts_sums()
    cuts_sums.cache_clear()
