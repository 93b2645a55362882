"""The code that the documentation shows runs as shown, and what it refers to exists."""

import doctest
import importlib
import importlib.util
import inspect
import logging
import pkgutil
import re
import socket
from pathlib import Path

import numpy as np
import pytest

import ssot

ROOT = Path(__file__).parent.parent
MODULES = [module.name for module in pkgutil.walk_packages(ssot.__path__, "ssot.")]
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in ROOT.glob("docs/*.md"))]


def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


def code_of(page):
    return "\n".join(re.findall(r"```python\n(.*?)```", text_of(page), re.S))


def run(page, **namespace):
    """Run all Python blocks of a page, one after the other, and return what they define."""
    code = code_of(page)
    for library in ("ot", "torch"):
        if re.search(rf"^(import {library}|from ssot.training)", code, re.M):
            pytest.importorskip(library, reason=f"{page} uses it")
    level = logging.getLogger("ssot").level
    try:
        exec(compile(code, page, "exec"), namespace)
    finally:
        logging.getLogger("ssot").setLevel(level)
    return namespace


@pytest.mark.parametrize("page", sorted(page for page in PAGES if code_of(page)))
def test_code_runs(page, request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the code may write files
    given = request.getfixturevalue("one_process") if page == "docs/distributed.md" else {}
    run(page, **given)


@pytest.fixture
def one_process(monkeypatch):
    """Return what a rank has of its own, where it is the only one."""
    distributed = pytest.importorskip("torch.distributed", reason="ranks are Torch's processes")
    if not distributed.is_available():
        pytest.skip("this Torch has no torch.distributed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    rank = {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in rank.items():
        monkeypatch.setenv(name, str(value))
    rng = np.random.default_rng(0)
    graph = ssot.knn_graph(rng.normal(size=(40, 3)), k=5)
    yield {
        "own_cost": rng.random((40, 3)),
        "own_graph_rows": graph,
        "graph": graph,
        "total_steps": 9,
    }
    if distributed.is_initialized():  # unless the page has failed before
        distributed.destroy_process_group()


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    if name == "ssot.kernels.fused":
        pytest.importorskip("triton", reason="fused kernels are written in Triton")
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_readme():
    namespace = run("README.md")
    solution = namespace["solution"]
    assert solution.status is ssot.Status.CONVERGED
    assert solution.plan.sum() == pytest.approx(namespace["rho"], abs=1e-6)


def test_training_loop_with_solve():
    pseudo_labels = run("docs/training.md")["pseudo_labels"]
    rng = np.random.default_rng(0)
    features = rng.normal(size=(80, 4))
    logits, graph = rng.normal(size=(80, 5)), ssot.knn_graph(features, k=5)
    labels, solution = pseudo_labels(logits, graph, 0.2)
    labels, solution = pseudo_labels(logits, graph, 0.3, previous=solution)
    np.testing.assert_allclose(labels.sum(axis=1), solution.confidence, rtol=1e-6)


def test_large_problems(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = run("docs/large.md")
    assert namespace["stopped"].status is ssot.Status.STOPPED
    assert namespace["solution"].status is ssot.Status.CONVERGED
    written = np.load("plan.npy")
    assert written.sum() == pytest.approx(0.3, abs=1e-6)


def test_training_loop_with_a_labeler():
    torch = pytest.importorskip("torch", reason="training is Torch's")
    train = run("docs/training.md")["train"]
    generator, heads, views = torch.Generator().manual_seed(0), 2, 2
    samples = torch.randn(60, 4, generator=generator)
    weights = torch.randn(heads, 4, 3, generator=generator, requires_grad=True)
    before = weights.detach().clone()
    loader = [(samples[ids], ids) for ids in torch.arange(60).split(20)]

    def model(given):
        return (given @ weights).unsqueeze(1).expand(-1, views, -1, -1)

    optimizer = torch.optim.SGD([weights], lr=0.1)
    labeler = train(model, loader, optimizer, ssot.knn_graph(samples, k=5), epochs=2)
    assert labeler.step == 6
    assert sorted(labeler.bank.ids.tolist()) == list(range(60))
    assert (weights.detach() != before).all()


def test_plans_of_heads(capsys):
    rng = np.random.default_rng(0)
    graph = ssot.knn_graph(rng.normal(size=(60, 4)), k=5)
    plans = run("docs/batches.md")["plans_of_heads"](rng.normal(size=(3, 60, 4)), graph)
    assert plans.shape == (3, 60, 4)
    assert capsys.readouterr().out.count("CONVERGED") == 3


# What pages refer to


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text_of(page))
    missing = [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_tests_exist(page):
    text = text_of(page)
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.M))
    commands = re.findall(r"(?:`|^    )make ([a-z-]+)", text, re.M)
    assert set(commands) <= targets
    for module in re.findall(r"python -m ((?:examples|benchmarks)[\w.]*\w)", text):
        assert importlib.util.find_spec(module) is not None
    for file, test in re.findall(r"(tests/\w+\.py)(?:::(\w+))?", text):
        assert f"def {test}" in text_of(file)


@pytest.mark.parametrize("page", PAGES)
def test_no_formula_is_torn(page):
    """A line that begins like a list item ends the paragraph, and the formula in it."""
    text = re.sub(r"```.*?```|^\$\$$.*?^\$\$$|`[^`]*`", "", text_of(page), flags=re.S | re.M)
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-+>*]|\d+\.) )", text):
        assert block.count("$") % 2 == 0, block


def test_the_architecture_names_every_module():
    text = text_of("docs/architecture.md") + text_of("docs/architecture.svg")
    for name in MODULES:
        file = Path(importlib.util.find_spec(name).origin)
        named = f"{file.parent.name}/" if file.name == "__init__.py" else file.name
        assert re.search(rf"\b{re.escape(named)}", text), name


def test_the_reference_has_every_public_name():
    page = text_of("docs/api.md")
    pytest.importorskip("torch", reason="training is Torch's")
    names = [*ssot.__all__, *importlib.import_module("ssot.training").__all__]
    assert sorted(re.findall(r"auto\w+:: (\w+)", page)) == sorted(names)


def test_the_parameter_table_has_every_parameter_of_solve():
    page = text_of("docs/parameters.md")
    for name, parameter in inspect.signature(ssot.solve).parameters.items():
        assert f"`{name}`" in page, name
        default = parameter.default
        if isinstance(default, (int, float)):
            row = next(line for line in page.splitlines() if line.startswith(f"| `{name}`"))
            shown = str(default) if isinstance(default, bool) else f"{default:g}"
            assert f"| {shown} |" in row.replace("1e-6", "1e-06"), name
