"""A job's code: finding it by name, packing it with what it imports from beside it, and loading the package.

Driver, workers and the inline oracle load the same package, from memory, by its content hash: so code is never
stale, two versions of a job can follow each other in one process, nothing is written to a worker's disk, and
tracebacks show the user's own paths and lines.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CodeType, ModuleType

import msgspec
from msgspec import Struct, structs

from rqmr.errors import JobError
from rqmr.included import files_in
from rqmr.job import Job

_PACKAGE_DIR = Path(__file__).resolve().parent
_EXAMPLES = _PACKAGE_DIR / "examples"  # where the wheel carries jobs/
#: What can't be a job's own, whatever files lie beside it.
NOT_A_JOBS = sys.stdlib_module_names | {"rqmr"}
_SITES = ("site-packages", "dist-packages")
_LIMIT = 64 << 20  # bytes; a package is one value in Redis and is read by every work-horse


class Module(Struct, frozen=True):
    """One module of a package."""

    path: str  # where the user has it
    is_package: bool
    source: bytes


class Package(Struct, frozen=True):
    """A job's code: its own module and those it imports from its directory or its whole package, and included files."""

    entry: str  # the job's module
    modules: dict[str, Module]
    files: dict[str, bytes] = {}  # included ones that aren't Python
    includes: tuple[str, ...] = ()  # the paths that were included

    def encode(self) -> bytes:
        """Return the bytes that are stored under `content_hash`."""
        return msgspec.msgpack.encode(self)

    @property
    def content_hash(self) -> str:
        """The package's name: equal for equal code, wherever it lies."""
        return hash_of(self.encode())


def decode_package(data: bytes, content_hash: str) -> Package:
    """Return the package that `encode` wrote, if it is the one of that content hash.

    Raises:
        JobError: it isn't.
    """
    if hash_of(data) != content_hash:
        raise JobError(
            f"the code in Redis was altered: its content isn't what its name, {content_hash}, says; remove the key "
            f"rqmr:code:{content_hash}, and run the job again"
        )
    try:
        package = msgspec.msgpack.decode(data, type=Package)
    except msgspec.MsgspecError as error:
        raise JobError(f"the code in Redis is no job's package: {error}") from error
    if package.entry not in package.modules:
        raise JobError(f"the code in Redis has no module {package.entry}")
    return package


def hash_of(data: bytes) -> str:
    """Return the content hash of an encoded package."""
    return hashlib.sha256(data).hexdigest()[:32]


def find(name: str) -> tuple[Package, str | None]:
    """Find a job's code by the name a user gives, and the class if it is part of the name (``path.py:Class``).

    The first that exists: a path to a .py file, ``jobs/NAME.py`` here, a dotted module, an example of rqmr's own.

    Raises:
        JobError: nothing is found (names what comes near), or it is too large to travel.
    """
    target, _, class_name = name.partition(":")
    if target.endswith(".py"):
        path = Path(target)
        if not path.is_file():
            raise JobError(f"there is no job file {target}{_near(target)}")
        return pack_file(path), class_name or None
    is_plain = bool(target) and Path(target).name == target
    if is_plain and (path := Path("jobs", f"{target}.py")).is_file():
        return pack_file(path), class_name or None
    if package := _pack_dotted(target):
        return package, class_name or None
    for directory in (_EXAMPLES, _PACKAGE_DIR.parent / "jobs"):
        if is_plain and (path := directory / f"{target}.py").is_file():
            return pack_file(path), class_name or None
    raise JobError(
        f"there is no job {target!r}: no jobs/{target}.py here, no module of that name, no example{_near(target)}"
    )


def pack_again(package: Package) -> Package | None:
    """Pack a job's code as it is now, from where it was; None if it isn't there any more.

    Raises:
        JobError: it can't be read, or is too large to travel.
    """
    path = Path(package.modules[package.entry].path)
    if not path.is_file():
        return None
    if package.entry == _entry_of(path):
        return include(pack_file(path), package.includes)
    again = _pack_dotted(package.entry)
    return include(again, package.includes) if again and again.modules[again.entry].path == str(path) else None


def _entry_of(path: Path) -> str:
    return f"rqmr_job_{path.stem}"  # its own name could be that of a module which others need, such as json


def pack_file(path: Path) -> Package:
    """Pack a job's file with the modules that it imports from its own directory."""
    entry = _entry_of(path)
    modules: dict[str, Module] = {entry: _read(path, is_package=False)}
    # Among installed packages nothing is the job's own, and all of it is on the workers.
    if path.absolute().parent.name not in _SITES:
        _add_imported(modules, path.parent, modules[entry])
    return _limited(Package(entry, modules))


def _add_imported(modules: dict[str, Module], directory: Path, module: Module) -> None:
    """Add what a module imports from a directory, and what that imports from it."""
    waiting = list(imported_by(module))
    while waiting:
        name = waiting.pop()
        for found, each in _beside(directory, name):
            if found not in modules:
                modules[found] = each
                waiting += imported_by(each)


