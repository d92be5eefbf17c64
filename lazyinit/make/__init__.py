"""One leaf -> one array: drawn by index, computed by a program, or read from a file."""
