"""Checkpoints: a file, a folder, a URL or a mapping -> named sources; named sources -> a folder.

What comes in is a file, a folder, a URL or a mapping. What goes out is a ``Checkpoint``: a mapping
from the names of tensors to values of the type ``Source``. The one idea is that the code above
knows only the types ``Checkpoint`` and ``Source``, and no format.

``opening`` recognizes the format by the content of a file, and ``folders`` chooses the files of a
folder that belong to the checkpoint. ``dequantized`` turns quantized weights into numbers: it reads
``config.json`` with ``config`` and uses one of the ``schemes``. ``folder`` writes a folder, with
the other files that ``beside`` finds in the old one (a tokenizer), and with ``together`` one
process writes tensors that several processes hold. The formats themselves are in the room
``formats``, sources in ``tensors``.
"""

from lazyinit.checkpoint.opening import open_checkpoint
from lazyinit.tensors.base import Checkpoint

__all__ = ["Checkpoint", "open_checkpoint"]
