"""What holds of the code as a whole: layers, budgets, names, and where each library may be imported."""

from __future__ import annotations

import ast
import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LAYERS = (
    ("errors",),
    ("wire", "crypto", "topology"),
    ("link",),
    ("node", "learn", "aggregators", "privacy", "compute", "journal"),
    ("council",),
    ("courses",),
    ("attacks", "tuning"),
    ("app", "doctor", "sim"),
)
STRANGERS = {"node": {"learn", "aggregators", "privacy", "compute", "journal"}}  # on one layer, and not for each other
COMPOSITION_ROOTS = {"__init__", "__main__", "node.__main__"}  # put the layers together

LEARNING = {
    "learn",
    "aggregators",
    "privacy",
    "compute",
    "journal",
    "courses",
    "attacks",
    "tuning",
    "app",
    "doctor",
    "sim",
}
CONFINED = {  # library -> folders or modules that may import it
    "torch": LEARNING,
    "numpy": {"topology", *LEARNING},
    "nacl": {"crypto"},
    "networkx": {"topology"},
    "aiohttp": {"link.websocket", "link.admission", "link.sealed", "link.tls", "link.pages", "node", "app", "doctor"},
    "uvloop": {"node.__main__", "app"},
    "rich": {"app", "doctor"},
    "tyro": {"app", "doctor"},
    "prometheus_client": {"app"},
    "matplotlib": {"topology", *LEARNING},
}
LAZY = {"networkx", "matplotlib", "uvloop"}  # slow or optional: imported where a function needs them

BANNED = {
    "pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "torch.load", "numpy.load",
    "asyncio.gather", "asyncio.wait_for", "asyncio.ensure_future", "asyncio.get_event_loop",
    "eval", "exec", "__import__", "os.system",
}  # fmt: skip

PURE_CALLS = {  # at import, a module may make values; it may not do anything
    "ContextVar", "Fraction", "MappingProxyType", "Meta", "ParamSpec", "Path", "Struct", "TypeVar", "dataclass",
    "dataclass_transform", "dataclasses.dataclass", "dataclasses.field", "datetime.timedelta", "dict", "field",
    "frozenset", "functools.lru_cache", "len", "logging.getLogger", "lru_cache", "max", "min", "np.dtype", "range",
    "re.compile", "struct.Struct", "threading.Lock", "time.get_clock_info", "tuple", "type", "tyro.conf.arg",
    "Aead", "Course", "NodeSettings", "Ring", "SessionLimits", "Versions",  # frozen dataclasses of our own
    "mixing", "paced", "sampling", "starred",  # make a Course
}  # fmt: skip

WITHOUT_TESTS = {
    "errors": "classes without code",
    "link.base": "protocols; tests/link/kit.py is their conformance kit",
    "__main__": "one line",
    "node.__main__": "one line",
}

EVASIVE_CLASS = re.compile(
    r"(Manager|Helper|Factory|Util|Utils|Common|Impl|Wrapper|Processor)$|^(Base|Abstract)[A-Z]|^Base$"
)
EVASIVE_MODULE = re.compile(r"(^|_)(utils?|common|helpers?|misc|base_\w+)$")


@dataclass(frozen=True)
class Module:
    path: Path

    @property
    def name(self) -> str:
        """Dotted, below p2pfl: "wire.codec"; "wire" for a package; "__init__" for p2pfl itself."""
        parts = self.path.relative_to(ROOT / "p2pfl").with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)

    @property
    def folder(self) -> str:
        return self.name.partition(".")[0]

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def imports(self) -> list[tuple[str, bool, bool]]:
        """Dotted names of what is imported; whether when the module is; whether for type checkers only."""
        return list(_imports(self.tree, eager=True, typing_only=False))

    @property
    def ours(self) -> Iterator[tuple[str, bool, bool]]:
        """Imports of our own modules, named as `name` does."""
        for name, eager, typing_only in self.imports:
            if name.startswith("p2pfl."):
                inner = name.removeprefix("p2pfl.")
                yield (inner if inner in NAMES else inner.rpartition(".")[0] or inner), eager, typing_only


def _imports(node: ast.AST, *, eager: bool, typing_only: bool) -> Iterator[tuple[str, bool, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, eager, typing_only) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            yield from ((f"{child.module}.{alias.name}", eager, typing_only) for alias in child.names)
        else:
            within = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            checking = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
            yield from _imports(child, eager=eager and not within, typing_only=typing_only or checking)


MODULES = [Module(path) for path in sorted((ROOT / "p2pfl").rglob("*.py"))]
NAMES = {module.name for module in MODULES}
each_module = pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)


def _functions(tree: ast.AST) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, bool]]:
    """All functions, and whether each is a method."""
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield child, isinstance(node, ast.ClassDef)


def _classes(tree: ast.AST) -> list[ast.ClassDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]


