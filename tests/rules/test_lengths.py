"""Messages and edges of Repeat, Pad and Trim, and all of them onto shards and back."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from pipelines import assert_equal, count, nested, refused, values, written, zeros
from safetensors.numpy import load_file, save_file

import lazyinit as li
from lazyinit.tensors.memory import HeldTensor

ROTARY = li.Rearrange("(h p k) i -> i h (k p)", p=2)
RULES = [
    li.Rule("kv", "kv.w", [li.Rearrange("(g k) i -> i g k", k=3), li.Repeat(1, 4)]),
    li.Rule("words", "words.w", [li.Pad(0, back=5, value=-1)]),
    li.Rule("few", "few.w", [li.Trim(-1, back=8)]),
    li.Rule("rotary", "rotary.w", [ROTARY]),
]


def tensors():
    few = count(2, 8)
    few[:, 6:] = 0
    return {
        "kv.w": count(6, 4),
        "words.w": count(5, 3) + 1,
        "few.w": few,
        "rotary.w": count(12, 4),
    }


def interleaved(w, heads):
    """Rotary halves as Meta's Llama has them, of those that Hugging Face's conversion made."""
    out, width = w.shape
    return w.reshape(heads, 2, out // heads // 2, width).transpose(0, 2, 1, 3).reshape(out, width)


def leaves():
    held = tensors()
    return {
        "few": held["few.w"][:, :6],
        "kv": np.repeat(held["kv.w"].reshape(2, 3, 4).transpose(2, 0, 1), 4, axis=1),
        "rotary": interleaved(held["rotary.w"], 3).T.reshape(4, 3, 4),
        "words": np.concatenate([held["words.w"], -np.ones((3, 3), "float32")]),
    }


@pytest.mark.parametrize("kind", ["mapping", "file"])
def test_they_are_read_onto_shards_and_written_back(kind, tmp_path):
    save_file(tensors(), tmp_path / "model.safetensors")
    checkpoint = tensors() if kind == "mapping" else tmp_path
    mesh = jax.make_mesh((2,), ("x",))
    specs = {"few": PartitionSpec(None, "x"), "kv": PartitionSpec(None, "x")}
    tree = {n: li.LazyParam(x.shape, x.dtype, zeros) for n, x in leaves().items()}
    tree, report = li.fill(tree, checkpoint, RULES, on_missing="error")
    assert report.unexpected == ()
    made = li.materialize(
        tree, sharding=lambda p, _: NamedSharding(mesh, specs.get(p, PartitionSpec("x")))
    )
    assert_equal({n: np.asarray(x) for n, x in made.items()}, leaves())
    li.save(made, tmp_path / "back", rules=RULES)
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert_equal(dict(sorted(back.items())), dict(sorted(tensors().items())))


def test_repeated_heads_that_differ_are_not_written():
    flat = leaves()
    flat["kv"][0, 1] += 1
    with refused("kv: wanted leaves that are equal, as the rules make them from one tensor, got"):
        values(written(flat, RULES))


def test_a_bfloat16_tensor_stays_one_when_it_is_filled_up():
    stored = HeldTensor("w", count(2, 3).astype("bfloat16"))
    assert li.Pad(0, size=4, value=0.5).changed(stored, None).dtype == "bfloat16"


def test_what_changes_nothing_is_the_tensor_itself():
    stored = HeldTensor("w", count(2, 3))
    for change in (li.Pad(0), li.Trim(0), li.Pad(0, size=2), li.Trim(0, size=2)):
        assert change.changed(stored, (2, 3)) is stored


@pytest.mark.parametrize(
    ("change", "wanted", "message"),
    [
        (li.Pad(0), None, "Pad(axis=0): wanted the size of the leaf, which nothing tells here."),
        (li.Trim(1), None, "Trim(axis=1): wanted the size of the leaf, which nothing tells"),
        (li.Pad(0, size=1), None, "Pad(axis=0, size=1): wanted at most 1 along axis 0, got shape"),
        (li.Trim(1), (2, 9), "Trim(axis=1): wanted at least 9 along axis 1, got shape [2, 3]."),
        (li.Pad(2), (2, 3, 4), "Pad(axis=2): wanted an axis of the leaf or tensor, which has"),
        (li.Repeat(2, 2), None, "Repeat(axis=2, times=2): wanted an axis of the leaf or tensor"),
    ],
)
def test_what_does_not_fit_the_leaf_is_said(change, wanted, message):
    with refused(message):
        change.changed(HeldTensor("w", count(2, 3)), wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (li.Pad(0), "Pad(axis=0): wanted the size that the tensor had, which the leaf does not"),
        (
            li.Trim(0, value=2),
            "Trim(axis=0, value=2): wanted the size that the tensor had, which",
        ),
        (li.Pad(0, back=3), "Pad(axis=0, back=3): wanted at least 3 along axis 0, got shape"),
        (li.Trim(0, back=1), "Trim(axis=0, back=1): wanted at most 1 along axis 0, got shape"),
        (li.Repeat(1, 2), "Repeat(axis=1, times=2): wanted a multiple of 2 along axis 1, got a"),
    ],
)
def test_what_cannot_be_read_backwards_is_said(change, message):
    with refused(message):
        change.restored(HeldTensor("w", count(2, 3)))


def test_a_place_is_repeated_at_least_once():
    with refused("Repeat(axis=0, times=0): wanted times=1 or more."):
        li.Repeat(0, 0)


def test_sizes_pass_through_to_the_changes_before():
    rule = li.Rule("a", "b", [li.Rearrange("(h k) i -> h k i"), li.Pad(1), li.Repeat(0, 2)])
    tree = nested({"a": li.LazyParam((4, 5, 3), "float32", zeros)})
    tree, _ = li.fill(tree, {"b": count(6, 3)}, [rule])
    expected = np.repeat(np.pad(count(2, 3, 3), [(0, 0), (0, 2), (0, 0)]), 2, axis=0)
    np.testing.assert_array_equal(li.materialize(tree)["a"], expected)


def test_padding_has_to_be_a_value_of_the_tensor():
    tree = {"w": jax.ShapeDtypeStruct((3,), "int8")}
    rule = li.Rule("w", "w", [li.Pad(0, value=300)])
    with pytest.raises(li.errors.FillError) as error:
        li.fill(tree, {"w": np.int8([1, 2])}, [rule])
    assert "Pad(axis=0, value=300): wanted a value that int8 holds, got 300" in str(error.value)
    assert "would become 44. Pad with another value=, or Cast before it" in str(error.value)
