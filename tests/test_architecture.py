"""The shape of the package: import order, purity, single importers, names, exports, test files."""

import ast
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import flux_klein_async

TESTS = Path(__file__).parent
PACKAGE = Path(flux_klein_async.__file__).parent  # of the checkout or of an installed wheel
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name != "__init__.py"
}

# A module imports only from its own line and from lines above it.
LAYERS = [
    ["paths", "text", "errors", "misuse", "schema", "api.urls"],
    ["models"],
    ["events", "options"],
    ["api."],
    ["transport."],
    ["polling."],
    ["journal."],
    ["operations."],
    ["client"],
    ["batch."],
]
# Above the core; none of the core imports them.
OUTER = ("emulator.", "testing", "cli.", "integrations.", "__main__")

# No coroutine, clock, randomness or file, neither itself nor through what it imports.
PURE = """text errors schema models events options api.messages api.urls api.requests api.outputs polling.policies
    polling.durations journal.base journal.states emulator.scripts emulator.catalogue
    emulator.generations emulator.endpoints emulator.faults emulator.engine"""
# Third parties and stores, and who imports them.
IMPORTERS = {
    "aiohttp": {"transport.aiohttp", "transport.failures"},
    "tenacity": {"transport.retry"},
    "redis": {"transport.redis"},
    "sqlite3": {"batch.rows", "journal.sqlite"},
    "psycopg": {"journal.postgres"},
}
IMPURE = {"asyncio", "time", "secrets", "socket", "ssl", "os", "threading", "tempfile", *IMPORTERS}
THIRD_PARTIES = {
    "integrations.fastapi": {"fastapi", "starlette"},
    "integrations.aiohttp_web": {"aiohttp"},
    "integrations.opentelemetry": {"opentelemetry"},
    "integrations.pillow": {"PIL"},
    "integrations.ray": {"pyarrow", "ray"},  # Ray Data's rows are Arrow's
}
EXTRAS = {
    "psycopg",
    "redis",
    "typer",
    "rich",
    "click",
    "jinja2",
    "PIL",
    "pytest",
    "opentelemetry",
    "fastapi",
    "starlette",
    "ray",
    "pyarrow",
}


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


@cache
def imported(name: str, *, typing_only: bool = True) -> frozenset[str]:
    """Absolute names of what a module imports, with or without what only type checkers see."""
    names: set[str] = set()
    left: list[ast.AST] = [tree(name)]
    while left:
        node = left.pop()
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are absolute"
            names.update([node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)])
        elif typing_only or not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            left += ast.iter_child_nodes(node)
    return frozenset(names)


@cache
def ours(name: str) -> frozenset[str]:
    """The package's own modules that a module imports at run time."""
    found = {item.removeprefix("flux_klein_async.") for item in imported(name, typing_only=False)}
    return frozenset(found & MODULES.keys())


@cache
def reached(name: str) -> frozenset[str]:
    """A module and all that it imports of the package, directly or not."""
    found, left = {name}, [name]
    while left:
        for other in ours(left.pop()) - found:
            found.add(other)
            left.append(other)
    return frozenset(found)


def roots(name: str, *, typing_only: bool = True) -> set[str]:
    return {item.split(".")[0] for item in imported(name, typing_only=typing_only)}


def is_outer(name: str) -> bool:
    return name.startswith(OUTER)


def layer(name: str) -> int:
    places = [
        (len(entry), number)
        for number, entries in enumerate(LAYERS)
        for entry in entries
        if name == entry or (entry.endswith(".") and name.startswith(entry))
    ]
    assert places, f"{name} has no place in the order"
    return max(places)[1]


def test_a_module_imports_only_from_its_own_layer_and_those_above_and_never_in_a_circle() -> None:
    wrong = [
        f"{name} imports {other}"
        for name in MODULES
        for other in ours(name)
        if name in reached(other) or (not is_outer(name) and (is_outer(other) or layer(other) > layer(name)))
    ]
    assert wrong == []


