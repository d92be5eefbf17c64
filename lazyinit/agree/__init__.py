"""Compares what several processes are about to do, before any of them does it.

What a verb is about to do comes in: the leaves, their shardings, the files to be written. If all
processes are about to do the same, nothing is returned; if not, each of them raises the same error.
The one idea is that each process first sends a short digest of it all to the others, through the
key-value store of ``jax.distributed``, and sends details only where the digests differ.

``entries`` says what is compared of a leaf, ``calls`` exchanges values between processes, and
``differences`` finds what differs. ``verbs`` has the functions that the verbs call.
"""

from lazyinit.agree.calls import Group as Group
from lazyinit.agree.calls import exchange as exchange
from lazyinit.agree.calls import telling as telling
from lazyinit.agree.verbs import as_first as as_first
from lazyinit.agree.verbs import before_digesting as before_digesting
from lazyinit.agree.verbs import before_making as before_making
from lazyinit.agree.verbs import before_saving as before_saving
from lazyinit.agree.verbs import meet as meet
from lazyinit.agree.verbs import processes_of as processes_of
