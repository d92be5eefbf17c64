"""Tells Flax's serializers that a thunk has no value yet.

``flax.serialization.to_bytes`` calls ``to_state_dict``, which passes on objects that it does not
know, and msgpack would then fail without a path. This file is imported once Flax is in use.
"""

import numpy as np
from flax import serialization

from lazyinit.derived import DerivedParam
from lazyinit.params import LazyParam, OverlapParam, StoredParam

for kind in (LazyParam, StoredParam, OverlapParam, DerivedParam):
    # np.asarray raises an error that has the thunk's path. A state is restored in place of a thunk.
    serialization.register_serialization_state(
        kind, np.asarray, lambda _, state: state, override=True
    )
