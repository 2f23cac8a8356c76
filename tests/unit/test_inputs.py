"""Paths → splits → records: nothing is lost, nothing twice, and what can't be read is told."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rqmr.errors import InputError
from rqmr.files import UnreadableRecord
from rqmr.inputs import Source, choose_reducers, choose_splits, cut, cut_for, expand, parse_size, source_of
from rqmr.model import Piece, Settings, Split
from rqmr.readers import Block, Csv, JsonLines, Lines, Reader, Whole, check_encoding

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MIB = 1 << 20
STRICT = Settings(decode_errors="strict")
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstd.compress,
}
some_content = st.lists(
    st.sampled_from(
        [b"\n", b"\r\n", b"\r", b"a", b"word ", "é".encode(), "☃".encode(), "😀".encode(), b"\xff", b"\xe2\x98"]
    )
    | st.binary(max_size=5),
    max_size=40,
).map(b"".join)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: str, content: bytes = b"x\n") -> Path:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def names(*inputs: str) -> list[str]:
    return [source.name for source in expand(inputs)]


def read(
    path: Path, *, split_bytes: int = MIB, reader: Reader | None = None, how: Settings | None = None
) -> list[Block]:
    reader = reader or Lines()
    splits = cut([source_of(str(path))], split_bytes, reader.splittable)
    return [block for split in splits for piece in split.pieces for block in kept(reader, piece, how or Settings())]


def kept(reader: Reader, piece: Piece, how: Settings) -> Iterator[Block]:
    for block in reader.blocks(piece, how):
        block.records = list(block.records)
        yield block


def records(path: Path, **options: Any) -> list[Any]:
    return [record for block in read(path, **options) for record in block.records]


def raw_lines(content: bytes) -> list[bytes]:
    r"""Return the lines as a user counts them: each ends with \n, the last perhaps not."""
    lines = content.split(b"\n")
    return lines[:-1] if lines[-1] == b"" else lines


# --- expand ------------------------------------------------------------------------------------------------------


def test_inputs_come_in_the_order_given_and_one_given_twice_is_read_twice(here: Path) -> None:
    """As with cat, the order and the number of inputs are the user's business."""
    write("b"), write("a")
    assert names("b", "a", "b") == ["b", "a", "b"]


def test_a_directory_gives_its_files_sorted_without_hidden_and_underscore_names(here: Path) -> None:
    """What begins with . or _ at any level is a tool's own file, as _SUCCESS."""
    for path in (
        "in/b",
        "in/a.txt",
        "in/c/d/e",
        "in/c/a",
        "in/.x",
        "in/_SUCCESS",
        "in/c/_tmp/y",
        "in/.git/z",
        "in/c d",
    ):
        write(path)
    assert names("in") == ["in/a.txt", "in/b", "in/c d", "in/c/a", "in/c/d/e"]
    assert names("in/") == names("in")


def test_a_path_given_itself_is_taken_whatever_its_name(here: Path) -> None:
    """Only what is found below a directory is chosen by name."""
    write("_dir/.hidden/a"), write("_file"), write("_dir/_b")
    assert names("_file", "_dir/.hidden", "_dir/_b") == ["_file", "_dir/.hidden/a", "_dir/_b"]


def test_a_glob_gives_its_matches_sorted_and_directories_as_their_files(here: Path) -> None:
    """A quoted glob means what the shell would have made of it."""
    write("in/b.txt"), write("in/a.txt"), write("in/sub/c.txt"), write("in/x.csv")
    assert names("in/*.txt") == ["in/a.txt", "in/b.txt"]
    assert names("in/[ab].tx?") == ["in/a.txt", "in/b.txt"]
    assert sorted(names("in/*")) == ["in/a.txt", "in/b.txt", "in/sub/c.txt", "in/x.csv"]
    assert names("in/**/*.txt") == ["in/a.txt", "in/b.txt", "in/sub/c.txt"]
    assert sorted(names("in/**")) == sorted(names("in"))
    assert names(str(here / "in/?.txt")) == [str(here / "in/a.txt"), str(here / "in/b.txt")]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(here: Path) -> None:
    """A name that exists is never a pattern."""
    write("a[1]"), write("a1"), write("d*/x")
    assert names("a[1]", "d*") == ["a[1]", "d*/x"]


