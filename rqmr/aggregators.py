"""Aggregators: a reducer and its combiner in one, so that values are folded where they are mapped.

The shape is that of Beam's CombineFn: zero, add, merge, finish. Accumulators travel between machines, so they are
made of what the wire carries.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable
from operator import itemgetter
from typing import Any


class Aggregator:
    """Folds the values of a key. Subclass it with your own zero, add, merge and finish.

    `merge` has to give what adding all values to one accumulator would give, whatever the cut; it is called in the
    order of the map tasks.
    """

    #: Whether an accumulator grows with the values it has seen; then the map side counts them against its memory.
    grows = False

    def zero(self) -> Any:
        """Return a new accumulator that has seen nothing."""
        raise NotImplementedError

    def add(self, accumulator: Any, value: Any) -> Any:
        """Return the accumulator with one more value; may change it in place."""
        raise NotImplementedError

    def merge(self, accumulator: Any, other: Any) -> Any:
        """Return the accumulator with all that another has seen; may change the first in place."""
        raise NotImplementedError

    def finish(self, accumulator: Any) -> Any:
        """Return the result that an accumulator stands for."""
        return accumulator

    def accumulator_type(self, value_type: Any) -> Any:
        """Return the accumulators' type, given that of the values: how to restore them from the wire."""
        return Any

    def table(self) -> dict[Any, Any]:
        """Return an empty table for `fold`."""
        return {}

    def fold(self, table: dict[Any, Any], pairs: Iterable[tuple[Any, Any]]) -> None:
        """Add every pair to its key's accumulator in the table. Override it only to be faster."""
        zero, add = self.zero, self.add
        for key, value in pairs:
            table[key] = add(table[key] if key in table else zero(), value)

    def merge_all(self, table: dict[Any, Any], pairs: Iterable[tuple[Any, Any]]) -> None:
        """Merge the accumulator of every pair into its key's in the table. Override it only to be faster."""
        zero, merge = self.zero, self.merge
        for key, other in pairs:
            table[key] = merge(table[key] if key in table else zero(), other)

    def __init_subclass__(cls, **options: Any) -> None:
        # A loop that is inherited doesn't know of the functions that a subclass has of its own.
        super().__init_subclass__(**options)
        if not {"zero", "add", "merge"}.isdisjoint(vars(cls)):
            for loop in {"fold", "merge_all"}.difference(vars(cls)):
                setattr(cls, loop, getattr(Aggregator, loop))


class Sum(Aggregator):
    """The sum of the values."""

    def zero(self) -> Any:
        return 0

    def add(self, accumulator: Any, value: Any) -> Any:
        return accumulator + value

    def merge(self, accumulator: Any, other: Any) -> Any:
        return accumulator + other

    def accumulator_type(self, value_type: Any) -> Any:
        return value_type

    def fold(self, table: dict[Any, Any], pairs: Iterable[tuple[Any, Any]]) -> None:
        get = table.get
        for key, value in pairs:
            table[key] = get(key, 0) + value

    def merge_all(self, table: dict[Any, Any], pairs: Iterable[tuple[Any, Any]]) -> None:
        get = table.get
        for key, other in pairs:
            table[key] = get(key, 0) + other


class Count(Aggregator):
    """How many values there are, whatever they are."""

    def zero(self) -> int:
        return 0

    def add(self, accumulator: int, value: Any) -> int:
        return accumulator + 1

    def merge(self, accumulator: int, other: int) -> int:
        return accumulator + other

    def accumulator_type(self, value_type: Any) -> Any:
        return int

    def table(self) -> Counter[Any]:
        return Counter()

    def fold(self, table: dict[Any, Any], pairs: Iterable[tuple[Any, Any]]) -> None:
        assert isinstance(table, Counter)
        table.update(map(itemgetter(0), pairs))  # a loop in C

    def count(self, table: dict[Any, Any], keys: Iterable[Any]) -> None:
        """Do as `fold` with a pair for each key."""
        assert isinstance(table, Counter)
        table.update(keys)

    def merge_all(self, table: dict[Any, Any], pairs: Iterable[tuple[Any, Any]]) -> None:
        get = table.get
        for key, other in pairs:
            table[key] = get(key, 0) + other


class _Extreme(Aggregator):
    """The least or the greatest value; of equal ones, the first."""

    def zero(self) -> Any:
        return None

    def merge(self, accumulator: Any, other: Any) -> Any:
        return self.add(accumulator, other)

    def accumulator_type(self, value_type: Any) -> Any:
        return value_type


