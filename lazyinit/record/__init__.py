"""A model becomes a tree of thunks here.

A model and the arguments of its initialization come in. The tree that the initialization would
return goes out, with a ``LazyParam`` for each array. (A *thunk* is a leaf that is not made yet.)
The one idea is that the model's own code runs, once, under an abstract trace, so that nothing has
to be known about the model.

``linen`` records Flax Linen modules, and ``function`` records everything else, with ``nnx_modules``
for Flax NNX. Both use ``inputs``, which sorts the arguments into keys, shapes and arrays, and
``thunks``, which traces the initialization and puts a thunk in place of each array. ``opaque``
refuses objects that would carry a traced value out of the recording, ``state_dicts`` keeps thunks
from being serialized, and ``garbage`` pauses Python's collector.
"""
