"""The command line: look at checkpoints, compare, convert them; plan a model; run the self-check.

The exit code is 0 for success and for checkpoints that are equal, 1 for checkpoints that differ,
for a plan that does not fit and for a self-check that failed, and 2 for an error.
"""

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from typing import Any

from lazyinit import errors
from lazyinit._check import check
from lazyinit.checkpoint import Checkpoint, open_checkpoint
from lazyinit.patterns import slashed
from lazyinit.sources import describe
from lazyinit.tensors.pieces import nbytes
from lazyinit.tools import plan_command
from lazyinit.tools.compare import compare
from lazyinit.tools.convert import convert, renamed
from lazyinit.tools.options import dtype_of, rules_of
from lazyinit.view import shown, table
from lazyinit.view.outline import Part, outline

_PATH = (
    "a file of safetensors, msgpack, .npz or PyTorch; a Hugging Face or Orbax folder; or the "
    "address of safetensors or GGUF (https://, s3://, gs://, hf://)"
)

_TEXT = 80  # How many characters of an entry of the metadata are shown.


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    Args:
      arguments: the words of the command line; ``None`` for those of this process.
    """
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except errors.LazyinitError as error:
        print(f"lazyinit: {error}", file=sys.stderr)
    except BrokenPipeError:  # The reader of the output, such as ``head``, has closed it.
        sys.stderr.close()
    except KeyboardInterrupt:
        print("lazyinit: interrupted. What was there before is unchanged.", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lazyinit", description="Checkpoints, as they are.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    look = commands.add_parser("inspect", help="names, shapes, dtypes and sizes; reads headers")
    look.add_argument("path", help=_PATH)
    form = look.add_mutually_exclusive_group()
    form.add_argument("--tree", action="store_true", help="as a tree, with sizes as bars")
    form.add_argument("--json", action="store_true", help="as JSON, one entry for each tensor")
    look.set_defaults(run=_inspect)

    diff = commands.add_parser("diff", help="in what two checkpoints differ; 1 if they do")
    diff.add_argument("first", help=_PATH)
    diff.add_argument("second", help="likewise")
    diff.add_argument(
        "--values", action="store_true", help="compare values, too; says the largest difference"
    )
    diff.add_argument(
        "--rules", default="", help="what the first becomes before it is compared, as for convert"
    )
    diff.add_argument(
        "--reverse", action="store_true", help="read the rules from leaves to tensors"
    )
    diff.add_argument("--json", action="store_true", help="as JSON")
    diff.set_defaults(run=_diff)

    change = commands.add_parser("convert", help="another format, other names, another dtype")
    change.add_argument("source", help=_PATH)
    change.add_argument(
        "target", help="a folder, or a file that ends in .safetensors, .npz or .msgpack"
    )
    change.add_argument(
        "--rules", default="", help="what becomes of tensors: bert, gpt2, ..., or module:NAME"
    )
    change.add_argument(
        "--reverse", action="store_true", help="read the rules from leaves to tensors"
    )
    change.add_argument(
        "--names",
        default="file",
        choices=("file", "transformers"),
        help="of a GGUF file: those that it has, or those that transformers would give",
    )
    change.add_argument("--dtype", default="", help="for floating-point tensors: bfloat16")
    change.add_argument(
        "--max-shard-size", default="5GB", help="of one file in a folder: 5GB, 512MiB"
    )
    change.add_argument(
        "--orbax", action="store_true", help="a folder of Orbax, which Orbax itself writes"
    )
    change.set_defaults(run=_convert)

    plan_command.add_to(commands, _PATH)

    prove = commands.add_parser("check", help="which fast ways give the bits of eager JAX here")
    prove.add_argument("--platform", default=None, help="cpu, gpu or tpu; else JAX's default")
    prove.set_defaults(run=_check)
    return parser


def _inspect(options: argparse.Namespace) -> int:
    opened = open_checkpoint(options.path)
    if options.json:
        metadata = dict(opened.metadata)
        _print_json({"origin": opened.origin, "metadata": metadata, "tensors": _facts(opened)})
        return 0
    shown.show(_outlined(opened) if options.tree else _folded(opened))
    if opened.metadata:
        said = [(key, _cut(text)) for key, text in opened.metadata.items()]
        shown.show(table.Table("", ("metadata", "text"), said))
    return 0


def _cut(text: str) -> str:
    """Returns the beginning of a long text: metadata may be as long as a picture."""
    return text if len(text) <= _TEXT else f"{text[:_TEXT]}... ({len(text)} characters)"


def _folded(opened: Checkpoint) -> table.Table:
    rows = table.fold(
        (name, describe(x.shape, x.dtype), table.format_bytes(nbytes(x)))
        for name, x in opened.items()
    )
    cells = [(row.label, str(row.count), *row.cells) for row in rows]
    heads = ("tensor", "tensors", "array", "bytes each")
    return table.Table(_title(opened), heads, cells, right=("tensors", "bytes each"))


def _outlined(opened: Checkpoint) -> table.Table:
    parts = [
        Part(tuple(slashed(name).split("/")), describe(x.shape, x.dtype), nbytes(x))
        for name, x in opened.items()
    ]
    rows = outline(parts, "/" if any("/" in name for name in opened) else ".")
    heads = ("tensor", "tensors", "array", "bytes", "share")
    return table.Table(_title(opened), heads, rows, right=("tensors", "bytes"))


def _title(opened: Checkpoint) -> str:
    total = table.format_bytes(sum(map(nbytes, opened.values())))
    return f"{opened.origin}: {len(opened)} tensors, {total}"


def _facts(opened: Checkpoint) -> dict[str, Any]:
    return {
        name: {
            "shape": list(x.shape),
            "dtype": str(x.dtype),
            "nbytes": nbytes(x),
            "origin": x.origin,
            "extents": [dataclasses.asdict(extent) for extent in x.extents],
        }
        for name, x in opened.items()
    }


def _diff(options: argparse.Namespace) -> int:
    first, second = open_checkpoint(options.first), open_checkpoint(options.second)
    made = renamed(first, rules_of(options.rules), reverse=options.reverse)
    found = compare(dataclasses.replace(first, tensors=made), second, values=options.values)
    if options.json:
        _print_json(_plain(dataclasses.asdict(found)))
    else:
        print(found)
    return 1 if found.differences else 0


def _plain(value: Any) -> Any:  # Any: a value for JSON.
    """Returns a value with text in place of numbers that JSON cannot hold: infinity and nan."""
    match value:
        case dict():
            return {key: _plain(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_plain(inner) for inner in value]
        case float() if not math.isfinite(value):
            return str(value)
    return value


def _convert(options: argparse.Namespace) -> int:
    opened = open_checkpoint(options.source, names=options.names)
    written = convert(
        opened,
        options.target,
        rules=rules_of(options.rules),
        reverse=options.reverse,
        dtype=dtype_of(options.dtype),
        max_shard_size=options.max_shard_size,
        format="orbax" if options.orbax else "by suffix",
        progress=True,
    )
    total = table.format_bytes(sum(map(nbytes, written.values())))
    print(f"{options.target}: {len(written)} tensors, {total}")
    read = {name for source in written.values() for name in source.names}
    if left := [name for name, source in opened.items() if not read.issuperset(source.names)]:
        print(f"left out: {', '.join(left[:10])}{', ...' * (len(left) > 10)}")
    kept = open_checkpoint(options.target).metadata
    if lost := [key for key in opened.metadata if key not in kept and key != "format"]:
        print(f"left out: the metadata {', '.join(lost)}, for which the format has no place")
    return 0


def _check(options: argparse.Namespace) -> int:
    found = check(options.platform)
    print(found)
    return 1 if found.failed else 0


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=1))
