"""The output is right: complete when the command exits, and the oracle's, byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench import Bench
from harness import Workers


def test_words_are_counted_as_inline_though_no_two_workers_hash_alike(
    workers: Workers, bench: Bench, books: list[Path]
) -> None:
    for seed in "123":
        workers.begin(PYTHONHASHSEED=seed)
    command = bench.command("letters", "-r", 3, "--split-size", "256KiB", inputs=books)
    command.start(marks=bench.marks, together=3)
    parts = command.assert_right()
    assert bench.marked("at-work") == 3
    assert all(parts[f"part-0000{number}"].count(b"\n") > 5 for number in range(3))


@pytest.mark.parametrize("ascending", [False, True])
def test_the_values_of_a_key_have_an_order_that_no_worker_decides(
    ascending: bool, workers: Workers, bench: Bench
) -> None:
    """That of the input, whoever is done first, or ascending where the job asks for it."""
    names = [f"{name}.txt" for name in "hbagcedf"]
    for name in names:
        (bench.inputs / name).write_text(f"every file has {name} and more\n" * 3)
    for seed in "12":
        workers.begin(PYTHONHASHSEED=seed)
    command = bench.command(
        "indexer", "-r", 2, "--split-size", "4KiB", "-p", f"ascending={ascending}",
        inputs=[bench.inputs / name for name in names],
    )  # fmt: skip
    command.start(marks=bench.marks, last=names[0], others=7)
    lines = b"".join(command.assert_right().values()).decode().splitlines()
    assert f"every\t8 {','.join(sorted(names) if ascending else names)}" in lines
    assert "a.txt\t1 a.txt" in lines
