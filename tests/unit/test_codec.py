"""Records ⇄ bytes: what goes in comes back, what can't is told by name, and a key has one partition everywhere."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import itertools
import math
import os
import subprocess
import sys
from decimal import Decimal
from fractions import Fraction
from typing import Any, Literal, NamedTuple, Optional
from zlib import crc32

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import rqmr.codec
from rqmr.codec import (
    ChunkCodec,
    check_carried,
    one_signature,
    partition_for,
    restores,
    same_type,
    seal,
    shorten,
    signature,
    unseal,
)
from rqmr.errors import CarryError, MixedKeysError
from rqmr.values import weight, weight_by_sample, weights


@dataclasses.dataclass(frozen=True)
class Reading:
    """A value that only an annotation restores."""

    home: str
    at: datetime.datetime
    watts: Decimal
    tags: frozenset[str] = frozenset()


class Point(NamedTuple):
    x: int
    y: int


class Colour(enum.Enum):
    RED = "red"


class Word(str):
    """As numpy.str_: a str that isn't exactly one."""


class Int64(int):
    """As numpy's and pandas' integers would be if they were ints."""


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
integers = st.integers(-(2**63), 2**64 - 1)
floats = st.floats(allow_nan=False)
scalars = st.none() | st.booleans() | integers | floats | text | st.binary(max_size=12)
dict_keys = text | integers | st.binary(max_size=5) | st.none() | st.tuples(text, integers)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(dict_keys, inner, max_size=4),
    max_leaves=10,
)
KEY_TYPES: list[st.SearchStrategy[Any]] = [
    text,
    integers,
    st.floats(allow_nan=False),
    st.booleans(),
    st.binary(max_size=9),
    st.none(),
    st.tuples(text, integers),
    st.tuples(text, st.tuples(st.none(), st.binary(max_size=3)), st.booleans()),
    st.just(()),
]


def sent(codec: ChunkCodec, keys: list[Any], items: list[Any]) -> tuple[list[Any], list[Any]]:
    """Return keys and items as they come back through the wire."""
    back: tuple[list[Any], list[Any]] = ([], [])
    for body in codec.bodies(keys, items):
        for column, more in zip(back, codec.items(unseal(seal(body))), strict=True):
            column += more
    return back


def restored(value: Any, annotation: Any, *, grouped: bool = True) -> Any:
    _, (item,) = sent(ChunkCodec(annotation, grouped=grouped), ["k"], [[value] if grouped else value])
    return item[0] if grouped else item


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal with all their types: 1 is not 1.0 is not True, and -0.0 is not 0.0."""
    return repr(one) == repr(other)


# --- round trips -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grouped", [True, False])
@given(data=st.data())
@settings(max_examples=70, deadline=None)
def test_whatever_the_wire_carries_comes_back_with_its_types(grouped: bool, data: st.DataObject) -> None:
    """Keys come back as they were, tuples included; values too, of one kind or of many."""
    keys = data.draw(st.lists(data.draw(st.sampled_from(KEY_TYPES)), max_size=20))
    item = st.lists(values, min_size=1, max_size=4) if grouped else values
    items = data.draw(st.lists(item, min_size=len(keys), max_size=len(keys)))
    back_keys, back_items = sent(ChunkCodec(grouped=grouped), keys, items)
    assert same(back_keys, keys)
    assert same(back_items, items)


@given(st.recursive(scalars.filter(lambda value: type(value) is not float), lambda inner: st.tuples(inner, inner)))
@settings(max_examples=60, deadline=None)
def test_a_nested_tuple_comes_back_as_a_tuple_if_it_is_a_key(key: Any) -> None:
    """A list couldn't be a key again."""
    keys, _ = sent(ChunkCodec(grouped=False), [(key,)], [0])
    assert same(keys, [(key,)])


def test_a_tuple_comes_back_as_a_list_if_it_is_a_value() -> None:
    """That is what is documented, at every depth and whether grouped or not."""
    assert restored((1, ("a", (2,))), Any) == [1, ["a", [2]]]
    assert restored((1, (2,)), Any, grouped=False) == [1, [2]]


