"""Rules: values that say how a checkpoint's names and layouts differ from those of a tree.

What a user writes comes in: a ``Rule`` (patterns of leaves, patterns of tensors, and the changes of
layout between them), a ``Rename`` or an ``Ignore``. The room ``match`` uses what goes out: the
names that a rule fits, and its changes, which make the sources of leaves from the sources of
tensors. The one idea is that a rule is data, not code, so that it can be read forwards (from
tensors to leaves), backwards (from leaves to tensors), and printed. No rule reads a value: a change
maps one source to another, which knows how to read any part of itself.

Changes work on a ``Grid`` of sources: a row for each pattern, a column for each number that
``{n}`` stands for. A ``Frame`` says how many rows a grid will have, and whether its columns are
numbered; it is known before there are any sources.

Read ``rule.py`` first, then ``renames.py``; ``change.py`` says what a change is; ``layout.py``,
``reshape.py``, ``lengths.py`` and ``values.py`` change one tensor, ``joins.py`` joins and cuts
several, and ``dequantize.py`` multiplies values by their scales. ``torch.py`` is an example.
``tables.py`` reads the tables of other libraries, whose regular expressions ``regexes.py`` turns
into patterns. The patterns themselves are in ``lazyinit/patterns.py``.
"""
