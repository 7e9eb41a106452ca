"""Keys and values of prompts that were run before, found again by a prompt's first positions.

A prefix tree: a node holds the keys and values of a stretch of positions, and prompts that begin
alike share the nodes of their common beginning.

Source: the radix tree of SGLang (arXiv 2312.07104).
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

KeysValues = NDArray[Any]
"""Keys and values of some positions: [2 * num_hidden_layers, num_key_value_heads, positions,
head_dim], in the cache's own number format."""

PromptKey = Sequence[Hashable]
"""A value for each position of a prompt; equal values at equal positions mean equal inputs."""


@dataclass(frozen=True)
class CacheFigures:
    """How a cache did since it was made.

    Attributes:
        queries: positions (of a cache of features: images) that were asked for.
        hits: the part of them that was found.
        size_bytes: bytes that the cache holds now.
        max_bytes: bytes that the cache may hold.
    """

    queries: int
    hits: int
    size_bytes: int
    max_bytes: int


class PrefixCache:
    """Keeps keys and values up to a number of bytes; the least recently used go first. Thread-safe.

    Arrays in the cache are never written to.
    """

    def __init__(self, max_bytes: int) -> None:
        """Begin an empty cache.

        Args:
            max_bytes: bytes of keys and values that are kept; 0 keeps nothing.
        """
        self._max_bytes = max_bytes
        self._size_bytes = self._queries = self._hits = 0
        self._root = _Node((), None, None)
        # Every use of a node is followed by a use of its parent. So the first node in the order of
        # use has no children, and can be dropped.
        self._nodes: OrderedDict[_Node, None] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def figures(self) -> CacheFigures:
        """Queries and hits count positions."""
        with self._lock:
            return CacheFigures(self._queries, self._hits, self._size_bytes, self._max_bytes)

    def find(self, key: PromptKey) -> list[KeysValues]:
        """Keys and values of the longest beginning of a prompt that is known.

        Args:
            key: of the positions that are wanted.

        Returns:
            Arrays in the order of positions; empty where no beginning is known.
        """
        with self._lock:
            path, found = self._walk(key)
            self._use(path)
            self._queries += len(key)
            self._hits += found
            return [_first(node, found) for node in path]

    def add(self, key: PromptKey, read: Callable[[int, int], KeysValues]) -> None:
        """Keep a prompt's keys and values, as far as the cache lacks them.

        Args:
            key: of all positions of the prompt.
            read: returns the keys and values from one position to another, in an array of its own.
        """
        with self._lock:
            path, found = self._walk(key)
            self._use(path)
            if found == len(key) or not self._max_bytes:
                return
            values = read(found, len(key))
            if values.nbytes > self._max_bytes:
                return
            if path and found < path[-1].end:
                path[-1] = self._split(path[-1], found)
            parent = path[-1] if path else self._root
            node = _Node(tuple(key[found:]), values, parent)
            parent.children[key[found]] = node
            self._size_bytes += values.nbytes
            self._use([*path, node])
            while self._size_bytes > self._max_bytes:
                self._drop(next(iter(self._nodes)))

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._root.children.clear()
            self._nodes.clear()
            self._size_bytes = 0

    def _walk(self, key: PromptKey) -> tuple[list["_Node"], int]:
        """The nodes that hold a prompt's beginning, and the positions that they have in common.

        The last node may hold more than the prompt has in common with it.
        """
        path: list[_Node] = []
        node, found = self._root, 0
        while found < len(key) and (child := node.children.get(key[found])) is not None:
            path.append(child)
            found += _common(child.key, key[found : found + len(child.key)])
            if found < child.end:
                break
            node = child
        return path, found

    def _use(self, path: Sequence["_Node"]) -> None:
        for node in reversed(path):
            self._nodes[node] = None
            self._nodes.move_to_end(node)

    def _split(self, node: "_Node", at: int) -> "_Node":
        """Cut a node in two before position `at`; the first half is returned."""
        assert node.parent is not None
        assert node.values is not None
        cut = at - node.begin
        # Copies, so that each half can be dropped.
        first = _Node(node.key[:cut], node.values[:, :, :cut].copy(), node.parent)
        node.parent.children[node.key[0]] = first
        node.key, node.values, node.parent = node.key[cut:], node.values[:, :, cut:].copy(), first
        node.begin = at
        first.children[node.key[0]] = node
        return first

    def _drop(self, node: "_Node") -> None:
        assert node.parent is not None
        assert node.values is not None
        assert not node.children
        del node.parent.children[node.key[0]], self._nodes[node]
        self._size_bytes -= node.values.nbytes


class _Node:
    """A stretch of positions that prompts have in common.

    Attributes:
        key: of its positions.
        values: their keys and values; None for the root, which has no position.
        begin: its first position.
    """

    def __init__(
        self, key: tuple[Hashable, ...], values: KeysValues | None, parent: "_Node | None"
    ) -> None:
        self.key, self.values, self.parent = key, values, parent
        self.begin: int = parent.end if parent else 0
        self.children: dict[Hashable, _Node] = {}

    @property
    def end(self) -> int:
        return self.begin + len(self.key)


def _common(one: PromptKey, other: PromptKey) -> int:
    """Number of equal values at the beginning of two keys."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(other))


def _first(node: _Node, end: int) -> KeysValues:
    """A node's keys and values before position `end`."""
    assert node.values is not None
    return node.values[:, :, : max(0, end - node.begin)]