def test_the_limits_of_integers_are_carried_and_nothing_beyond() -> None:
    """64 bits, signed or unsigned."""
    for edge in (-(2**63), 2**63, 2**64 - 1):
        assert restored(edge, Any) == edge
    for beyond in (2**64, -(2**63) - 1, 2**70):
        for grouped in (True, False):
            with pytest.raises(CarryError, match=rf"key 'k'.*{beyond}.*(64 bits|2\*\*64)") as caught:
                restored(beyond, Any, grouped=grouped)
            assert "type list" not in str(caught.value), "the value isn't a list; its key's values are kept in one"


def test_nan_and_the_infinities_are_values_like_others() -> None:
    """Only as a key is NaN refused."""
    assert math.isnan(restored(math.nan, Any))
    assert restored([math.inf, -math.inf], Any) == [math.inf, -math.inf]
    assert same(restored(-0.0, Any), -0.0)


def test_an_empty_run_has_one_chunk_without_anything() -> None:
    """A segment's last run may be empty: then its chunk 0 only tells of the others."""
    codec = ChunkCodec(grouped=True)
    assert codec.items(unseal(seal(b"", (3, 1)))) == ([], [])
    assert unseal(seal(b"", (3, 1))).runs == (3, 1)


# --- chunks ------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(text, st.integers(1, 3000)), max_size=60), st.booleans())
@settings(max_examples=60, deadline=None)
def test_no_chunk_exceeds_its_limit_unless_one_value_does(sizes: list[tuple[str, int]], grouped: bool) -> None:
    """A chunk is what a reduce task holds of each segment, so its size is what bounds memory."""
    keys = [key for key, _ in sizes]
    items: list[Any] = [[b"x" * size] if grouped else b"x" * size for _, size in sizes]
    codec = ChunkCodec(grouped=grouped)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rqmr.codec, "_CHUNK_TARGET", 1000)
        patch.setattr(rqmr.codec, "_CHUNK_LIMIT", 2000)
        bodies = list(codec.bodies(keys, items))
        assert all(len(body) <= 2000 or len(codec.items(unseal(seal(body)))[0]) == 1 for body in bodies)
        assert same(sent(codec, keys, items), (keys, items))


def test_a_run_of_small_records_is_cut_near_the_target() -> None:
    """Too small chunks would cost a command each, too large ones memory."""
    keys = [f"{number:06}" for number in range(100_000)]
    sizes = [len(body) for body in ChunkCodec(grouped=False).bodies(keys, [1] * len(keys))]
    assert sum(sizes) > 700_000
    assert max(sizes) <= 512 << 10
    assert min(sizes[:-1]) >= 30_000, "the first one, too, by which a reduce task tells how many runs fit"


def test_records_that_grow_suddenly_stay_within_the_limit() -> None:
    """The number of records in the next chunk is guessed from the last one; a wrong guess is corrected."""
    keys = list(range(3000))
    items = ["x"] * 1500 + ["y" * 20_000] * 1500
    sizes = [len(body) for body in ChunkCodec(grouped=False).bodies(keys, items)]
    assert max(sizes) <= 512 << 10


def test_one_value_larger_than_the_limit_has_a_chunk_of_its_own() -> None:
    """It can't be cut, so it is carried as it is, and its neighbours aren't dragged along."""
    codec = ChunkCodec(grouped=True)
    keys, items = ["a", "b", "c"], [["x"], ["y" * 3_000_000], ["z"]]
    assert sent(codec, keys, items) == (keys, items)
    assert sorted(len(codec.items(unseal(seal(body)))[0]) for body in codec.bodies(keys, items)) == [1, 1, 1]


def test_a_key_with_very_many_values_takes_several_chunks() -> None:
    """No chunk has to hold all values of a hot key; their order stays."""
    codec = ChunkCodec(grouped=True)
    bodies = list(codec.bodies(["a", "hot", "z"], [[1], list(range(500_000)), [2]]))
    assert len(bodies) > 5
    assert max(map(len, bodies)) <= 512 << 10
    keys, items = sent(codec, ["a", "hot", "z"], [[1], list(range(500_000)), [2]])
    assert keys == sorted(keys)
    assert [value for key, item in zip(keys, items, strict=True) if key == "hot" for value in item] == list(
        range(500_000)
    )


