"""Leaves become arrays here: each is replayed, drawn, compiled or read.

Jobs come in, one for each array. Arrays go out, and no other room makes the array of a leaf. The
one idea is that *replay* is right by construction: it runs the equations of a leaf one by one, as
eager ``init`` does. The faster ways rest on what XLA happens to do. On CPU a leaf is *drawn*, if
each of its elements follows from a key and an index. On other devices it is *compiled*, if no
rounding depends on an order. Both are taken only where ``proofs`` has a proof for every operation,
from the tests or from the self-check. A stored leaf is *read*, in pieces.

Memory beside the arrays is bounded: a thread that draws holds one *sheet* (256 rows of 1,024
elements), a thread that reads holds one *piece* (16 MiB of a file), and only a few of all other
leaves are in flight at a time (``limits``).

Read ``ways`` first: it decides how each leaf is made. ``run`` and ``side_by_side`` then follow the
decision: they *prepare* each leaf, *start* it and *finish* it, with what ``makers`` holds for one
call. Each way has a file of its own: ``draw``, ``executable`` (compiled), ``replay``, ``read`` and
``transfer``. ``derive`` and ``by_parts`` are about leaves that are computed from other leaves, and
``overlay`` writes a stored corner over an array. To be drawn, a leaf is brought into a form that
needs no shape (``steps``, ``elementwise``, ``stacked``, ``moved``); ``threefry`` gives its random
bits. ``shards`` has the memory. Read ``selfcheck`` last: where ``environment`` says that the test
suite was not run, it makes the arrays of the ``canaries`` both in the fast way and by replay, and
compares them.
"""
