"""MapReduce for Python on Redis and RQ.

from rqmr import Job, Sum

class WordCount(Job):
    def mapper(self, source: str, line: str):
        for word in line.lower().split():
            yield word, 1

    reducer = Sum()
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rqmr.aggregators import Aggregator, Collect, Count, Distinct, Max, Mean, Min, Sum, Top
    from rqmr.api import Result, run
    from rqmr.batch import Ones
    from rqmr.config import Config
    from rqmr.errors import RefusedError, RqmrError, RunFailed
    from rqmr.job import Job, Step
    from rqmr.order import TotalOrder
    from rqmr.readers import Block, Csv, JsonLines, Lines, Reader, Whole
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
    "Ones",
    "Reader",
    "RefusedError",
    "Result",
    "RqmrError",
    "RunFailed",
    "Step",
    "Sum",
    "Text",
    "Top",
    "TotalOrder",
    "Whole",
    "run",
]


_HOMES = {
    "aggregators": ("Aggregator", "Collect", "Count", "Distinct", "Max", "Mean", "Min", "Sum", "Top"),
    "api": ("Result", "run"),
    "batch": ("Ones",),
    "config": ("Config",),
    "errors": ("RefusedError", "RqmrError", "RunFailed"),
    "job": ("Job", "Step"),
    "order": ("TotalOrder",),
    "readers": ("Block", "Csv", "JsonLines", "Lines", "Reader", "Whole"),
    "spool": ("Text",),
}


def __getattr__(name: str) -> Any:
    # Imported when first asked for: a worker imports jobs, and jobs need none of what drives a run; the supervisor of
    # local workers starts their server first; and the command line answers mistakes at once.
    for module, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(f"rqmr.{module}"), name)
            return value
    raise AttributeError(f"module 'rqmr' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
