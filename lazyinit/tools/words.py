"""Says how alike two names are, by synonyms of their words, and by what known pairs have taught.

Two names come in, and a number from -1 to 1 goes out. From pairs that are known to belong together
the dictionary learns the words of this checkpoint, which then tells other pairs apart.
"""

import re
from collections import Counter
from collections.abc import Iterable

_SAME = (
    ("weight", "kernel", "scale", "gamma", "w"),
    ("bias", "beta", "b"),
    ("mean", "running"),
    ("q", "query", "wq"),
    ("k", "key", "wk"),
    ("v", "value", "wv"),
    ("o", "out", "output", "wo"),
    ("layers", "layer", "h", "block", "blocks"),
    ("emb", "embed", "embedder", "embedding", "embeddings", "wte", "tok", "token", "tokens"),
    ("pos", "position", "positions", "wpe"),
    ("attn", "attention", "att"),
    ("mlp", "ffn", "ff", "ffw", "feed", "forward", "feedforward"),
    ("ln", "norm", "layernorm"),
    ("fc", "dense", "linear", "proj"),
)
_MEANING = {word: meanings[0] for meanings in _SAME for word in meanings}


# Some models name a norm after the module before it, others after the module that follows.
_PHRASES = {
    ("post", "attn", "ln"): {"mlp", "ln"},
    ("pre", "attn", "ln"): {"attn", "ln"},
    ("input", "ln"): {"attn", "ln"},
    ("ln", "before"): {"attn", "ln"},
    ("ln", "after"): {"mlp", "ln"},
}


def words(name: str) -> list[str]:
    """Returns the words of a name, in order, without numbers: ``["self", "attn", "q", "proj"]``."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    return [word.lower() for word in re.findall(r"[A-Za-z]+[0-9]*", spaced)]


def meaning(word: str) -> str:
    """Returns one word for all of the same meaning: ``"q"`` for ``"query"`` and ``"wq"``."""
    return _MEANING.get(word, word)


def is_embedding(name: str) -> bool:
    """Tells whether a name says embedding, and not kernel: ``embed_tokens.weight``."""
    keys = _keys(name)
    said = {meaning(word) for key in keys[-2:] for word in words(key)}
    return bool(said & {"emb", "pos"}) and keys[-1:] != ["kernel"]


class Dictionary:
    """The words that a checkpoint has for those of leaves, as learned from pairs of names."""

    def __init__(self, leaves: Iterable[str] = (), tensors: Iterable[str] = ()) -> None:
        """Begins with nothing learned; takes all names of leaves and tensors that there are."""
        self._learned: dict[str, Counter[str]] = {}
        self._taken: dict[str, set[str]] = {}
        self._literal = tuple(map(_names_mlp_norms, (leaves, tensors)))

    def copy(self) -> "Dictionary":
        """Returns a copy, which learns on its own."""
        other = Dictionary()
        other._literal = self._literal
        other._learned = {word: Counter(counts) for word, counts in self._learned.items()}
        other._taken = {word: {*some} for word, some in self._taken.items()}
        return other

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
        """Returns how alike the names of a leaf and a tensor are, from -1 to 1."""
        mine, theirs = _keys(leaf), _keys(tensor)
        if len(mine) == len(theirs):
            both = list(zip(mine, theirs, strict=True))
            inner = sum(self._key(one, other) for one, other in both[:-1])
            # A last key may stand for several: kernels and scales are both called weight.
            last = sum(self._known(_role(one), _role(other)) for one, other in both[-1:])
            return (inner + last) / max(len(both), 1)
        return _overlap(self._all_meant(mine, 0), self._all_meant(theirs, 1))

    def _all_meant(self, keys: list[str], side: int) -> set[str]:
        """Returns the meanings of all words of a name, for ``side`` as in ``_meant``."""
        *inner, last = [*map(str, keys)] or [""]
        every = {word for key in inner for word in self._meant(key, side)}
        return every | self._meant(_role(last), side)

    def _meant(self, key: str, side: int) -> set[str]:
        """Returns the meanings of the words of a key; a known phrase has a meaning of its own.

        Args:
          key: a key of a leaf or of a tensor.
          side: 0 for a leaf, 1 for a tensor.
        """
        meant = tuple(map(meaning, words(key)))
        # If some norms are named after the MLP, "post attention" means the norm after attention.
        if meant[:1] == ("post",) and self._literal[side]:
            return {*meant}
        return _PHRASES.get(meant, {*meant})

    def _key(self, one: str, other: str) -> float:
        """Returns how alike a key of a leaf and one of a tensor are, from -1 to 1."""
        if one in self._learned:
            return self._known(one, other)
        if one not in self._taken.get(other, {one}):
            return -0.5
        inner, outer = words(one), words(other)
        if not inner or not outer:
            return float(one == other)
        if self._meant(one, 0) == self._meant(other, 1):
            return 1
        if len(inner) != len(outer):
            return _overlap({*map(meaning, inner)}, {*map(meaning, outer)})
        if len(inner) < 2:
            return self._known(one, other)
        both = zip(inner, outer, strict=True)
        return sum(self._known(word, called) for word, called in both) / len(inner)

    def _known(self, one: str, other: str) -> float:
        """Returns how alike two words are: as learned, or else 1 for synonyms and 0 for others."""
        if one in self._learned:
            counts = self._learned[one]
            return 2 * counts[other] / counts.total() - 1
        return float(meaning(one.lower()) == meaning(other.lower()))


def _keys(name: str) -> list[str]:
    return [key.strip("_") for key in re.split(r"[/.\s]+", name) if key.strip("_")]


def _role(key: str) -> str:
    """Returns ``"weight"`` for the last key ``"embedding"``, and any other key unchanged."""
    return "weight" if key == "embedding" else key


def _names_mlp_norms(names: Iterable[str]) -> bool:
    """Tells whether one of the names is that of a norm that is named after the MLP."""
    keys = {key for name in names for key in _keys(name)}
    return any({"mlp", "ln"} <= {*map(meaning, words(key))} for key in keys)


def _overlap(one: set[str], other: set[str]) -> float:
    return len(one & other) / max(len(one | other), 1)
