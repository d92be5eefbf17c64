"""What is said of processes that differ, and what is no difference, without processes."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import Decoder

import lazyinit as li
from lazyinit.agree import calls
from lazyinit.agree import differences as module
from lazyinit.agree.entries import Entry, aspects, digest_of, steps
from lazyinit.errors import HostsError

IDS = jax.ShapeDtypeStruct((1, 4), "int32")


def entries_of(tree):
    return [Entry(path, leaf, True, None, None) for path, leaf in li.paths.leaves_with_paths(tree)]


def recorded(layers=2, key=0):
    return entries_of(li.lazy(Decoder(layers=layers)).init(jax.random.key(key), IDS))


def run(monkeypatch, *processes, about=None):
    """Returns what each process raises, each given its entries; ``None`` where nothing."""
    told = [[] for _ in processes]
    raised = [None] * len(processes)
    while True:  # Each exchange starts all anew with one more answer: no threads.
        asked = {}
        for n, entries in enumerate(processes):
            answers = iter(told)

            def exchange(group, mine, call, n=n, answers=answers):
                for answer in answers:
                    if answer:
                        return answer
                asked[n] = mine
                raise StopIteration

            monkeypatch.setattr(module, "exchange", exchange)
            try:
                said = (about or [""] * len(processes))[n]
                module.agree("materialize", said, lambda e=entries: e, tuple(range(len(processes))))
            except StopIteration:
                pass
            except HostsError as error:
                raised[n] = str(error)
        if not asked:
            return raised
        assert len(asked) == len(processes), "all take part in every exchange"
        told.append(asked)


def test_two_recordings_agree(monkeypatch):
    assert digest_of(recorded()) == digest_of(recorded())
    assert run(monkeypatch, recorded(), recorded()) == [None, None]


def test_the_same_leaves_in_another_program_agree(monkeypatch):
    def alone(key):
        return {"w": jax.random.normal(key, (3,))}

    def beside(key):
        return {"other": jax.random.uniform(key, (2,)), "w": jax.random.normal(key, (3,))}

    first, second = (li.lazy(init)(jax.random.key(0)) for init in (alone, beside))
    del second["other"]
    first, second = map(entries_of, (first, second))
    assert digest_of(first) != digest_of(second)
    assert run(monkeypatch, first, second) == [None, None]


def test_all_processes_raise_the_first_difference_and_how_many_there_are(monkeypatch):
    errors = run(monkeypatch, recorded(), recorded(key=1), recorded())
    (text,) = set(errors)
    assert text.startswith("params/embed/embedding: materialize: wanted the same key in every ")
    assert "[0, 0] in processes 0, 2, params threefry2x32[0, 1] in process 1. 20 more" in text


def test_one_more_difference_is_told_as_one_leaf(monkeypatch):
    def made(*scales):
        pairs = zip("abc", scales, strict=True)
        init = {name: jax.nn.initializers.normal(scale) for name, scale in pairs}
        return entries_of({name: li.LazyParam((2,), "float32", f) for name, f in init.items()})

    text, _ = run(monkeypatch, made(1.0, 1.0, 1.0), made(1.0, 2.0, 2.0))
    assert text.startswith("b: materialize: wanted the same initializer")
    assert " 1 more leaf differs. Every process" in text


def test_a_leaf_that_one_lacks_is_named(monkeypatch):
    first, second = recorded(), recorded()
    del second[4]
    (text,) = set(run(monkeypatch, first, second, second))
    assert text.startswith(
        f"{first[4].path}: materialize: wanted the same leaf in every process, got "
        f"{aspects(first[4])['leaf']} in process 0, no such leaf in processes 1, 2. Every process"
    )


def test_two_leaves_at_one_path_are_both_compared(monkeypatch):
    def both(x):
        return entries_of({"a/b": np.ones(2), "a": {"b": np.ones(x)}})

    assert run(monkeypatch, both(2), both(2)) == [None, None]
    (text,) = set(run(monkeypatch, both(2), both(3)))
    assert text.startswith("a/b: materialize: ")


def made_by(*inits):
    """Returns, for each function of a key, the entries of a leaf that it makes."""
    return [entries_of(li.lazy(init)(jax.random.key(0))) for init in inits]


def normal(key):
    return jax.random.normal(key, (4,))


def jitted(by):
    return lambda key: jax.jit(lambda key: normal(key) * by)(key)


def long(by):
    def init(key):
        x = normal(key)
        for n in range(200):
            x = jnp.sin(x + n)
        return x * by

    return init


@pytest.mark.parametrize(
    ("inits", "said"),
    [
        ((normal, jax.random.uniform), r"leaf in every process, got float32\[4\] in process 0"),
        (
            (normal, lambda k: jax.random.uniform(k, (4,))),
            r"got normal in process 0, uniform in process 1\. ",
        ),
        ((lambda k: normal(k) + 1, lambda k: normal(k) + 2), r"\] 1\) in process 0, .*\] 2\) in p"),
        ((normal, lambda k: normal(k) + 2), r"no further step in process 0, .* with add\(#0, "),
        ((jitted(2), jitted(3)), r"= mul\(.* 2.0 .* in process 0, .* 3.0 .* in process 1\. "),
        ((lambda k: normal(k) * np.ones(4), lambda k: normal(k) * np.arange(4)), r"multiply\(#0, "),
    ],
)
def test_of_what_is_computed_the_first_step_that_differs_is_said(monkeypatch, inits, said):
    errors = set(run(monkeypatch, *made_by(*inits)))
    (text,) = errors
    assert re.search(said, text), text


def test_what_differs_after_many_steps_is_told_by_a_digest(monkeypatch):
    (text,) = set(run(monkeypatch, *made_by(long(2), long(3))))
    assert re.search(r"got \S+ \([0-9a-f]{16}\) in process 0, \S+ \([0-9a-f]{16}\) in pro", text)
    for (entry,) in made_by(long(2), lambda key: jax.lax.concatenate([normal(key)] * 500, 0)):
        ((_, lines),) = [told for told in steps(entry).values() if told[1]]
        assert 0 < len(lines) <= 256
        assert max(map(len, lines)) <= 160


def test_other_settings_are_said_after_the_leaves(monkeypatch):
    about = ["jax 1", "jax 2"]
    (text,) = set(run(monkeypatch, recorded(), recorded(), about=about))
    assert text.startswith("materialize: wanted the same settings in every process, got jax 1 in ")
    (text,) = set(run(monkeypatch, recorded(), recorded(key=1), about=about))
    assert text.startswith("params/embed/embedding: ")


def test_what_is_not_selected_need_not_be_the_same(monkeypatch):
    def chosen(key):
        first, *others = recorded(key=key)
        return [first._replace(is_selected=False), *(e._replace(is_selected=False) for e in others)]

    assert run(monkeypatch, chosen(0), chosen(1)) == [None, None]


@pytest.mark.parametrize("count", [2, 9])
def test_many_processes_are_told_in_short(count):
    said = {n: {"key": "b" if n == count else "a"} for n in range(count + 1)}
    text = calls.differing(said)
    group = ", ".join(map(str, range(min(count, 8)))) + (", ..." if count > 8 else "")
    want = f"wanted the same key in every process, got a in processes {group}, b in process {count}"
    assert text == want


def test_aspects_are_text_that_json_keeps():
    for entry in recorded():
        said = aspects(entry)
        assert json.loads(json.dumps(said)) == said