@pytest.mark.parametrize("missing", ["nothing", "nothing*", "", "empty", "hidden", "hidden/*"])
def test_an_input_that_stands_for_no_file_is_refused_by_name(here: Path, missing: str) -> None:
    """Silence would be taken for an empty result."""
    write("there"), write("hidden/.x")
    Path("empty").mkdir()
    with pytest.raises(InputError, match=f"no file matches '{missing}'".replace("*", r"\*")):
        expand(["there", missing])


def test_no_input_at_all_is_refused() -> None:
    """The message says how to name one."""
    with pytest.raises(InputError, match="standard input"):
        expand([])


def test_links_to_files_and_directories_are_followed_but_not_in_circles(here: Path) -> None:
    """A circle of links neither hangs nor gives a file twice."""
    write("in/sub/a"), write("else/b")
    Path("in/file").symlink_to("../else/b")
    Path("in/other").symlink_to("../else")
    Path("in/sub/up").symlink_to("..")
    Path("in/sub/self").symlink_to(".")
    assert names("in") == ["in/file", "in/other/b", "in/sub/a"]
    assert sorted(names("in/**/[ab]")) == ["in/other/b", "in/sub/a"]


@pytest.mark.parametrize("given", ["in/dangling", "in"])
def test_a_dangling_link_is_refused_by_name(here: Path, given: str) -> None:
    """Leaving it out would leave out data."""
    write("in/a")
    Path("in/dangling").symlink_to("gone")
    with pytest.raises(InputError, match=r"in/dangling can't be read: No such file .*link to nothing"):
        expand([given])


@pytest.mark.parametrize("given", ["in/pipe", "in", "in/*"])
def test_a_pipe_is_refused_without_waiting_for_a_writer(here: Path, given: str) -> None:
    """Opening a pipe would hang."""
    write("in/a")
    os.mkfifo("in/pipe")
    with pytest.raises(InputError, match=r"in/pipe is a pipe.*not a regular file"):
        expand([given])


def test_sockets_and_devices_are_refused(here: Path) -> None:
    """Neither can be read by several workers, or twice."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        with pytest.raises(InputError, match="not a regular file"):
            expand(["socket"])
    with pytest.raises(InputError, match="not a regular file"):
        expand(["/dev/null"])


def test_what_can_not_be_opened_is_refused_with_the_reason(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found out before the run, not by a worker in its middle."""
    file = write("in/secret")

    def refuse(path: Any, *_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(5, "Input/output error")  # in reading, so it names no file

    for opening, reason in ((refuse, "Permission denied"), (fail, "Input/output error")):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", opening)
            with pytest.raises(InputError, match=f"secret can't be read: {reason}"):
                expand([file])
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match="in can't be read: Permission denied"):
        expand(["in"])


def test_names_with_spaces_and_names_that_are_not_utf8_are_read(here: Path) -> None:
    """The mapper sees valid text, the file system its own bytes."""
    odd = os.fsdecode(b"in/caf\xe9.txt")
    write("in/a b.txt", b"spaces\n"), write(odd, b"latin\n")
    first, second = expand(["in"])
    assert (first.name, second.name) == ("in/a b.txt", "in/caf�.txt")
    assert second.path == os.fsencode(here / odd)
    assert [records(Path(os.fsdecode(source.path))) for source in (first, second)] == [["spaces"], ["latin"]]


def test_a_source_has_size_and_may_have_another_name(here: Path) -> None:
    """A spooled standard input is called -."""
    write("spool", b"12345")
    assert source_of("spool", "-") == Source("-", os.fsencode(here / "spool"), 5, "")


