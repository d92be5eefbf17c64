"""How much is made at a time: these numbers bound the memory beyond the arrays themselves."""

IN_FLIGHT = 4  # Leaves that are compiled, replayed or moved: threads do not fill these.
BYTES_IN_FLIGHT = 2**28  # Of such leaves together; a larger one is made alone.
ROWS = 256  # Rows of a sheet, which one call of a program draws, and which a core's cache holds.
COLUMNS = 2**10  # Elements in each row of a sheet.
SHEET_BYTES = 8 * 8 * ROWS * COLUMNS  # For each drawing thread: eight arrays of 64-bit elements.
PIECE = 2**24  # Bytes of a file that a thread reads before their pages are given back.
READ_BYTES = PIECE + 2**22  # For each reading thread: a piece, and memory to copy its tiles.
TEMPORARIES = 3  # Times the leaf: about what its program or its replay needs beside it.
SHORT = 64  # Elements. Of a shorter last axis, XLA computes some one by one, outside of vectors.
