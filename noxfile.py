"""What a user or a contributor runs: `nox -l` lists it, `nox -s NAME` does it, arguments go after `--`.

Only nox must be there before: each session installs what it needs, in the versions of constraints.txt. The
sessions that need torch share one environment, because installing torch is what takes time and disk.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.2"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["tests", "lint", "types", "docs"]

SHARED = Path(".nox", "lowft").absolute()
PYTHON = str(SHARED / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
CONSTRAINTS = ("--constraint", "constraints.txt")


def _requirements(*groups: str) -> tuple[str, ...]:
    """Return the requirements of dependency groups; pip itself reads them only since version 25.1."""
    return nox.project.dependency_groups(nox.project.load_toml("pyproject.toml"), *groups)


def _install(session: nox.Session, *groups: str, extras: str = "demo,openvino") -> None:
    """Install lowft with some of its extras, and dependency groups, into the shared environment."""
    arguments = [*CONSTRAINTS, *_requirements(*groups), "--editable", f".[{extras}]"]
    if Path(PYTHON).exists():
        arguments.append("--quiet")  # there is little to tell once torch is there
    else:
        session.run_install(sys.executable, "-m", "venv", "--clear", str(SHARED))
    session.run_install(PYTHON, "-m", "pip", "install", *arguments)


@nox.session(venv_backend="none")
def demo(session: nox.Session) -> None:
    """Fine-tune a real encoder on real reviews; options of the demo go after `--`."""
    _install(session, extras="demo")
    session.run(PYTHON, "-m", "lowft.demo", *session.posargs)


@nox.session(venv_backend="none")
def tests(session: nox.Session) -> None:
    """Run the tests and the examples in the docstrings, on up to four cores."""
    _install(session, "tests")
    workers = ("--numprocesses=auto", "--maxprocesses=4")  # tests/conftest.py shares out the tests
    session.run(PYTHON, "-m", "pytest", *workers, *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and layout; with `-- --fix`, mend what a machine can."""
    session.install(*CONSTRAINTS, *_requirements("lint"))
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", *(() if "--fix" in session.posargs else ("--diff",)))


@nox.session(venv_backend="none")
def types(session: nox.Session) -> None:
    """Check the types of the library, its tests and its scripts."""
    _install(session, "types")
    session.run(PYTHON, "-m", "mypy", *session.posargs)


@nox.session(venv_backend="none")
def docs(session: nox.Session) -> None:
    """Build docs/_build; a warning, a dead reference or an undocumented public name fails."""
    _install(session, "docs")
    for leftover in ("docs/_build", "docs/_generated"):  # a page of a name that is gone would still count
        shutil.rmtree(leftover, ignore_errors=True)
    strict = ("--fail-on-warning", "--keep-going", "--nitpicky")
    session.run(PYTHON, "-m", "sphinx", *strict, *session.posargs, "docs", "docs/_build")
    session.run(PYTHON, "docs/check_coverage.py", "docs/_build/objects.inv")


@nox.session(venv_backend="none")
def bench(session: nox.Session) -> None:
    """Run the benchmarks named after `--`; without a name, list them."""
    scripts = {path.stem: str(path) for path in sorted(Path("benchmarks").glob("[!_]*.py"))}
    known = ", ".join(scripts) or "none yet"
    if unknown := [name for name in session.posargs if name not in scripts]:
        session.error(f"There is no benchmark named {', '.join(unknown)}. There are: {known}")
    if not session.posargs:
        session.skip(f"Name the benchmarks to run: nox -s bench -- NAME [NAME ...]. There are: {known}")
    _install(session)
    for name in session.posargs:
        session.run(PYTHON, scripts[name])
