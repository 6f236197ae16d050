"""The layers of the engine, read from its source: imports only go down, and only `files` touches the disk."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import tensorblob

PACKAGE = Path(tensorblob.__file__).parent
LAYERS = [
    {"errors", "forks", "kernel_aio", "offload", "residency"},
    {"schema"},
    {"edit"},
    {"snapshot"},
    {"format"},
    {"files", "garbage"},
    {"replay"},
    {"manifest"},
    {"presence", "turns"},
    {"memory"},
    {"columns"},
    {"table", "growth"},
    {"batch", "blocks", "flusher"},
    {"operations", "sweep"},
    {"create", "doorbell", "reader", "writer"},
    {"blob", "group", "staging"},
    {"cursors"},
    {"verify"},
    {"recover"},
    {"flow", "follower", "limiter"},
    {"async_reader", "async_writer", "producer"},
    {"__init__"},
    {"cli"},
    {"__main__"},
]
"""From the lowest up. A module may import what is below its layer, and its neighbours if they stand further left."""
WAITING = {"async_reader", "async_writer", "cli", "flow", "follower", "group", "limiter", "offload", "producer"}
"""The modules that know an event loop."""
LEVEL = {module: level for level, layer in enumerate(LAYERS) for module in layer}
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py"))

DURABLE_ACTS = {
    "write", "writev", "pwrite", "pwritev", "sendfile", "copy_file_range", "splice", "fsync", "fdatasync", "sync", "ftruncate",
    "truncate", "posix_fallocate", "fallocate", "link", "symlink", "rename", "renames", "replace", "unlink", "remove", "rmdir",
    "removedirs", "mkdir", "makedirs", "mkfifo", "mknod", "chmod", "fchmod", "chown", "utime", "open", "fdopen", "rmtree",
    "copyfile", "copy", "copy2", "copytree", "move", "flock", "lockf", "ioctl", "fcntl",
}  # fmt: skip
"""Functions of these modules that change the disk or lock a file (or open one, which may create it)."""
ACTING_MODULES = {"os", "shutil", "fcntl", "filelock", "tempfile"}


def tree_of(module: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{module}.py").read_text(), filename=module)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Everything in a module that may run: inside functions too, but not under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if is_type_checking(child):
            assert isinstance(child, ast.If)
            for other in child.orelse:
                yield other
                yield from runtime_nodes(other)
            continue
        yield child
        yield from runtime_nodes(child)


def imports_of(module: str) -> set[str]:
    """The modules of this package that `module` imports when it runs."""
    found: set[str] = set()
    for node in runtime_nodes(tree_of(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("tensorblob.")}
            assert all(alias.name != "tensorblob" for alias in node.names), f"{module} imports the package itself"
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            if node.module == "tensorblob":
                found |= {alias.name for alias in node.names}
            elif node.module is not None and node.module.startswith("tensorblob."):
                found.add(node.module.split(".")[1])
    return found


def calls_of(module: str) -> set[str]:
    """What a module calls by dotted name, as `os.pwrite`; a name that was imported from elsewhere counts by its origin."""
    origins: dict[str, str] = {}
    found: set[str] = set()
    for node in runtime_nodes(tree_of(module)):
        if isinstance(node, ast.Import):
            origins |= {
                alias.asname or alias.name.split(".")[0]: (alias.asname and alias.name) or alias.name.split(".")[0]
                for alias in node.names
            }
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            origins |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in runtime_nodes(tree_of(module)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found.add(f"{origins.get(node.value.id, '?' + node.value.id)}.{node.attr}")
        if isinstance(node, ast.Name):
            found.add(origins.get(node.id, node.id))
    return found


def test_every_module_has_its_layer() -> None:
    assert set(MODULES) == set(LEVEL), "put a new module in its place"


@pytest.mark.parametrize("module", MODULES)
def test_imports_only_go_down(module: str) -> None:
    imported = imports_of(module)
    assert imported <= set(LEVEL) - {"__init__"}, imported
    upward = {name for name in imported if LEVEL[name] > LEVEL[module]}
    assert not upward, f"{module} imports {sorted(upward)} from above"


def test_no_import_goes_round() -> None:
    graph = {module: imports_of(module) for module in MODULES}
    order: list[str] = []
    while len(order) < len(graph):
        ready = sorted(module for module in graph if module not in order and graph[module] <= set(order))
        assert ready, f"a circle among {sorted(set(graph) - set(order))}"
        order += ready


def test_the_values_import_no_machinery() -> None:
    """`errors` to `format` do no I/O; the writer does not know the reader, nor the reader the writer."""
    for module in ("errors", "schema", "edit", "snapshot", "format"):
        assert not imports_of(module) & {"files", "replay", "manifest", "memory"}
        calls = calls_of(module)
        assert not {call for call in calls if call.split(".")[0] in ACTING_MODULES - {"os"} or call == "open"}, calls
    assert "reader" not in imports_of("writer") and "writer" not in imports_of("reader")


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"files"}))
def test_only_files_changes_the_disk_or_locks(module: str) -> None:
    """So that one test can pull the plug anywhere."""
    calls = calls_of(module)
    acts = {call for call in calls if call.split(".")[0] in ACTING_MODULES and call.split(".")[-1] in DURABLE_ACTS}
    assert not acts, f"{module} acts by itself: {sorted(acts)}"
    methods = {call.split(".")[-1] for call in calls}
    assert not methods & {
        "write_text",
        "write_bytes",
        "touch",
        "hardlink_to",
        "symlink_to",
        "tofile",
        "from_filename",
        "from_file",
    }
    writes = [
        node
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open"
        and any(isinstance(mode, ast.Constant) and set(str(mode.value)) & set("wax+") for mode in node.args[1:])
    ]  # fmt: skip
    assert not writes, f"{module} opens a file for writing"


def test_files_does_what_others_may_not() -> None:
    """Else the test above looks for the wrong names."""
    calls = calls_of("files")
    assert {
        "os.pwrite",
        "os.fsync",
        "os.rename",
        "os.link",
        "os.unlink",
        "os.mkdir",
        "os.ftruncate",
        "fcntl.flock",
    } <= calls


def test_what_waits_for_events_is_not_in_the_engine() -> None:
    for module in set(MODULES) - WAITING:
        assert not {call for call in calls_of(module) if call.split(".")[0] in ("asyncio", "anyio", "trio")}
        assert not [node for node in ast.walk(tree_of(module)) if isinstance(node, ast.AsyncFunctionDef)]


@pytest.mark.parametrize("module", MODULES)
def test_nothing_is_worked_out_under_a_lock_that_a_fork_does_not_free(module: str) -> None:
    """A `cached_property` of Python 3.11 has one; a child that was forked meanwhile would wait for ever."""
    assert "functools.cached_property" not in calls_of(module)
