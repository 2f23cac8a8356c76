"""DuckDB: the same results by SQL, with two threads; the text is split by its own functions, not by Python's."""

from __future__ import annotations

import sys

import common
import duckdb
from functions import PATTERN, SORT_KEY_BYTES

LINES = """
    SELECT line, filename FROM read_csv(
        {paths}, columns = {{'line': 'VARCHAR'}}, delim = '\x01', quote = '', escape = '', header = false,
        filename = true, auto_detect = false, max_line_size = 10000000
    )"""
COPY = "COPY ({query}) TO '{output}' (FORMAT csv, DELIMITER '\t', HEADER false, QUOTE '', ESCAPE '')"
WORKS = {
    "words": (
        r"SELECT word, count(*) FROM (SELECT unnest(regexp_split_to_array(lower(line), '\s+')) AS word FROM ({lines})) "
        "WHERE word != '' GROUP BY word ORDER BY word"
    ),
    "index": (
        """SELECT word, '["' || array_to_string(list_sort(list(DISTINCT filename)), '","') || '"]' FROM """
        r"(SELECT unnest(regexp_extract_all(lower(line), '\w+')) AS word, filename FROM ({lines})) "
        "GROUP BY word ORDER BY word"
    ),
    "grep": "SELECT filename, line FROM ({lines}) WHERE regexp_matches(line, '{pattern}')",
    "sort": "SELECT line[:{bytes}] AS key, line[{bytes} + 1:] AS rest FROM ({lines}) ORDER BY key",
}


def main(name: str, output: str, *paths: str) -> None:
    """Do one of the works."""
    connection = duckdb.connect(config={"threads": 2, "preserve_insertion_order": False})
    lines = LINES.format(paths=list(paths))
    query = WORKS[name].replace("{lines}", lines).replace("{pattern}", PATTERN).replace("{bytes}", str(SORT_KEY_BYTES))
    connection.execute(COPY.format(query=query, output=output))


if __name__ == "__main__":
    assert common
    main(*sys.argv[1:])
