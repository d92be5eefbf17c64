"""What is exchanged, and what is said when a process does not come: with a store of our own."""

import jax
import pytest

import lazyinit as li
from lazyinit import agree, compat
from lazyinit.agree import calls as module
from lazyinit.errors import HostAbsentError, HostsError, WordError

GROUP = (0, 3, 5)


class Held:
    """A store in one process; ``arrives`` is put there when somebody waits, as of the same call."""

    def __init__(self):
        self.values, self.arrives, self.waits = {}, {}, 0

    def put(self, key, value):
        self.values[key] = value

    def below(self, folder):
        start = folder + "/"
        return {k.rpartition("/")[2]: v for k, v in self.values.items() if k.startswith(start)}

    def wait_for(self, key, seconds):
        self.waits += 1
        folder = key.rpartition("/")[0]
        call, _, _ = self.values[f"{folder}/3"].partition(b"\n")
        for process, value in self.arrives.items():
            value = value if b"\n" in value else call + b"\n" + value
            self.values.setdefault(f"{folder}/{process}", value)

    def forget(self, key):
        self.values.pop(key, None)


@pytest.fixture
def store(monkeypatch):
    held = Held()
    monkeypatch.setattr(compat, "store", lambda: held)
    monkeypatch.setattr(module, "_calls", type(module._calls)())
    monkeypatch.setattr(module, "_noted", [])
    monkeypatch.setattr(jax, "process_index", lambda: 3)
    return held


def test_everyone_gets_what_each_said(store):
    store.arrives = {0: b"zero", 5: b"five"}
    assert agree.exchange(GROUP, b"three", "digest") == {0: b"zero", 3: b"three", 5: b"five"}
    assert store.waits == 1


def test_what_was_said_two_calls_ago_is_forgotten(store):
    store.arrives = {0: b"", 5: b""}
    for _ in range(3):
        agree.exchange(GROUP, b"", "digest")
    assert len([key for key in store.values if key.endswith("/3")]) == 1


def test_a_process_that_does_not_come_is_named(store, monkeypatch):
    monkeypatch.setenv(module.SETTING, "0.01")
    store.arrives = {0: b""}
    wanted = "^save: wanted processes 0, 3, 5 to make this call, but process 5 did not in "
    with pytest.raises(HostAbsentError, match=wanted):
        agree.exchange(GROUP, b"", "save")
    assert isinstance(HostAbsentError(), HostsError | TimeoutError)


def test_a_call_that_not_all_came_to_counts_for_none(store, monkeypatch):
    monkeypatch.setenv(module.SETTING, "0.01")
    with pytest.raises(HostAbsentError):
        agree.exchange(GROUP, b"mine", "save")
    assert not store.values
    store.arrives = {0: b"", 5: b""}
    agree.exchange(GROUP, b"mine", "save")
    assert {key.split("/")[2] for key in store.values} == {"0"}


def test_processes_in_different_calls_hear_which(store):
    store.arrives = {0: b"save\nzero", 5: b""}
    with pytest.raises(
        HostsError,
        match="^wanted the same call in every process, got save in process 0, digest in processes "
        "3, 5. Every process must make the same calls in the same order",
    ):
        agree.exchange(GROUP, b"", "digest")
    store.arrives = {0: b"", 5: b""}
    agree.exchange(GROUP, b"", "save")  # They go on together.


def test_who_comes_too_late_hears_what_is_said_of_it(store, monkeypatch):
    monkeypatch.setenv(module.SETTING, "0.01")
    store.values["lazyinit/failed/0"] = b"save: wanted processes 0, 3, 5, but 3 did not in 1 s."
    with pytest.raises(HostAbsentError, match="^save: .* but 3 did not in 1 s.$"):
        agree.exchange(GROUP, b"", "save")


def test_the_note_of_a_process_that_failed_ends_the_wait(store, monkeypatch):
    monkeypatch.setattr(module, "_GRACE", 0.0)
    store.values["lazyinit/failed/5"] = b"process 5: fill failed there: no such file"
    store.arrives = {0: b""}
    with pytest.raises(HostAbsentError, match="^process 5: fill failed there: no such file$"):
        agree.exchange(GROUP, b"", "materialize")


def test_a_failing_verb_leaves_a_note_until_the_next_works(store):
    with pytest.raises(li.errors.CheckpointError) as caught:
        li.fill({}, "/nowhere.safetensors")
    note = store.values["lazyinit/failed/3"].decode()
    assert note == f"process 3: fill failed there: CheckpointError: {caught.value}"
    li.materialize({})
    assert not store.values


def test_a_disagreement_leaves_no_note(store):
    @agree.telling
    def verb():
        raise HostsError("all know")

    with pytest.raises(HostsError, match="all know"):
        verb()
    assert not store.values


def test_no_store_is_said(monkeypatch):
    monkeypatch.setattr(compat, "store", lambda: None)
    with pytest.raises(HostsError, match="^digest: wanted the key-value store of jax.distributed"):
        agree.exchange(tuple(range(40)), b"", "digest")


@pytest.mark.parametrize("said", ["on", "0", "-1", "nan"])
def test_a_setting_of_another_kind_is_refused(monkeypatch, said):
    monkeypatch.setenv(module.SETTING, said)
    with pytest.raises(WordError, match=f"^LAZYINIT_HOSTS: wanted 'off', or .*, got '{said}'"):
        module.seconds()


@pytest.mark.parametrize(("said", "want"), [("off", 0), ("", 300), ("2.5", 2.5)])
def test_the_setting_says_how_long_a_process_is_waited_for(monkeypatch, said, want):
    monkeypatch.setenv(module.SETTING, said)
    assert module.seconds() == want
