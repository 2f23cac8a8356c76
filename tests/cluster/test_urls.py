"""Inputs that are URLs give what the same files give, read by the workers themselves, in parts where that can be."""

from __future__ import annotations

import bz2
import gzip
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from bench import Run
from harness import ROOT, Workers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from stores import S3, Web, s3_server

import rqmr
from rqmr.config import Config
from rqmr.errors import InputError, OutputError
from rqmr.files import open_piece
from rqmr.inputs import cut, expand
from rqmr.model import Settings
from rqmr.readers import Lines

#: Lines of many lengths, some longer than a split, without a newline at the end.
TEXT = (
    b"".join(b"w%d " % (line % 97) * (line % 13) + b"end\r\n" for line in range(2_000)) + b"x" * 9_000 + b"\nlast line"
)
SPLIT = Config(split_bytes=4 << 10, reducers=2)


@pytest.fixture(scope="session")
def _s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3(_s3: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """An S3 server with an empty bucket, and an environment that lets in."""
    for name, value in _s3.environment.items():
        monkeypatch.setenv(name, value)
    _s3.new_bucket()
    return _s3


@pytest.fixture
def web() -> Iterator[Web]:
    server = Web()
    yield server
    server.close()


def counted(inputs: list[str], directory: Path, name: str, config: Config = SPLIT, **options: object) -> list[bytes]:
    """The part files of a word count."""
    result = rqmr.run("wordcount", inputs, output=directory / name, config=config, **({"inline": True} | options))
    return [path.read_bytes() for path in result.paths]


@pytest.fixture
def expected(tmp_path: Path) -> list[bytes]:
    """What the text gives as a file."""
    (tmp_path / "text.txt").write_bytes(TEXT)
    return counted([str(tmp_path / "text.txt")], tmp_path, "expected")


# --- S3 -----------------------------------------------------------------------------------------------------------


def test_an_object_gives_what_the_file_gives_in_as_many_splits(s3: S3, tmp_path: Path, expected: list[bytes]) -> None:
    url = s3.put("in/text.txt", TEXT)
    assert len(cut(expand([url]), 4 << 10, True)) == len(cut(expand([str(tmp_path / "text.txt")]), 4 << 10, True)) > 10
    assert counted([url], tmp_path, "out") == expected


def test_a_prefix_and_a_glob_stand_for_what_is_below_and_what_matches(s3: S3, tmp_path: Path) -> None:
    """Without what begins with . or _, in order, compressed ones as they are."""
    for key in ("in/b.txt", "in/a/1.txt", "in/_SUCCESS", "in/.x/y.txt", "in/c.log", "other.txt"):
        s3.put(key, b"some words\n")
    s3.put("in/empty.txt", b"")
    s3.put("in/z.gz", gzip.compress(b"more words\n"))
    s3.put("in/z.bz2", bz2.compress(b"more words\n"))

    def names(key: str) -> list[str]:
        return [source.name.removeprefix(s3.url("")) for source in expand([s3.url(key)])]

    whole = ["in/a/1.txt", "in/b.txt", "in/c.log", "in/empty.txt", "in/z.bz2", "in/z.gz"]
    assert names("in") == names("in/") == whole
    assert names("in/*.txt") == ["in/b.txt", "in/empty.txt"]
    assert names("**/1.txt") == ["in/a/1.txt"]
    assert names("in/_SUCCESS") == ["in/_SUCCESS"]
    assert [source.compression for source in expand([s3.url("in/z*")])] == ["bz2", "gzip"]
    assert b'["more",2]' in b"".join(counted([s3.url("in")], tmp_path, "out"))


def test_stock_workers_read_objects_that_only_the_environment_lets_them_read(
    s3: S3, workers: Workers, redis_url: str, tmp_path: Path, expected: list[bytes]
) -> None:
    workers.start(2, **s3.environment)
    assert counted([s3.put("in/text.txt", TEXT)], tmp_path, "out", inline=False, redis_url=redis_url) == expected


def test_local_workers_read_objects_too(s3: S3, tmp_path: Path, expected: list[bytes]) -> None:
    """They are forks of a process that has read none."""
    config = replace(SPLIT, workers=2)
    assert counted([s3.put("in/text.txt", TEXT)], tmp_path, "out", config, inline=False) == expected


def test_an_object_that_changes_after_the_plan_is_an_error(s3: S3, tmp_path: Path) -> None:
    """Also if it has the same size."""
    url = s3.put("text.txt", TEXT)

    class Changes(rqmr.Job):
        def mapper(self, key: str, line: str) -> None:
            s3.put("text.txt", TEXT.upper())

    with pytest.raises(rqmr.RunFailed) as caught:
        rqmr.run(Changes, url, config=SPLIT, inline=True)
    assert f"an input can't be read: {url}: it isn't any more what it was when the run was planned" in str(caught.value)


def test_a_worker_without_fsspec_leaves_the_run_to_others(
    s3: S3, workers: Workers, redis_url: str, tmp_path: Path, expected: list[bytes]
) -> None:
    broken = tmp_path / "broken" / "fsspec"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ModuleNotFoundError('No module', name='fsspec')\n")
    workers.start(1, PYTHONPATH=str(broken.parent))
    job, config = str(ROOT / "jobs" / "wordcount.py"), replace(SPLIT, lease_seconds=30)
    run = Run(job, [s3.put("text.txt", TEXT)], tmp_path / "out", redis_url, config, {})  # type: ignore[list-item]
    run.wait_for("refused")
    told = next(event.note for event in run.seen if event.what == "refused")
    assert told.startswith("worker worker-1 on ")
    assert "it has no fsspec, which s3:// needs: pip install 'rq-mapreduce[cloud]'" in told
    workers.start(1, **s3.environment)
    assert [path.read_bytes() for path in run.result().paths] == expected


# --- the web ------------------------------------------------------------------------------------------------------


def test_a_server_with_ranges_is_read_in_parts(web: Web, tmp_path: Path, expected: list[bytes]) -> None:
    url = web.put("text.txt", TEXT)
    assert counted([url], tmp_path, "out") == expected
    assert len(cut(expand([url]), 4 << 10, True)) > 10


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(st.sampled_from([b"", b"a", b"word " * 20, "é☃".encode(), b"x\r"]), max_size=10),
    size=st.integers(7, 99),
)
def test_however_it_is_cut_the_same_records_are_read(lines: list[bytes], size: int, web: Web, tmp_path: Path) -> None:
    file = tmp_path / "lines.txt"
    file.write_bytes(b"\n".join(lines))

    def records(given: str) -> list[str]:
        pieces = [piece for split in cut(expand([given]), size, True) for piece in split.pieces]
        return [record for piece in pieces for block in Lines().blocks(piece, Settings()) for record in block.records]

    assert records(web.put("lines.txt", file.read_bytes())) == records(str(file))


