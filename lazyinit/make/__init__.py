"""Leaves become arrays here: each is replayed, drawn, compiled or read.

In come jobs, one for each array; out come arrays, and nowhere else is device memory made. *Replay*
runs the equations of a leaf one by one, as eager ``init`` does, so its bits are right by
construction. The other ways rest on what XLA happens to do. A leaf is *drawn* on CPU if each of its
elements follows from a key and an index, and *compiled* on other devices if no rounding depends on
order. Both are taken only where ``proofs`` has a proof for every operation, from the tests or from
the self-check. A stored leaf is *read*, in pieces.

Memory beyond the arrays is bounded: threads that draw hold one sheet each, threads that read one
piece each, and of all other leaves a few are in flight at a time (``limits``).

Read ``ways`` (the decision), ``units`` (which leaves are made together), ``run`` (order and bounds)
and ``dispatch`` (how each way begins) first. Then ``replay``; ``steps``, ``elementwise``,
``stacked`` and ``draw``; ``executable``; ``read`` and ``transfer``; last ``selfcheck``.
"""