def include(package: Package, paths: Sequence[str | os.PathLike[str]]) -> Package:
    """Add files and directories to a package: a Python file as a module of its name, others for the job to read.

    Of a directory both: it is a package of its name, and the other files in it are in it.

    Raises:
        JobError: there is no such file, it can't be read, another one has its name, or it is too large to travel.
    """
    modules, files = dict(package.modules), dict(package.files)
    absolute = [Path(os.path.abspath(path)) for path in paths]  # noqa: PTH100 - Path keeps the ".." of a/../b
    for path in absolute:
        added: dict[str, Module] = {}
        if path.suffix == ".py" and path.is_file():
            _check_module_name(path)
            added[path.stem] = _read(path, is_package=False)
            _add_imported(added, path.parent, added[path.stem])
        elif path.is_dir() or path.is_file():
            for name, data in files_in(path, _LIMIT):
                if files.setdefault(name, data) != data:
                    raise JobError(f"{path} can't be included: there is another {name} already")
            if path.is_dir() and path.name.isidentifier():
                added = dict(_beside(path.parent, path.name))
        else:
            raise JobError(f"there is no file {path} to include")
        for name, module in added.items():
            if modules.setdefault(name, module) != module:
                raise JobError(f"{module.path} can't be included: {modules[name].path} is a module {name}, too")
    return _limited(structs.replace(package, modules=modules, files=files, includes=tuple(map(str, absolute))))


def _check_module_name(path: Path) -> None:
    if path.stem in NOT_A_JOBS or not path.stem.isidentifier():
        what = "Python has a module of that name" if path.stem in NOT_A_JOBS else "that is no name for a module"
        raise JobError(f"{path} can't be included: {what}; rename it")


def _pack_dotted(name: str) -> Package | None:
    """Pack a module's file or, if it is in a package, the whole of that; None if there is no such module.

    Nothing is imported to find it: parents that were would stay, and be those of an older version one day.
    """
    top, *rest = name.split(".")
    if not all(part.isidentifier() for part in (top, *rest)) or top in NOT_A_JOBS:
        return None
    importlib.invalidate_caches()
    spec = importlib.machinery.PathFinder.find_spec(top, [str(Path.cwd()), *sys.path])
    if spec is None:
        return None
    if spec.submodule_search_locations is None:
        return pack_file(Path(spec.origin)) if spec.origin and spec.origin.endswith(".py") and not rest else None
    for location in map(Path, spec.submodule_search_locations):
        file = location.joinpath(*rest, "__init__.py")
        file = file if file.is_file() else location.joinpath(*rest).with_suffix(".py")
        if file.is_file() and (location / "__init__.py").is_file():
            return _limited(Package(name, dict(_beside(location.parent, top))))
        if file.is_file() and rest:
            return pack_file(file)
    return None


def load(package: Package, class_name: str | None = None) -> type[Job]:
    """Import a package's entry module and return its job.

    Raises:
        JobError: it raises when imported (with the user's own traceback), or doesn't have exactly one job.
    """
    module = _Importer.activate(package)
    jobs = {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, Job) and value.__module__ == module.__name__
    }
    path = package.modules[package.entry].path
    if class_name is not None:
        if class_name in jobs:
            return jobs[class_name]
        raise JobError(f"{path} has no job {class_name}; it has {', '.join(jobs) or 'none'}")
    if not jobs:
        raise JobError(f"{path} has no job: write a class that subclasses rqmr.Job")
    if len(jobs) > 1:
        raise JobError(f"{path} has several jobs; say which one: {' or '.join(f'{path}:{name}' for name in jobs)}")
    return next(iter(jobs.values()))


def is_loading() -> bool:
    """Whether a package is being imported just now."""
    return _Importer.loading


def unload() -> None:
    """Let go of the package that was loaded last, and give its modules' names back to those who had them."""
    _Importer.deactivate()


def user_traceback(error: BaseException) -> str:
    """Return an exception's traceback without rqmr's own frames: what the job's author can act on."""
    told = traceback.TracebackException.from_exception(error, compact=True)
    cause: traceback.TracebackException | None = told
    while cause is not None:
        cause.stack = traceback.StackSummary.from_list([frame for frame in cause.stack if _is_users(frame.filename)])
        cause = cause.__cause__ or cause.__context__
    return "".join(told.format()).rstrip()


def user_stack(thread: int) -> str:
    """Return where a thread is now, without rqmr's own frames."""
    frame = sys._current_frames().get(thread)
    stack = traceback.extract_stack(frame) if frame else []
    # What comes before the job's code is RQ's and ours; what it calls is of interest.
    begins = next((at for at, each in enumerate(stack) if each.filename in _Importer.files()), len(stack))
    told = [each for each in stack[begins:] if _is_users(each.filename)]
    return "".join(["Stack (most recent call last):\n", *traceback.format_list(told)]).rstrip() if told else ""


