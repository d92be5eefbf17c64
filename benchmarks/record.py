"""Cases that record a model and make nothing, against JAX's own abstract evaluation.

The timed part starts with a module and the shapes of its inputs, and ends with a tree of shapes
and dtypes. lazyinit's has, besides, what it takes to make each leaf.
"""

from pathlib import Path
from typing import Any

import jax
from decoder import Size, decoder
from harness import Case
from measure import Measured

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


CASES = (
    Case(
        name="record-32",
        title="recording, {layers} layers",
        module="record",
        contenders={"lazyinit": "lazyinit", "eval_shape": "`jax.eval_shape(model.init)`"},
        reference="eval_shape",
        size=Size(layers=32),
    ),
)
