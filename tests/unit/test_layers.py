import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlp_distill.errors import LayerMapInvalid
from nlp_distill.layers import POLICIES, layer_map


@pytest.mark.parametrize(
    ("teacher", "student", "expected"),
    [
        (12, 6, [1, 3, 5, 7, 9, 11]),
        (6, 3, [1, 3, 5]),
        (12, 5, [1, 3, 6, 8, 11]),
        (4, 4, [0, 1, 2, 3]),
        (6, 1, [5]),
    ],
)
def test_alternate_is_even_and_ends_on_the_last(teacher, student, expected):
    assert layer_map("alternate", teacher, student) == expected


def test_named_policies():
    assert layer_map("first", 12, 3) == [0, 1, 2]
    assert layer_map("last", 12, 3) == [9, 10, 11]
    assert layer_map("first_last", 12, 4) == [0, 4, 7, 11]
    assert layer_map("distilbert", 12, 6) == [0, 2, 4, 7, 9, 11]
    assert layer_map([5, 0, 5], 6, 3) == [5, 0, 5]


@given(st.integers(1, 48), st.integers(1, 48), st.sampled_from([p for p in POLICIES if p != "distilbert"]))
def test_every_policy_gives_valid_increasing_maps(teacher, student, policy):
    if student > teacher:
        with pytest.raises(LayerMapInvalid):
            layer_map(policy, teacher, student)
        return
    chosen = layer_map(policy, teacher, student)
    assert len(chosen) == student
    assert chosen == sorted(set(chosen))
    assert 0 <= chosen[0] and chosen[-1] < teacher


@pytest.mark.parametrize(
    ("policy", "teacher", "student", "words"),
    [
        ("distilbert", 6, 3, "12 to 6 layers only"),
        ("every_other", 6, 3, "no such policy"),
        ([0, 1], 6, 3, "2 entries for 3"),
        ([0, 1, 6], 6, 3, "no layer 6"),
    ],
)
def test_unknown_pairs_are_refused(policy, teacher, student, words):
    with pytest.raises(LayerMapInvalid, match=words):
        layer_map(policy, teacher, student)
