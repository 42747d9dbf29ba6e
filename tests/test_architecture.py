"""The shape of the package: import order, purity, single importers, and a test file for every module."""

import ast
import sys
from pathlib import Path

import pytest

import flux_klein_async

TESTS = Path(__file__).parent
PACKAGE = Path(flux_klein_async.__file__).parent  # of the checkout or of an installed wheel
ROOT = PACKAGE.parent
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
NAMES = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in MODULES}

# A module imports only from lines above its own; within a folder, only from entries to its left.
ORDER = [
    "_version",
    "errors",
    "hosts",
    "misuse",
    "reprs",
    "schemas",
    "states",
    "models",
    "events",
    "options",
    "api.messages",
    "api.retry_after",
    "api.urls",
    "api.credentials",
    "api.ranges",
    "api.requests",
    "api.responses",
    "transport.base",
    "transport.failures",
    "transport.proxies",
    "transport.certificates",
    "transport.peers",
    "transport.aiohttp",
    "transport.retry",
    "transport.slots",
    "transport.pacing",
    "polling.policies",
    "polling.distribution",
    "polling.schedule",
    "polling.optimum",
    "polling.peers",
    "polling.rehearsal",
    "polling.histogram",
    "polling.durations",
    "polling.pace",
    "polling.served",
    "polling.prediction",
    "polling.store",
    "polling.adaptive",
    "polling.explanation",
    "ledger.base",
    "ledger.budget",
    "ledger.lines",
    "ledger.seen",
    "ledger.rows",
    "ledger.jsonrows",
    "ledger.csvrows",
    "ledger.batchfile",
    "ledger.estimate",
    "ledger.facts",
    "ledger.manifest",
    "ledger.transitions",
    "ledger.troubles",
    "ledger.connections",
    "ledger.lease",
    "ledger.schema",
    "ledger.database",
    "ledger.accounts",
    "ledger.entries",
    "ledger.claims",
    "ledger.writer",
    "ledger.sqlite",
    "ledger.pruning",
    "ledger.reading",
    "flow.background",
    "flow.call",
    "flow.guarded",
    "flow.core",
    "flow.calls",
    "flow.orders",
    "flow.submission",
    "flow.polling",
    "flow.waiting",
    "flow.updates",
    "flow.formats",
    "flow.figures",
    "flow.files",
    "flow.transfer",
    "flow.download",
    "flow.fanout",
    "flow.generation",
    "flow.items",
    "flow.closing",
    "handle",
    "client",
]
# Above the core, each on its own: none of the core imports them.
OUTER = ("emulator", "testing", "cli", "integrations", "__main__")
# No coroutine, clock, randomness or file: those arrive as arguments.
PURE = [
    "errors",
    "hosts",
    "misuse",
    "reprs",
    "schemas",
    "states",
    "models",
    "events",
    "options",
    "api.messages",
    "api.urls",
    "api.ranges",
    "api.requests",
    "api.responses",
    "transport.failures",
    "transport.proxies",
    "polling.policies",
    "polling.distribution",
    "polling.schedule",
    "polling.optimum",
    "polling.peers",
    "polling.rehearsal",
    "polling.histogram",
    "polling.durations",
    "polling.pace",
    "polling.served",
    "polling.prediction",
    "polling.adaptive",
    "polling.explanation",
    "ledger.lines",
    "ledger.rows",
    "ledger.jsonrows",
    "ledger.csvrows",
    "ledger.estimate",
    "ledger.facts",
    "ledger.transitions",
    "ledger.troubles",
    "cli.explained",
    "cli.records",
    "flow.formats",
    "flow.orders",
    "emulator.engine",
    "emulator.answers",
    "emulator.profiles",
    "integrations.answers",
    "integrations.frames",
]
IMPURE = {"asyncio", "time", "secrets", "socket", "ssl", "aiohttp", "tenacity", "os", "pathlib", "threading"}


def imported(path: Path, *, typing_only: bool = True) -> set[str]:
    """Absolute names of what a module imports, with or without what only type checkers see."""
    tree = ast.parse(path.read_text())
    hidden: set[ast.AST] = set()
    if not typing_only:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                hidden.update(ast.walk(node))
    names: set[str] = set()
    parts = path.relative_to(ROOT).with_suffix("").parts
    for node in ast.walk(tree):
        if node in hidden:
            continue
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*parts[: -node.level], *([node.module] if node.module else [])]) if node.level else ""
            module = base or node.module or ""
            names.add(module)
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return names


def short(path: Path) -> str:
    return NAMES[path].removeprefix("flux_klein_async.")


def ours(path: Path) -> set[str]:
    """The package's own modules that a module imports at run time."""
    known = {short(other) for other in MODULES}
    found = {name.removeprefix("flux_klein_async.") for name in imported(path, typing_only=False)}
    return found & known


