"""A model becomes a tree of thunks here.

In come a model and the arguments of its initialization; out comes the tree that it would return,
with a ``LazyParam`` for each array. The model's own code runs once, under an abstract trace.
``thunks`` does what all recorders share. ``linen`` records Flax Linen modules, and ``function``
records everything else, with ``nnx_modules`` where Flax NNX is in use. ``opaque`` refuses objects
that would carry a traced value out of the recording.
"""
