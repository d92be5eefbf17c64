"""Tensors: arrays that somebody stored -> sources, which are read in part and in any layout.

What comes in are runs of bytes in files, and arrays in memory; what goes out are sources. A
``Source`` has a shape and a dtype, and reads any part of itself when it is asked to; where the
bytes lie plainly in a file, what it returns is a view of the file's memory map. The one idea is
that a change of layout is a source over other sources, which passes each index on: so a shard of a
stacked, transposed leaf reads its own bytes and no more.

Read ``base`` first, which has the two kinds of source. ``mapped`` has tensors in files, ``memory``
(over ``torch_arrays``) those in memory, and ``refused`` those that cannot be read. ``headers``
checks what files say of their tensors, and ``spans`` finds the runs of bytes of a slice.
``views``, ``as_dtype``, ``joined``, ``computed``, ``key_data`` and ``quantized`` (with ``packed``
and ``scales``) derive sources from others. ``tiles`` (over ``casting``) copies what they return,
``regions`` says what of a source lies together, and ``pieces`` reads one from first to last in
bounded memory. ``arrays`` (over ``held``) makes sources of arrays on devices, to be written.
"""
