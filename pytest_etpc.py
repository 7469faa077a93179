"""The plugin of pytest: `pytest --etpc-claims=claims.json` fails where a claim got worse.

It is outside the package, as pytest loads it before a project's own settings of JAX; `etpc` is imported when a claim is
checked.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.getgroup("etpc").addoption(
        "--etpc-claims",
        metavar="FILE",
        help="fail where a claim of a model is worse than this file says, which `etpc claims` writes",
    )


def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Add a test for each model of the file."""
    if file := config.getoption("--etpc-claims"):
        path = Path(config.invocation_params.dir, file)
        if not path.is_file():
            raise pytest.UsageError(f"--etpc-claims {file}: there is no such file")
        items.extend(ClaimsFile.from_parent(session, path=path).collect())


class WorseClaims(Exception):
    """A claim got worse."""


class ClaimsFile(pytest.File):
    """A file of claims."""

    def collect(self) -> Iterator["ModelClaims"]:
        from etpc.testing import read_claims

        try:
            models = read_claims(self.path)
        except ValueError as error:
            raise pytest.UsageError(str(error)) from error
        for target, entry in models.items():
            yield ModelClaims.from_parent(self, name=target, entry=entry)


class ModelClaims(pytest.Item):
    """The claims of one model."""

    def __init__(self, *, entry: dict[str, Any], **options: Any):
        super().__init__(**options)
        self.entry = entry

    def runtest(self) -> None:
        from etpc.cli import claims_of
        from etpc.testing import worse_claims

        folder = os.fspath(self.config.invocation_params.dir)
        if folder not in sys.path:
            sys.path.insert(0, folder)  # as for `etpc claims`
        options = ("algo", "inputs", "seed", "memory")
        found = claims_of(self.name, **{n: self.entry[n] for n in options if n in self.entry})
        if worse := worse_claims(self.entry, found):
            raise WorseClaims("\n".join(worse))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        if isinstance(excinfo.value, WorseClaims):
            command = f"etpc claims {self.name} -o {self.path.name}"
            return f"{excinfo.value}\nIf that is meant, write the file anew: {command}"
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, f"claims of {self.name}"
