"""What shapes leave open is decided by siblings and conventions, or not at all."""

import pytest

from lazyinit.tools.decide import decide
from lazyinit.tools.pairing import given


def decided(*pairs):
    """Returns decisions for pairs of a leaf and a tensor, each given with its shape."""
    found = [given(leaf, tensor, (one, other)) for leaf, one, tensor, other in pairs]
    return decide([pair for pair in found if pair is not None])


SQUARE = ("h/0/out/kernel", (4, 4), "h/0/out/weight", (4, 4))
TOLD = {
    True: ("h/0/up/kernel", (4, 6), "h/0/up/weight", (6, 4)),
    False: ("h/0/down/kernel", (6, 4), "h/0/down/weight", (6, 4)),
}


@pytest.mark.parametrize("turned", [True, False])
def test_siblings_decide(turned):
    first, second = decided(SQUARE, TOLD[turned])
    assert [option.turned for option in first.options] == [turned]
    assert not first.is_open
    assert second.why == ""


def test_siblings_that_differ_decide_nothing():
    first, *_ = decided(SQUARE, TOLD[True], TOLD[False])
    assert first.is_open
    assert len(first.options) == 2
    assert first.why == "shapes leave its layout open, and its siblings differ"


def test_others_elsewhere_may_only_confirm_the_convention():
    far = ("head/kernel", (4, 4), "head/weight", (4, 4))
    (first, _), (second, _) = decided(far, TOLD[True]), decided(far, TOLD[False])
    assert [option.turned for option in first.options] == [True]
    assert second.is_open
    assert second.why == "shapes leave its layout open, and nothing else tells"


@pytest.mark.parametrize(
    ("leaf", "tensor", "turned", "why"),
    [
        ("up/kernel", "up/weight", True, "PyTorch stores weights"),
        ("up/kernel", "up/kernel", False, "Flax stores kernels"),
        ("embed/embedding", "embed/weight", False, "embeddings are"),
        ("up/weight", "up/weight", None, "no other tensor tells"),
        ("up/kernel", "proj", None, "nothing else tells"),
    ],
)
def test_where_nothing_else_tells_conventions_do(leaf, tensor, turned, why):
    (found,) = decided((leaf, (4, 4), tensor, (4, 4)))
    assert found.is_open is (turned is None)
    assert why in found.why
    assert found.is_open or [option.turned for option in found.options] == [turned]


def test_embeddings_say_nothing_about_kernels():
    embedding = ("embed/embedding", (7, 4), "embed/weight", (7, 4))
    found, _ = decided(("up/kernel", (4, 4), "up/weight", (4, 4)), embedding)
    assert "PyTorch stores weights" in found.why


def test_a_query_leads_to_heads_and_an_output_from_them():
    query, out = decided(
        ("q/kernel", (2, 3, 2), "q_proj/weight", (2, 6)),
        ("o/kernel", (2, 3, 2), "o_proj/weight", (6, 2)),
    )
    assert [option.turned for option in query.options] == [False]
    assert [option.turned for option in out.options] == [False]
