"""Writes a tree as rows of a table: with lines between branches, sums of bytes, and bars."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lazyinit.view import table
from lazyinit.view.nested import Branch, nest

_BAR = 10  # Columns of the bar that stands for all bytes of the tree.


@dataclass(frozen=True, slots=True)
class Part:
    """A leaf, as an outline shows it.

    Attributes:
      keys: the keys of its path, from the root.
      array: its dtype and shape, as text.
      nbytes: the bytes of the whole array.
    """

    keys: tuple[str, ...]
    array: str
    nbytes: int


def outline(parts: Sequence[Part], separator: str = "/") -> list[tuple[str, str, str, str, str]]:
    """Returns a row for each line of the tree: label, number of leaves, array, bytes and a bar.

    Args:
      parts: the leaves.
      separator: what joins keys that share a line.

    Example:
      >>> parts = [Part(("h", str(n), "w"), "f32[2]", 8) for n in range(3)]
      >>> for row in outline([*parts, Part(("bias",), "f32[2]", 8)], "."):
      ...     print(*row)
      ├─ h.{0..2}.w 3 f32[2] 24 B ███████▌
      └─ bias 1 f32[2] 8 B ██▌
    """
    root = nest([part.keys for part in parts], [(part.array, part.nbytes) for part in parts])
    total = sum(part.nbytes for part in parts)
    return list(_Outline(parts, separator, total).rows(root, (root,), ""))


@dataclass(frozen=True, slots=True)
class _Outline:
    parts: Sequence[Part]
    separator: str
    total: int

    def rows(
        self, branch: Branch, alike: Sequence[Branch], indent: str
    ) -> Iterator[tuple[str, str, str, str, str]]:
        """Yields the rows below a branch, which stands for all branches in ``alike``."""
        for place, row in enumerate(branch.rows):
            is_last = place == len(branch.rows) - 1
            members = [member for one in alike for member in one.rows[place].members]
            label, first = row.label, row.members[0]
            while first.leaf < 0 and len(first.rows) == 1:  # An only child shares the line.
                members = [child for one in members for child in one.rows[0].members]
                (child,) = first.rows
                label, first = label + self.separator + child.label, child.members[0]
            count, nbytes = self._sum(first)
            count, nbytes = count * len(members), nbytes * len(members)
            yield (
                f"{indent}{'└' if is_last else '├'}─ {label}",
                f"{count:,}",
                self.parts[first.leaf].array if first.leaf >= 0 else "",
                table.format_bytes(nbytes),
                table.bar(nbytes / (self.total or 1), _BAR),
            )
            yield from self.rows(first, members, indent + ("   " if is_last else "│  "))

    def _sum(self, branch: Branch) -> tuple[int, int]:
        """Returns how many leaves a branch has, and their bytes; all members of a row are alike."""
        count, nbytes = (1, self.parts[branch.leaf].nbytes) if branch.leaf >= 0 else (0, 0)
        for row in branch.rows:
            inner, size = self._sum(row.members[0])
            count, nbytes = count + inner * len(row.members), nbytes + size * len(row.members)
        return count, nbytes
