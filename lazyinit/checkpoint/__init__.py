"""Checkpoints: a file, a folder, a URL or a mapping -> named sources, and named sources -> files.

Opening a checkpoint reads and checks its headers and gives a ``Checkpoint``, a mapping from tensor
names to sources. A ``Source`` has a shape and a dtype, and reads any part of itself when it is
asked to; where the bytes lie plainly in a file, what it returns is a view of the file's memory
map. Other sources are derived from these (cut, transposed, reshaped, cast, joined), and pass each
index on, so a shard of a stacked, transposed leaf reads its own bytes and no more. Writing takes
any sources, reads them in bounded pieces, and puts new files in place of old ones in one step.
Nothing that a file says about itself is believed before it is checked.

Read ``base`` first, which has the two kinds of source. Then what is read: ``opening`` tells the
format; ``mapped``, ``memory``, ``deflated`` (members of zip archives) and ``remote`` (over
``fetched``) are where tensors lie; ``headers`` and ``spans`` serve all formats. ``views`` and
``joined`` derive sources. One file has each format: ``safetensors`` (with ``sharded``, its index,
and ``ties``), ``npz`` (over ``zipped``), ``flax_msgpack`` (over ``msgpack_walk``), ``pytorch``,
``orbax``. Then what is written: ``pieces`` (also of ``arrays`` on devices, over ``held``),
``folder``, ``commit``, and ``together`` for several processes.
"""

from lazyinit.checkpoint.base import Checkpoint
from lazyinit.checkpoint.opening import open_checkpoint

__all__ = ["Checkpoint", "open_checkpoint"]