def _lines(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


# -- imports -----------------------------------------------------------------------------------------------------------


@each_module
def test_imports_point_down(module) -> None:
    if module.name in COMPOSITION_ROOTS:
        return
    rank = {folder: number for number, layer in enumerate(LAYERS) for folder in layer}
    for name, _, _ in module.ours:
        folder = name.partition(".")[0]
        assert rank[folder] <= rank[module.folder], f"{module.name} imports {name}, which lies above it"
        apart = folder in STRANGERS.get(module.folder, ()) or module.folder in STRANGERS.get(folder, ())
        assert not apart, f"{module.name} imports {name}; only courses may bring these two together"


def test_every_folder_has_a_layer() -> None:
    folders = {module.folder for module in MODULES if module.name not in COMPOSITION_ROOTS}
    assert folders <= {folder for layer in LAYERS for folder in layer}


def test_no_import_cycles() -> None:
    graph = {
        module.name: {name for name, eager, typing_only in module.ours if eager and not typing_only} - {module.name}
        for module in MODULES
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


@each_module
def test_libraries_stay_where_they_belong(module) -> None:
    for name, eager, typing_only in module.imports:
        library = name.partition(".")[0]
        if library in CONFINED and not typing_only:
            allowed = CONFINED[library]
            assert module.folder in allowed or module.name in allowed, f"{module.name} imports {library}"
            assert not (eager and library in LAZY), f"{module.name} imports {library} at its top; do so in a function"


@each_module
def test_nothing_banned(module) -> None:
    aliases = {"np": "numpy"}
    used = {name for name, _, _ in module.imports}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            used.add(f"{aliases.get(node.value.id, node.value.id)}.{node.attr}")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            used.add(node.func.id)
    assert not used & BANNED
    assert not {name.partition(".")[0] for name, _, _ in module.imports} & BANNED


# -- state and side effects --------------------------------------------------------------------------------------------


@each_module
def test_no_global(module) -> None:
    assert not [node.lineno for node in ast.walk(module.tree) if isinstance(node, ast.Global)]


@each_module
def test_nothing_happens_at_import(module) -> None:
    calls = {ast.unparse(call.func): call.lineno for call in _calls_at_import(module.tree)}
    assert not calls.keys() - PURE_CALLS, calls


def _calls_at_import(node: ast.AST) -> Iterator[ast.Call]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).startswith("__name__ =="):
            continue
        if isinstance(child, ast.Call):
            yield child
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            now = [*getattr(child, "decorator_list", ()), *child.args.defaults, *filter(None, child.args.kw_defaults)]
            yield from (call for part in now for call in ast.walk(part) if isinstance(call, ast.Call))
        else:
            yield from _calls_at_import(child)


# -- budgets -----------------------------------------------------------------------------------------------------------


@each_module
def test_modules_are_short(module) -> None:
    assert len(module.text.splitlines()) <= 500


def test_most_modules_are_shorter_still() -> None:
    assert statistics.median(len(module.text.splitlines()) for module in MODULES) < 200


@each_module
def test_functions_and_classes_are_short(module) -> None:
    assert not [
        f"{function.name}: {_lines(function)}" for function, _ in _functions(module.tree) if _lines(function) > 60
    ]
    assert not [f"{cls.name}: {_lines(cls)}" for cls in _classes(module.tree) if _lines(cls) > 300]


@each_module
def test_functions_take_few_parameters(module) -> None:
    for function, is_method in _functions(module.tree):
        arguments = function.args
        count = len(arguments.posonlyargs) + len(arguments.args) + len(arguments.kwonlyargs) - is_method
        assert count <= 7, f"{function.name} takes {count} parameters; make a dataclass of some"


# -- names and words ---------------------------------------------------------------------------------------------------


@each_module
def test_every_module_says_what_it_is_for(module) -> None:
    assert ast.get_docstring(module.tree)


@each_module
def test_nothing_is_left_to_do(module) -> None:
    assert not re.findall(r"\b(?:TODO|FIXME)\b", module.text)


@each_module
def test_names_say_something(module) -> None:
    assert not EVASIVE_MODULE.search(module.path.stem)
    assert not [cls.name for cls in _classes(module.tree) if EVASIVE_CLASS.search(cls.name)]


@each_module
def test_all_is_what_is_defined(module) -> None:
    if module.path.stem in ("__main__", "errors"):  # all of errors is public
        return
    exported = _exported(module.tree)
    if exported is None:
        assert module.path.stem == "__init__", "there is no __all__"
        return
    bound = set(_bound(module.tree))
    assert len(exported) == len(set(exported))
    assert not set(exported) - bound, "named in __all__, and not defined"


def _exported(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names: list[str] = ast.literal_eval(node.value)
            return names
    return None


def _bound(node: ast.AST) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.FunctionDef(name) | ast.AsyncFunctionDef(name) | ast.ClassDef(name):
                yield name
            case ast.Import(names) | ast.ImportFrom(names=names):
                yield from (alias.asname or alias.name for alias in names)
            case ast.Assign() | ast.AnnAssign():
                targets = child.targets if isinstance(child, ast.Assign) else [child.target]
                yield from (name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name))
            case ast.If() | ast.Try():
                yield from _bound(child)


@each_module
def test_every_module_has_its_tests(module) -> None:
    if module.path.stem == "__init__" or module.name in WITHOUT_TESTS:
        return
    path = Path("tests", *module.name.split(".")[:-1], f"test_{module.path.stem}.py")
    assert (ROOT / path).is_file(), f"{path} is missing"


@pytest.mark.parametrize("name", WITHOUT_TESTS)
def test_exemptions_are_still_needed(name) -> None:
    assert name in NAMES
    assert not Path(ROOT, "tests", *name.split(".")[:-1], f"test_{name.rpartition('.')[2]}.py").exists()
