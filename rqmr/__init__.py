"""MapReduce for Python on Redis and RQ.

from rqmr import Job, Sum

class WordCount(Job):
    def mapper(self, source: str, line: str):
        for word in line.lower().split():
            yield word, 1

    reducer = Sum()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rqmr.aggregators import Aggregator, Collect, Count, Distinct, Max, Mean, Min, Sum, Top
from rqmr.errors import RefusedError, RqmrError, RunFailed
from rqmr.job import Job, Step
from rqmr.readers import Block, Csv, JsonLines, Lines, Reader, Whole

if TYPE_CHECKING:
    from rqmr.api import Result, run
    from rqmr.config import Config
    from rqmr.spool import Text

__version__ = "0.1.0"

__all__ = [
    "Aggregator",
    "Block",
    "Collect",
    "Config",
    "Count",
    "Csv",
    "Distinct",
    "Job",
    "JsonLines",
    "Lines",
    "Max",
    "Mean",
    "Min",
    "Reader",
    "RefusedError",
    "Result",
    "RqmrError",
    "RunFailed",
    "Step",
    "Sum",
    "Text",
    "Top",
    "Whole",
    "run",
]


def __getattr__(name: str) -> Any:
    # Imported when first asked for: a worker imports jobs, and jobs need none of what drives a run.
    if name in ("run", "Result"):
        from rqmr import api

        return getattr(api, name)
    if name == "Config":
        from rqmr.config import Config

        return Config
    if name == "Text":
        from rqmr.spool import Text

        return Text
    raise AttributeError(f"module 'rqmr' has no attribute {name!r}")
