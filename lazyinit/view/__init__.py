"""What is known of the leaves of a tree, and how it is shown.

A tree of thunks and arrays comes in; facts about its leaves, text and HTML go out, and nothing of
the tree is made or read. The one idea is a record of facts for each leaf (``facts.py``). It is
shared by ``inspect``, ``plan`` and the report of ``fill``, so that all of them say the same of a
leaf in the same words. ``origin.py`` adds where a leaf comes from, in full, and ``provenance.py``
keeps that for all leaves as a value that outlives the tree. ``table.py`` makes rows, with one row
for numbered layers that are alike; ``shown.py`` prints rows no wider than the terminal, and
``html.py`` shows them in a notebook. ``lines.py`` is what ``inspect`` says of a leaf, ``nested.py``
finds alike subtrees, and ``page.py`` with ``page.js`` shows a tree to unfold, with pictures by
treescope (``pictures.py``). Read them in this order. ``outline.py`` writes a tree as rows of a
table, and ``leaf.py`` shows one leaf in a notebook's cell and in treescope's trees.
"""

from lazyinit.view import leaf  # Registers how thunks are shown; their types are a lower floor's.

__all__ = ["leaf"]