@given(st.binary(max_size=400), st.lists(st.integers(0, 2000), max_size=4).map(tuple))
@settings(max_examples=60, deadline=None)
@example(b"x" * 300, (2, 1))
def test_seal_and_unseal_give_the_same_body_and_runs(body: bytes, runs: tuple[int, ...]) -> None:
    """Compressed or not."""
    chunk = unseal(seal(body, runs))
    assert chunk.runs == runs
    codec = ChunkCodec(grouped=False)
    if body:
        assert chunk.packed == (len(body) >= 256)
    else:
        assert codec.items(chunk) == ([], [])


def test_compression_is_left_to_bodies_that_gain_by_it() -> None:
    """Text shrinks; a few bytes would only grow."""
    assert len(seal(b"word " * 1000)) < 200
    assert len(seal(b"word " * 10)) < 70


@pytest.mark.parametrize("records", [3, 300])
def test_a_flipped_bit_anywhere_in_a_sealed_chunk_is_noticed(records: int) -> None:
    """Whatever damages a segment makes its map task run again, and never a wrong result."""
    (body,) = ChunkCodec(grouped=True).bodies(["k"], [["v"] * records])
    stored = seal(body, (1,))
    for index in range(len(stored)):
        damaged = bytearray(stored)
        damaged[index] ^= 1 << (index % 8)
        with pytest.raises(ValueError, match="damaged"):
            unseal(bytes(damaged))


def test_a_sealed_chunk_that_was_cut_short_is_noticed_at_every_length() -> None:
    """Also one of which nothing is left."""
    (body,) = ChunkCodec(grouped=True).bodies(["key"], [["v"] * 300])
    stored = seal(body, (1,))
    for length in range(len(stored)):
        with pytest.raises(ValueError):  # noqa: PT011 - any of them means that it is no chunk
            unseal(stored[:length])


@pytest.mark.parametrize("body", [b"\x00", b"\x92\x91\x01\x90", b"\xc1", b"no msgpack at all"])
def test_a_body_that_is_none_is_a_value_error(body: bytes) -> None:
    """Also where its checksum is right: an item too few, or no msgpack."""
    with pytest.raises(ValueError):  # noqa: PT011
        ChunkCodec(grouped=False).items(unseal(seal(body)))


def test_a_packed_body_that_is_no_zstd_is_a_value_error() -> None:
    """The decompressor's own error would not be recognised as a lost segment."""
    encoded = rqmr.codec._encode(rqmr.codec.Chunk((), packed=True, single=False, body=b"x" * 300))
    stored = crc32(encoded).to_bytes(4, "little") + encoded
    with pytest.raises(ValueError):  # noqa: PT011
        ChunkCodec(grouped=False).items(unseal(stored))


@pytest.mark.parametrize("annotation", [Any, Decimal])
def test_values_of_different_keys_need_no_list_each(annotation: Any) -> None:
    """They come back as lists of one."""
    codec = ChunkCodec(annotation, grouped=True)
    keys, values = ["a", "a", "b"], list(map(annotation if annotation is Decimal else int, [1, 2, 3]))
    (body,) = codec.single.bodies(keys, values)
    assert codec.items(unseal(seal(body, single=True))) == (keys, [[value] for value in values])


def test_values_where_accumulators_should_be_are_a_value_error() -> None:
    """They could be taken for them."""
    (body,) = ChunkCodec(grouped=False).bodies(["a"], [1])
    with pytest.raises(ValueError, match="accumulators"):
        ChunkCodec(grouped=False).items(unseal(seal(body, single=True)))


# --- partitions --------------------------------------------------------------------------------------------------

SOME_KEYS: list[Any] = [
    "", "a", "größe", "☃", "a\tb\n", 0, -1, 2**63, 1.5, -0.5, True, None, b"", b"\xff",
    (), ("a", 1), ("a", (None, b"b")),
]  # fmt: skip


def test_a_key_has_the_same_partition_in_every_process() -> None:
    """Python's own hash of a str differs from process to process; a map task and its second try must agree."""
    program = f"from rqmr.codec import partition_for; print([partition_for(key, 97) for key in {SOME_KEYS!r}])"
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "4242")
    }
    assert found == {f"{[partition_for(key, 97) for key in SOME_KEYS]}\n"}


