"""The models of braintrace's own tests, under the rules of `etpc`.

These tests are in its source distribution and not in its wheel. `make .venv-peer/.peer` unpacks that into the
environment, and the variable `BRAINTRACE_SOURCE` says where else it is; nothing of it is in this repository. A model is
a class, a function that makes one, or an entry of a table of such, found by name in the text of a module.
`tests/peer/test_their_models.py` runs them; this writes the table of `docs/migration.md`:

    python -m tests.peer.their_models
"""

import ast
import importlib
import importlib.util
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from typing import Any, NamedTuple

warnings.simplefilter("ignore")  # of the packages
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import brainstate  # noqa: E402
import braintrace  # noqa: E402  (importing it turns 64 bits off)
import equinox as eqx  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

jax.config.update("jax_enable_x64", True)

import etpc  # noqa: E402
from etpc import interop  # noqa: E402
from tests import helpers  # noqa: E402
from tests.helpers import compiled, loss  # noqa: E402
from tests.zoo.check import online, targets_of  # noqa: E402

T = 4
SOURCE = Path(os.environ.get("BRAINTRACE_SOURCE") or Path(sys.prefix, "source"))
MODULE, PAGE = "tests.peer.their_models", "migration.md"
COLUMNS = ("module", "model", "parameters", "states", "RTRL", "D-RTRL", "SnAp(2)")


# --- their modules --------------------------------------------------------------------------------


def why_not() -> str | None:
    """Why they cannot run: the source is not there, or is of another version than the package."""
    if not (about := SOURCE / "PKG-INFO").is_file():
        return f"no source of braintrace in {SOURCE}, where `make .venv-peer/.peer` puts it"
    if f"\nVersion: {braintrace.__version__}\n" not in about.read_text():
        return f"the source in {SOURCE} is not of braintrace {braintrace.__version__}"
    return None


class _Loader(SourceFileLoader):
    """A module of theirs, with float64 in the place of float32."""

    def get_code(self, fullname: str) -> Any:
        return compile(Path(self.path).read_text().replace("float32", "float64"), self.path, "exec")


class _Finder:
    """Finds their tests, and what these import of others, in the source; all else is that of the installed package."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        inside = Path(*name.split("."))
        if inside.parts[0] != "braintrace" or not _is_of_tests(inside):
            return None
        place = SOURCE / inside
        folder = [str(place)] if place.is_dir() else None
        file = place / "__init__.py" if folder else place.with_suffix(".py")
        spec = ModuleSpec(
            name, _Loader(name, str(file)) if file.is_file() else None, origin=str(file)
        )
        spec.has_location = spec.loader is not None
        spec.submodule_search_locations = folder
        return spec


def _is_of_tests(inside: Path) -> bool:
    return inside.stem.endswith("_test") or not {"_testing", "tests"}.isdisjoint(inside.parts)


def their_module(name: str) -> Any:
    """A module of the source, by its name inside of `braintrace`."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    return importlib.import_module(f"braintrace.{name}")


# --- their models ---------------------------------------------------------------------------------

SIZE = 4
ARGUMENTS: dict[str, Any] = {
    "cls": braintrace.ETraceParam,
    "kind": "mixed",
    "make_layer": lambda: braintrace.nn.SignedWLinear(2 + 4, 4),
    "mode": "leak",
    "neuron": "ALIF",
    "readout_scale": 1.0,
    "use_fast_variance": False,
    "weight_fn": jnp.tanh,
}
"""What they are made with, by the names of parameters without a default; all others are sizes."""

TOKEN = jax.ShapeDtypeStruct((), jnp.int32)
INPUTS: dict[str, Any] = {
    "_Conv1dMiniGRUNet": (3, 1),
    "_ConvRNN": (1, 1, 4, 4),
    "_conv_default_factory": (1, 2, 8),
    "_conv_nwc_bias_factory": (1, 8, 2),
    "_einsum_shared_axis_factory": (1, 2, 3),
    "_leaky_embedding_factory": TOKEN,
    "_make_conv_ln_net": (6, 6, 2),
    "_make_mixed_net": (6, 6, 2),
    "_make_net": (6, 6, 2),
    "_tanh_embedding_rnn_factory": TOKEN,
    "MixedBatchedRNN": [(4,), (2, 4)],
}
"""The shapes of inputs that are no vectors."""

