"""A machine on which nobody ran the suite, for the tests of the self-check."""

from dataclasses import replace

import pytest

from lazyinit.make import executable, proofs, selfcheck
from lazyinit.make.executable import Compiler


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """A machine on which nobody ran the suite, with a cache folder of its own."""
    real = selfcheck.environment
    monkeypatch.setattr(selfcheck, "environment", lambda p: replace(real(p), options="--another"))
    monkeypatch.setattr(selfcheck, "_known", {})
    monkeypatch.setattr(proofs, "_warned", set())
    monkeypatch.setenv("LAZYINIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(executable, "compiler", Compiler())
    return tmp_path / "cache"


@pytest.fixture
def few_canaries(monkeypatch):
    """Canaries of one dtype alone, for tests that are not about them."""
    few = [replace(canary, dtypes=canary.dtypes[:1]) for canary in selfcheck.CANARIES[:4]]
    monkeypatch.setattr(selfcheck, "CANARIES", few)
    monkeypatch.setattr(selfcheck, "CANARIES_BY_PARTS", ())
