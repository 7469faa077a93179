"""`python -m tests.replay`: write the file of programs anew."""

import jax

from tests.replay.programs import FILE, NAMES, RELEASE, same_release, sections

if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    assert same_release(), f"the file is of JAX {RELEASE}"
    found = [f"## {head}\n{text}\n" for name in NAMES for head, text in sections(name)]
    FILE.write_text("\n".join(found))
