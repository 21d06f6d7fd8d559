"""The shape of the code base, held by reading its source: nothing is imported here."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from setuptools import find_packages

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "packforcing_core"
NODES = ROOT / "nodes"

# Top to bottom; a module imports from its own row or from one above it. A longer name wins over its room's.
ROWS = (
    ("errors", "devices"),
    ("geometry",),
    ("ranges",),
    ("queued", "kernels"),
    ("rope", "attention", "history", "model.ops"),  # `model.ops` is the seam that every network stands on
    ("cache",),
    (
        "checkpoint.files",
        "checkpoint.shards",
    ),  # reads tensors from files and knows no network, so that every network may load through it
    ("model",),
    ("vae",),
    ("compressor",),
    ("text",),
    ("checkpoint",),
    ("sampler",),
    ("video", "source"),
    ("recipe",),
    ("folder",),
    ("render",),
    ("drawing",),
    ("miniature",),
    ("api",),
    ("cli",),
    ("laboratory.bench",),
    ("laboratory.training", "laboratory.evaluation"),
    ("laboratory.study",),
    ("laboratory.cli",),
    ("laboratory",),
)
ROW = {room: number for number, row in enumerate(ROWS) for room in row}

COMFYUI_MODULES = {
    "comfy",
    "comfy_api",
    "comfy_api_nodes",
    "comfy_config",
    "comfy_execution",
    "comfy_extras",
    "execution",
    "folder_paths",
    "latent_preview",
    "node_helpers",
    "nodes",
    "server",
}
RAW_MODULES = re.compile(r"\bnn\.(Linear|Conv(Transpose)?[123]d|LayerNorm|GroupNorm|Embedding|RMSNorm)\(")
LONGEST_FILE, LONGEST_FUNCTION = 400, 60


def sources(*folders: Path) -> list[Path]:
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), name_of(path))


def imports(path: Path) -> Iterator[tuple[int, str, int]]:
    """(relative level, dotted name, line) of every import in a file, those inside functions included."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            for alias in node.names:
                yield node.level, f"{module}.{alias.name}".strip("."), node.lineno


def absolute(path: Path, level: int, name: str) -> str:
    """A relative import's target as a dotted name from the repository's root."""
    package = path.relative_to(ROOT).parent.parts
    return ".".join((*package[: len(package) - level + 1], name))


def core_imports(path: Path) -> Iterator[tuple[str, int]]:
    """(dotted name inside the core, line) of what a file imports from the core."""
    for level, name, line in imports(path):
        target = absolute(path, level, name) if level else name
        if target.startswith("packforcing_core."):
            yield target.removeprefix("packforcing_core."), line


def row_of(module: str) -> int | None:
    """The row of a dotted module name inside the core, by the longest name that holds it."""
    parts = module.split(".")
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((ROW[prefix] for prefix in prefixes if prefix in ROW), None)


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(CORE).with_suffix("").parts).removesuffix(".__init__")


def test_the_core_imports_no_comfyui():
    found = [
        f"{name_of(path)}:{line} {name}"
        for path in sources(CORE)
        for level, name, line in imports(path)
        if level == 0 and name.split(".")[0] in COMFYUI_MODULES
    ]
    assert found == []


def test_every_module_of_the_core_has_a_row():
    modules = [module_of(path) for path in sources(CORE) if path != CORE / "__init__.py"]
    assert [module for module in modules if row_of(module) is None] == []


def test_imports_go_one_way():
    found = []
    for path in sources(CORE):
        own = row_of(module_of(path))
        for target, line in core_imports(path):
            row = row_of(target)
            if own is not None and row is not None and row > own:
                found.append(f"{name_of(path)}:{line} imports {target}, which lies below it")
    assert found == []


def test_no_imports_go_in_a_circle():
    """Not those inside functions either, nor those for a type checker alone."""
    modules = {module_of(path): path for path in sources(CORE)}
    asked = {
        module: {
            ".".join(target.split(".")[:length])
            for target, _ in core_imports(path)
            for length in range(1, target.count(".") + 2)
            if ".".join(target.split(".")[:length]) in modules and modules[module].name != "__init__.py"
        }
        - {module}
        for module, path in modules.items()
    }
    TopologicalSorter(asked).prepare()  # CycleError names the circle.


def room_of(module: str) -> str:
    """A room of the architecture page's drawing; three modules lie on another floor than the rest of their room."""
    apart = {"checkpoint.files": "checkpoint.files", "checkpoint.shards": "checkpoint.files", "model.ops": "model.ops"}
    return apart.get(".".join(module.split(".")[:2]), module.split(".")[0])


def room_imports() -> dict[str, set[str]]:
    """Room -> the rooms that it imports. The nodes are one room."""
    modules = {module_of(path) for path in sources(CORE)}
    found: dict[str, set[str]] = {}
    for path in sources(CORE, NODES):
        room = room_of(module_of(path)) if path.is_relative_to(CORE) else "nodes"
        for target, _ in core_imports(path):
            module = next((part for part in prefixes(target) if part in modules), "")
            if module and module != "__init__" and room_of(module) != room:
                found.setdefault(room, set()).add(room_of(module))
    return found


def prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:length]) for length in range(len(parts), 0, -1)]


def below(room: str, arrows: dict[str, set[str]]) -> set[str]:
    """All rooms that arrows lead to from `room`."""
    direct = arrows.get(room, set())
    return direct.union(*(below(target, arrows) for target in direct))