# --- cut ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 300_000), max_size=30), st.integers(1, 100_000), st.booleans())
@settings(deadline=None, max_examples=150)
def test_splits_hold_every_byte_once_and_in_order(sizes: list[int], split_bytes: int, splittable: bool) -> None:
    """The pieces of all splits, one after the other, are the sources."""
    split_bytes = max(split_bytes, sum(sizes) // 2000)
    sources = [Source(str(number), b"/x", size) for number, size in enumerate(sizes)]
    splits = cut(sources, split_bytes, splittable)
    pieces = [piece for split in splits for piece in split.pieces]

    expected = iter(sources)
    position = size = 0
    for piece in pieces:
        if piece.start == 0:
            assert position == size
            source = next(expected)
            position, size = 0, source.size
        assert (piece.name, piece.start) == (source.name, position)
        assert piece.size == (size if piece.stop is None else piece.stop - piece.start)
        position += piece.size
    assert position == size
    assert next(expected, None) is None
    assert splits
    if splittable:
        assert all(split.size <= split_bytes for split in splits)


def test_a_big_file_is_cut_evenly() -> None:
    """No small rest costs a task of its own."""
    splits = cut([Source("big", b"/big", 2100)], 1000, True)
    assert [(split.pieces[0].start, split.pieces[0].stop) for split in splits] == [(0, 700), (700, 1400), (1400, 2100)]


def test_compressed_files_and_unsplittable_readers_keep_files_whole() -> None:
    """The middle of a compressed stream can't be read."""
    packed, plain = Source("a", b"/a", 5000, "gzip"), Source("b", b"/b", 5000)
    assert [(piece.stop, piece.size) for split in cut([packed], 1000, True) for piece in split.pieces] == [(None, 5000)]
    assert [piece.stop for split in cut([plain], 1000, False) for piece in split.pieces] == [None]


def test_ten_thousand_tiny_files_are_packed_into_few_splits() -> None:
    """But not all into one: opening a file isn't free, even an empty one."""
    for size in (0, 10):
        splits = cut([Source(f"{number:05}", b"/x", size) for number in range(10_000)], 16 * MIB, True)
        assert 2 <= len(splits) <= 4
        assert [piece.name for split in splits for piece in split.pieces] == [
            f"{number:05}" for number in range(10_000)
        ]


def test_empty_input_makes_one_split(here: Path) -> None:
    """A run has at least one map task, and a job that reads nothing succeeds."""
    write("empty", b"")
    (split,) = cut(expand(["empty"]), MIB, True)
    assert split.size == 0
    assert records(Path("empty")) == []
    assert cut([], MIB, True) == [Split(())]


# --- Lines -------------------------------------------------------------------------------------------------------


@given(some_content, st.integers(1, 60), st.sampled_from(["utf-8", "latin-1", "cp1252", "shift_jis", "gb18030"]))
@example(b"", 1, "utf-8")
@example(b"\n\n\n", 1, "utf-8")
@example(b"a\r\nb\r", 2, "utf-8")
@example(b"\x830\n\x830\nab", 3, "gb18030")  # whose decoder would replace the first newline if it were the last byte
@settings(deadline=None, max_examples=300)
def test_however_a_file_is_cut_each_line_is_read_once_and_its_offset_is_right(
    content: bytes, split_bytes: int, encoding: str
) -> None:
    r"""The lines are those of the whole file split at \n, with \r\n taken for one line end."""
    how = Settings(encoding=encoding)
    expected = raw_lines(content)
    with tempfile.TemporaryDirectory() as directory:
        path = write(f"{directory}/file", content)
        blocks = read(path, split_bytes=split_bytes, how=how)
        whole = read(path, how=how)
    texts = [line.decode(encoding, "replace") for line in expected]
    ended = texts if content.endswith(b"\n") else texts[:-1]
    lines = [line.removesuffix("\r") for line in ended] + texts[len(ended) :]
    assert [line for block in blocks for line in block.records] == lines
    assert sum(block.replaced for block in blocks) == sum(block.replaced for block in whole)
    assert sum(block.size for block in blocks) == len(content)

    places = [(block, index) for block in blocks for index in range(len(list(block.records)))]
    offsets = [block.offset_of(index) for block, index in places]
    assert offsets == [sum(len(line) + 1 for line in expected[:number]) for number in range(len(expected))]
    assert [block.text_of(index) for block, index in places] == [text.removesuffix("\r") for text in texts]


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"", []),
        (b"\n", [""]),
        (b"a", ["a"]),
        (b"a\n", ["a"]),
        (b"a\n\n", ["a", ""]),
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"a\r\r\nb\rc\r", ["a\r", "b\rc\r"]),
        ("a\x0bb\x0cc\x1cd\x85e\u2028f\n".encode(), ["a\x0bb\x0cc\x1cd\x85e\u2028f"]),
        (b"\xef\xbb\xbfa\n", ["\ufeffa"]),
    ],
)
def test_only_newlines_end_lines(here: Path, content: bytes, lines: list[str]) -> None:
    r"""The last line needs none; \r belongs to it only right before; other separators of Unicode are text."""
    path = write("file", content)
    for split_bytes in range(1, len(content) + 2):
        assert records(path, split_bytes=split_bytes) == lines


