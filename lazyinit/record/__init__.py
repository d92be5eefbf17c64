"""A model becomes a tree of thunks here.

A model and the arguments of its initialization come in. The tree that the initialization would
return goes out, with a ``LazyParam`` for each array. The one idea is that the model's own code
runs, once, under an abstract trace, so that nothing has to be known about the model.

``thunks`` does what all recorders share, with the arguments that ``inputs`` has sorted. ``linen``
records Flax Linen modules, and ``function`` records everything else, with ``nnx_modules`` where
Flax NNX is in use. ``opaque`` refuses objects that would carry a traced value out of the recording,
``state_dicts`` keeps thunks from being serialized, and ``garbage`` pauses Python's collector.
"""
