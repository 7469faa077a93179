"""Writes the table of `docs/works-with.md`, in an environment that has all the packages:

python -m tests.interop.works_with
"""

import warnings

import jax

MODULE = "tests.interop.works_with"
PAGE = "works-with.md"

if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of the packages
    jax.config.update("jax_enable_x64", True)  # before the models are made

    from tests.interop.catalogue import CASES
    from tests.interop.check import COLUMNS, outcome
    from tests.interop.tables import write

    write(PAGE, MODULE, COLUMNS, [outcome(case) for case in CASES])