class Min(_Extreme):
    """The least value; of equal ones, the first."""

    def add(self, accumulator: Any, value: Any) -> Any:
        return value if accumulator is None or value < accumulator else accumulator

    def merge_all(self, table: dict[Any, Any], pairs: Iterable[tuple[Any, Any]]) -> None:
        get = table.get
        for key, other in pairs:
            least = get(key)
            if least is None or other < least:
                table[key] = other


class Max(_Extreme):
    """The greatest value; of equal ones, the first."""

    def add(self, accumulator: Any, value: Any) -> Any:
        return value if accumulator is None or value > accumulator else accumulator

    def merge_all(self, table: dict[Any, Any], pairs: Iterable[tuple[Any, Any]]) -> None:
        get = table.get
        for key, other in pairs:
            greatest = get(key)
            if greatest is None or other > greatest:
                table[key] = other


class Mean(Aggregator):
    """The arithmetic mean of the values."""

    def zero(self) -> list[Any]:
        return [0, 0]

    def add(self, accumulator: list[Any], value: Any) -> list[Any]:
        accumulator[0] += value
        accumulator[1] += 1
        return accumulator

    def merge(self, accumulator: list[Any], other: list[Any]) -> list[Any]:
        return [accumulator[0] + other[0], accumulator[1] + other[1]]

    def finish(self, accumulator: list[Any]) -> Any:
        return accumulator[0] / accumulator[1]

    def accumulator_type(self, value_type: Any) -> Any:
        return list[value_type | int]


class Top(Aggregator):
    """The `k` greatest values, greatest first. Give pairs such as (count, word) to say what greatest means."""

    grows = True

    def __init__(self, k: int) -> None:
        if k < 1:
            raise ValueError(f"Top({k}): k must be at least 1")
        self.k = k

    def zero(self) -> list[Any]:
        return []

    def add(self, accumulator: list[Any], value: Any) -> list[Any]:
        # A tuple comes from the wire as a list, and the two can't be compared: so lists from the first.
        value = list(value) if type(value) is tuple else value
        if len(accumulator) < self.k:
            heapq.heappush(accumulator, value)
        else:
            heapq.heappushpop(accumulator, value)
        return accumulator

    def merge(self, accumulator: list[Any], other: list[Any]) -> list[Any]:
        for value in other:
            self.add(accumulator, value)
        return accumulator

    def finish(self, accumulator: list[Any]) -> list[Any]:
        return sorted(accumulator, reverse=True)

    def accumulator_type(self, value_type: Any) -> Any:
        return list[value_type]


class Distinct(Aggregator):
    """The different values, sorted."""

    grows = True

    def zero(self) -> dict[Any, None]:
        return {}

    def add(self, accumulator: dict[Any, None], value: Any) -> dict[Any, None]:
        accumulator[value] = None
        return accumulator

    def merge(self, accumulator: dict[Any, None], other: dict[Any, None]) -> dict[Any, None]:
        accumulator.update(other)
        return accumulator

    def fold(self, table: dict[Any, Any], pairs: Iterable[tuple[Any, Any]]) -> None:
        get = table.get
        for key, value in pairs:
            seen = get(key)
            if seen is None:
                table[key] = {value: None}
            else:
                seen[value] = None

    def merge_all(self, table: dict[Any, Any], pairs: Iterable[tuple[Any, Any]]) -> None:
        for key, other in pairs:
            if key in table:
                table[key].update(other)
            else:
                table[key] = other

    def finish(self, accumulator: dict[Any, None]) -> list[Any]:
        return sorted(accumulator)

    def accumulator_type(self, value_type: Any) -> Any:
        return dict[value_type, None]


class Collect(Aggregator):
    """All values as one list, in the order of the input."""

    grows = True

    def zero(self) -> list[Any]:
        return []

    def add(self, accumulator: list[Any], value: Any) -> list[Any]:
        accumulator.append(value)
        return accumulator

    def merge(self, accumulator: list[Any], other: list[Any]) -> list[Any]:
        accumulator.extend(other)
        return accumulator

    def fold(self, table: dict[Any, Any], pairs: Iterable[tuple[Any, Any]]) -> None:
        get = table.get
        for key, value in pairs:
            values = get(key)
            if values is None:
                table[key] = [value]
            else:
                values.append(value)

    def accumulator_type(self, value_type: Any) -> Any:
        return list[value_type]
