"""Exceptions: what they derive from, and the two helpers of their messages."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lazyinit as li
from lazyinit import errors
from lazyinit.compat import versions

CLASSES = [x for _, x in inspect.getmembers(errors, inspect.isclass) if issubclass(x, Exception)]
CLASSES.remove(errors.LazyinitWarning)


@pytest.mark.parametrize("error", CLASSES, ids=lambda e: e.__name__)
def test_every_error_is_of_the_package_and_of_a_built_in(error):
    assert issubclass(error, errors.LazyinitError)
    if error is not errors.LazyinitError:
        assert issubclass(
            error, ValueError | TypeError | LookupError | OSError | RuntimeError | ArithmeticError
        )


@pytest.mark.parametrize("error", CLASSES, ids=lambda e: e.__name__)
def test_every_error_prints_its_message_as_it_is(error):
    assert str(error("params/head: it's\nso")) == "params/head: it's\nso"


def test_the_nearest_known_string_is_suggested():
    assert errors.nearest("kernle", ["bias", "kernel"]) == "; did you mean 'kernel'?"
    assert errors.nearest("zzz", ["bias", "kernel"]) == ""
    assert errors.nearest("zzz", []) == ""


@given(st.lists(st.text(st.characters(exclude_characters="\n")), max_size=30))
def test_ten_problems_are_shown_and_the_others_counted(problems):
    problems = [f"{p}." for p in problems]
    lines = errors.listing(problems).split("\n") if problems else []
    assert lines[:10] == problems[:10]
    more = len(problems) - 10
    assert lines[10:] == ([f"... and {more} more"] if more > 0 else [])


STATE = {"a": np.zeros(2, np.float32), "b": np.zeros(3, np.float32)}
STRUCTS = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in STATE.items()}
HALF = {"a": np.ones(2, np.float32)}
WARNING = {
    "fill": lambda: li.fill(STRUCTS, HALF),
    "update": lambda: li.update(STATE, HALF),
    "from_pretrained": lambda: li.from_pretrained(
        lambda key: jax.tree.map(jnp.asarray, STATE) | {"c": jax.random.normal(key)},
        {"a": np.ones(2, np.float32)},
        jax.random.key(0),
    ),
    "a version": versions.warn_outside,
}


@pytest.mark.parametrize("name", WARNING)
def test_a_warning_names_the_line_that_led_to_it(name, monkeypatch):
    monkeypatch.setattr(jax, "__version__", "0.9.2")
    with pytest.warns(errors.LazyinitWarning) as warned:
        WARNING[name]()
    (file,) = {warning.filename for warning in warned}
    assert file == __file__
