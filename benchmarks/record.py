"""Cases that record a model and make nothing, against JAX's own abstract evaluation.

The timed part starts with a module and the shapes of its inputs, and ends with a tree of shapes
and dtypes. lazyinit's has, besides, what it takes to make each leaf.
"""

import functools
from pathlib import Path
from typing import Any

import jax
from harness import Case
from measure import Measured
from models import Size, decoder, llama2_70b, llama2_70b_scanned

import lazyinit as li


def lazyinit(measured: Measured, size: Size, _: Path) -> Any:
    model, key, ids = decoder(size)
    li.lazy(model)  # Imports the recorder.
    with measured:
        return li.lazy(model).init(key, ids)


def eval_shape(measured: Measured, size: Size, _: Path) -> Any:
    model, key, ids = decoder(size)
    with measured:
        return jax.eval_shape(model.init, key, ids)


def lazyinit_llama(measured: Measured, _: Size, __: Path) -> Any:
    module, inputs = llama2_70b()
    key = jax.random.key(0)
    li.lazy(module)
    with measured:
        return li.lazy(module).init(key, *inputs, return_dict=False)


def eval_shape_llama(measured: Measured, _: Size, __: Path) -> Any:
    module, inputs = llama2_70b()
    key = jax.random.key(0)
    with measured:
        return jax.eval_shape(functools.partial(module.init, return_dict=False), key, *inputs)


def lazyinit_llama_scanned(measured: Measured, _: Size, __: Path) -> Any:
    module, inputs = llama2_70b_scanned()
    key = jax.random.key(0)
    li.lazy(module)
    with measured:
        return li.lazy(module).init(key, *inputs)


def eval_shape_llama_scanned(measured: Measured, _: Size, __: Path) -> Any:
    module, inputs = llama2_70b_scanned()
    key = jax.random.key(0)
    with measured:
        return jax.eval_shape(module.init, key, *inputs)


CASES = (
    Case(
        name="record-32",
        title="recording, 32 layers",
        module="record",
        contenders={"lazyinit": "lazyinit", "eval_shape": "`jax.eval_shape(model.init)`"},
        reference="eval_shape",
        size=Size(layers=32),
    ),
    Case(
        name="record-llama",
        title="recording, Llama-2-70B of transformers",
        module="record",
        contenders={
            "lazyinit_llama": "lazyinit",
            "eval_shape_llama": "`jax.eval_shape(model.init)`",
        },
        reference="eval_shape_llama",
        needs=("transformers",),
    ),
    Case(
        name="record-llama-scanned",
        title="recording, Llama-2-70B with its layers under nn.scan",
        module="record",
        contenders={
            "lazyinit_llama_scanned": "lazyinit",
            "eval_shape_llama_scanned": "`jax.eval_shape(model.init)`",
        },
        reference="eval_shape_llama_scanned",
        needs=("transformers",),
    ),
)