def test_the_partitions_of_some_keys_are_those_of_the_first_release() -> None:
    """Workers of different releases may share a run, so the hash can't change unnoticed."""
    assert [partition_for(key, 1000) for key in ("the", 7, ("a", 1), None)] == [
        crc32(encoded) % 1000 for encoded in (b"\xa3the", b"\x07", b"\x92\xa1a\x01", b"\xc0")
    ]


@pytest.mark.parametrize("keys", [(0.0, -0.0), (("a", 0.0), ("a", -0.0))])
def test_equal_keys_have_one_partition(keys: tuple[Any, Any]) -> None:
    """Else one reducer gets some of a key's values, and another one the rest."""
    assert keys[0] == keys[1]
    assert {partition_for(key, 997) for key in keys} == {partition_for(keys[0], 997)}


def test_keys_spread_over_the_partitions() -> None:
    """Keys that differ in one character don't crowd."""
    counts = [0] * 10
    for number in range(10_000):
        counts[partition_for(f"key-{number}", 10)] += 1
    assert min(counts) > 800


@pytest.mark.parametrize("key", [2**70, -(2**64), "lone \ud800 surrogate", ("a", 2**70)])
def test_a_key_that_cannot_be_encoded_is_told_by_name(key: Any) -> None:
    """A partition can't be found for it: the error names the key, whichever step comes first."""
    with pytest.raises(CarryError, match="key"):
        partition_for(key, 3)
    with pytest.raises(CarryError, match="key"):
        sent(ChunkCodec(grouped=False), [key], [1])


# --- the type of keys --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("a", "str"), (1, "int"), (1.0, "float"), (True, "bool"), (None, "None"), (b"a", "bytes"), ((), "()"),
        (("a", 1), "(str,int)"), (("a", (None, b"")), "(str,(None,bytes))"),
    ],
)  # fmt: skip
def test_a_signature_is_the_exact_type_of_a_key(key: Any, expected: str) -> None:
    """Element by element for tuples."""
    assert signature(key) == expected


@pytest.mark.parametrize(
    "key",
    [
        ["list"], {"a": 1}, {1}, frozenset({1}), Decimal(1), Fraction(1), datetime.date(2026, 11, 21), object(), 1j,
        Colour.RED, Word("w"), Int64(1), Point(1, 2), ("a", ["b"]), ("a", Decimal(1)),
    ],
)  # fmt: skip
def test_a_key_of_another_type_is_refused_by_name(key: Any) -> None:
    """The message names the type, the key, and what can be one."""
    culprit = key[1] if type(key) is tuple else key
    with pytest.raises(CarryError) as caught:
        signature(key)
    assert type(culprit).__qualname__ in str(caught.value)
    assert repr(culprit) in str(caught.value)
    assert "tuples" in str(caught.value)


@pytest.mark.parametrize("key", [math.nan, ("a", math.nan), (("a", (1.0, math.nan)),)])
def test_nan_is_no_key(key: Any) -> None:
    """It isn't equal to itself, so it would have as many groups as values."""
    with pytest.raises(CarryError, match="NaN"):
        signature(key)
    with pytest.raises(CarryError, match="NaN"):
        one_signature([key])
    with pytest.raises(CarryError, match="NaN"):
        list(same_type([(key, 1)]))


MIXED: list[tuple[list[Any], str, str]] = [
    (["a", 1], "str", "int"),
    (["a", b"a"], "str", "bytes"),
    (["a", None], "str", "None"),
    ([1, 2.0], "int", "float"),
    ([0, False], "int", "bool"),
    ([1.0, True], "float", "bool"),
    ([1, True], "int", "bool"),
    ([("a", 1), ("a", True)], "(str,int)", "(str,bool)"),
    ([("a", 1), ("a", 1, 1)], "(str,int)", "(str,int,int)"),
    ([(1,), 1], "(int)", "int"),
]