CORE = [path for path in MODULES if short(path).split(".")[0] not in OUTER]


def test_every_core_module_has_its_place_in_the_order():
    assert sorted(ORDER) == sorted(short(path) for path in CORE)


@pytest.mark.parametrize("path", CORE, ids=short)
def test_a_module_imports_only_what_stands_above_it(path):
    above = set(ORDER[: ORDER.index(short(path))])
    assert ours(path) - above == set()


@pytest.mark.parametrize("path", CORE, ids=short)
def test_the_core_imports_no_outer_part_and_no_extra(path):
    names = {name.split(".")[0] for name in imported(path)}
    assert names & {"typer", "rich", "PIL", "pytest", "matplotlib", "opentelemetry", "fastapi", "starlette"} == set()
    assert not {name.split(".")[1] for name in imported(path) if name.startswith("flux_klein_async.")} & set(OUTER)
    assert "aiohttp.web" not in imported(path)


@pytest.mark.parametrize("name", PURE)
def test_a_pure_module_has_no_coroutine_clock_or_file(name):
    path = PACKAGE / (name.replace(".", "/") + ".py")
    tree = ast.parse(path.read_text())
    assert [node for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef | ast.Await)] == []
    assert {found.split(".")[0] for found in imported(path, typing_only=False)} & IMPURE == set()


@pytest.mark.parametrize(("library", "importer"), [("aiohttp", "transport.aiohttp"), ("tenacity", "transport.retry")])
def test_a_library_has_one_importer_in_the_core(library, importer):
    users = {
        short(path) for path in CORE if any(name.split(".")[0] == library for name in imported(path, typing_only=False))
    }
    assert users == {importer}


def test_aiohttp_web_is_imported_by_the_emulator_and_by_its_own_integration_alone():
    users = {short(path) for path in MODULES if "aiohttp.web" in imported(path)}
    assert users == {"emulator.server", "integrations.aiohttp_web"}


INTEGRATIONS = [path for path in MODULES if short(path).startswith("integrations.")]


@pytest.mark.parametrize("path", INTEGRATIONS, ids=short)
def test_an_integration_stands_on_the_public_api_alone(path):
    public = {"_version", "errors", "events", "models"}
    inside = {name for name in ours(path) if not name.startswith("integrations.")} - public
    assert inside == ({"flow.figures"} if path.stem == "notebook" else set()), (
        "what a picture looks like is known there"
    )


@pytest.mark.parametrize("path", INTEGRATIONS, ids=short)
def test_an_integration_imports_one_third_party(path):
    telemetry = {name: {"opentelemetry"} for name in ("opentelemetry", "instruments", "spans")}
    own = {"fastapi": {"fastapi", "starlette"}, "aiohttp_web": {"aiohttp"}, **telemetry}
    names = {name.split(".")[0] for name in imported(path)}
    assert names - set(sys.stdlib_module_names) - {"flux_klein_async"} == own.get(path.stem, set())


def test_matplotlib_is_imported_where_it_draws():
    users = {short(path) for path in MODULES if any(name.split(".")[0] == "matplotlib" for name in imported(path))}
    assert users == {"cli.plots", "cli.service"}, "the latter polls whether it is there"


@pytest.mark.parametrize("path", [path for path in MODULES if short(path).startswith("emulator.")], ids=short)
def test_the_emulator_shares_none_of_the_clients_knowledge(path):
    foreign = {name for name in imported(path) if name.startswith("flux_klein_async")}
    assert {name for name in foreign if not name.startswith("flux_klein_async.emulator")} == set()


@pytest.mark.parametrize("path", MODULES, ids=short)
def test_every_module_has_its_own_test_file(path):
    relative = path.relative_to(PACKAGE)
    assert (TESTS / relative.parent / f"test_{relative.stem.strip('_')}.py").is_file()


@pytest.mark.parametrize("path", MODULES, ids=short)
def test_every_module_says_what_it_exports_in_order(path):
    tree = ast.parse(path.read_text())
    lists = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]
    ]
    assert len(lists) == 1
    names = ast.literal_eval(lists[0])
    assert names == sorted(names, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
    assert ast.get_docstring(tree)


def test_importing_the_package_imports_no_extra():
    import subprocess

    code = "import sys, flux_klein_async; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    unwanted = [
        name
        for name in loaded
        if name.split(".")[0] in {"typer", "rich", "PIL", "click", "pytest", "matplotlib", "opentelemetry", "fastapi"}
    ]
    unwanted += [name for name in loaded if name.startswith(("aiohttp.web", "flux_klein_async.integrations"))]
    assert unwanted == []
