"""Who may import whom, and what no file may hold."""

import ast
import functools
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.errors import DataError
from data.spec.yaml_reader import read_yaml
from tests.helpers import ROOT

TOOLS = ["transcode.py", "gen_csv.py", "gen_embedding_sizes.py", "check_dataset.py"]
FRAMEWORKS = ("tensorflow", "keras", "horovod")
WITHOUT_WORKERS = ("trainer.comm", "trainer.cli", "trainer.run", "data.loading.loader")

FORBIDDEN = [
    ("data/**/*.py", ("trainer", *FRAMEWORKS), "data/ knows files, columns and rows; trainer/ uses it"),
    ("trainer/models/**/*.py", WITHOUT_WORKERS, "models know neither workers nor flags nor files"),
    ("trainer/metrics/**/*.py", WITHOUT_WORKERS, "metrics are handed the workers they sum over"),
    (
        "trainer/export/served/*.py",
        ("trainer", "data", *FRAMEWORKS),
        "they are copied to servers, away from here",
    ),
    ("**/*.py", ("horovod",), "only trainer/comm.py talks to Horovod"),
    *((tool, ("trainer", *FRAMEWORKS), "the data tools start within a second") for tool in TOOLS),
]
# What data/ itself is made of; every other folder in it is a dataset.
ROOMS = {"checks", "files", "loading", "preprocess", "spec", "storage"}
MAY = {("horovod", "trainer/comm.py")}
ACTS_WHEN_IMPORTED = "data/preprocess/nvtabular_setup.py"  # settings that must stand before NVTabular is imported
READS_YAML = "data/spec/yaml_reader.py"  # with a safe loader of its own, tried below


def files(pattern: str) -> list[Path]:
    """The project's own Python files but the tests, as a pattern finds them."""
    found = [path for path in ROOT.glob(pattern) if not path.relative_to(ROOT).parts[0].startswith((".", "tests"))]
    assert found, f"{pattern} matches no file: what is asked of it guards nothing"
    return sorted(found)


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Full names of what import statements bring in: `from a import b` gives a.b."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def at_import(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """Nodes that run when a module is imported: nothing inside functions or under TYPE_CHECKING."""
    for node in body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from at_import([child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)])


def is_within(name: str, module: str) -> bool:
    return f"{name}.".startswith(f"{module}.")


def test_an_import_is_seen_wherever_it_stands():
    lines = ["import a.b", "def f():", "    from c.d import e", "if TYPE_CHECKING:", "    import g"]
    tree = ast.parse("\n".join([*lines, "try:", "    import h", "finally:", "    i()"]))
    assert set(imports(ast.walk(tree))) == {"a.b", "c.d.e", "g", "h"}
    assert set(imports(at_import(tree.body))) == {"a.b", "h"}
    assert is_within("keras.layers", "keras") and not is_within("keras_rs", "keras")


@pytest.mark.parametrize(("pattern", "modules", "why"), FORBIDDEN, ids=lambda value: value if "/" in value else "")
def test_nothing_imports_what_it_must_not(pattern, modules, why):
    offenders = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files(pattern)
        for name in imports(ast.walk(tree_of(path)))
        for module in modules
        if is_within(name, module) and (module, str(path.relative_to(ROOT))) not in MAY
    ]
    assert not offenders, f"{why}: {offenders}"


def test_nobody_imports_a_datasets_package_but_itself_and_what_measures_it():
    packages = {path.parent.name for path in files("data/*/*.py")} - ROOMS
    assert packages >= {"movielens", "outbrain"}
    offenders = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files("**/*.py")
        if not path.is_relative_to(ROOT / "benchmarks")
        for name in imports(ast.walk(tree_of(path)))
        for package in packages
        if is_within(name, f"data.{package}") and not path.is_relative_to(ROOT / "data" / package)
    ]
    assert not offenders, offenders


def reached_from(start: Path) -> dict[str, list[str]]:
    """Modules that importing a file imports, its own and others', with the way to each."""
    ways = {start.name: [start.name]}
    waiting = [(start, ways[start.name])]
    while waiting:
        path, way = waiting.pop()
        for name in imports(at_import(tree_of(path).body)):
            for module in (name, name.rpartition(".")[0]):
                if module and module not in ways:
                    ways[module] = [*way, module]
                    source = ROOT / module.replace(".", "/")
                    candidates = [source.with_suffix(".py"), source / "__init__.py"]
                    waiting += [(file, ways[module]) for file in candidates if file.is_file()]
    return ways


