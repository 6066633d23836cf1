"""Labels: every position of every axis that may be cut has a number; positions that must be removed together are tied.

A `Field` says that the positions of one axis (or of several axes jointly, after a reshape split one) carry labels. A
`Layout` is all the fields of one tensor. An axis without a field is fixed: batch, space, time, vocabulary. Label 0 is
the fixed one: to tie a label to 0 is to lock it.

>>> labels = Labels()
>>> a, b = labels.fresh(3), labels.fresh(3)
>>> labels.tie(a, b)
>>> labels.lock(a[:1], "the model's output")
>>> labels.classes()[[*a, *b]].tolist()
[0, 2, 3, 0, 2, 3]
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

try:
    from scipy import sparse
    from scipy.sparse import csgraph
except ImportError:  # pragma: no cover - scipy comes with scikit-learn
    csgraph = None

__all__ = ["Field", "Labels", "Layout", "Lock", "components"]


@dataclass(frozen=True)
class Lock:
    """Why some labels are locked: the operator, where it ran, and the reason."""

    labels: np.ndarray
    reason: str
    operator: str = ""
    path: str = ""
    op: int = -1

    def text(self) -> str:
        """Where it is met, why and by which operator, and how to fold a parametrization that meets it.

        >>> Lock(np.zeros(0, int), "the forward has this width hard-coded", "mul", "fc").text()
        'fc: the forward has this width hard-coded [mul]'
        """
        hint = "" if self.operator == "proof" else fold_first(self.path)  # there the path names a group
        return f"{self.path or 'the model'}: {self.reason} [{self.operator}]{hint}"


def fold_first(path: str) -> str:
    """What to do about a lock that is met where a parametrization computes a weight; empty elsewhere.

    Args:
        path: The module in which the lock is met.

    >>> fold_first("0.parametrizations.weight.0"), fold_first("0")
    ("; fold it first: torch.nn.utils.parametrize.remove_parametrizations(model.get_submodule('0'), 'weight')", '')
    """
    module, found, rest = f".{path}".rpartition(".parametrizations.")
    if not found:
        return ""
    layer = "model" if not module else f"model.get_submodule({module[1:]!r})"
    name = rest.split(".")[0]
    return f"; fold it first: torch.nn.utils.parametrize.remove_parametrizations({layer}, {name!r})"


@dataclass(frozen=True, eq=False)
class Field:
    """Labels over one axis, or over several jointly. `axes` ascend; `labels` has the sizes of those axes.

    `zero` says that in the masked model a removed position holds exactly 0. `weak` ranks how firmly a field holds where
    two meet on one axis: 0 a parameter's channels, 1 those of a buffer (which never split a joint field: the
    angles of a
    rotary embedding do not make heads thinner), 2 labels of a tensor of one value.
    """

    axes: tuple[int, ...]
    labels: np.ndarray
    zero: bool = True
    weak: int = 0

    def moved(self, mapping: Sequence[int] | dict[int, int]) -> Field:
        """The same labels on other axes: axis a becomes mapping[a]."""
        target = [mapping[axis] for axis in self.axes]
        if len(target) == 1:
            return Field((target[0],), self.labels, self.zero, self.weak)
        order = sorted(range(len(target)), key=target.__getitem__)
        axes = tuple(target[i] for i in order)
        return Field(axes, self.labels.transpose(order), self.zero, self.weak)

    def over(self, axes: tuple[int, ...], shape: Sequence[int]) -> np.ndarray:
        """The labels spread over more axes (a superset, ascending)."""
        view = [shape[axis] if axis in self.axes else 1 for axis in axes]
        return np.broadcast_to(self.labels.reshape(view), [shape[axis] for axis in axes])


@dataclass(frozen=True, eq=False)
class Layout:
    """The shape of a tensor and the fields over its axes; no axis belongs to two fields."""

    shape: tuple[int, ...]
    fields: tuple[Field, ...] = ()

    def at(self, axis: int) -> Field | None:
        """The field that covers an axis."""
        axis %= max(1, len(self.shape))
        for field in self.fields:
            if axis in field.axes:
                return field
        return None


def components(count: int, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The smallest number of each connected component, for numbers 0..count-1 joined pairwise.

    >>> components(5, np.array([1, 2]), np.array([2, 4])).tolist()
    [0, 1, 1, 3, 1]
    """
    if csgraph is not None and left.size > 4096:
        return _by_graph(count, left, right)
    parent = np.arange(count)
    while left.size:
        a, b = parent[left], parent[right]
        differ = a != b
        if not differ.any():
            break
        left, right, a, b = left[differ], right[differ], a[differ], b[differ]
        low = np.minimum(a, b)
        np.minimum.at(parent, a, low)
        np.minimum.at(parent, b, low)
        while True:
            jumped = parent[parent]
            if np.array_equal(jumped, parent):
                break
            parent = jumped
    return parent


