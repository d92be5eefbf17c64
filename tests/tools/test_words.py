import pytest

from lazyinit.tools.words import Dictionary, meaning, words


def test_names_are_taken_apart_at_marks_and_capitals():
    assert words("model.layers.0.self_attn.qProj.norm1") == [
        "model",
        "layers",
        "self",
        "attn",
        "q",
        "proj",
        "norm1",
    ]
    assert meaning("query") == meaning("q") == "q"
    assert meaning("unheard") == "unheard"


@pytest.mark.parametrize(
    ("one", "other", "more"),
    [
        ("attn/query/kernel", "attn.q.weight", "attn.k.weight"),
        ("mlp/up/kernel", "ffn.up.weight", "ffn.down.weight"),
        ("a/LayerNorm/scale", "b.ln.w", "b.fc.w"),
    ],
)
def test_names_of_words_that_mean_the_same_are_likelier(one, other, more):
    known = Dictionary()
    assert known.likeness(one, other) > known.likeness(one, more)


def test_what_is_learned_of_one_name_tells_about_others():
    known = Dictionary()
    assert known.likeness("encoder/up/kernel", "z0.z2.z3") == 0
    known.learn("encoder/down/kernel", "z0.z1.z3")
    assert known.likeness("encoder/up/kernel", "z0.z2.z3") > 0
    assert known.likeness("encoder/up/kernel", "z9.z2.z3") < known.likeness(
        "encoder/up/kernel", "z0.z2.z3"
    )
    # What is the word for "down" is not that for "up".
    assert known.likeness("encoder/up/kernel", "z0.z1.z3") < known.likeness(
        "encoder/up/kernel", "z0.z2.z3"
    )


def test_names_of_other_lengths_teach_nothing():
    known = Dictionary()
    known.learn("a/b", "x")
    assert known.likeness("a", "x") == 0
