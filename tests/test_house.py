"""The house: a module imports only from floors below it, or from those left of it on its own floor."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rqmr.scripts import NAMES, source

PACKAGE = Path(__file__).resolve().parent.parent / "rqmr"

FLOORS = [
    floor.split()
    for floor in (
        "errors where damage signing model facts config keys values codec",
        (
            "aggregators syntax fuse urls files readers batch inputs spool sealed included job loader parts remote "
            "spilled output skew order plan failures memory scheduler"
        ),
        "windows shuffle passes merge records tasks",
        (
            "connection scripts registry look tickets winners stores state lanes segments parcels asks sight teller "
            "heartbeat"
        ),
        "dispatch tick worker preload checkup",
        "inline shipper arrivals driver sessions sockets server durable supervise ahead local request access crew",
        "meter diagnosis status view live explain progress api runs doctor commands delivery cli __main__",
    )
]
ORDER = [name for floor in FLOORS for name in floor]


def imports_of(module: str) -> set[str]:
    """The modules of rqmr that a module imports, wherever in it, but for type checking only."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    tree.body = [
        node for node in tree.body if not isinstance(node, ast.If) or ast.unparse(node.test) != "TYPE_CHECKING"
    ]
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "rqmr":
            names |= {alias.name for alias in node.names if alias.name in ORDER}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rqmr."):
            names.add((node.module or "").removeprefix("rqmr."))
    return names


def test_every_module_has_a_floor() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"} == set(ORDER)


@pytest.mark.parametrize("module", ORDER)
def test_a_module_imports_only_from_below(module: str) -> None:
    above = {name for name in imports_of(module) if ORDER.index(name) >= ORDER.index(module)}
    assert not above, f"{module} imports {above}"


@pytest.mark.parametrize("module", ORDER)
def test_only_the_fourth_floor_and_the_supervisor_know_rq(module: str) -> None:
    text = (PACKAGE / f"{module}.py").read_text()
    knows = re.search(r"^\s*(import rq\b|from rq[ .])", text, re.MULTILINE)
    assert bool(knows) == (module in {"dispatch", "worker", "checkup", "supervise"})


def test_no_module_is_longer_than_400_lines() -> None:
    long = {path.name: lines for path in PACKAGE.glob("*.py") if (lines := len(path.read_text().splitlines())) > 400}
    assert not long


@pytest.mark.parametrize("name", NAMES)
def test_a_scripts_header_and_body_name_the_same_slots(name: str) -> None:
    """The header is the script's contract; a slot that only one of them knows is a mistake."""
    lines = source(name).splitlines()
    header = [line for line in lines if line.startswith("--")]
    body = [line.partition("--")[0] for line in lines if not line.startswith("--")]

    def slots(text: list[str]) -> set[str]:
        return set(re.findall(r"(?:KEYS|ARGV)\[\d+\]", "\n".join(text)))

    assert slots(header) == slots(body) | {slot for slot in slots(header) if named_by_number(slot, "\n".join(body))}
    assert lines[1].startswith(f"-- {name}: ")
    assert any(line.startswith("--   returns ") for line in header)


def named_by_number(slot: str, body: str) -> bool:
    """Whether the body reaches the slot through a loop over numbers: `KEYS[i]`, `ARGV[i + 1]`."""
    return f"{slot[:4]}[i" in body


def test_every_script_is_loaded() -> None:
    assert {path.stem for path in (PACKAGE / "lua").glob("*.lua")} == set(NAMES)


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        pytest.param("rqmr.preload, rqmr.checkup", ["typer", "rich"], id="a worker"),
        pytest.param(
            "rqmr.supervise", ["redis", "rq", "msgspec", "typer"], id="the supervisor, until the server starts"
        ),
        pytest.param(
            "rqmr.__main__, rqmr.ahead",
            ["redis", "rq", "msgspec", "typer", "rich", "json", "tempfile", "rqmr.local"],
            id="the command, until the supervisor starts",
        ),
        pytest.param("rqmr.cli, rqmr.request", ["redis", "rq", "rich"], id="the command, until it is ordered"),
        pytest.param("rqmr.api, rqmr.progress", ["typer", "rich"], id="a run without a terminal"),
    ],
)
def test_what_takes_long_to_import_is_imported_where_it_is_needed(modules: str, heavy: list[str]) -> None:
    """A plain `rq worker` imports rqmr for each ticket, and who runs a tiny job waits for every import."""
    program = f"import sys, {modules}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )

    assert done.stdout.strip() == "[]"
