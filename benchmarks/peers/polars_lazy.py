"""Polars: the same results by its lazy engine, with two threads; no Python function sees a record."""

from __future__ import annotations

import os
import sys

os.environ["POLARS_MAX_THREADS"] = "2"

import common
import polars as pl
from functions import PATTERN, SORT_KEY_BYTES


def lines(paths: list[str]) -> pl.LazyFrame:
    """All lines, with the names of their files."""
    return pl.scan_csv(
        paths, has_header=False, new_columns=["line"], schema={"line": pl.String}, separator="\x01", quote_char=None,
        include_file_paths="file",
    )  # fmt: skip


def words(paths: list[str]) -> pl.LazyFrame:
    """Count words."""
    split = lines(paths).select(pl.col("line").str.to_lowercase().str.replace_all("\t", " ", literal=True))
    each = split.select(pl.col("line").str.split(" ").alias("word")).explode("word").filter(pl.col("word") != "")
    return each.group_by("word").agg(pl.len()).sort("word")


def index(paths: list[str]) -> pl.LazyFrame:
    """Index words."""
    each = lines(paths).select(pl.col("line").str.to_lowercase().str.extract_all(r"\w+").alias("word"), "file")
    found = each.explode("word").drop_nulls("word").group_by("word").agg(pl.col("file").unique().sort())
    names = pl.lit('["') + pl.col("file").cast(pl.List(pl.String)).list.join('","') + pl.lit('"]')
    return found.select("word", names.alias("files")).sort("word")


def grep(paths: list[str]) -> pl.LazyFrame:
    """Find lines."""
    matching = lines(paths).filter(pl.col("line").str.contains(PATTERN))
    return matching.select("file", "line")


def sort(paths: list[str]) -> pl.LazyFrame:
    """Sort records."""
    line = pl.col("line")
    each = lines(paths).select(line.str.slice(0, SORT_KEY_BYTES).alias("key"), line.str.slice(SORT_KEY_BYTES))
    return each.sort("key")


def main(name: str, output: str, *paths: str) -> None:
    """Do one of the works."""
    work = {"words": words, "index": index, "grep": grep, "sort": sort}[name](list(paths))
    work.sink_csv(output, include_header=False, separator="\t", quote_style="never")


if __name__ == "__main__":
    assert common
    main(*sys.argv[1:])
