"""How much is made at a time: what bounds memory beyond the arrays themselves."""

IN_FLIGHT = 4  # Leaves, made by programs of their own or read.
RUN = 2**16  # Elements that one call of a program draws: their temporaries fit a core's cache.
SHORT_RUN = 2**11  # The same for small shards, where it would draw too many.
RUN_BYTES = 8 * 8 * RUN  # Of one run while it is drawn: eight arrays of 64-bit elements.
PIECE = 2**24  # Bytes of a file that are read before their pages are given back.
TEMPORARIES = 3  # Times the leaf: what a program of its own takes beside it, about.
SHORT = 64  # Elements: of fewer, XLA computes some by themselves and not as part of a vector.