def test_of_a_server_with_ranges_hardly_more_is_read_than_a_piece(web: Web) -> None:
    """The rest of the line that it ends in, and of the file nothing but its beginning for the plan."""
    splits = cut(expand([web.put("text.txt", TEXT * 50)]), 1 << 20, True)
    before, piece = web.sent, splits[1].pieces[0]
    assert before < 100
    records = [record for block in Lines().blocks(piece, Settings()) for record in block.records]
    assert len(records) > 1000
    assert piece.size < web.sent - before < piece.size + (100 << 10)


@pytest.mark.parametrize("tells_size", [True, False])
def test_a_server_without_ranges_is_read_whole_as_a_stream(
    tells_size: bool, web: Web, tmp_path: Path, expected: list[bytes]
) -> None:
    web.has_ranges, web.tells_size = False, tells_size
    url = web.put("text.txt", TEXT)
    assert counted([url], tmp_path, "out") == expected
    assert len(cut(expand([url]), 4 << 10, True)) == 1


def test_a_compressed_file_of_the_web_is_read_as_it_is(web: Web, tmp_path: Path, expected: list[bytes]) -> None:
    assert counted([web.put("text.gz", gzip.compress(TEXT))], tmp_path, "out") == expected


@pytest.mark.parametrize("has_ranges", [True, False])
def test_an_answer_that_breaks_off_is_never_taken_for_the_end(has_ranges: bool, web: Web, tmp_path: Path) -> None:
    web.has_ranges = has_ranges
    url = web.put("text.txt", TEXT)

    class Breaks(rqmr.Job):
        def mapper(self, key: str, line: str) -> None:
            pass

        def setup(self) -> None:
            web.breaks_after = 1_000

    with pytest.raises(rqmr.RunFailed) as caught:
        rqmr.run(Breaks, url, config=SPLIT, inline=True)
    assert f"an input can't be read: {url}: " in str(caught.value)


@pytest.mark.parametrize("has_ranges", [True, False])
def test_a_file_of_the_web_that_changes_after_the_plan_is_an_error(has_ranges: bool, web: Web) -> None:
    web.has_ranges = has_ranges
    url = web.put("text.txt", TEXT)

    class Changes(rqmr.Job):
        def setup(self) -> None:
            web.put("text.txt", TEXT.upper())

        mapper = max  # never called

    with pytest.raises(rqmr.RunFailed) as caught:
        rqmr.run(Changes, url, config=SPLIT, inline=True)
    assert "it isn't any more what it was when the run was planned" in str(caught.value)