class _Importer(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Imports one package's modules from memory. One package is active in a process at a time."""

    _active: _Importer | None = None
    loading = False

    def __init__(self, package: Package) -> None:
        self.package = package
        self.hash = package.content_hash
        self.displaced = {name: sys.modules.pop(name) for name in package.modules if name in sys.modules}

    @classmethod
    def activate(cls, package: Package) -> ModuleType:
        """Return the entry module of a package; those of another one leave first."""
        if cls._active is None or cls._active.hash != package.content_hash:
            cls.deactivate()
            cls._active = cls(package)
            sys.meta_path.insert(0, cls._active)
        cls.loading = True
        try:
            return importlib.import_module(package.entry)
        except (Exception, SystemExit) as error:
            path = package.modules[package.entry].path
            cls.deactivate()
            raise JobError(f"{path} can't be imported:\n{user_traceback(error)}{_stays_at_home(error)}") from error
        finally:
            cls.loading = False

    @classmethod
    def files(cls) -> set[str]:
        """Return the paths of the active package's modules, as tracebacks show them."""
        return {module.path for module in cls._active.package.modules.values()} if cls._active else set()

    @classmethod
    def deactivate(cls) -> None:
        """Put back the modules that were there before."""
        if cls._active is not None:
            sys.meta_path.remove(cls._active)
            for name in cls._active.package.modules:
                sys.modules.pop(name, None)
            sys.modules.update(cls._active.displaced)
            cls._active = None

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        module = self.package.modules.get(fullname)
        if module is None:
            return None
        spec = importlib.machinery.ModuleSpec(fullname, self, origin=module.path, is_package=module.is_package)
        spec.has_location = True
        return spec

    def get_code(self, fullname: str) -> CodeType:
        module = self.package.modules[fullname]
        return compile(module.source, module.path, "exec", dont_inherit=True)

    def get_source(self, fullname: str) -> str:
        return importlib.util.decode_source(self.package.modules[fullname].source)

    def is_package(self, fullname: str) -> bool:
        return self.package.modules[fullname].is_package


def _is_users(filename: str) -> bool:
    path = Path(filename)
    ours = _PACKAGE_DIR in path.parents and _EXAMPLES not in path.parents
    return not ours and not filename.startswith("<frozen importlib") and filename != importlib.__file__


def _read(path: Path, *, is_package: bool) -> Module:
    try:
        return Module(str(path.absolute()), is_package, path.read_bytes())
    except OSError as error:
        raise JobError(f"the job file {path} can't be read: {error.strerror}") from error


def imported_by(module: Module) -> Iterator[str]:
    """Yield the top-level names that a module imports, wherever in it."""
    try:
        tree = ast.parse(module.source, module.path)
    except (SyntaxError, ValueError, RecursionError, SystemError, MemoryError):
        return  # loading it will say so
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def _beside(directory: Path, name: str) -> Iterator[tuple[str, Module]]:
    """Yield the module of that name in a directory, with all of its submodules if it is a package."""
    if name in NOT_A_JOBS:
        return
    if (directory / f"{name}.py").is_file():
        yield name, _read(directory / f"{name}.py", is_package=False)
    else:
        files = sorted((directory / name).rglob("*.py"))
        for folder in sorted({folder for file in files for folder in file.relative_to(directory).parents[:-1]}):
            init = directory / folder / "__init__.py"
            found = _read(init, is_package=True) if init.is_file() else Module(str(init), is_package=True, source=b"")
            yield ".".join(folder.parts), found
        for file in files:
            if file.name != "__init__.py":
                yield ".".join(file.relative_to(directory).with_suffix("").parts), _read(file, is_package=False)


def _stays_at_home(error: BaseException) -> str:
    """Return what to do about a module that is here, but not where the job's modules are looked for."""
    name = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    here = next((Path(each) for each in (f"{name}.py", name) if name and Path(each).exists()), None)
    if here is None:
        return ""
    return f"\n{here} is in {Path.cwd()}, not beside the job, so it doesn't travel by itself: add --include {here}"


def _limited(package: Package) -> Package:
    size = sum(len(module.source) for module in package.modules.values()) + sum(map(len, package.files.values()))
    if size > _LIMIT:
        raise JobError(f"the job's code has {size >> 20} MiB; at most {_LIMIT >> 20} MiB can travel to the workers")
    return package


def _near(name: str) -> str:
    known = {path.stem for directory in (Path("jobs"), _EXAMPLES) for path in directory.glob("[!_]*.py")}
    known |= {path.stem for path in (_PACKAGE_DIR.parent / "jobs").glob("[!_]*.py")}
    known |= {path.name for path in Path(name).parent.glob("*.py")} if name.endswith(".py") else set()
    near = difflib.get_close_matches(Path(name).name, known, n=3, cutoff=0.5)
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; there are {', '.join(sorted(known))}" if known else ""
