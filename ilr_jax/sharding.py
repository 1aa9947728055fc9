"""Where tensors live: a mesh of devices, the logical axes of every weight, and one table of rules from the ones to the others.

Mesh axes: `data` splits rows, `fsdp` splits rows and weights, `tensor` splits heads, MLP and vocabulary. XLA's partitioner (GSPMD) does the
rest. No layout (None) means one device, and costs nothing. Not here: what is computed, and how many rows there are (`batches`, `engine`).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor")
NODE = 8  # devices with fast links between all of them
# Logical axes of a weight's last dimensions; leading ones (adapters, layers) are never split. Norms are whole everywhere.
KERNELS = {
    "q_proj": ("embed", "heads"),
    "k_proj": ("embed", "kv_heads"),
    "v_proj": ("embed", "kv_heads"),
    "o_proj": ("heads", "embed"),
    "gate_proj": ("embed", "mlp"),
    "up_proj": ("embed", "mlp"),
    "down_proj": ("mlp", "embed"),
}
WEIGHT = re.compile(r"(?:^|\.)(?:(?P<module>\w+_proj)\.(?P<part>kernel|a|b)|(?P<table>(?:embed|head)\.table))$")


def logical_axes(path: str, ndim: int) -> tuple[str | None, ...]:
    """The logical axis of each dimension of the weight at a dotted path, or of an optimiser's moment of it; None is never split."""
    found = WEIGHT.search(path)
    if found is None:
        return (None,) * ndim
    inputs, outputs = ("vocab", "embed") if found["table"] else KERNELS[found["module"]]
    last = {"a": (inputs, None), "b": (None, outputs)}.get(found["part"], (inputs, outputs))
    return (None,) * (ndim - 2) + last if ndim >= 2 else (None,) * ndim


@dataclass(frozen=True)
class Layout:
    """A mesh and its rules, logical axis -> mesh axes that split it; hashable, so that a program can be compiled for it."""

    mesh: Mesh
    rules: tuple[tuple[str, tuple[str, ...]], ...]

    def sharding(self, *names: str | None) -> NamedSharding:
        """How an array with these logical axes is split.

        In the form in which a compiled program gives it back: no mesh axes of size 1, nothing after the last axis that is split.
        """
        axes = [tuple(a for a in dict(self.rules).get(name or "", ()) if self.mesh.shape[a] > 1) or None for name in names]
        while axes and axes[-1] is None:
            axes.pop()
        return NamedSharding(self.mesh, PartitionSpec(*(a[0] if a and len(a) == 1 else a for a in axes)))

    def pieces(self, name: str) -> int:
        """Into how many pieces a logical axis is split."""
        return prod(self.mesh.shape[axis] for axis in dict(self.rules)[name])


def paths(tree: Any) -> Any:
    """The tree with each leaf's dotted path in its place: names of keys and fields, numbers of items."""
    part = lambda key: str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))
    return jax.tree_util.tree_map_with_path(lambda path, _: ".".join(map(part, path)), tree)


def shardings(layout: Layout, tree: Any) -> Any:
    """How each leaf of a tree of weights (or of a training state) is split. A factored moment, which lost an axis, is whole."""
    shapes = {path: leaf.shape for path, leaf in zip(jax.tree.leaves(paths(tree)), jax.tree.leaves(tree), strict=True)}
    kinds = {match[0]: shapes[path] for path in shapes if (match := WEIGHT.search(path)) and "opt_state" not in path}

    def one(path: str, leaf: Any) -> NamedSharding:
        match = WEIGHT.search(path)
        whole = match is None or kinds.get(match[0], leaf.shape) != leaf.shape
        return layout.sharding(*() if whole else logical_axes(path, leaf.ndim))

    return jax.tree.map(one, paths(tree), tree)


def constrain(layout: Layout | None, x: jax.Array, *names: str | None) -> jax.Array:
    """Inside a jitted function: `x`, split by these logical axes."""
    return x if layout is None else jax.lax.with_sharding_constraint(x, layout.sharding(*names))


def constrain_weights(layout: Layout | None, tree: Any) -> Any:
    """Inside a jitted function: a tree of weights or a training state, each leaf split as the rules say."""
    return tree if layout is None else jax.tree.map(jax.lax.with_sharding_constraint, tree, shardings(layout, tree))


def _placed(x: Any, sharding: NamedSharding) -> jax.Array:
    """Of several processes each has all of `x`, and puts what its own devices get; or `x` lies over all of them already."""
    if isinstance(x, jax.Array) and (sharding.is_fully_addressable or not x.is_fully_addressable):
        return jax.device_put(x, sharding)
    return jax.make_array_from_callback(np.shape(x), sharding, lambda index: np.asarray(x)[index])


def put_weights(layout: Layout | None, tree: Any) -> Any:
    """The tree on its devices, each leaf split as the rules say."""
    return jax.tree.map(jnp.asarray, tree) if layout is None else jax.tree.map(_placed, tree, shardings(layout, tree))


def put_rows(layout: Layout | None, batch: Any) -> Any:
    """A batch on its devices, split along the first axis of every array."""
    if layout is None:
        return jax.device_put(batch)
    return jax.tree.map(lambda x: _placed(x, layout.sharding("batch", *(None,) * (np.ndim(x) - 1))), batch)


def row_multiple(layout: Layout | None, groups: int = 1) -> int:
    """What the rows of each of `groups` equal groups have to be a multiple of, so that all rows together can be split evenly."""
    pieces = 1 if layout is None else layout.pieces("batch")
    return pieces // np.gcd(pieces, groups).item()


