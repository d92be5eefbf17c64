"""Families of names, and sisters that other models fuse."""

from lazyinit.tools.families import families, numbers_differ, says_fused, sisters


def test_names_that_differ_in_numbers_are_one_family():
    shapes = {"layers_0/w": (2,), "layers_11/w": (3,), "fc1/w": (2,), "fc2/w": (2,)}
    found = families(shapes, numbered=True)
    assert [family.names for family in found] == [
        ["layers_0/w", "layers_11/w"],
        ["fc1/w"],
        ["fc2/w"],
    ]
    assert found[0].shapes == {(0,): (2,), (11,): (3,)}
    assert found[0].name(["{n}"]) == "layers_{n}/w"
    assert len(families(shapes, numbered=False)) == 4


def test_names_of_other_ranks_are_other_families():
    found = families({"norms/0": (2,), "norms/1": (2, 2)}, numbered=True)
    assert [family.rank for family in found] == [1, 2]


def test_the_scope_is_what_stands_before_the_last_number():
    (one,) = families({"h.3.mlp.7.up": (2,)}, numbered=True)
    (other,) = families({"h.3.mlp.7.up": (2,)}, numbered=False)
    assert one.scope == other.scope == ("h.", ".mlp.")
    assert families({"lm_head.weight": (2,)}, numbered=True)[0].scope == ()


def test_sisters_stand_in_one_module_and_come_in_order():
    names = [
        f"h.{n}.{each}" for n in range(2) for each in ("v.w", "q.w", "k.w", "up.w", "k.b", "v.b")
    ]
    found = sisters(families(dict.fromkeys(names, (2,)), numbered=True))
    assert [[family.names[0] for family in some] for some in found] == [
        ["h.0.q.w", "h.0.k.w", "h.0.v.w"],
        ["h.0.k.b", "h.0.v.b"],
    ]


def test_a_name_says_whom_it_holds():
    names = {f"attn/{name}": (2,) for name in ("q_bias", "k_bias", "v_bias")}
    (some,) = sisters(families(names, numbered=True))
    fused = {
        "attn/qkv_einsum/w": True,
        "query_key_value.bias": True,
        "attn/kv/w": False,
        "up/w": False,
    }
    for name, says in fused.items():
        assert says_fused(families({name: (6,)}, numbered=True)[0], some) is says


def test_numbers_differ_if_neither_name_has_those_of_the_other():
    def differ(*names):
        return numbers_differ(*(families({name: (2,)}, numbered=False)[0] for name in names))

    assert differ("layers/0/w", "h.1.w")
    assert not differ("layers/1/w", "h.0.e.1.w")
    assert not differ("up/w", "h.1.w")