@pytest.mark.parametrize(("keys", "one", "other"), MIXED)
@pytest.mark.parametrize("turned", [False, True])
def test_keys_of_two_types_are_told_with_both(keys: list[Any], one: str, other: str, turned: bool) -> None:
    """Also those that Python takes for equal, 1 == True == 1.0, though a dict would make them one key."""
    keys = keys[::-1] if turned else keys
    for check in (one_signature, lambda some: list(same_type((key, None) for key in some))):
        with pytest.raises(MixedKeysError) as caught:
            check(keys)
        message = str(caught.value)
        assert one in message
        assert other in message
        assert repr(keys[1]) in message


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_keys_of_one_type_have_one_signature(data: st.DataObject) -> None:
    """And pass on as they are."""
    keys = data.draw(st.lists(data.draw(st.sampled_from(KEY_TYPES)), max_size=20))
    assert one_signature(keys) == (signature(keys[0]) if keys else "")
    assert list(same_type((key, 1) for key in keys)) == [(key, 1) for key in keys]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_keys_of_one_type_can_be_sorted(data: st.DataObject) -> None:
    """What has one signature has an order, None and tuples with None included."""
    keys = data.draw(st.lists(data.draw(st.sampled_from(KEY_TYPES[:7] + KEY_TYPES[8:])), max_size=20))
    if set(keys) != {None}:
        ordered = sorted(set(keys))
        assert all(one < other for one, other in itertools.pairwise(ordered))


# --- values that the wire can't carry ----------------------------------------------------------------------------

NOT_CARRIED: list[Any] = [
    {1, 2}, frozenset({1}), Reading("h", datetime.datetime(2026, 1, 1), Decimal(1)), Decimal("1.5"), Fraction(1, 2),
    datetime.datetime(2026, 11, 21), datetime.date(2026, 11, 21), datetime.timedelta(1), object(), 1j, Int64(5),
    Word("w"), Colour.RED, range(3), bytearray(b"x"), memoryview(b"x"), Point(1, 2), len, int, iter([1]),
]  # fmt: skip


