"""Flax's serializers are told that a thunk is no value yet.

``flax.serialization.to_bytes`` goes through ``to_state_dict``, which passes on what it does not
know; msgpack then fails without a path. This file is imported once Flax is in use.
"""

import numpy as np
from flax import serialization

from lazyinit.derived import DerivedParam
from lazyinit.params import LazyParam, OverlapParam, StoredParam

for kind in (LazyParam, StoredParam, OverlapParam, DerivedParam):
    # A thunk refuses to be an array, with its path. A state is restored over one as over any leaf.
    serialization.register_serialization_state(
        kind, np.asarray, lambda _, state: state, override=True
    )
