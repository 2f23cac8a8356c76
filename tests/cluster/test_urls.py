"""URLs give what the same files give: read and written by the workers themselves, in parts where that can be."""

from __future__ import annotations

import bz2
import gzip
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from zlib import crc32

import pytest
from bench import CUT, Bench, Run
from harness import JOBS, ROOT, Workers, wait_until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from stores import S3, Web, s3_server

import rqmr
from rqmr.api import submit
from rqmr.config import Config
from rqmr.doctor import examine
from rqmr.errors import AttemptEnded, InputError, OutputError
from rqmr.files import open_piece
from rqmr.inputs import cut, expand
from rqmr.model import Part, Settings
from rqmr.output import Output
from rqmr.readers import Lines
from rqmr.remote import open_part
from rqmr.request import Request
from rqmr.runs import attach, cancel
from rqmr.view import Silent
from rqmr.where import Where

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


# --- outputs ------------------------------------------------------------------------------------------------------


def objects(s3: S3) -> dict[str, bytes]:
    """All that is in the bucket, but for the inputs."""
    files = import_module("fsspec.core").url_to_fs(s3.url(""), use_listings_cache=False)[0]
    found = files.find(s3.bucket)
    return {name.removeprefix(f"{s3.bucket}/"): files.cat_file(name) for name in found if "/in/" not in name}


def whole(expected: list[bytes], where: str = "out") -> dict[str, bytes]:
    """What is there of a whole output: its parts, and what says that it is whole."""
    parts = {f"{where}/part-{number:05d}": content for number, content in enumerate(expected)}
    return {**parts, f"{where}/_SUCCESS": b""}


def test_stock_workers_write_an_output_at_a_url_that_nobody_else_touches(
    s3: S3, workers: Workers, redis_url: str, expected: list[bytes]
) -> None:
    """And nothing but the output is left there."""
    workers.start(2, **s3.environment)
    result = rqmr.run("wordcount", s3.put("in/text.txt", TEXT), output=s3.url("out"), config=SPLIT, redis_url=redis_url)
    assert objects(s3) == whole(expected)
    assert str(result.output) == s3.url("out")
    assert len(list(result)) == result.summary.records_written


def test_inline_writes_the_same_and_replaces_it_only_if_told(s3: S3, tmp_path: Path, expected: list[bytes]) -> None:
    def run(**options: bool) -> None:
        rqmr.run("wordcount", str(tmp_path / "text.txt"), output=s3.url("out"), config=SPLIT, inline=True, **options)

    run()
    with pytest.raises(OutputError, match="is not empty; give another -o, or --overwrite"):
        run()
    run(overwrite=True)
    assert objects(s3) == whole(expected)
    s3.put("out/mine.txt", b"x")
    with pytest.raises(OutputError, match=r"has mine\.txt, which no run wrote"):
        run(overwrite=True)


def test_a_run_that_fails_leaves_nothing_at_its_url(s3: S3, tmp_path: Path, expected: list[bytes]) -> None:
    class Fails(rqmr.Job):
        def mapper(self, key: str, line: str) -> Iterator[tuple[str, int]]:
            yield line, 1 // (line != "last line")

    with pytest.raises(rqmr.RunFailed):
        rqmr.run(Fails, str(tmp_path / "text.txt"), output=s3.url("out"), config=SPLIT, inline=True)
    assert not objects(s3)


def test_an_attempt_that_is_late_leaves_nothing_and_is_told(s3: S3) -> None:
    output = Output(s3.url("out"), "run-1")
    output.prepare(overwrite=False)
    late = open_part(str(output.stage), "late")
    late.write(b"x" * (6 << 20))
    output.discard()
    with pytest.raises(AttemptEnded):
        late.close()
    with pytest.raises(FileNotFoundError):
        open_part(str(output.stage), "later")
    assert not objects(s3)


