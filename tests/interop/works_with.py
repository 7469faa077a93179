"""Writes the table of `docs/works-with.md`, in an environment that has all the packages:

python -m tests.interop.works_with

With names of packages as arguments, only their rows are written anew.
"""

import sys
import warnings

import jax

MODULE = "tests.interop.works_with"
PAGE = "works-with.md"

if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of the packages
    jax.config.update("jax_enable_x64", True)  # before the models are made

    from tests.interop.catalogue import CASES
    from tests.interop.check import COLUMNS, outcome
    from tests.interop.tables import read, write

    rows = {row[:2]: row for row in read(PAGE, MODULE)}
    for case in CASES:
        if case.package in (sys.argv[1:] or [case.package]):
            rows[case.package, case.name] = outcome(case)
            known = [(c.package, c.name) for c in CASES]
            write(PAGE, MODULE, COLUMNS, [rows[name] for name in known if name in rows])