def test_the_architecture_pages_drawing_is_the_code():
    page = (CORE / "README.md").read_text(encoding="utf-8")
    drawing = page.split("```mermaid")[1].split("```")[0]
    floors = [part.split() for part in re.findall(r"subgraph [^\n]*\n(.*?)\n  end", drawing, re.DOTALL)]
    floor = {room: number for number, rooms in enumerate(floors) for room in rooms}
    drawn = {room: set(re.split(r"[\s&]+", to.strip())) for room, to in re.findall(r"  (\S+) --> (.*)", drawing)}
    arrows = room_imports()
    assert set(floor) == set(arrows) | set().union(*arrows.values())
    assert [(room, to) for room in drawn for to in drawn[room] if floor[to] < floor[room]] == []
    direct = {room: to - set().union(*(below(other, arrows) for other in to)) for room, to in arrows.items()}
    assert drawn == direct


def test_the_product_imports_no_laboratory():
    """By no import and no name, but for the command line's, which looks whether it is there."""
    asks = CORE / "cli" / "main.py"
    product = [p for p in [*ROOT.glob("*.py"), *sources(CORE, NODES)] if CORE / "laboratory" not in p.parents]
    imported = [
        f"{name_of(path)}:{line}"
        for path in product
        for _, name, line in imports(path)
        if "laboratory" in name.split(".")
    ]
    named = [
        name_of(path)
        for path in product
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call) and "laboratory" in ast.unparse(node) and "import" in ast.unparse(node.func)
    ]
    assert imported == []
    assert set(named) <= {name_of(asks)}


def test_imports_inside_the_pack_are_relative():
    found = [
        f"{name_of(path)}:{line} {name}"
        for path in [*ROOT.glob("*.py"), *sources(CORE, NODES)]
        for level, name, line in imports(path)
        if level == 0 and name.split(".")[0] in ("packforcing_core", "nodes")
    ]
    assert found == []


def test_nothing_imports_a_module_called_nodes():
    found = [
        f"{name_of(path)}:{line}"
        for path in [*ROOT.glob("*.py"), *sources(CORE, NODES, ROOT / "tests")]
        for level, name, line in imports(path)
        if level == 0 and name.split(".")[0] == "nodes"
    ]
    assert found == []


def test_files_and_functions_stay_short():
    found = []
    for path in sources(CORE, NODES, ROOT / "tests"):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > LONGEST_FILE:
            found.append(f"{name_of(path)}: {lines} lines")
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = node.end_lineno - node.lineno + 1
                if length > LONGEST_FUNCTION:
                    found.append(f"{name_of(path)}:{node.lineno} {node.name}: {length} lines")
    assert found == []


def test_source_files_are_plain_ascii():
    # Registries check for cp1252, some Windows tools read with the local code page: ASCII is safe in all of them.
    pack = [*ROOT.glob("*.py"), *sources(CORE, NODES, ROOT / "tests")]
    assert [name_of(path) for path in pack if not path.read_bytes().isascii()] == []


@pytest.mark.parametrize("pattern", [r"\.cuda\(", r"\.to\(\s*['\"]cuda", r"\beval\(", r"\bexec\("])
def test_source_holds_no(pattern: str):
    # `model.eval()` is a method, not the builtin.
    found = [
        f"{name_of(path)}:{number} {line.strip()}"
        for path in sources(CORE, NODES)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(pattern, line.replace(".eval(", ""))
    ]
    assert found == []


def test_networks_are_built_from_ops_alone():
    found = [
        f"{name_of(path)}:{number} {line.strip()}"
        for path in sources(CORE, NODES)
        if path != CORE / "model" / "ops.py"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if RAW_MODULES.search(line)
    ]
    assert found == []


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def requirement_name(requirement: str) -> str:
    return re.split(r"[\s<>=!~;\[]", requirement, maxsplit=1)[0].lower()


def test_requirements_are_pyprojects_dependencies():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == project()["project"]["dependencies"]


def test_version_and_changelog_agree():
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\S+)", changes, re.MULTILINE).group(1)
    in_code = re.search(r'__version__ = "(.+)"', (CORE / "__init__.py").read_text(encoding="utf-8")).group(1)
    assert newest == in_code == project()["project"]["version"]


def test_requirements_leave_the_hosts_torch_alone():
    names = {requirement_name(requirement) for requirement in project()["project"]["dependencies"]}
    assert names.isdisjoint({"torch", "torchvision", "torchaudio", "numpy"})


def test_installing_gives_one_top_level_package():
    include = project()["tool"]["setuptools"]["packages"]["find"]["include"]
    packages = find_packages(str(ROOT), include=include)
    assert {package.split(".")[0] for package in packages} == {"packforcing_core"}
    assert "py-modules" not in project()["tool"]["setuptools"]
    # A folder without __init__.py would be left out of what is installed without a word.
    assert {path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in sources(CORE)} == set(packages)


def test_what_is_installed_holds_the_miniature():
    kinds = project()["tool"]["setuptools"]["package-data"]["*"]
    assert {f"*{path.suffix}" for path in (CORE / "miniature" / "weights").iterdir()} <= set(kinds)


def test_nothing_built_or_downloaded_is_tracked():
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "-c", "safe.directory=*", "ls-files"]  # Whoever owns the checkout.
    tracked = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    shipped = "packforcing_core/miniature/weights/"
    heavy = [
        name
        for name in tracked.stdout.splitlines()
        if not name.startswith(shipped)
        and name.endswith((".safetensors", ".pt", ".pth", ".ckpt", ".gguf", ".mp4", ".pyc", ".whl"))
    ]
    assert heavy == []