def _by_graph(count: int, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """`components` by scipy, which is faster on many ties."""
    matrix = sparse.coo_matrix((np.ones(left.size, np.int8), (left, right)), shape=(count, count))
    _, component = csgraph.connected_components(matrix.tocsr(), directed=False)
    smallest = np.empty(int(component.max()) + 1, int)
    smallest[component[::-1]] = np.arange(count - 1, -1, -1)
    return smallest[component]


class Labels:
    """The store of labels, of the ties between them, and of the locks.

    Most ties are of all labels that were made together with all of another such block; they are kept as two numbers.
    Where an axis holds heads of some size, whole heads can be removed, or with `sizes` positions of all heads alike.
    """

    def __init__(self, sizes: bool = False) -> None:
        self.sizes = sizes
        self.narrowed: set[int] = set()  # positions of heads that were tied across heads
        self.count = 1  # label 0 is the fixed one
        self.locks: list[Lock] = []
        self.rectangles: list[tuple[np.ndarray, int]] = []
        self.op = -1
        self.operator = ""
        self.path = ""
        self._blocks: dict[int, np.ndarray] = {}  # the arrays made by `fresh`, by identity
        self._tied: list[tuple[np.ndarray, np.ndarray]] = []  # blocks of one size
        self._left: list[np.ndarray] = []
        self._right: list[np.ndarray] = []
        self._roots = np.zeros(1, int)  # classes without locks, for the ties taken in so far
        self._classes: np.ndarray | None = None

    def fresh(self, size: int) -> np.ndarray:
        """New labels, one per position."""
        first = self.count
        self.count += size
        self._classes = None
        made = np.arange(first, first + size)
        self._blocks[id(made)] = made
        return made

    def made(self, labels: np.ndarray) -> bool:
        """Whether these are labels made together by `fresh`, all of them and in order."""
        return id(labels) in self._blocks

    def tie(self, a: np.ndarray, b: np.ndarray) -> None:
        """Tie positions of `a` and `b`: they are removed or kept together; the arrays broadcast."""
        if a is b:
            return
        if self.made(a) and self.made(b) and a.size == b.size:
            self._tied.append((a, b))
            self._classes = None
            return
        if a.shape != b.shape:
            a, b = np.broadcast_arrays(a, b)
        differ = a != b
        if not differ.any():
            return
        a, b = a[differ], b[differ]
        fixed = (a == 0) | (b == 0)
        if fixed.any():
            self.lock(np.maximum(a, b)[fixed], "meets an axis that cannot be cut")
            a, b = a[~fixed], b[~fixed]
        self._left.append(a)
        self._right.append(b)
        self._classes = None

    def lock(self, labels: np.ndarray, reason: str) -> None:
        """Lock labels; the reason is kept with the operator being followed."""
        if not self.made(labels):
            labels = labels.reshape(-1)
            labels = labels[labels > 0]
        if not labels.size:
            return
        self.locks.append(Lock(labels, reason, self.operator, self.path, self.op))
        self._classes = None

    def rectangle(self, labels: np.ndarray) -> None:
        """Remember a joint field: the rest of it must again be rectangular."""
        if labels.ndim > 1:
            self.rectangles.append((labels, self.op))

    def classes(self) -> np.ndarray:
        """For every label the smallest label it is tied to; 0 where it is locked."""
        if self._classes is None:
            roots = self.without_locks()
            locked = np.zeros(self.count, bool)
            locked[0] = True
            for lock in self.locks:
                locked[roots[lock.labels]] = True
            self._classes = np.where(locked[roots], 0, roots)
        return self._classes

    def copy(self) -> Labels:
        """A store with the same labels, to which more can be added without changing this one."""
        new = Labels()
        new.__dict__.update(self.__dict__)
        new.locks, new.rectangles = list(self.locks), list(self.rectangles)
        new._left, new._right = list(self._left), list(self._right)
        new.narrowed = set(self.narrowed)
        new._blocks, new._tied = dict(self._blocks), list(self._tied)
        return new

    def without_locks(self) -> np.ndarray:
        """Classes without locks: which labels are tied."""
        known = self._roots.size
        if known < self.count:
            self._roots = np.concatenate([self._roots, np.arange(known, self.count)])
            if known == 1 and self._tied:
                self._join_blocks()
        if self._left or self._tied:
            pairs = [*zip(self._left, self._right), *self._tied]
            left = self._roots[np.concatenate([a for a, _ in pairs])]
            right = self._roots[np.concatenate([b for _, b in pairs])]
            self._roots = components(self.count, left, right)[self._roots]
            self._left, self._right, self._tied = [], [], []
        return self._roots

    def _join_blocks(self) -> None:
        """Take the ties of whole blocks into the roots, block by block; before any other tie."""
        parent: dict[int, int] = {}

        def root(first: int) -> int:
            while first in parent:
                first = parent[first]
            return first

        sizes = {}
        for a, b in self._tied:
            low, high = sorted((root(int(a[0])), root(int(b[0]))))
            sizes[int(a[0])] = sizes[int(b[0])] = a.size
            if low != high:
                parent[high] = low
        roots = self._roots.copy()
        for first, size in sizes.items():
            lowest = root(first)
            if lowest != first:
                roots[first : first + size] = np.arange(lowest, lowest + size)
        self._roots, self._tied = roots, []

    def settle(self) -> np.ndarray:
        """Keep every joint field rectangular, by tying along all its axes but one."""
        pending = self.rectangles
        while pending:
            classes = self.classes()
            again = []
            for labels, op in pending:
                found = classes[labels]
                varying = [axis for axis in range(found.ndim) if (found != found.take([0], axis)).any()]
                if len(varying) < 2:
                    continue
                keep = max(varying, key=lambda axis: (found.shape[axis], axis))
                for axis in varying:
                    if axis != keep:
                        self.tie(labels, labels.take([0], axis))
                again.append((labels, op))
            pending = again
        return self.classes()


def squeeze(labels: Labels, field: Field) -> Field | None:
    """Drop the axes along which the labels do not change; a field over nothing is locked and gone.

    >>> squeeze(Labels(), Field((0, 1), np.array([[5, 6], [5, 6]]))).axes
    (1,)
    """
    array, axes = field.labels, list(field.axes)
    for position in range(array.ndim - 1, -1, -1):
        if array.ndim == 1:
            break
        if array.shape[position] == 1 or (array == array.take([0], position)).all():
            array = array.take(0, position)
            del axes[position]
    if array.size > 1 and labels.made(array):  # all different, and none of them fixed
        return field if array is field.labels else Field(tuple(axes), array, field.zero, field.weak)
    if array.ndim == 1 and (array.shape[0] == 1 or (array[0] == array).all()):
        labels.lock(array[:1], "one position alone fills the axis")
        return None
    if not array.any():
        return None
    return field if array is field.labels else Field(tuple(axes), array, field.zero, field.weak)


def squeezed(labels: Labels, shape: Iterable[int], fields: Iterable[Field]) -> Layout:
    """A layout of the fields that are left after `squeeze`; where two meet on an axis, the weaker one is locked."""
    kept: list[Field] = []
    taken: set[int] = set()
    given = list(fields)
    for field in given if len(given) < 2 else sorted(given, key=lambda f: f.weak):
        slim = squeeze(labels, field)
        if slim is None:
            continue
        if not taken.isdisjoint(slim.axes):
            labels.lock(slim.labels, "two axes that could be cut are folded into one")
            continue
        taken.update(slim.axes)
        kept.append(slim)
    return Layout(tuple(shape), tuple(kept))