def test_a_line_longer_than_a_block_is_one_record_and_read_in_linear_time(here: Path) -> None:
    """Five megabytes in one line, cut into twenty splits: nineteen of them are empty."""
    path = write("file", b"first\n" + b"x" * (5 * MIB) + b"\nlast\n")
    begin = time.perf_counter()
    assert [len(line) for line in records(path, split_bytes=MIB // 4)] == [5, 5 * MIB, 4]
    assert [len(line) for line in records(path)] == [5, 5 * MIB, 4]
    assert time.perf_counter() - begin < 2


def test_many_blocks_have_right_offsets(here: Path) -> None:
    """Also where the file is much larger than a block, plain or compressed."""
    content = b"".join(b"line %d %s\n" % (number, b"." * (number % 50)) for number in range(30_000))
    for path in (write("file", content), write("file.gz", gzip.compress(content, 1))):
        blocks = read(path)
        assert len(blocks) > 3
        for block in blocks:
            for index in (0, len(list(block.records)) - 1):
                assert content[block.offset_of(index) :].startswith(block.text_of(index).encode() + b"\n")
        assert [line for block in blocks for line in block.records] == content.decode().splitlines()


def test_replaced_characters_are_counted_without_those_that_were_in_the_file(here: Path) -> None:
    """A genuine U+FFFD is text; each undecodable byte sequence counts once however the file is cut."""
    path = write("file", "ok �\n".encode() + b"bad \xff\xfe\n\xe2\x98\n" + "☃".encode())
    for split_bytes in (1, 2, 3, 5, 1000):
        blocks = read(path, split_bytes=split_bytes)
        assert sum(block.replaced for block in blocks) == 3
    assert records(path) == ["ok �", "bad ��", "�", "☃"]


def test_strict_decoding_names_the_line_that_is_not_text(here: Path) -> None:
    """Source and offset of the line, in the exception and in its message."""
    path = write("file", b"fine\nalso\nb\xe9d\nmore\n")
    with pytest.raises(UnreadableRecord, match="file, byte 10: it isn't utf-8") as caught:
        read(path, how=STRICT)
    assert (caught.value.source, caught.value.offset) == ("file", 10)


@pytest.mark.parametrize(
    ("reader", "content", "found"),
    [
        (Lines(), b"a\r\nb\xe9d\r\n\n\xe9\r\nc\r", ["a", 3, "", 9, "c\r"]),
        (JsonLines(), b"1\n\n\xe9\n \n{\n2", [1, 3, 7, 2]),
        (Whole(), b"a\n\xe9", [2]),
        (Csv(header=False), b'a,b\n"c"d,e\n"\xe9",f\ng,h\n', [["a", "b"], 4, 11, ["g", "h"]]),
    ],
)
def test_after_a_record_that_is_not_readable_come_the_next_ones(
    here: Path, reader: Reader, content: bytes, found: list[Any]
) -> None:
    """Each raises in its turn, with the offset of its line; who doesn't stop there gets all others."""
    (piece,) = cut([source_of(str(write("file", content)))], MIB, reader.splittable)[0].pieces
    told = []
    for block in reader.blocks(piece, STRICT):
        turns = iter(block.records)
        while True:
            try:
                told.append(next(turns))
            except StopIteration:
                break
            except UnreadableRecord as error:
                told.append(error.offset)
    assert told == found


def test_a_signature_is_dropped_from_the_file_s_start_only(here: Path) -> None:
    """With utf-8-sig; a U+FEFF further down is text, wherever the file is cut."""
    how = Settings(encoding="UTF_8_SIG", decode_errors="strict")
    path = write("file", b"\xef\xbb\xbfa\n\xef\xbb\xbfb\nc\n")
    for split_bytes in (1, 4, 5, 6, 100):
        assert records(path, split_bytes=split_bytes, how=how) == ["a", "\ufeffb", "c"]
    assert records(write("only", b"\xef\xbb\xbf"), how=how) == []
    assert read(path, how=how)[0].offset_of(1) == 5


def test_a_file_that_became_shorter_or_vanished_is_an_os_error(here: Path) -> None:
    """The rest of its lines must not be taken for read."""
    path = write("file", b"line\n" * 100)
    splits = cut([source_of(str(path))], 100, True)
    path.write_bytes(b"line\n" * 50)
    for split in splits[-2:]:
        with pytest.raises(OSError, match="shorter"):
            list(Lines().blocks(split.pieces[0], Settings()))
    path.unlink()
    with pytest.raises(FileNotFoundError):
        list(Lines().blocks(splits[0].pieces[0], Settings()))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("reader", [Lines(), Whole(), Csv(header=False)])
def test_a_file_that_has_grown_is_read_to_its_planned_end(here: Path, reader: Reader, packed: bool) -> None:
    """Also where that is in the middle of what is a line by now; and one that is shorter is an error."""
    content = b"a\nb" * 100
    path = write("file", gzip.compress(content) if packed else content)
    pieces = [piece for split in cut([source_of(str(path))], 100, reader.splittable) for piece in split.pieces]
    before = [list(block.records) for piece in pieces for block in reader.blocks(piece, Settings())]
    planned = path.read_bytes()
    path.write_bytes(planned + (gzip.compress(b"c\n") if packed else b"c\nd\n"))
    assert [list(block.records) for piece in pieces for block in reader.blocks(piece, Settings())] == before
    path.write_bytes(planned[:-10])
    with pytest.raises(OSError, match="shorter"):
        [list(block.records) for piece in pieces for block in reader.blocks(piece, Settings())]


# --- Compressed files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_compressed_files_of_one_or_more_members_are_read_transparently(here: Path, kind: str) -> None:
    """What counts is how the file begins, not its name; the members may have zeros between them."""
    compress = COMPRESSORS[kind]
    first, second = b"a\nhalf " * 100_000, b"line\nz" * 100_000
    for padding in (b"", b"\0" * 512):
        path = write("file.txt", compress(first) + padding + compress(b"") + compress(second) + padding)
        assert source_of(str(path)).compression == kind
        assert records(path, split_bytes=10) == (first + second).decode().split("\n")


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_damage_in_a_compressed_file_is_never_its_end(here: Path, kind: str) -> None:
    """Cut anywhere, garbled in the middle, or followed by what is no stream: told, with the file's name."""
    compress = COMPRESSORS[kind]
    content = os.urandom(3000).hex().encode() + b"\n"
    whole = compress(content)
    damaged = [whole[:length] for length in (11, 100, len(whole) // 2, len(whole) - 1)]
    damaged += [whole + whole[:length] for length in (3, 11, len(whole) - 1)]
    damaged += [whole + b"garbage", whole + compress(content).replace(whole[:3], b"???", 1)]
    if kind != "zst":  # its checksum is optional, and not the default
        damaged.append(whole[: len(whole) // 2] + b"~~~~" + whole[len(whole) // 2 + 4 :])
    for number, raw in enumerate(damaged):
        path = write(f"file{number}", raw)
        with pytest.raises(UnreadableRecord, match=f"file{number}, byte .*decompressed"):
            read(path)


def test_a_file_is_what_it_begins_with_and_not_what_it_is_called(here: Path) -> None:
    """A .gz that isn't one is text, and so is text that merely begins like bzip2."""
    for name, content in (("a.gz", b"plain\n"), ("b.bz2", b"BZh9 is how bzip2 begins\n"), ("empty.zst", b"")):
        path = write(name, content)
        assert source_of(str(path)).compression == ""
        assert records(path) == content.decode().splitlines()


def test_a_disk_s_error_in_a_compressed_file_stays_an_os_error(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading again elsewhere may help, which it doesn't if the data is damaged."""
    path = write("file", gzip.compress(os.urandom(1 << 20)))
    piece = cut([source_of(str(path))], MIB, True)[0].pieces[0]

    class Broken(io.BytesIO):
        def peek(self, _: int = 0) -> bytes:
            return self.getvalue()[:10]

        def read(self, _: int | None = -1) -> bytes:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "open", lambda *_: Broken(b"\x1f\x8b\x08"))
    with pytest.raises(OSError, match="Input/output error"):
        list(Lines().blocks(piece, Settings()))


# --- Other readers -----------------------------------------------------------------------------------------------


def test_whole_gives_one_record_a_file_even_of_an_empty_one(here: Path) -> None:
    """The text as it is, newlines and all."""
    assert records(write("file", b"a\r\nb\n"), reader=Whole(), split_bytes=1) == ["a\r\nb\n"]
    assert records(write("empty", b""), reader=Whole()) == [""]
    assert records(write("packed", gzip.compress(b"a\nb")), reader=Whole()) == ["a\nb"]
    (block,) = read(write("bad", b"a\xff\nb"), reader=Whole())
    assert (block.replaced, block.offset_of(0), block.text_of(0), block.size) == (1, 0, "a�", 4)


def test_json_lines_are_parsed_and_blank_ones_left_out(here: Path) -> None:
    """Offsets stay right behind blank lines, however the file is cut."""
    content = b'\n{"a": [1, null, "\xc3\xa9"]}\r\n  \r\n12\n\n\n"x"\n' + b"\n" * 20
    path = write("file", content)
    for split_bytes in (1, 3, 10, 1000):
        blocks = read(path, reader=JsonLines(), split_bytes=split_bytes)
        assert [record for block in blocks for record in block.records] == [{"a": [1, None, "é"]}, 12, "x"]
        offsets = [block.offset_of(index) for block in blocks for index in range(len(list(block.records)))]
        assert offsets == [content.index(start) for start in (b"{", b"12", b'"x"')]
        assert blocks[0].text_of(0) == '{"a": [1, null, "é"]}'


@pytest.mark.parametrize("bad", [b"{'a': 1}", b"NaN", b"[" * 50_000, b'{"a": 1} {"a": 2}'])
def test_a_line_that_is_not_json_is_told_when_its_turn_comes(here: Path, bad: bytes) -> None:
    """The records before it have been given, and the error has its offset."""
    path = write("file", b"1\n\n2\n" + bad + b"\n3\n")
    (piece,) = cut([source_of(str(path))], MIB, True)[0].pieces
    (block,) = JsonLines().blocks(piece, Settings())
    values = iter(block.records)
    assert [next(values), next(values)] == [1, 2]
    with pytest.raises(UnreadableRecord, match="file, byte 5: it isn't JSON"):
        next(values)


def test_csv_rows_are_dicts_by_header_or_lists(here: Path) -> None:
    """Quoted fields may hold delimiters and newlines; blank lines are left out."""
    content = b'\nid,text\r\n1,"a, ""b""\nc"\r\n\r\n2,\xc3\xa9\n3,end'
    path = write("file", content)
    blocks = read(path, reader=Csv(), split_bytes=1)
    assert [row for block in blocks for row in block.records] == [
        {"id": "1", "text": 'a, "b"\nc'},
        {"id": "2", "text": "é"},
        {"id": "3", "text": "end"},
    ]
    assert [block.offset_of(0) for block in blocks] == [content.index(start) for start in (b"1,", b"2,", b"3,")]
    assert blocks[0].text_of(0) == '1,"a, ""b""'
    semicolons = write("semicolons", b"1;2\n3;4\n")
    assert records(semicolons, reader=Csv(header=False, delimiter=";")) == [["1", "2"], ["3", "4"]]
    assert records(write("empty", b""), reader=Csv()) == []
    assert records(write("header", b"a,b\n"), reader=Csv()) == []


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"1", "1 fields under 2 names"),
        (b"1,2,3", "3 fields"),
        (b'1,"never ends\n', "isn't CSV"),
        (b"1\r2,3", "isn't CSV"),
    ],
)
def test_a_row_that_does_not_fit_is_told_with_its_offset(here: Path, row: bytes, reason: str) -> None:
    """A guess would put values into wrong columns, or the rest of the file into one field."""
    path = write("file", b"a,b\nx,y\n" + row + b"\n5,6\n")
    with pytest.raises(UnreadableRecord, match=f"file, byte 8: .*{reason}"):
        read(path, reader=Csv())


def test_csv_counts_replaced_characters_and_drops_a_signature(here: Path) -> None:
    """As lines do."""
    path = write("file", b"\xef\xbb\xbfa\nx\xff\n")
    (block,) = read(path, reader=Csv(), how=Settings(encoding="utf-8-sig"))
    assert (block.records, block.replaced) == ([{"a": "x�"}], 1)
    with pytest.raises(UnreadableRecord, match="byte 5: it isn't utf-8"):
        read(path, reader=Csv(), how=Settings(encoding="utf-8-sig", decode_errors="strict"))
    with pytest.raises(TypeError, match="delimiter"):
        Csv(delimiter="ab")


# --- Settings and sizes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-16", "UTF-16-LE", "utf_32", "cp037", "hz", "unicode_escape"])
def test_encodings_that_can_not_be_cut_at_newlines_are_refused(encoding: str) -> None:
    """The message says how to convert the input."""
    with pytest.raises(InputError, match=f"iconv -f {encoding}"):
        check_encoding(Settings(encoding=encoding))


def test_unknown_encodings_and_error_handlers_are_refused_and_known_ones_pass() -> None:
    """Before the run, not by its first task."""
    for encoding in ("klingon", "rot13", "base64", "utf\0"):
        with pytest.raises(InputError, match="unknown encoding"):
            check_encoding(Settings(encoding=encoding))
    with pytest.raises(InputError, match="'mend'"):
        check_encoding(Settings(decode_errors="mend"))
    for encoding in ("utf-8", "utf-8-sig", "latin-1", "ascii", "cp1252", "shift_jis", "gb18030", "euc_kr", "koi8_r"):
        check_encoding(Settings(encoding=encoding, decode_errors="strict"))


def test_the_number_of_splits_follows_the_input_and_the_workers() -> None:
    """Three for each worker, or more, of 1 to 16 MiB; as many for each."""
    assert [choose_splits(total, 4) for total in (0, MIB, 3 * MIB, 5 * MIB, 11 * MIB, 12 * MIB)] == [1, 1, 3, 4, 8, 12]
    assert [choose_splits(total * MIB, 4) for total in (60, 192, 193, 256)] == [12, 12, 16, 16]
    assert choose_splits(30 * MIB, 0) == 3


@given(st.lists(st.integers(1 << 16, 60 * MIB), min_size=1, max_size=40), st.integers(1, 9))
@settings(deadline=None, max_examples=150)
def test_each_worker_has_as_many_map_tasks_and_all_are_about_equal(sizes: list[int], workers: int) -> None:
    """Whatever the files are that they are cut of, as long as they can be cut."""
    splits = cut_for(workers, [Source(str(number), b"/x", size) for number, size in enumerate(sizes)], True)
    assert len(splits) == choose_splits(sum(sizes), workers)
    assert max(split.size for split in splits) <= 1.14 * min(split.size for split in splits) + 1
    assert sum(len(split.pieces) for split in splits) <= len(sizes) + len(splits)


def test_many_small_files_are_as_many_splits_for_each_worker() -> None:
    """Though to open them counts, too."""
    assert len(cut_for(4, [Source(str(number), b"/x", 3000) for number in range(33_000)], True)) == 12
    assert len(cut_for(4, [*[Source("", b"/x", 100)] * 2000, Source("", b"/x", 50 * MIB)], True)) == 12


def test_files_of_the_size_of_a_split_are_splits() -> None:
    """Who has prepared blocks for the tasks gets these."""
    for count in (1, 3, 16, 64):
        splits = cut([Source(str(number), b"/x", MIB) for number in range(count)], MIB, True)
        assert [len(split.pieces) for split in splits] == [1] * count


@given(st.lists(st.integers(0, 500_000), min_size=20, max_size=120), st.integers(1, 9))
@settings(deadline=None, max_examples=150)
def test_small_files_that_cannot_be_cut_are_packed_as_well_as_others(sizes: list[int], workers: int) -> None:
    """Each goes where its middle is, so no split is far from the mean."""
    sources = [Source(str(number), b"/x", size, "gzip") for number, size in enumerate(sizes)]
    splits = cut_for(workers, sources, True)
    assert [piece.name for split in splits for piece in split.pieces] == [source.name for source in sources]
    costs = [max(size, 4096) for size in sizes]
    assert len(splits) in (choose_splits(sum(costs), workers), choose_splits(sum(costs), workers) + 1)


def test_large_files_that_cannot_be_cut_are_tasks_by_themselves() -> None:
    """Two of them in one task, and one in another, would be as unequal as can be."""
    assert len(cut_for(2, [Source("", b"/x", 10 * MIB, "gzip")] * 20, True)) == 20


def test_the_number_of_reducers_follows_the_input_and_the_workers() -> None:
    """One for a small input, else one to four for each worker."""
    assert choose_reducers(MIB - 1, 8) == 1
    assert choose_reducers(MIB, 8) == 8
    assert choose_reducers(2000 * MIB, 8) == 16
    assert choose_reducers(600 * MIB, 2) == 6, "so that none is left for one worker alone"
    assert choose_reducers(10**12, 8) == 32
    assert choose_reducers(10 * MIB, 0) == 1


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("512B", 512),
        ("16MiB", 16 * MIB),
        ("16 mib", 16 * MIB),
        ("64kib", 65536),
        ("2GB", 2 * 10**9),
        ("1GiB", 1 << 30),
    ],
)
def test_sizes_are_read_with_their_units(text: str, size: int) -> None:
    """Binary and decimal ones, in whatever case."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "0MiB", "-1", "1.5GiB", "12 parsecs", "MiB", "1e6", "١"])
def test_what_is_no_size_is_refused_with_the_forms_that_are(text: str) -> None:
    """The message is enough to write it right."""
    with pytest.raises(ValueError, match="KiB MiB GiB"):
        parse_size(text)