@pytest.mark.parametrize("has_ranges", [True, False])
def test_what_a_server_would_compress_on_the_way_is_asked_for_as_it_is(
    has_ranges: bool, web: Web, tmp_path: Path, expected: list[bytes]
) -> None:
    """Else neither its size nor its parts would be those of the plan."""
    web.squeezes, web.has_ranges = True, has_ranges
    assert counted([web.put("text.txt", TEXT)], tmp_path, "out") == expected


def test_a_file_that_changes_between_two_parts_is_an_error(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a server that doesn't heed versions: a piece has lines of one."""
    monkeypatch.setattr("rqmr.urls._REQUEST_BYTES", 4 << 10)
    web.heeds_versions = False
    (split,) = cut(expand([web.put("text.txt", TEXT)]), 1 << 20, True)
    with open_piece(split.pieces[0]) as file:
        assert file.read(8 << 10) == TEXT[: 8 << 10]
        web.put("text.txt", TEXT.upper())
        with pytest.raises(OSError, match="it isn't any more what it was when the run was planned"):
            file.read()


def test_a_request_that_fails_in_passing_is_made_again(web: Web) -> None:
    splits = cut(expand([web.put("text.txt", TEXT)]), 1 << 20, True)
    web.failures = 2
    records = [record for block in Lines().blocks(splits[0].pieces[0], Settings()) for record in block.records]
    assert len(records) == TEXT.count(b"\n") + 1
    assert web.failures == 0


# --- errors -------------------------------------------------------------------------------------------------------


def refused(*inputs: str) -> str:
    with pytest.raises(InputError) as caught:
        expand(inputs)
    return str(caught.value)


@pytest.mark.parametrize(
    "url", ["s3://sesame@bucket/x", "s3://key:sesame@bucket/x", "https://me:sesame@host/x", "hdfs://me:sesame@host/x"]
)
def test_credentials_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    message = refused(url)
    assert "sesame" not in message
    assert "environment" in message


def test_what_lets_in_is_in_no_name_and_no_message(web: Web, tmp_path: Path) -> None:
    web.password = "sesame"
    url = web.put("text.txt", b"some words\n")
    (source,) = expand([f"{url}?id=5&token=sesame"])
    assert source.name == f"{url}?id=5&token=…"
    web.password = "changed"
    message = refused(f"{url}?token=sesame")
    assert "access is denied" in message
    assert "sesame" not in message


def test_what_is_not_there_is_told(s3: S3, web: Web) -> None:
    s3.put("in/x.txt", b"x")
    assert refused(s3.url("nothing")) == f"nothing matches {s3.url('nothing')}"
    assert refused(s3.url("in/*.csv")) == f"nothing matches {s3.url('in/*.csv')}"
    assert "s3://no-such-bucket/x" in refused("s3://no-such-bucket/x")
    url = f"http://{web.address}/nothing"
    assert refused(url) == f"{url} can't be read: there is nothing"


def test_a_server_that_is_not_there_is_told() -> None:
    """And isn't taken for one that has no such file."""
    assert refused("http://127.0.0.1:1/x").startswith("http://127.0.0.1:1/x can't be read: ClientConnectorError: ")


def test_a_file_url_is_refused_with_what_to_write() -> None:
    assert "by its path" in refused("file:///etc/hosts")


@pytest.mark.parametrize(("scheme", "told"), [("foo", "Protocol not known"), ("sftp", "install what fsspec needs")])
def test_what_cannot_be_read_with_what_is_installed_is_told(scheme: str, told: str) -> None:
    assert told in refused(f"{scheme}://host/x")


@pytest.mark.parametrize("missing", ["fsspec.core", "s3fs"])
def test_without_the_extra_it_is_told_how_to_install_it(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_file_systems()
    monkeypatch.setitem(sys.modules, missing, None)
    message = refused("s3://bucket/x")
    assert message.startswith("s3://bucket/x can't be read here: ")
    assert message.endswith("pip install 'rq-mapreduce[cloud]'")


def forget_file_systems() -> None:
    """Fsspec remembers the classes that it has imported."""
    import_module("fsspec.registry")._registry.pop("s3", None)


def test_a_run_without_urls_imports_nothing_of_this(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a b\n")
    code = (
        "import sys, rqmr; rqmr.run('wordcount', ['in.txt'], inline=True); "
        "print([name for name in ('fsspec', 'aiohttp', 's3fs') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_output_at_a_url_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a b\n")
    with pytest.raises(OutputError, match="s3://bucket/out is a URL; name a directory"):
        rqmr.run("wordcount", tmp_path / "in.txt", output="s3://bucket/out", inline=True)
