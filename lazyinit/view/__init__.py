"""What is known of the leaves of a tree, and how it is shown.

A tree of thunks and arrays comes in; facts about its leaves, text and HTML go out, and nothing of
the tree is made or read. The one idea is a record of facts for each leaf (``facts.py``). It is
shared by ``inspect``, ``plan`` and the report of ``fill``, so that all of them say the same of a
leaf in the same words. ``provenance.py`` adds where each leaf comes from, in full, as a value that
outlives the tree. ``table.py`` prints any of these with numbered layers folded into one row, and
``notebook.py`` shows a tree in a notebook. Read them in this order.
"""
