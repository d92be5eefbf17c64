"""Formats: a file or a URL -> tensors by name; and tensors by name -> a file.

A format is one function that takes a path and returns a ``Checkpoint``. It reads and checks the
headers, but reads no value. The one idea is that nothing that a file says about itself is believed
before it is checked: a hostile file ends in an error that names it, and costs no memory.

Each format has one file ("A over B" means that A is built on B): ``safetensors`` (with ``sharded``,
its index, and ``ties``; written by ``to_safetensors``), ``npz`` (over ``zipped`` and ``deflated``;
``equinox`` over it), ``flax_msgpack`` (over ``msgpack_walk``), ``pytorch`` (over ``torch_pickle``,
``rebuilt`` and ``pickled``), ``torch_distributed``, ``gguf`` (over ``gguf_header``, with
``gguf_names``), ``hdf5``, ``orbax`` (over ``chunked``; written by ``to_orbax``). ``remote`` (over
``fetched``) reads safetensors and GGUF at an address. ``foreign`` recognizes formats, and files
without weights, by their first bytes. ``commit`` (with its ``journal``) replaces old files by new
ones in one step.
"""
