"""How much is made at a time: what bounds memory beyond the arrays themselves."""

IN_FLIGHT = 4  # Leaves, of those that no thread fills: made by programs of their own, moved.
ROWS = 256  # Of a sheet, which one call of a program draws: its temporaries fit a core's cache.
COLUMNS = 2**10  # Elements of each row.
SHEET_BYTES = 8 * 8 * ROWS * COLUMNS  # Of a thread that draws: eight arrays of 64-bit elements.
PIECE = 2**24  # Bytes of a file that a thread reads before their pages are given back.
TEMPORARIES = 3  # Times the leaf: what a program of its own takes beside it, about.
SHORT = 64  # Elements: of fewer, XLA computes some by themselves and not as part of a vector.
