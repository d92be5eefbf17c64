"""The command ``lazyinit plan``: its options, and what it prints."""

import argparse
import json
from typing import Any

from jax.sharding import AbstractDevice

from lazyinit import errors, spec_text
from lazyinit._fill import fill
from lazyinit._plan import plan
from lazyinit.abstract_meshes import mesh_of
from lazyinit.cost.planned import Plan
from lazyinit.shard_by import ShardByRules, shard_by_metadata, shard_by_rules, shard_fsdp
from lazyinit.shard_to_fit import shard_auto
from lazyinit.tools.options import dtype_of, rules_of
from lazyinit.tools.planning import as_json, mesh_text, optimizer_of, smallest_mesh, tree_of


def add_to(commands: Any, path: str) -> None:
    """Adds the command ``plan`` to a parser.

    Args:
      commands: what ``ArgumentParser.add_subparsers`` returned (Any: its type is private).
      path: the part of the help that says what a checkpoint may be.
    """
    price = commands.add_parser("plan", help="bytes on each device of a mesh; 1 if they do not fit")
    price.add_argument(
        "target",
        help=f"package.module:factory, without arguments; {path}; or the config.json of a decoder",
    )
    price.add_argument("--mesh", required=True, help="axes and their sizes: data=4,model=8")
    where = price.add_mutually_exclusive_group()
    where.add_argument("--rules", help='a JSON file of globs and specs: {"**/kernel": ["model"]}')
    where.add_argument("--fsdp", metavar="AXIS", help="cut the largest dimension over these: a,b")
    where.add_argument("--metadata", action="store_true", help="as Flax's metadata says")
    where.add_argument("--auto", action="store_true", help="over all axes; prints the rules")
    price.add_argument("--checkpoint", help=f"what fills a factory's leaves: {path}")
    price.add_argument("--map", default="", help="its rules: bert, gpt2, ..., or module:NAME")
    price.add_argument("--optimizer", help="of optax (adamw), or module:NAME: count its state, too")
    price.add_argument("--gradients", action="store_true", help="count gradients, too")
    price.add_argument("--copy", default="", metavar="DTYPE", help="count a copy, too: bfloat16")
    price.add_argument("--dtype", default="", help="of floating-point leaves: bfloat16")
    price.add_argument("--hosts", type=int, default=1, help="of the devices; 1 if it is not said")
    price.add_argument(
        "--broadcast", action="store_true", help="read by one host what several hold"
    )
    price.add_argument("--platform", help="of the devices: cpu, gpu or tpu; else JAX's default")
    price.add_argument("--hbm", help="memory of a device: 16GiB, 80GB")
    price.add_argument(
        "--smallest-mesh",
        action="store_true",
        help="double the axes of --mesh until it fits into --hbm",
    )
    price.add_argument("--json", action="store_true", help="as JSON")
    price.set_defaults(run=_plan)


def _plan(options: argparse.Namespace) -> int:
    if options.smallest_mesh and not options.hbm:
        raise errors.PlanError("--smallest-mesh: wanted --hbm with it, such as --hbm 16GiB.")
    mesh: Any = mesh_of(options.mesh)
    if options.platform:
        mesh = mesh.update(abstract_device=AbstractDevice(options.platform, 1, options.platform))
    price = _Price(options)
    found = smallest_mesh(mesh, price, options.hbm) if options.smallest_mesh else None
    mesh, planned = found or (mesh, price(mesh))
    room = planned.fits(options.hbm) if options.hbm else None
    if options.json:
        fits = {} if room is None else {"fits": bool(room), "spare": room.spare}
        print(json.dumps({"mesh": mesh_text(mesh), **fits, **as_json(planned)}, indent=1))
    else:
        print(planned)
        print(f"mesh: {mesh_text(mesh)}")
        if options.auto:
            print(price.rules(mesh))
        if room is not None:
            print(room)
        if options.smallest_mesh and not found:
            print("no larger mesh of these axes is enough, either")
    return 0 if room is None or room else 1


class _Price:
    """Plans the target of the command on any mesh, with all other options fixed."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._rules = spec_text.read(options.rules) if options.rules else ()
        self._more: dict[str, Any] = {
            "dtype": dtype_of(options.dtype),
            "optimizer": optimizer_of(options.optimizer) if options.optimizer else None,
            "gradients": options.gradients,
            "copy": dtype_of(options.copy, "--copy"),
            "hosts": options.hosts,
            "broadcast": options.broadcast,
        }
        self._tree = tree_of(options.target)
        if options.checkpoint:
            rules = rules_of(options.map, "--map")
            self._tree, _ = fill(self._tree, options.checkpoint, rules, on_missing="init")

    def __call__(self, mesh: Any) -> Plan:
        return plan(self._tree, self._shard(mesh), **self._more)

    def rules(self, mesh: Any) -> ShardByRules:
        """Returns the sharding rules that ``--auto`` chooses on a mesh."""
        return shard_auto(mesh).rules(self._tree)

    def _shard(self, mesh: Any) -> Any:
        """Returns the value for ``sharding`` that the options ask for."""
        options = self._options
        if options.rules:
            return shard_by_rules(mesh, self._rules)
        if options.fsdp:
            return shard_fsdp(mesh, tuple(options.fsdp.split(",")))
        if options.auto:
            return shard_auto(mesh)
        return shard_by_metadata(mesh) if options.metadata else mesh
