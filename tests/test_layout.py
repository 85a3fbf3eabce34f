"""The package's modules import each other in one direction only.

The row is that of the design: a module imports what stands to its right, or in its own cell, where
no circle may arise. Imports under TYPE_CHECKING and inside functions count too. What backend.py
imports by a string, the kernels of a backend, is listed here and is not part of the circles: the
kernels know the layers, and the layers know only that a backend has kernels.
"""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "rsnn_fmnist"
ROW = (
    "__main__, cli, sweep, export, predict | report/ | run | training/ | tracking/ | storage/ | "
    "session | models, device, world | data/ | spiking/ | "
    "metrics, arguments, config, interrupt, random_state, errors"
)
CELLS = {
    name.strip().rstrip("/"): place
    for place, cell in enumerate(ROW.split("|"))
    for name in cell.split(",")
}
ROOT = "rsnn_fmnist"  # its __init__.py, which holds __version__ and which all may import

Imports = dict[str, set[str]]  # module -> the modules of the package that it imports


def imports_of(package: Path) -> Imports:
    """Every import between the package's modules."""
    paths = {name_of(path, package): path for path in sorted(package.rglob("*.py"))}
    return {name: set(imported(name, path, set(paths))) - {name} for name, path in paths.items()}


def name_of(path: Path, package: Path) -> str:
    """rsnn_fmnist/data/loader.py -> rsnn_fmnist.data.loader; a package's name for __init__.py."""
    parts = [ROOT, *path.relative_to(package).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(module: str, path: Path, modules: set[str]) -> Iterator[str]:
    """The modules of the package that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                up = module.split(".")
                up = up[: len(up) - node.level + (path.name == "__init__.py")]
                source = ".".join([*up, *filter(None, [node.module])])
            # `from .data import loader` imports a module, `from .data.loader import Loader` a name
            names = [f"{source}.{alias.name}" for alias in node.names]
            names = [name if name in modules else source for name in names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == ROOT:
                assert name in modules, f"{module} imports {name}, which does not exist"
                yield name


def by_string(package: Path) -> set[tuple[str, str]]:
    """(module, other) where a string in a module is the name of another one, relative or not."""
    paths = {name_of(path, package): path for path in package.rglob("*.py")}
    found = set()
    for module, path in paths.items():
        folder = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
                other = folder + text if text.startswith(".") else text
                if other in paths and other != ROOT:
                    found.add((module, other))
    return found


def cell(module: str) -> int:
    """The place of a module in the row."""
    return CELLS[module.split(".")[1]]


def against_the_row(imports: Imports) -> list[str]:
    """The imports from right to left."""
    return [
        f"{module} imports {other}"
        for module, others in imports.items()
        for other in sorted(others - {ROOT})
        if module == ROOT or cell(other) < cell(module)
    ]


def circle(imports: Imports) -> list[str]:
    """A circle of imports; empty where there is none."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_every_module_has_a_place_in_the_row() -> None:
    modules = imports_of(PACKAGE).keys() - {ROOT}
    assert len(modules) > 40
    assert {module.split(".")[1] for module in modules} <= CELLS.keys()


def test_imports_point_to_the_right() -> None:
    assert against_the_row(imports_of(PACKAGE)) == []


def test_no_circle_of_imports() -> None:
    assert circle(imports_of(PACKAGE)) == []


def test_only_kernels_are_imported_by_a_string() -> None:
    kernels = f"{ROOT}.spiking.kernels"
    backend = f"{ROOT}.spiking.backend"
    assert by_string(PACKAGE) == {
        (backend, f"{kernels}.cpu.sequences"),
        (backend, f"{kernels}.cuda.sequences"),
    }


def test_no_test_module_imports_another() -> None:
    tests = Path(__file__).parent
    modules = {path.stem for path in tests.rglob("test_*.py")}
    for path in tests.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                source = getattr(node, "module", None) or ""
                names = {part for alias in node.names for part in alias.name.split(".")}
                found = modules & {*names, *source.split(".")}
                assert not found, f"{path.name} imports {found}"


@pytest.mark.parametrize(
    "line",
    [
        "from .training.loop import fit",
        "import rsnn_fmnist.training.loop",
        "from rsnn_fmnist.training import loop",
        "from . import run",
        "def later():\n    from . import run",
        "if TYPE_CHECKING:\n    from .run import run",
        "from .cli import main",
    ],
)
def test_an_import_against_the_row_is_found(tmp_path: Path, line: str) -> None:
    package = copy_with(tmp_path, "session.py", line)
    (found,) = against_the_row(imports_of(package))
    assert found.startswith("rsnn_fmnist.session imports rsnn_fmnist.")
    assert circle(imports_of(package))


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("errors.py", "from . import config"),
        ("spiking/surrogate.py", "def later():\n    from . import neuron"),
        ("data/pictures.py", "if TYPE_CHECKING:\n    from .loader import Loader"),
        ("storage/atomic.py", "from .checkpoint import load"),
    ],
)
def test_a_circle_within_a_cell_is_found(tmp_path: Path, file: str, line: str) -> None:
    package = copy_with(tmp_path, file, line)
    assert against_the_row(imports_of(package)) == []
    assert name_of(package / file, package) in circle(imports_of(package))


def copy_with(folder: Path, file: str, line: str) -> Path:
    """A copy of the package's Python files in which one has another line."""
    for path in PACKAGE.rglob("*.py"):
        place = folder / ROOT / path.relative_to(PACKAGE)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(path.read_bytes())
    with (folder / ROOT / file).open("a", encoding="utf-8") as copy:
        copy.write(f"\n{line}\n")
    return folder / ROOT