def test_a_pure_module_reaches_no_coroutine_clock_or_file() -> None:
    wrong = []
    for name in PURE.split():
        for other in reached(name):
            wrong += [f"{name} reaches {other}: {found}" for found in roots(other, typing_only=False) & IMPURE]
            if any(isinstance(node, ast.Await | ast.AsyncFor | ast.AsyncWith) for node in ast.walk(tree(other))):
                wrong.append(f"{name} reaches {other}: a coroutine")
    assert wrong == []


def test_a_third_party_has_its_importers_and_no_others() -> None:
    core = [name for name in MODULES if not is_outer(name)]
    found = {library: {name for name in core if library in roots(name, typing_only=False)} for library in IMPORTERS}
    assert found == IMPORTERS
    assert [name for name in core if roots(name) & EXTRAS - set(IMPORTERS)] == []


def test_the_emulator_shares_no_knowledge_with_the_client() -> None:
    wrong = {
        f"{name} imports {item}"
        for name in MODULES
        if name.startswith("emulator.")
        for item in imported(name)
        if item.startswith("flux_klein_async") and not item.startswith("flux_klein_async.emulator")
    }
    assert wrong == set()


def test_an_integration_uses_one_third_party_and_the_public_api() -> None:
    public = {"errors", "events", "models", "operations.files", "paths", "text"}
    rows = {"batch.manifest", "client", "operations.fanout"}  # the end of an item, and of the rest, as elsewhere
    for name in MODULES:
        if name.startswith("integrations."):
            assert {other for other in ours(name) if not other.startswith("integrations.")} <= (
                public | rows if name == "integrations.ray" else public
            ), name
            foreign = roots(name) - set(sys.stdlib_module_names) - {"flux_klein_async"}
            assert foreign == THIRD_PARTIES.get(name, set()), name


def test_no_name_has_two_meanings() -> None:
    basenames = Counter(name.rpartition(".")[2] for name in MODULES)
    classes = Counter(
        node.name
        for name in MODULES
        for node in tree(name).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    twice = {name for name, count in (basenames + classes).items() if count > 1}
    assert twice <= {"base"}  # the protocols that a folder begins with


def test_every_module_has_a_docstring_sorted_exports_and_a_test_file() -> None:
    for name, path in MODULES.items():
        assert ast.get_docstring(tree(name)), name
        lists = [
            ast.literal_eval(node.value)
            for node in tree(name).body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        ]
        assert len(lists) == 1, name
        assert lists[0] == sorted(lists[0], key=lambda word: (not word.isupper(), not word[0].isupper(), word)), name
        relative = path.relative_to(PACKAGE)
        assert (TESTS / relative.parent / f"test_{relative.stem.strip('_')}.py").is_file(), name


def test_importing_the_package_imports_no_extra() -> None:
    code = "import sys; from flux_klein_async import *; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    unwanted = [name for name in loaded if name.split(".")[0] in EXTRAS - {"pytest"}]
    unwanted += [name for name in loaded if name.startswith(("aiohttp.web", "flux_klein_async.integrations"))]
    assert unwanted == []


def test_a_name_of_the_package_comes_from_where_type_checkers_find_it() -> None:
    source = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    [checked] = [node.body for node in source.body if isinstance(node, ast.If)]
    homes = {alias.name: node.module for node in checked if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert homes == flux_klein_async._MODULES
    own = {"KLEIN_4B_TEXT_TO_IMAGE", "KLEIN_9B_TEXT_TO_IMAGE", "__version__"}
    assert {*homes, *own} - {"PostgresJournal", "RedisLimiter"} == set(flux_klein_async.__all__)
    for name in homes.keys() & set(flux_klein_async.__all__):
        assert getattr(flux_klein_async, name) is vars(sys.modules[homes[name]])[name]


def test_importing_the_package_imports_none_of_its_dependencies() -> None:
    code = "import sys, flux_klein_async; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"aiohttp", "pydantic", "tenacity", "asyncio"} & set(loaded) == set()