def choose(
    sizes: Mapping[str, int],
    rules: Mapping[str, str],
    needed: Sequence[Mapping[str, int]],
    weights: int,
    memory: int,
    devices: Sequence[Any] | None = None,
) -> Layout | None:
    """The layout that a config asks for, what it leaves open (0, "auto") chosen here for all models; None for one device.

    `sizes` of the mesh axes, 0: open. `needed`: for each model how many units each logical axis has (heads, not their width). `devices` are
    those of this machine, or described ones.
    Open: `tensor` times `fsdp` is the smallest divisor of the devices for which the largest model's training `weights` [bytes] take half
    of a device's `memory` [bytes]; of it `tensor` is as much as divides heads and MLP of all models, up to `NODE`, since weights split by
    `fsdp` are gathered for every token that is decoded; what is left is `data`. Raises ValueError for axes that do not divide what they
    split, or more devices than there are.
    """
    devices = jax.devices() if devices is None else devices
    mesh_sizes = _sizes(sizes, len(devices), needed, weights, memory)
    if jax.process_count() > 1 and prod(mesh_sizes.values()) < len(devices):
        raise ValueError(f"sharding: wanted a mesh of all {len(devices)} devices of the {jax.process_count()} processes, got {mesh_sizes}")
    if prod(mesh_sizes.values()) == 1:
        return None
    mesh = Mesh(_grid(tuple(mesh_sizes.values()), devices), MESH_AXES, axis_types=(AxisType.Auto,) * 3)
    table = {name: _rule(name, text, mesh_sizes, needed) for name, text in rules.items()}
    _check_disjoint(table)
    faults = [fault for model in needed for name, count in model.items() if (fault := _fault(name, count, table[name], mesh_sizes))]
    if faults:
        raise ValueError("\n  ".join(["the models cannot be split like this:", *dict.fromkeys(faults)]))
    return Layout(mesh, tuple(sorted(table.items())))


def _grid(shape: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
    """The devices of a mesh: all of them so that its axes lie along a TPU's links, `tensor` first; fewer in the order that they have."""
    if prod(shape) < len(devices):
        return np.array(devices[: prod(shape)]).reshape(shape)
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)


def _sizes(sizes: Mapping[str, int], devices: int, needed: Sequence[Mapping[str, int]], weights: int, memory: int) -> dict[str, int]:
    """The size of each mesh axis."""
    given = prod(size for size in sizes.values() if size)
    if devices % given if not all(sizes.values()) else given > devices:
        raise ValueError(
            f"sharding: wanted {' x '.join(f'{n}={s}' for n, s in sizes.items() if s)} to be at most, and with an open axis to divide, "
            f"the {devices} devices; got {given}; what divides them: {', '.join(str(n) for n in range(1, devices + 1) if devices % n == 0)}"
        )
    left = devices // given
    divides = lambda n, *names: all(model[name] % n == 0 for model in needed for name in names)
    tensors = [n for n in range(1, NODE + 1) if divides(n, "heads", "mlp")] if not sizes["tensor"] else [1]
    fsdps = [n for n in range(1, left + 1) if divides(n, "embed")] if not sizes["fsdp"] else [1]
    pairs = [(t, f) for t in tensors for f in fsdps if left % (t * f) == 0 and (not sizes["data"] or t * f == left)]
    pairs = pairs or [(1, 1 if sizes["fsdp"] else left)]  # which `choose` refuses, with what would work
    pieces = max(1, sizes["tensor"]) * max(1, sizes["fsdp"])
    enough = [pair for pair in pairs if weights / (prod(pair) * pieces) <= memory / 2]
    tensor, fsdp = min(enough, key=lambda pair: (prod(pair), pair[1])) if enough else max(pairs, key=lambda pair: (prod(pair), pair[0]))
    tensor, fsdp = sizes["tensor"] or tensor, sizes["fsdp"] or fsdp
    return {"data": sizes["data"] or devices // (fsdp * tensor), "fsdp": fsdp, "tensor": tensor}


def _rule(name: str, text: str, sizes: Mapping[str, int], needed: Sequence[Mapping[str, int]]) -> tuple[str, ...]:
    """The mesh axes that split a logical axis; `auto` is `tensor` where it divides every model's count."""
    if text == "auto":
        text = "tensor" if all(model[name] % sizes["tensor"] == 0 for model in needed) else ""
    axes = tuple(part.strip() for part in text.split(",") if part.strip())
    if unknown := [axis for axis in axes if axis not in MESH_AXES]:
        raise ValueError(f"sharding.rules.{name}: wanted some of {', '.join(MESH_AXES)}, or auto; got {', '.join(unknown)}")
    if len(set(axes)) < len(axes):
        raise ValueError(f"sharding.rules.{name}: wanted each axis once, got {text}")
    return axes


def _check_disjoint(table: Mapping[str, tuple[str, ...]]) -> None:
    """ValueError where two logical axes of one array would use one mesh axis."""
    together = [("embed", name, "weight") for name in ("heads", "kv_heads", "mlp", "vocab")]
    together += [("batch", name, "array") for name in ("heads", "kv_heads", "vocab")]
    for a, b, what in together:
        if both := [axis for axis in table[a] if axis in table[b]]:
            raise ValueError(f"sharding.rules: {a} and {b} split one {what}, so they cannot both use {', '.join(both)}")


def _fault(name: str, count: int, axes: tuple[str, ...], sizes: Mapping[str, int]) -> str | None:
    pieces = prod(sizes[axis] for axis in axes)
    if count % pieces == 0:
        return None
    works = ", ".join(str(n) for n in range(1, count + 1) if count % n == 0 and n <= 4 * pieces)
    return f"sharding.rules.{name}={','.join(axes)}: {count} cannot be split into {pieces} ({' x '.join(axes)}); what would work: {works}"