NO_NETWORKS = {
    "_ExpCo_Dense_Layer": "the base of two others",
    "_NestingLevel": "a wrapper of another",
    "_scan_model_jaxpr": "makes a jaxpr",
    "_snn_spec": "makes what other functions name",
    "SimpleModule": "has no state",
    "TestConv2dBiasGradient._run_test": "a test",
}

WITHOUT_UNITS = "_algorithm.tests.conv_vmap_correctness_test"
"""The module whose neurons have no units, and need a step without one."""

REFUSED = {
    "_compiler.module_info_test._Outer": "A step writes the parameter",
    "_compiler.module_info_test._PlasticNet": "A step writes the parameter",
}
"""The models that are refused, and what the error says."""


class Found(NamedTuple):
    """A model, by its module and its name there."""

    module: str
    name: str

    @property
    def id(self) -> str:
        return f"{self.module}.{self.name}"

    @property
    def maker(self) -> Callable[..., Any]:
        """What makes it: a class, a function or a method of a class of tests."""
        found: Any = their_module(self.module)
        for part in self.name.split("."):
            found = found[part] if isinstance(found, dict) else getattr(found, part)
            if isinstance(found, type) and not issubclass(found, brainstate.nn.Module):
                found = found()  # a class of tests
        return found


NO_GRADIENT = {
    "_algorithm.tests.while_support_test._WeightInWhileNet": "its state stays zero",
    **dict.fromkeys(
        (
            "_compiler.hidden_group_test.WhileInputProjCell",
            "_compiler.hidden_group_test.WhileJitMixingCell",
            "_compiler.hidden_group_test.WhileMixingCell",
            "_compiler.hidden_group_test.WhileSettleCell",
        ),
        "it has no parameter",
    ),
}
"""Models without a gradient to compare, and why."""


def found_models() -> list[Found]:
    """All of them; none where the source is not there."""
    package, found = SOURCE / "braintrace", list[Found]()
    files = (file.relative_to(package) for file in sorted(package.rglob("*.py")))
    for file in filter(_is_of_tests, files):
        module = ".".join(file.with_suffix("").parts)
        names = _names(ast.parse((package / file).read_text()).body)
        found += [Found(module, name) for name in names]
    kept = (model for model in found if model.name not in NO_NETWORKS)
    return [model for model in kept if model.id not in NO_GRADIENT]


def _names(body: list[ast.stmt], inside: str = "") -> Iterator[str]:
    """Of the classes of models in a module or a class of tests, of functions that have such a class, or return a
    `ModelSpec`, and of the entries of a table `_MODELS`."""
    for node in body:
        match node:
            case ast.ClassDef() if _is_model(node):
                yield inside + node.name
            case ast.ClassDef() if not inside:
                yield from _names(node.body, f"{node.name}.")
            case ast.FunctionDef() if not node.name.startswith("test"):
                returns = node.returns and ast.unparse(node.returns)
                if returns == "ModelSpec" or any(map(_is_model, ast.walk(node))):
                    yield inside + node.name
            case ast.Assign(targets=[ast.Name(id="_MODELS")], value=ast.Dict(keys=keys)):
                yield from (f"_MODELS.{ast.literal_eval(key)}" for key in keys if key)


def _is_model(node: ast.AST) -> bool:
    bases = [ast.unparse(base) for base in getattr(node, "bases", ())]
    return any(base.startswith("brainstate.nn.") or base.endswith("_Dense_Layer") for base in bases)


def _arguments(function: Callable[..., Any]) -> list[Any]:
    signature = inspect.signature(function.__init__ if isinstance(function, type) else function)
    return [
        ARGUMENTS.get(p.name, SIZE)
        for p in signature.parameters.values()
        if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "self"
    ]


