"""How much is made at a time: what bounds memory beyond the arrays themselves."""

IN_FLIGHT = 4  # Leaves, of those that threads do not fill: compiled, replayed, moved.
BYTES_IN_FLIGHT = 2**28  # Of these leaves together; a larger one is made alone.
ROWS = 256  # Of a sheet: what one call of a program draws, so small that a core's cache holds it.
COLUMNS = 2**10  # Elements in each row of a sheet.
SHEET_BYTES = 8 * 8 * ROWS * COLUMNS  # For a thread that draws: eight arrays of 64-bit elements.
PIECE = 2**24  # Bytes of a file that a thread reads before their pages are given back.
READ_BYTES = PIECE + 2**22  # For a thread that reads: a piece, and what copying its tiles takes.
TEMPORARIES = 3  # Times the leaf: about what its program or its replay takes beside it.
SHORT = 64  # Elements: in a shorter axis, XLA computes some one by one, outside of vectors.
