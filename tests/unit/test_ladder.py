"""The import ladder: what a module may import, read from the source of every module.

Higher rungs import lower ones. Imports inside functions count like any other; imports under TYPE_CHECKING too.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import potato_client
import potatod

#: From the bottom up. A package's name stands for all its modules; within a rung any order without circles will do.
LADDER = (
    {"potato_client"},
    {"potatod.errors"},
    {
        "potatod", "potatod.messages", "potatod.manifest", "potatod.model_folder", "potatod.companions", "potatod.sizes", "potatod.keys",
        "potatod.sections", "potatod.config",
        "potatod.sources", "potatod.config_page", "potatod.json_file", "potatod.places", "potatod.log", "potatod.memory", "potatod.notify",
        "potatod.kept", "potatod.machine", "potatod.process", "potatod.cgroups", "potatod.restarts", "potatod.run_directory", "potatod.surroundings",
        "potatod.sampling", "potatod.status", "potatod.reading", "potatod.dtypes", "potatod.forms", "potatod.typed_json", "potatod.kv_layout",
        "potatod.trees", "potatod.identity", "potatod.jobs", "potatod.remote_keys", "potatod.keys_commands",
        "potatod.address_keys", "potatod.tool_calls", "potatod.bearer_token", "potatod.gateway_commands", "potatod.unit_file",
        "potatod.watchdog", "potatod.man_page", "potatod.completion_commands", "potatod.names",
        "potatod.priority", "potatod.pausing", "potatod.reload", "potatod.socket_activation", "potatod.socket_unit",
    },
    {"potatod.plan", "potatod.forecast", "potatod.draft_forecast", "potatod.spans", "potatod.pool", "potatod.wire", "potatod.schemes"},
    {
        "potatod.stage", "potatod.errand", "potatod.room", "potatod.arrangement", "potatod.verdict", "potatod.outline", "potatod.rates",
        "potatod.planning", "potatod.plan_page", "potatod.plan_grid", "potatod.card", "potatod.drafts", "potatod.trace", "potatod.store",
        "potatod.service_commands",
    },
    {"potatod.reader", "potatod.worker", "potatod.front", "potatod.gateway"},
    {"potatod.served"},
    {"potatod.stages"},
    {"potatod.supervisor"},
    {"potatod.cli"},
)  # fmt: skip
STAGES = ("potatod.reader", "potatod.worker", "potatod.front", "potatod.gateway")
#: The stages are programs with lives of their own: what they share lies on a lower rung, or here with its reason.
#: Models are imported, built on meta, and known ahead of `prepare` in one way only.
OFFLINE_MODULES_OF_THE_WORKER = {"potatod.store.skeleton", "potatod.store.lean", "potatod.store.outline"}
TORCH = ("potatod.worker", "potatod.store", "potatod.schemes")
TRANSFORMERS = ("potatod.worker", "potatod.store")
CLIENT_PACKAGES = {"zmq", "msgpack", "click", "rich", "prompt_toolkit"}


@dataclass(frozen=True)
class Import:
    importer: str
    imported: str
    line: int

    def __str__(self) -> str:
        return f"{self.importer}, line {self.line}, imports {self.imported}"


def _modules() -> dict[str, Path]:
    modules = {}
    for package in (potatod, potato_client):
        root = Path(next(iter(package.__path__)))
        for path in sorted(root.rglob("*.py")):
            names = [package.__name__, *path.relative_to(root).with_suffix("").parts]
            modules[".".join(names).removesuffix(".__init__")] = path
    return modules


MODULES = _modules()


def _imports_of(module: str) -> Iterator[Import]:
    path = MODULES[module]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                around = module.split(".")
                kept = len(around) - node.level + (path.name == "__init__.py")
                base = ".".join([*around[:kept], *([node.module] if node.module else [])])
            for alias in node.names:
                name = f"{base}.{alias.name}"
                yield Import(module, name if name in MODULES else base, node.lineno)


IMPORTS = [found for module in MODULES for found in _imports_of(module)]
OURS = [found for found in IMPORTS if found.imported in MODULES and found.imported != found.importer]


def _within(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _rung(module: str) -> int:
    """Of the longest name on the ladder that covers the module; -1 where none does."""
    best, at = "", -1
    for rung, names in enumerate(LADDER):
        for name in names:
            covers = module == name or (name != "potatod" and module.startswith(f"{name}."))
            if covers and len(name) > len(best):
                best, at = name, rung
    return at


def _told(wrong: list[Import]) -> str:
    return "\n".join(map(str, wrong))


def test_the_whole_house_is_seen() -> None:
    assert {"potatod.errors", "potatod.supervisor", "potatod.reader.reader", "potato_client.protocol"} <= set(MODULES)
    assert any(found == Import("potatod.stage", "potatod.wire", found.line) for found in OURS)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_module_stands_on_the_ladder(module: str) -> None:
    assert _rung(module) >= 0, f"{module} has no rung: give it one in LADDER, and a reason if it is not the obvious one"


def test_every_name_on_the_ladder_is_a_module() -> None:
    assert set().union(*LADDER) <= set(MODULES)


def test_nothing_imports_from_a_higher_rung() -> None:
    wrong = [found for found in OURS if _rung(found.imported) > _rung(found.importer)]
    assert not wrong, _told(wrong)


def test_no_imports_go_in_circles() -> None:
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for found in OURS:
        graph[found.importer].add(found.imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


@pytest.mark.parametrize("stage", STAGES)
def test_the_stages_never_import_one_another(stage: str) -> None:
    others = [other for other in STAGES if other != stage]
    wrong = [found for found in OURS if _within(found.importer, stage) and _within(found.imported, *others)]
    assert not wrong, _told(wrong)


def test_of_the_offline_half_only_the_worker_uses_anything_and_only_what_it_must() -> None:
    outside = [
        found
        for found in OURS
        if _within(found.imported, "potatod.store") and not _within(found.importer, "potatod.store")
    ]
    allowed = OFFLINE_MODULES_OF_THE_WORKER
    wrong = [f for f in outside if not (_within(f.importer, "potatod.worker") and f.imported in allowed)]
    assert not wrong, _told(wrong)


@pytest.mark.parametrize(
    ("package", "homes"),
    [
        ("torch", TORCH),
        ("transformers", TRANSFORMERS),
        ("gguf", ("potatod.store",)),
        ("huggingface_hub", ("potatod.store",)),
    ],
)
def test_heavy_packages_stay_where_they_belong(package: str, homes: tuple[str, ...]) -> None:
    users = [found for found in IMPORTS if _within(found.imported, package)]
    wrong = [found for found in users if not _within(found.importer, *homes)]
    assert not wrong, _told(wrong)


def test_the_client_knows_nothing_of_the_daemon_and_needs_few_packages() -> None:
    theirs = [found for found in IMPORTS if _within(found.importer, "potato_client")]
    allowed = sys.stdlib_module_names | CLIENT_PACKAGES | {"potato_client"}
    wrong = [found for found in theirs if found.imported.split(".")[0] not in allowed]
    assert not wrong, _told(wrong)


@pytest.mark.parametrize(
    ("module", "more"),
    [
        ("potatod.messages", set()),
        ("potatod.errors", set()),
        ("potatod.log", set()),
        ("potatod.manifest", {"xxhash"}),
        ("potatod.companions", {"xxhash"}),
        ("potatod.sampling", {"numpy"}),
        ("potatod.plan", set()),
        ("potato_client.protocol", set()),
        ("potato_client.exit_codes", set()),
        ("potato_client.paths", set()),
        ("potato_client.units", set()),
        ("potato_client.codec", {"msgpack"}),
    ],
)
def test_pure_modules_import_the_standard_library_and_hardly_more(module: str, more: set[str]) -> None:
    allowed = sys.stdlib_module_names | more | {"potatod", "potato_client"}
    theirs = [found for found in IMPORTS if _within(found.importer, module)]
    wrong = [found for found in theirs if found.imported.split(".")[0] not in allowed]
    assert not wrong, _told(wrong)


@pytest.mark.parametrize("package", ["pickle", "multiprocessing", "shelve", "marshal"])
def test_nothing_is_pickled_anywhere(package: str) -> None:
    wrong = [found for found in IMPORTS if _within(found.imported, package)]
    assert not wrong, _told(wrong)
