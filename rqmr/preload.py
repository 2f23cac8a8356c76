"""What `rq worker -c rqmr.preload` imports, so that its work-horses are forks of a process that has it already.

Without it each work-horse imports rqmr anew. RQMR_PRELOAD names modules that jobs import and that take long, such as
`RQMR_PRELOAD=numpy,pandas`: never a job's own, whose code comes with each run.
"""

from __future__ import annotations

import gc
import importlib
import os

import rqmr.worker  # noqa: F401  (a work-horse's own modules)

for module in os.environ.get("RQMR_PRELOAD", "").replace(",", " ").split():
    importlib.import_module(module)
gc.freeze()  # no collection in a work-horse shall copy the memory that it shares with the worker