@pytest.mark.parametrize("entry", ["main.py", "supervise.py", "export.py", *TOOLS])
def test_a_command_checks_its_arguments_before_a_framework_is_imported(entry):
    slow = [way for module, way in reached_from(ROOT / entry).items() if module.partition(".")[0] in FRAMEWORKS]
    assert not slow, "imported at once: " + "; ".join(" -> ".join(way) for way in slow)


def test_no_test_starts_tensorflow_while_it_is_collected():
    """main.py sets threads and devices, which only works before TensorFlow's first operation in a process."""
    offenders = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)[:60]}"
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in tree_of(path).body
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.Expr) and "tf." in ast.unparse(node)
    ]
    assert not offenders, offenders


def is_harmless(node: ast.stmt) -> bool:
    """Whether a statement of a module only defines something (or sets a default in the environment)."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) or ast.unparse(node).startswith("os.environ.setdefault(")
    if isinstance(node, ast.If):
        return any(word in ast.unparse(node.test) for word in ("__name__", "TYPE_CHECKING"))
    if isinstance(node, ast.Try):
        return all(isinstance(child, ast.Import | ast.ImportFrom) for child in node.body)
    return not isinstance(node, ast.For | ast.While | ast.With | ast.Delete)


def test_nothing_happens_when_a_module_is_imported():
    offenders = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)[:60]}"
        for path in files("**/*.py")
        for node in tree_of(path).body
        if not is_harmless(node) and path != ROOT / ACTS_WHEN_IMPORTED
    ]
    assert not offenders, offenders


UNSAFE_MODULES = ("pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib")
UNSAFE_CALLS = re.compile(
    r"(^|\.)(eval|exec|__import__|unsafe_load|full_load|broadcast_object|allgather_object)$|^yaml\.load(_all)?$"
)


def is_unsafe(node: ast.AST) -> bool:
    """Whether a node can run code from data, or is a check that `python -O` drops."""
    if isinstance(node, ast.Assert):
        return True
    if isinstance(node, ast.Import | ast.ImportFrom):
        return any(is_within(name, module) for name in imports(iter([node])) for module in UNSAFE_MODULES)
    if isinstance(node, ast.Call):
        true = {word.arg for word in node.keywords if ast.unparse(word.value) == "True"}
        return bool(true & {"allow_pickle", "shell"}) or bool(UNSAFE_CALLS.search(ast.unparse(node.func)))
    return False


@pytest.mark.parametrize(
    ("line", "unsafe"),
    [
        ("assert x", True),
        ("import pickle", True),
        ("from cloudpickle import loads", True),
        ("eval(text)", True),
        ("yaml.load(text)", True),
        ("yaml.unsafe_load(text)", True),
        ("np.load(file, allow_pickle=True)", True),
        ("hvd.broadcast_object(x)", True),
        ("yaml.safe_load(text)", False),
        ("np.load(file, allow_pickle=False)", False),
        ("model.evaluate(x)", False),
        ("pattern.execute(x)", False),
    ],
)
def test_unsafe_code_is_told_from_safe(line, unsafe):
    assert any(map(is_unsafe, ast.walk(ast.parse(line)))) == unsafe


def test_no_code_asserts_unpickles_or_evaluates():
    offenders = [
        f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}: {ast.unparse(node)[:60]}"
        for path in files("**/*.py")
        for node in ast.walk(tree_of(path))
        if is_unsafe(node) and not (path == ROOT / READS_YAML and ast.unparse(node).startswith("yaml.load("))
    ]
    assert not offenders, offenders


# Besides data/storage/files.py: what the kernel tells, this program's own files, and what is copied to servers.
OPENS_OTHERWISE = re.compile(
    r"^(data/storage/files\.py|data/memory\.py|trainer/process/.*|trainer/lifecycle/processes\.py|trainer/report/page\.py"
    r"|trainer/export/served/.*)$"
)


def opens_to_read(node: ast.AST) -> bool:
    """Whether a node opens a file for reading, in a way that waits for a pipe."""
    if not isinstance(node, ast.Call):
        return False
    called, words = ast.unparse(node.func), [ast.unparse(word) for word in node.args]
    if called.endswith((".read_text", ".read_bytes", ".copyfile", ".read_metadata", ".read_schema")):
        return not words or words[0] in ("path", "source")
    if called == "open":
        return len(words) < 2 or words[1] in ("'r'", "'rb'")
    return called.endswith(".open") and (not words or words[0] in ("'r'", "'rb'"))


@pytest.mark.parametrize(
    ("line", "opens"),
    [
        ("open(path)", True),
        ("open(path, 'rb')", True),
        ("path.open('rb')", True),
        ("path.read_text()", True),
        ("shutil.copyfile(path, other)", True),
        ("open(path, 'xb')", False),
        ("open_regular(path)", False),
        ("store.open('last')", False),
        ("pq.read_metadata(arrow_file(file))", False),
    ],
)
def test_opening_a_file_to_read_it_is_seen(line, opens):
    assert any(map(opens_to_read, ast.walk(ast.parse(line)))) == opens


def test_files_are_opened_by_the_one_function():
    """Regular files only: a pipe is waited for without end, and a device may never end."""
    offenders = [
        f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}: {ast.unparse(node)[:60]}"
        for pattern in ("data/**/*.py", "trainer/**/*.py", "*.py")
        for path in files(pattern)
        if not OPENS_OTHERWISE.match(str(path.relative_to(ROOT)))
        for node in ast.walk(tree_of(path))
        if opens_to_read(node)
    ]
    assert not offenders, offenders


def test_yaml_makes_no_objects(tmp_path):
    made = tmp_path / "made"
    (tmp_path / "spec.yaml").write_text(f"x: !!python/object/apply:os.mkdir ['{made}']\n")
    with pytest.raises(DataError):
        read_yaml(tmp_path / "spec.yaml")
    assert not made.exists()


def committed() -> list[Path]:
    """Text files that are in the project or about to be."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout: there is no telling what belongs to it")
    paths = [ROOT / line for line in listing.stdout.splitlines()]
    return [path for path in paths if path.is_file() and b"\0" not in path.read_bytes()]


# A package index, a file of one, or an option with an address; a folder of one person's or one machine.
FOREIGN = re.compile(
    r"""://[^\s"'+]*/simple\b | files\.pythonhosted | index-url[\s=]+\S*:// | find-links[\s=]+\S*/ | file:/{2,3}\w
    | (?<![\w.~$}:/-])/(?:work|root|home|Users|farm)/\w""",
    re.VERBOSE,
)


@pytest.mark.parametrize(
    ("line", "foreign"),
    [
        ("pip install --index-url" + " https://packages.example.org six", True),
        ("https://packages.example.org" + "/simple", True),
        ("--find-links" + " /opt/wheels", True),
        ("see /" + "work/main/data", True),
        ("cd /" + "home/somebody", True),
        ("pip config set global.index-url ADDRESS", False),
        ("https://www.apache.org/work/licences", False),
        ("--dataset_path /outbrain/data", False),
        ("$HOME/work/data", False),
    ],
)
def test_an_address_or_path_of_one_machine_is_told_from_others(line, foreign):
    assert bool(FOREIGN.search(line)) == foreign


def test_no_file_holds_an_index_address_or_a_path_of_one_machine():
    offenders = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for path in committed()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if FOREIGN.search(line)
    ]
    assert not offenders, offenders