def build(found: Found) -> tuple[Any, Any]:
    """The model, and a sequence of inputs. **Raises** an error of one of the inputs that were tried."""
    environment = {"dt": 1.0} if found.module == WITHOUT_UNITS else {}
    first: Exception | None = None
    vectors = [(*lead, n) for lead in ((), (1,), (2,)) for n in (4, 3, 2, 5, 6, 1)]
    for shape in [INPUTS[found.name]] if found.name in INPUTS else vectors:
        for batch_size in (None, 1):
            try:
                with brainstate.environ.context(**environment):
                    return _build(found, shape, batch_size)
            except Exception as error:
                first = error if first is None or isinstance(error, etpc.EtpcError) else first
    assert first is not None
    raise first


def _build(found: Found, shape: Any, batch_size: int | None) -> tuple[Any, Any]:
    brainstate.random.seed(0)
    module, scale = found.maker, 1.0
    while not isinstance(module, brainstate.nn.Module):
        scale = getattr(module, "input_scale", scale)
        module = getattr(module, "factory", module)
        module = module(*_arguments(module))
        module = module[0] if isinstance(module, tuple) else module
    brainstate.nn.init_all_states(module, batch_size=batch_size)
    if shape is TOKEN:
        xs: Any = jnp.arange(T) % 3
    elif isinstance(shape, list):
        xs = [helpers.normal(T, *part) for part in shape]
    else:  # positive, as theirs are, so that neurons fire
        xs = scale * jnp.abs(helpers.normal(T, *shape))
    call = (lambda module, x: module(*x)) if isinstance(shape, list) else None
    return interop.from_brainstate(module, jax.tree.map(lambda a: a[0], xs), call=call), xs


# --- their gradients ------------------------------------------------------------------------------


def _exact(model: Any, *sequence: Any) -> Any:
    """The gradient by BPTT, or in forward mode where a loop of unknown length has no reverse mode."""
    try:
        return helpers.bptt(model, *sequence)
    except ValueError as error:
        if "Reverse-mode differentiation" not in str(error):
            raise
    floats, rest = eqx.partition(model, eqx.is_inexact_array)
    loss_of = lambda floats: helpers.loss_of_sequence(eqx.combine(floats, rest), *sequence)
    return jax.jacfwd(loss_of)(floats)


def row(found: Found) -> tuple[str, ...]:
    """The row of a model in the table. **Raises** `AssertionError` where a gradient is wrong."""
    try:
        model, xs = build(found)
        rules = etpc.RTRL(window=2), etpc.D_RTRL(window=2), etpc.SnAp(2)
        one = jax.tree.map(lambda a: a[0], xs)
        programs = [etpc.compile(model, rule, inputs=one, weights="all") for rule in rules]
    except etpc.EtpcError as error:
        if REFUSED.get(found.id, "none") not in str(error):
            raise
        return found.module, found.name, "", "", "refused", "", ""
    assert found.id not in REFUSED, "it is taken now: leave it out of the list"

    def gradients(model: Any, xs: Any) -> Any:
        exact = _exact(model, xs, targets_of(xs), model.init_state())
        return exact, [online(program, model, xs, loss) for program in programs]

    exact, of_rules = compiled(gradients, model, xs)
    exact = jax.tree.leaves(exact)
    sizes = [np.max(np.abs(g), initial=0.0) for g in exact]
    assert np.all(np.isfinite(sizes))
    assert max(sizes) > 1e-9, "the model is dead"
    counts = []
    for program, grads in zip(programs, of_rules, strict=True):
        right = [claim.holds_exactly for claim in program.claims.values()]
        for holds, size, *gradients in zip(
            right, sizes, jax.tree.leaves(grads), exact, strict=True
        ):
            if holds:
                error = np.max(np.abs(gradients[0] - gradients[1]), initial=0.0)
                assert error <= 1e-11 * size + 1e-14 * max(sizes), (program.algorithm, error, size)
        counts.append("all" if all(right) else f"{sum(right)} of {len(right)}")
    states = programs[0].plan.analysis.transition.shape[0]
    assert counts[0] == "all"
    return found.module, found.name, str(len(exact)), str(states), "equal", *counts[1:]


if __name__ == "__main__":
    from tests.interop.brainstate_zoo import in_64_bits
    from tests.interop.tables import write

    with in_64_bits():
        write(PAGE, MODULE, COLUMNS, [row(found) for found in found_models()])
