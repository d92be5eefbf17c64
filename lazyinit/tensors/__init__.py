"""Tensors: arrays that somebody stored -> sources, which are read in part and in any layout.

What comes in are runs of bytes in files, and arrays in memory; what goes out are sources. A
``Source`` has a shape and a dtype, and reads any part of itself when it is asked to; where the
bytes lie plainly in a file, what it returns is a view of the file's memory map. The one idea is
that a change of layout is a source over other sources, which passes each index on: a shard of a
stacked, transposed leaf so reads its own bytes and no more.

Read ``base`` first, which has the two kinds of source. ``mapped`` (in a file) and ``memory`` (over
``torch_arrays``) are where tensors lie, ``refused`` is one that cannot be read, and ``headers`` and
``spans`` check what files say of their tensors. ``views``, ``as_dtype``, ``joined``, ``computed``,
``key_data`` and ``quantized`` (with ``packed`` and ``scales``) derive sources from others.
``tiles`` (over ``casting``) copies what they give, ``regions`` says what of a source lies together,
and ``pieces`` reads one from first to last in bounded memory. ``arrays`` (over ``held``) are
sources of what devices hold, to be written.
"""
