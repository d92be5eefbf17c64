"""Rules: values that say how a checkpoint's names and layouts differ from those of a tree.

What a user writes comes in: a ``Rule`` (patterns of leaves, patterns of tensors, and the changes
of layout between them), a ``Rename`` or an ``Ignore``. What goes out is used by the room
``match``: a rule tells which names it fits, and its changes make sources of sources. The one idea
is that a rule is data, not code, so that it can be read forwards (from tensors to leaves),
backwards (from leaves to tensors), and printed. No rule reads a value: a change maps one source to
another, which knows how to read any part of itself.

Sources on their way through changes stand in a ``Grid``: a row for each pattern, a column for each
number that ``{n}`` counts. A ``Frame`` is the size of a grid, known before there are any sources.

Read ``rule.py`` first, then ``renames.py``; ``change.py`` says what a change is; ``layout.py``,
``reshape.py`` and ``lengths.py`` change one tensor, ``joins.py`` joins and cuts several, and
``dequantize.py`` multiplies values by their scales. ``torch.py`` is an example. ``tables.py`` reads
the tables of other libraries, whose regular expressions ``regexes.py`` turns into patterns. The
patterns themselves are in ``lazyinit/patterns.py``.
"""
