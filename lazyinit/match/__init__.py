"""Match: which tensors of a checkpoint make which leaves of a tree.

A tree, a checkpoint and rules come in. What goes out says, for each leaf, which tensors make it and
the source that reads them in the layout of the leaf. The one idea is that matching looks at names
and shapes alone: no value is read, and no array is made.

A leaf goes this way: it becomes a ``Place``, which knows the names that the leaf may have. If a
tensor has one of them, and no rule makes the leaf of that tensor, it is the ``Match``. Otherwise
each rule whose pattern captures one of the names gives a ``Fit``; what it captured is written into
the rule's patterns of tensors, and the rule's changes make the leaf's source of those tensors.

Read ``places.py``, ``fits.py`` and ``match.py`` in this order. ``unmatch.py`` goes back from leaves
to tensors, to save them. ``translate.py`` applies rules to a checkpoint where there is no tree.
``follow.py`` finds the leaves that depend on a filled leaf, and ``random_keys.py`` finds the
tensors of PRNG keys. ``policies.py`` reads the arguments ``on_missing``, ``on_unexpected``,
``on_mismatch`` and ``on_cast``, and ``asked.py`` applies them. ``report.py`` records what became of
each; ``refusals.py``, ``unfit.py`` and ``advise.py`` word the errors. Where the user says nothing,
``ready.py`` looks for the ready map that explains the tree and the folder, and ``as_numbers.py``
decides whether to dequantize.
"""
