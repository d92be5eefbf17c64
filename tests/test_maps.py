"""Ready maps against Flax's own conversion, both ways, and against what the models then compute."""

import os

os.environ.setdefault("USE_TORCH", "0")  # transformers would import it if it is there.

from types import SimpleNamespace

import numpy as np
import pytest
from families import FAMILIES, params_of
from flax.traverse_util import flatten_dict, unflatten_dict
from pipelines import assert_equal, filled, values, written

import lazyinit as li
from lazyinit.checkpoint.memory import open_tree
from lazyinit.patterns import pattern
from lazyinit.rules import check_rules
from lazyinit.translate import translate

pytestmark = pytest.mark.filterwarnings("ignore")  # Theirs, about the end of Flax models.


def converted(name, tensors):
    """Returns what transformers' own conversion to Flax makes of tensors, by path."""
    import transformers
    from transformers.modeling_flax_pytorch_utils import convert_pytorch_state_dict_to_flax

    prefix = getattr(transformers, f"Flax{name}").base_model_prefix
    params = unflatten_dict({tuple(path.split("/")): x for path, x in params_of(name).items()})
    model = SimpleNamespace(params=params, base_model_prefix=prefix)
    made = flatten_dict(convert_pytorch_state_dict_to_flax(dict(tensors), model))
    return {"/".join(path): np.asarray(x) for path, x in made.items()}


def in_order(flat):
    return dict(sorted(flat.items()))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_map_agrees_with_the_conversion_of_transformers_both_ways(name):
    params, rules = params_of(name), FAMILIES[name][3]
    tensors = values(written(params, rules))
    assert all("." in tensor or tensor == "logit_scale" for tensor in tensors)
    assert_equal(in_order(converted(name, tensors)), in_order(params))
    flat = {f"params/{path}": x for path, x in params.items()}
    leaves, report = filled(flat, tensors, rules)
    assert_equal(in_order(leaves), in_order(flat))
    assert report.unexpected == report.missing == report.unused_rules == ()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_map_says_what_becomes_of_every_tensor_without_a_tree(name):
    params, rules = params_of(name), FAMILIES[name][3]
    made = translate(open_tree(values(written(params, rules))), rules=check_rules(rules))
    assert_equal(in_order(values(made)), in_order(params))


@pytest.mark.parametrize("name", FAMILIES)
def test_no_leaf_goes_by_a_name_that_its_map_does_not_say(name):
    rules = FAMILIES[name][3]
    fits = [pattern(leaf) for r in rules if isinstance(r, li.Rule) for leaf in r.leaves]
    assert [p for p in params_of(name) if not any(f.match(p) for f in fits)] == []