def test_collecting_at_a_url_can_be_repeated_from_anywhere_in_it(s3: S3) -> None:
    """By another command after one that died, with parts that were moved already."""
    first = Output(s3.url("out"), "run-1")
    first.prepare(overwrite=False)
    parts = []
    for number in range(3):
        file = open_part(str(first.stage), f"task{number}")
        file.write(b"%d" % number * 10)
        file.close()
        parts.append(Part(f"task{number}", 10, crc32(b"%d" % number * 10)))
    (first.stage / "task0").replace(first.directory / "part-00000")
    second = Output(s3.url("out"), "run-1", is_new=False)
    assert second.has(0, parts[0])
    assert second.has(1, parts[1])
    second.collect(parts)
    first.collect(parts)
    assert objects(s3) == whole([b"%d" % number * 10 for number in range(3)])


def test_an_output_that_cannot_be_written_is_told_before_anything_runs(s3: S3, tmp_path: Path) -> None:
    def refused(where: str) -> str:
        with pytest.raises(OutputError) as caught:
            rqmr.run("wordcount", str(tmp_path), output=where, inline=True)
        return str(caught.value)

    (tmp_path / "in.txt").write_text("a\n")
    assert "a web server takes no output" in refused("https://host/out")
    assert "sesame" not in refused("s3://key:sesame@bucket/out")
    assert "s3://no-such-bucket/out can't be made: " in refused("s3://no-such-bucket/out")


def test_another_command_elsewhere_collects_and_one_removes_what_is_at_a_url(
    s3: S3, workers: Workers, redis_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, expected: list[bytes]
) -> None:
    where = Where(redis_url)

    def begin(output: str) -> str:
        url = s3.put("in/text.txt", TEXT)
        config = replace(SPLIT, format="jsonl")
        return submit(
            Request(job="wordcount", inputs=[url], params={}, config=config, output=output, where=where), Silent()
        )

    workers.start(1, **s3.environment)
    run = begin(s3.url("out"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    attach(run, where, Silent())
    assert objects(s3) == whole(expected)
    left = begin(s3.url("other"))
    assert f"other/.rqmr-{left}/_stage" in objects(s3)
    cancel(left, where)
    wait_until(lambda: objects(s3) == whole(expected), timeout=10, what="nothing of the second is left")


def test_what_workers_print_is_kept_at_the_url(s3: S3, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a line\n")
    rqmr.run(str(JOBS / "prints.py"), tmp_path / "in.txt", output=s3.url("out"), config=Config(workers=1))
    assert objects(s3)["out/_log"]


def test_a_worker_that_dies_while_it_writes_changes_nothing_at_the_url(s3: S3, workers: Workers, bench: Bench) -> None:
    workers.start(2, **s3.environment)
    bench.write(6, "crash")
    inputs, job = sorted(bench.inputs.iterdir()), str(JOBS / "crash.py")
    params = {"marks": str(bench.marks), "how": "kill", "where": "reduce", "times": 1}
    result = rqmr.run(job, inputs, output=s3.url("out"), config=CUT, params=params, redis_url=bench.url)
    expected = rqmr.run(job, inputs, output=bench.directory / "oracle", config=CUT, inline=True)
    assert bench.marked("crashed") == 1
    assert objects(s3) == whole([path.read_bytes() for path in expected.paths])
    assert list(result) == list(expected)


def test_the_doctor_looks_at_urls_from_here_and_at_what_workers_need_for_them(
    s3: S3, workers: Workers, redis_url: str, tmp_path: Path
) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    finder = "class Hide:\n    def find_spec(self, name, *_):\n        if name == 's3fs': raise ImportError(name)\n"
    (hidden / "sitecustomize.py").write_text(f"import sys\n{finder}sys.meta_path.insert(0, Hide())\n")
    workers.start(1, PYTHONPATH=str(hidden))
    found = examine(Where(redis_url), "rqmr", inputs=[s3.put("in/x.txt", b"x\n")], output=s3.url("out"))
    told = {finding.about: finding for finding in found}
    assert (told["input"].level, told["output"].level) == ("ok", "ok")
    assert told["output"].told == f"{s3.url('out')} can be written to from here"
    assert any(finding.level == "problem" and "s3fs" in finding.told for finding in found)
    assert not objects(s3), "nothing of the trial is left"
    (refused,) = (each for each in examine(Where(), "rqmr", output="s3://no-such-bucket/x") if each.about == "output")
    assert refused.level == "problem"
