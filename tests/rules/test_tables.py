"""Tables of other libraries: numpy does what the transforms of their entries say."""

import enum
import re

import numpy as np
import pytest
from pipelines import assert_equal, count, filled, refused, values, written

import lazyinit as li

D, H, K = 6, 2, 4


class Transform(enum.Enum):
    BIAS = None
    LINEAR = ((1, 0), None)
    HEADS_FIRST = ((2, 0, 1), (H, K, D), True)


# Written as the tables of google-tunix and bonsai are.
TABLE = {
    r"model\.embed_tokens\.weight": ("embedder.input_embedding", None),
    r"model\.layers\.([0-9]+)\.self_attn\.q_proj\.weight": (
        r"layers.\1.attn.q_proj.w",
        ((1, 0), (D, H, K)),
    ),
    r"model\.layers\.([0-9]+)\.self_attn\.k_proj\.weight": (
        r"layers.\1.attn.k_proj.w",
        Transform.HEADS_FIRST,
    ),
    r"model\.layers\.([0-9]+)\.self_attn\.q_proj\.bias": (r"layers.\1.attn.q_bias", (None, (H, K))),
    r"model\.layers\.([0-9]+)\.mlp\.(gate|up)_proj\.weight": (
        r"layers.\1.mlp.\2_proj.kernel",
        Transform.LINEAR,
    ),
    r"(?:language_model\.)?model\.norm\.weight": "final_norm.w",
    r".*\.inv_freq": ("unused.rotary", None),
    re.compile(r"lm_head\.bias"): None,
}


def tensors_of(prefix="model.norm.weight"):
    named = {"model.embed_tokens.weight": count(9, D)}
    for n in range(2):
        layer = f"model.layers.{n}"
        named |= {
            f"{layer}.self_attn.q_proj.weight": count(H * K, D) + n,
            f"{layer}.self_attn.k_proj.weight": count(H * K, D) + 5 * n,
            f"{layer}.self_attn.q_proj.bias": count(H * K) - n,
            f"{layer}.mlp.gate_proj.weight": count(3, D) + n,
            f"{layer}.mlp.up_proj.weight": count(3, D) - n,
        }
    return named | {prefix: count(D)}


def tree_of(tensors):
    flat = {
        "embedder/input_embedding": tensors["model.embed_tokens.weight"],
        "final_norm/w": tensors["model.norm.weight"],
    }
    for n in range(2):
        attention, mlp = f"model.layers.{n}.self_attn", f"model.layers.{n}.mlp"
        flat |= {
            f"layers/{n}/attn/k_proj/w": tensors[f"{attention}.k_proj.weight"]
            .reshape(H, K, D)
            .transpose(2, 0, 1),
            f"layers/{n}/attn/q_bias": tensors[f"{attention}.q_proj.bias"].reshape(H, K),
            f"layers/{n}/attn/q_proj/w": tensors[f"{attention}.q_proj.weight"].T.reshape(D, H, K),
            f"layers/{n}/mlp/gate_proj/kernel": tensors[f"{mlp}.gate_proj.weight"].T,
            f"layers/{n}/mlp/up_proj/kernel": tensors[f"{mlp}.up_proj.weight"].T,
        }
    return flat


@pytest.mark.parametrize("prefix", ["", "params/"])
def test_a_table_fills_and_writes_what_its_transforms_say(prefix):
    tensors = tensors_of()
    flat = {prefix + path: leaf for path, leaf in tree_of(tensors).items()}
    rules = li.rules_from(TABLE, like=tensors)
    extra = {"model.layers.0.rotary.inv_freq": count(2), "lm_head.bias": count(3)}
    leaves, report = filled(flat, tensors | extra, rules)
    assert_equal(leaves, flat)
    assert report.unexpected == report.missing == report.unused_rules == ()
    back = values(written(flat, rules))
    assert_equal(dict(sorted(back.items())), dict(sorted(tensors.items())))


def test_what_is_optional_in_an_entry_is_found_and_not_written():
    tensors = tensors_of("language_model.model.norm.weight")
    flat = tree_of(tensors_of())
    leaves, _ = filled(flat, tensors, li.rules_from(TABLE))
    assert_equal(leaves, flat)
    back = values(written(flat, li.rules_from(TABLE, like=tensors)))
    assert sorted(back) == sorted(tensors_of())


def test_a_shape_that_no_checkpoint_told_is_not_read_backwards():
    message = (
        "layers/0/attn/k_proj/w: Rule('layers.{n}.attn.k_proj.w', "
        "'model.layers.{n}.self_attn.k_proj.weight', [Reshape((2, 4, 6)), "
        "Transpose('a0 a1 a2 -> a2 a0 a1')], across_collections=True, optional=True): Reshape((2, "
        "4, 6)): wanted the shape that the tensor had, which the leaf does not tell. Pass it as back"
    )
    with refused(message):
        written(tree_of(tensors_of()), li.rules_from(TABLE))


@pytest.mark.parametrize("shapes", [[(4, 2), (2, 4)], [(8,)]])
def test_shapes_that_differ_or_have_other_axes_are_not_guessed_from(shapes):
    like = {f"h.{n}.w": np.zeros(shape) for n, shape in enumerate(shapes)}
    table = {r"h\.(\d+)\.w": (r"l.\1", ((1, 0), (2, 2, 2)))}
    assert li.rules_from(table, like=like) == li.rules_from(table)


def test_rules_of_a_table_are_values():
    assert li.rules_from(TABLE) == li.rules_from(dict(TABLE))
    (rule,) = li.rules_from({r"a\.w": ("b.k", ((0, 1), None))})
    assert rule == li.Rule("b.k", "a.w", across_collections=True, optional=True)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"a[bc]": "x"}, "entry 'a[bc]': wanted plain text, a number, a group or an alternative"),
        ({3: "x"}, "entry 3: wanted a key, or a key and a transform, of a regular expression, got"),
        ({"a": 3}, "entry 'a': wanted a key, or a key and a transform, of a regular expression, "),
        ({"a": ("b", lambda x: x.T)}, "entry 'a': wanted a transform (permutation, shape) or None"),
        (
            {"a": ("b", ((1, 1), None))},
            "entry 'a': wanted a permutation of the axes first, got ((1",
        ),
        ({"a": ("b", ((1, 0), 3))}, "entry 'a': wanted a transform (permutation, shape) or None"),
        ({"a": ("b", (None, (-2, 3)))}, "entry 'a': Reshape: wanted sizes from 0 on for shape"),
        (
            {r"e\.(\d+)": "x"},
            "entry 'e\\\\.(\\\\d+)': wanted a leaf for each tensor, got 'x' for all",
        ),
        ({r"e\.(\w+)": "x"}, "wanted two patterns with the same wildcards in the same order"),
        (
            {"a": r"\1"},
            "names group 1, which the expression lacks. Take it out of the table, and write a",
        ),
    ],
)
def test_an_entry_that_cannot_be_read_is_named(entry, message):
    with refused(message) as caught:
        li.rules_from({r"ok\.w": ("k", None), **entry})
    assert str(caught.value).startswith("rules_from: entry ")


def test_what_is_no_table_is_refused():
    with refused("rules_from: wanted a mapping from regular expressions to keys and transforms"):
        li.rules_from(lambda config: TABLE)
