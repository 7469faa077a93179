"""A learner over a mesh of devices."""

import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.tree_util import keystr, tree_flatten_with_path

from ..errors import InputError, InputTypeError, UnsupportedError
from ..run import Carry, Online, UpdateArguments
from ..trace import is_key
from ._streams import Alike, updates
from ._units import Axis, Units

# HLO: a `dot` of a window begins when all units' values are gathered. By default XLA splits it into a ring of
# `collective-permute`s and partial products: for 16,384 units on 16 chips, 3.4x the cycles and 14x the temporary bytes.
WHOLE_PRODUCTS = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": 1 << 20}


class _Arguments(NamedTuple):
    """What the compiled part of `update` gets."""

    others: Any
    start: Any
    data: Any
    by_update: Array | None
    examples: int
    """B, without those that fill the batch up."""

    to_give_away = UpdateArguments.to_give_away


class OverMesh(Alike):
    """A learner over a mesh of devices, with the methods of [`etpc.Online`][]. Made by [`over`][etpc.Online.over].

    - `mesh`: the devices.
    - `streams`: the axis of the mesh along which devices have streams of their own; `None` for none.
    - `hidden`: the axis along which they have hidden units of their own; `None` for none.
    """

    def __init__(self, learner: Online, mesh: Mesh, streams: str | None, hidden: str | None):
        super().__init__(learner)
        self.mesh = Mesh(
            mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names)
        )
        self.streams, self.hidden = streams, hidden
        on_tpu = hidden and mesh.devices.flat[0].platform == "tpu"
        options: Any = WHOLE_PRODUCTS if on_tpu else None
        jit = functools.partial(
            jax.jit, self._over_mesh, static_argnums=5, compiler_options=options
        )
        self._jit_updates = jit(), jit(donate_argnums=2)
        self._units = Units(self.program, mesh.shape[hidden] if hidden else 1)

    def __repr__(self) -> str:
        of = f"{self.program.algorithm}, {dict(self.mesh.shape)}"
        return f"OverMesh({of}, streams={self.streams!r}, hidden={self.hidden!r})"

    def init(self, model: Any, batch_size: int | None = None) -> tuple[Any, Any]:
        """The state of the optimizer, and a fresh carry, on the devices that hold them.

        **Arguments:** as those of [`Online.init`][etpc.Online.init]. With `streams`, a carry has as many examples as
        fill all devices evenly; those after the first `batch_size` learn nothing.

        **Returns** `(opt_state, carry)`. No device ever has the whole of either.
        """
        if batch_size is not None and self.streams:
            batch_size = -(-batch_size // self._devices) * self._devices
        arrays, rest = eqx.partition(model, eqx.is_array)
        fresh = lambda arrays: super(OverMesh, self).init(eqx.combine(arrays, rest), batch_size)
        opt_state, carry = eqx.filter_eval_shape(fresh, arrays)
        self._check(carry)
        shardings = self._of_optimizer(opt_state), self._of_carry(carry)
        return jax.jit(fresh, out_shardings=shardings)(arrays)

    def place(self, model: Any) -> Any:
        """A model on the devices that hold it: whole on each, or with `hidden` each layer by its units.

        **Returns** it; `update` does the same to a model that is elsewhere.
        """
        leaves, treedef = jax.tree.flatten(model)
        placed = self._put(self._leaves.split(model), self._of_parameters())
        for place, array in zip(self._leaves.places, placed, strict=True):
            leaves[place] = array
        return jax.tree.unflatten(treedef, leaves)

    # --- arguments ---

    def _arguments(
        self,
        model: Any,
        opt_state: Any,
        carry: Any,
        xs: Any,
        targets: Any,
        mask: Any = None,
        begins: Any = None,
    ) -> Any:
        """Those of the compiled part, checked, filled up and on their devices."""
        self.program.arguments.check_carry(carry)
        self._check(carry)
        leaves = jax.tree.leaves(xs)
        examples = jnp.shape(leaves[0])[1] if carry.batched and jnp.ndim(leaves[0]) > 1 else 1
        missing = len(carry.fresh) - examples if carry.batched and self.streams else 0
        if 0 < missing < self._devices:
            # The last example again: finite, and in the domain of the model, where that one is.
            fill = lambda a: jnp.concatenate([a, *[jnp.asarray(a)[:, -1:]] * missing], 1)
            xs, targets, begins = jax.tree.map(fill, (xs, targets, begins))
            mask = jnp.ones(jnp.shape(leaves[0])[:2], bool) if mask is None else jnp.asarray(mask)
            mask = jnp.pad(mask, ((0, 0), (0, missing)))
        found = super()._arguments(model, opt_state, carry, xs, targets, mask, begins)
        parameters = self._of_parameters()
        others = self._leaves.replaced(parameters, [None] * len(self._leaves.floats))
        by_step = self._on(*((None, self.streams) if carry.batched else ()))
        spread = lambda tree: jax.tree.map(lambda _: by_step, tree)
        shardings = others, self._of_start(found.start), *map(spread, (found.data, found.by_update))
        others, start, data, by_update = self._put((*found,), shardings)
        return _Arguments(others, start, data, by_update, examples if self.streams else 1)

    def _check(self, carry: Carry) -> None:
        if not self.streams:
            return
        if not carry.batched:
            raise InputError(
                "The carry has no batch axis, and streams are laid over the axis "
                f"{self.streams!r} of the mesh. Pass `batch_size=` to `init`, or streams=None."
            )
        if len(carry.fresh) % self._devices:
            raise InputError(
                f"The carry has {len(carry.fresh)} examples, which {self._devices} devices do not share evenly. "
                f"Join {-len(carry.fresh) % self._devices} more, by `etpc.join_streams`, or begin anew by `init` of "
                "this learner, which fills the batch up."
            )
        if carry.shared:
            raise UnsupportedError(
                f"{self.program.algorithm} carries directions that all examples share, and devices with streams of "
                "their own would each follow others. Shard the arguments of `update` instead, which `jax.jit` follows."
            )

    @property
    def _devices(self) -> int:
        """How many share the streams."""
        return self.mesh.shape[self.streams]

    # --- shardings ---

    def _on(self, *axes: Any) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(*axes))

    def _by_unit(self, axis: Axis, *first: Any) -> NamedSharding:
        """That of an array with units along an axis, and along the first ones what `first` says."""
        if axis is None or axis < 0 or not self.hidden:
            return self._on(*first)
        return self._on(*first, *[None] * (axis - len(first)), self.hidden)

    def _of_parameters(self) -> list[NamedSharding]:
        return [self._by_unit(axis) for axis in self._axes]

    @functools.cached_property
    def _axes(self) -> list[Axis]:
        return self._units.of_parameters() if self.hidden else [None] * len(self._leaves.avals)

    def _of_optimizer(self, opt_state: Any) -> Any:
        """Moments lie as their parameters do: their paths end alike."""
        leaves = self._leaves
        tree = leaves.tree_of_floats([leaves.avals[i] for i in leaves.floats])
        found = tree_flatten_with_path(tree)[0]
        axes = [self._axes[i] for i in leaves.floats]
        ends = [(keystr(path), a.shape, axis) for (path, a), axis in zip(found, axes, strict=True)]

        def of(path: Any, a: Any) -> NamedSharding:
            matches = [
                (len(end), axis)
                for end, shape, axis in ends
                if shape == jnp.shape(a) and keystr(path).endswith(end)
            ]
            longest = max(matches, key=lambda match: match[0], default=(0, None))
            return self._by_unit(longest[1])

        return jax.tree_util.tree_map_with_path(of, opt_state)

    def _of_carry(self, carry: Carry) -> Any:
        first = (self.streams,) if carry.batched else ()
        if not self.hidden:
            return jax.tree.map(lambda _: self._on(*first), carry)
        return jax.tree.map(lambda axis: self._by_unit(axis, *first), self._units.of_carry(carry))

    def _of_start(self, start: Any) -> Any:
        """Those of what an update changes."""
        parameters = self._of_parameters()
        return start._replace(
            floats=[parameters[i] for i in self._leaves.floats],
            opt_state=self._of_optimizer(start.opt_state),
            carry=self._of_carry(start.carry),
        )

    def _put(self, tree: Any, shardings: Any) -> Any:
        """Arrays on their devices; shapes with their shardings."""

        def put(a: Any, sharding: NamedSharding) -> Any:
            if isinstance(a, Tracer):
                raise UnsupportedError(
                    "A learner over a mesh compiles its updates by itself, and cannot be called inside of `jax.jit` or "
                    "`jax.vmap`. Call it outside of these; map the learner that it was made from."
                )
            if isinstance(a, jax.ShapeDtypeStruct):
                return jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding)
            local = isinstance(a, Array) and a.is_fully_addressable and not is_key(a)
            if local and not sharding.is_fully_addressable:
                a = np.asarray(a)  # JAX 0.10 makes arrays of it whose shards cannot be read
            return jax.device_put(a, sharding)

        return jax.tree.map(put, tree, shardings)

    # --- the compiled part ---

    def _over_mesh(
        self, loss: Any, others: Any, start: Any, data: Any, by_update: Any, examples: int
    ) -> Any:
        arguments = loss, others, start, data, by_update
        if self.streams and self._devices > 1:  # XLA refuses one device with hidden units beside it
            after = updates(self, self.mesh, self.streams, examples, arguments)
            trained, losses, *by_example = after
            if len(start.carry.fresh) > examples:
                by_example = jax.tree.map(lambda a: a[:, :examples], by_example)
            aux, left_out = by_example
        else:
            trained, losses, aux, left_out = self._updates(*arguments)
        if self.hidden:
            trained = jax.lax.with_sharding_constraint(trained, self._of_start(trained))
        return trained, losses, aux, left_out


def over(learner: Online, mesh: Any, streams: Any, hidden: Any) -> OverMesh:
    """The implementation of [`Online.over`][etpc.Online.over]."""
    if not isinstance(mesh, Mesh):
        raise InputTypeError(
            f"mesh is a {type(mesh).__name__}. Pass a `jax.sharding.Mesh`, such as "
            '`jax.make_mesh((jax.device_count(),), ("batch",))`.'
        )
    for name, axis in {"streams": streams, "hidden": hidden}.items():
        if axis is not None and axis not in mesh.axis_names:
            raise InputError(
                f"{name} is {axis!r}, and the mesh has the axes {list(mesh.axis_names)}. Name one of these, or None."
            )
    if streams == hidden:
        raise InputError(
            f"streams and hidden are both {streams!r}. Name two axes of the mesh, or None for one of them."
        )
    return OverMesh(learner, mesh, streams, hidden)
