"""Checkpoints: a file, a folder, a URL or a mapping -> named sources; named sources -> a folder.

What comes in is whatever people call a checkpoint. What goes out is a ``Checkpoint``, a mapping
from the names of tensors to sources. The one idea is that everything above knows these two types
only, and no format.

``opening`` tells the format by the content of a file, and ``folders`` says which files of a folder
count. ``dequantized`` turns quantized weights into numbers, by what ``config`` finds beside them
and one of the ``schemes``. ``folder`` writes a folder, with the files that ``beside`` carries over,
and ``together`` lets one process write what several hold. The formats themselves are in the room
``formats``, sources in ``tensors``.
"""

from lazyinit.checkpoint.opening import open_checkpoint
from lazyinit.tensors.base import Checkpoint

__all__ = ["Checkpoint", "open_checkpoint"]
