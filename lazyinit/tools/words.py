"""Words of names: how alike two names are, given words of the same meaning and pairs seen before.

Two names come in, and a number from -1 to 1 goes out. Pairs that are known to belong together teach
the dictionary what this checkpoint calls things, which then tells other pairs apart.
"""

import re
from collections import Counter

_SAME = (
    ("weight", "kernel", "scale", "embedding", "gamma", "w"),
    ("bias", "beta", "b"),
    ("mean", "running"),
    ("q", "query", "wq"),
    ("k", "key", "wk"),
    ("v", "value", "wv"),
    ("o", "out", "output", "wo"),
    ("layers", "layer", "h", "block", "blocks"),
    ("emb", "embed", "embeddings", "wte", "tok", "token", "tokens"),
    ("pos", "position", "positions", "wpe"),
    ("attn", "attention", "att"),
    ("mlp", "ffn", "ff", "feed", "forward"),
    ("ln", "norm", "layernorm"),
    ("fc", "dense", "linear", "proj"),
)
_MEANING = {word: meanings[0] for meanings in _SAME for word in meanings}


# Some models name a norm after the module before it, others after the module that follows.
_PHRASES = {
    "post_attention_layernorm": "mlp_norm",
    "post_attention_norm": "mlp_norm",
    "input_layernorm": "attention_norm",
    "layernorm_before": "attention_norm",
    "layernorm_after": "mlp_norm",
}


def words(name: str) -> list[str]:
    """Returns the words of a name, in order, without numbers: ``["self", "attn", "q", "proj"]``."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    return [word.lower() for word in re.findall(r"[A-Za-z]+[0-9]*", spaced)]


def meaning(word: str) -> str:
    """Returns the first of the words that mean the same: ``"q"`` for ``"query"``."""
    return _MEANING.get(word, word)


class Dictionary:
    """What a checkpoint calls the words of leaves, as learned from pairs of names."""

    def __init__(self) -> None:
        """Begins with nothing learned."""
        self._learned: dict[str, Counter[str]] = {}
        self._taken: dict[str, set[str]] = {}

    def learn(self, leaf: str, tensor: str) -> None:
        """Learns from two names that belong together."""
        mine, theirs = _keys(leaf), _keys(tensor)
        if len(mine) != len(theirs):
            return
        for one, other in zip(mine, theirs, strict=True):
            self._note(one, other)
            inner, outer = words(one), words(other)
            if len(inner) == len(outer) > 1:
                for word, called in zip(inner, outer, strict=True):
                    self._note(word, called)

    def _note(self, one: str, other: str) -> None:
        self._learned.setdefault(one, Counter())[other] += 1
        self._taken.setdefault(other, set()).add(one)

    def likeness(self, leaf: str, tensor: str) -> float:
        """Returns how well two names go together, from -1 to 1."""
        mine, theirs = _keys(leaf), _keys(tensor)
        if len(mine) == len(theirs):
            both = list(zip(mine, theirs, strict=True))
            inner = sum(self._key(one, other) for one, other in both[:-1])
            # Only last keys may share one name: kernel and scale are both weights.
            last = sum(self._known(one, other) for one, other in both[-1:])
            return (inner + last) / max(len(both), 1)
        return _overlap(words(leaf), words(tensor))

    def _key(self, one: str, other: str) -> float:
        if one in self._learned:
            return self._known(one, other)
        if one not in self._taken.get(other, {one}):
            return -0.5
        inner, outer = words(one), words(other)
        if not inner or not outer:
            return float(one == other)
        if _meant(one) == _meant(other):
            return 1
        if len(inner) != len(outer):
            return _overlap(inner, outer)
        if len(inner) < 2:
            return self._known(one, other)
        both = zip(inner, outer, strict=True)
        return sum(self._known(word, called) for word, called in both) / len(inner)

    def _known(self, one: str, other: str) -> float:
        if one in self._learned:
            counts = self._learned[one]
            return 2 * counts[other] / counts.total() - 1
        return float(meaning(one.lower()) == meaning(other.lower()))


def _keys(name: str) -> list[str]:
    return [key.strip("_") for key in re.split(r"[/.\s]+", name) if key.strip("_")]


def _meant(key: str) -> set[str]:
    return set(map(meaning, words(_PHRASES.get(key, key))))


def _overlap(some: list[str], others: list[str]) -> float:
    one, other = set(map(meaning, some)), set(map(meaning, others))
    return len(one & other) / max(len(one | other), 1)