@pytest.mark.parametrize("value", NOT_CARRIED, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("wrap", [lambda v: v, lambda v: [v], lambda v: (1, v), lambda v: {"a": [v]}])
@pytest.mark.parametrize("grouped", [True, False])
def test_a_value_that_is_not_carried_is_told_with_its_key_and_type(value: Any, wrap: Any, grouped: bool) -> None:
    """Never carried as something else: what msgpack would turn into a list or a number is refused too."""
    item: Any = wrap(value)
    with pytest.raises(CarryError) as caught:
        sent(ChunkCodec(grouped=grouped), ["one", "two"], [["x"], [item]] if grouped else ["x", item])
    assert "'two'" in str(caught.value)
    assert type(value).__qualname__ in str(caught.value)


@pytest.mark.parametrize("key", [Decimal(1), datetime.date(2026, 1, 1), frozenset(), Int64(3)])
def test_a_dict_with_a_key_that_is_not_carried_is_told(key: Any) -> None:
    """The keys of a value's dicts are values too."""
    with pytest.raises(CarryError, match=type(key).__qualname__):
        restored({"a": {key: 1}}, Any)


def test_text_with_a_lone_surrogate_is_told() -> None:
    """It is no text, so it can't be UTF-8."""
    for grouped in (True, False):
        with pytest.raises(CarryError, match=r"key 'k'.*surrogate"):
            restored("a\udc80b", Any, grouped=grouped)


def test_a_value_that_contains_itself_is_told() -> None:
    """And doesn't end the process."""
    value: list[Any] = []
    value.append(value)
    with pytest.raises((CarryError, RecursionError)):
        restored(value, Any)


def test_a_long_value_is_shortened_in_messages() -> None:
    """A message is for people."""
    with pytest.raises(CarryError) as caught:
        restored({"x" * 100_000}, Any)
    assert len(str(caught.value)) < 1000
    assert shorten("x" * 300).endswith("… (302 characters)")


@given(values)
@settings(max_examples=50, deadline=None)
def test_what_is_carried_passes_the_check(value: Any) -> None:
    """The check and the encoder agree."""
    check_carried(value)
    assert weight(value) > 0


# --- annotations restore types -----------------------------------------------------------------------------------

READING = Reading("h1", datetime.datetime(2026, 11, 21, 8, 30, tzinfo=datetime.UTC), Decimal("1.10"), frozenset("ab"))
RESTORED: list[tuple[Any, Any]] = [
    (Reading, READING),
    (Decimal, Decimal("1.10")),
    (Decimal, Decimal("1E+400")),
    (datetime.datetime, datetime.datetime(2026, 11, 21, 8, 30, 59, 999999)),
    (datetime.datetime, datetime.datetime(2026, 11, 21, tzinfo=datetime.timezone(datetime.timedelta(hours=5.5)))),
    (datetime.date, datetime.date(1, 1, 1)),
    (datetime.time, datetime.time(23, 59)),
    (datetime.timedelta, datetime.timedelta(days=-3, microseconds=1)),
    (tuple[str, int], ("a", 1)),
    (tuple[int, ...], (1, 2, 3)),
    (tuple[str, tuple[int, Decimal]], ("a", (1, Decimal("0.1")))),
    (set[int], {1, 2, 3}),
    (frozenset[str], frozenset({"a"})),
    (Optional[Decimal], None),  # noqa: UP045 - both spellings are in use
    (Optional[Decimal], Decimal(2)),  # noqa: UP045
    (Reading | None, None),
    (list[Point], [Point(1, 2), Point(3, 4)]),
    (dict[str, Point], {"a": Point(1, 2)}),
    (dict[tuple[int, int], Decimal], {(1, 2): Decimal(1)}),
    (Colour, Colour.RED),
    (Point, Point(1, 2)),
]  # fmt: skip


@pytest.mark.parametrize(("annotation", "value"), RESTORED)
@pytest.mark.parametrize("grouped", [True, False])
def test_an_annotated_value_comes_back_as_its_type(annotation: Any, value: Any, grouped: bool) -> None:
    """Equal, and of the same type all through."""
    assert restores(annotation)
    back = restored(value, annotation, grouped=grouped)
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(
    "annotation",
    [Any, object, None, int, str, bytes, list, dict, list[int], dict[str, list[float]], int | None, int | str],
)
def test_an_annotation_that_the_wire_keeps_anyway_costs_nothing(annotation: Any) -> None:
    """Decoding into types is slower, so it is done only where it changes something."""
    assert not restores(annotation)


@pytest.mark.parametrize(
    ("annotation", "value", "culprit"),
    [
        (Decimal, object(), "object"),
        (Reading, {"home": "h"}, "dict"),
        (Reading, 7, "int"),
        (datetime.date, "no date", "str"),
        (set[int], {"a"}, "set"),
        (Literal["a", "b"], "c", "str"),
        (Decimal, {1, 2}, "set"),
    ],
)
@pytest.mark.parametrize("grouped", [True, False])
def test_a_value_that_does_not_fit_its_annotation_is_told_with_its_key_and_type(
    annotation: Any, value: Any, culprit: str, grouped: bool
) -> None:
    """Of many values of a key, the one that doesn't fit is named, and its own type."""
    good = next((example for kind, example in RESTORED if kind is annotation), None)
    items = [[good] * 50 + [value]] if grouped and good is not None else [[value] if grouped else value]
    with pytest.raises(CarryError) as caught:
        sent(ChunkCodec(annotation, grouped=grouped), ["k"], items)
    assert "'k'" in str(caught.value)
    assert f"type {culprit}" in str(caught.value)
    assert shorten(value) in str(caught.value)


# --- weights -----------------------------------------------------------------------------------------------------


@given(st.lists(values))
def test_many_values_weigh_what_each_of_them_weighs(some: list[Any]) -> None:
    assert weights(some) == sum(map(weight, some))


def test_lists_weigh_about_what_their_elements_do_however_differently_long_they_are() -> None:
    some: list[Any] = [["word"] * (number % 7) for number in range(50_000)] + [["word"] * 300_000]
    assert 0.9 < weight_by_sample(some) / weights(some) < 1.1
    assert weight_by_sample([{"a": None}] * 5000) == weights([{"a": None}] * 5000)
    assert weight_by_sample([]) == 0


def test_a_weight_is_about_what_the_value_takes_in_memory() -> None:
    """The memory bound of a map task is only as good as this."""
    for value in ("x" * 1000, b"x" * 1000, ["abcdef"] * 50, {str(number): number for number in range(100)}):
        real = sys.getsizeof(value) + sum(
            sum(map(sys.getsizeof, pair)) for pair in (value.items() if isinstance(value, dict) else [])
        )
        assert 0.3 * real < weight(value) < 10 * real
