"""Tensors: arrays that somebody stored -> sources, which are read in part and in any layout.

Runs of bytes in files, and arrays in memory, come in; sources go out. A ``Source`` has a shape and
a dtype, and reads any part of itself when it is asked to. If a file holds the values as plain
bytes, the result is a view of the file's memory map. The one idea is that a change of layout is a
source that wraps other sources and translates each index into indices of theirs: so a shard of a
stacked, transposed leaf reads its own bytes and no more.

Read ``base`` first, which has the two kinds of source. ``mapped`` has tensors in files, ``memory``
(built on ``torch_arrays``) those in memory, and ``refused`` those that cannot be read. ``headers``
checks what files say of their tensors, and ``spans`` finds the runs of bytes of a slice. ``views``,
``as_dtype``, ``joined``, ``computed``, ``key_data`` and ``quantized`` (with ``packed`` and
``scales``) derive sources from others. ``tiles`` (built on ``casting``) copies what they return.
``regions`` finds the parts of a source that lie together in a file, and ``pieces`` reads a source
from its first element to its last in bounded memory. ``arrays`` (built on ``held``) makes sources
of arrays on devices, to be written.
"""
