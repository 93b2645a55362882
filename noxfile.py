"""What a release must pass, each part in an environment of its own; `nox --list` lists them.

`make check-release` and `make test-versions` run them. What follows ``--`` on nox's command line
is passed to pip in place of the constraints of the development environment.
"""

import filecmp
import re
import shutil
from pathlib import Path
from zipfile import ZipFile

import nox

ROOT = Path(__file__).parent
DIST = ROOT / "dist"
PROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)  # from the classifiers

EXTRAS = ["graph", "numba", "torch"]
"""The extras that the library itself uses and that need no GPU."""


@nox.session
def build(session: nox.Session) -> None:
    """Build the sdist and the wheel into dist/, and check what is in them."""
    session.install("build", "twine")
    shutil.rmtree(DIST, ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", DIST)  # the wheel from the sdist
    session.run("twine", "check", "--strict", *DIST.iterdir())

    wheel = the_wheel()
    names = ZipFile(wheel).namelist()
    metadata = f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"
    missing = {"ssot/py.typed", f"{metadata}/licenses/LICENSE"}.difference(names)
    stray = [name for name in names if not re.match(rf"(ssot|{re.escape(metadata)})/", name)]
    if missing or stray:
        session.error(f"{wheel.name} lacks {missing or 'nothing'} and should not hold {stray}")

    session.run("python", "-m", "build", "--wheel", "--outdir", session.create_tmp())
    if not filecmp.cmp(wheel, Path(session.create_tmp(), wheel.name), shallow=False):
        session.error("the wheel of the sdist differs from the wheel of the checkout")


@nox.session(requires=["build"])
@nox.parametrize("extra", [None, *EXTRAS], ids=["core", *EXTRAS])
def wheel(session: nox.Session, extra: str | None) -> None:
    """Use the wheel where nothing else is installed, with no extra or with one."""
    extras = [] if extra is None else [extra]
    session.install(f"ssot[{','.join(extras)}] @ {the_wheel().as_uri()}", *constraints(session))
    session.run("python", "-I", "-W", "error", ROOT / "tests" / "installed.py", *extras)


@nox.session(python=PYTHONS[0])
def oldest(session: nox.Session) -> None:
    """Test with the oldest versions that pyproject.toml allows."""
    test(session, *lower_bounds(), *session.posargs)


@nox.session(python=PYTHONS)
def newest(session: nox.Session) -> None:
    """Test with the newest versions there are; of Torch, with the one of constraints.txt."""
    test(session, *constraints(session))


def test(session: nox.Session, *pip_arguments: str) -> None:
    """Run the tests, but for those that are slow or of programs beside the library."""
    session.install(f".[{','.join([*EXTRAS, 'test'])}]", *pip_arguments)
    session.run("python", "-m", "pip", "list")
    beside = [f"--ignore-glob=tests/test_{name}.py" for name in ("example_*", "*_benchmark")]
    session.run(
        *("python", "-m", "pytest", "-m", "not slow", *beside),
        *("--numprocesses=logical", "--maxprocesses=4", "--dist=worksteal"),
        # Compiled loops are kept apart from those of other versions.
        env={"NUMBA_CACHE_DIR": session.create_tmp(), "OMP_NUM_THREADS": "1"},
    )


def constraints(session: nox.Session) -> list[str]:
    """Return what the command line passes to pip, by default the development environment's."""
    return session.posargs or ["--constraint", str(ROOT / "constraints.txt")]


def lower_bounds() -> list[str]:
    """Return the requirements of the library and its extras with each bound as the version."""
    required = PROJECT["project"]["dependencies"].copy()
    for extra in EXTRAS:
        required += PROJECT["project"]["optional-dependencies"][extra]
    return [requirement.replace(">=", "==") for requirement in required]


def the_wheel() -> Path:
    """Return the wheel that was built."""
    return next(DIST.glob("*.whl"))
