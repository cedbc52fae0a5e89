"""Which modules that an alternative order moves have ranks that are independent of each other."""

from __future__ import annotations

from collections.abc import Sequence

MOVES = {"whole": (1, 2), "zero": (1,), "other": (1,)}
"""What an alternative moves of a module -> how many origins its moments then have."""


def independent(moved: Sequence[str | None], origins: Sequence[Sequence[int | None]]) -> list[int]:
    """Return the modules, in order, whose ranks are jointly independent and uniform if the alternative is the true order.

    Each module i has a gauge of its own. Its rank depends on that gauge and on those of the modules t that its moments come from: an edge
    i -> t. Without a cycle the modules can be put in a row, each behind its origins; given all gauges before it, its own is uniform, and so
    is its rank, whatever the others' are. So modules are left out until no cycle is left, by three rules fixed beforehand, of which the one
    that leaves most is taken: walking along the edges, depth first, every module that an edge leads back to while it is still on the way; or
    every module with an edge to one kept before it, from the last module to the first, or from the first to the last.

    Args:
        moved: for each module what the alternative moves: "whole", "zero", "other" (the factor whose moments are another's), or None.
        origins: for each module, which modules its moved moments belong to under the alternative; None is something that is no module of this
            adapter. "whole" may name two, where the two factors' moments come from different modules.

    Raises:
        ValueError: a module has origins that do not go with what is moved of it, or itself for one.
    """
    for module, (what, sources) in enumerate(zip(moved, origins, strict=True)):
        if what is not None and (len(sources) not in MOVES[what] or module in sources):
            raise ValueError(f"module {module} is moved ({what}), and its moments come from {list(sources)}")
    edges = [[] if what is None else [one for one in sources if one is not None] for what, sources in zip(moved, origins)]
    moving = [module for module, what in enumerate(moved) if what is not None]
    back = _ends_of_back_edges(edges)
    best = [module for module in moving if module not in back]
    for kept in (_downward(moving[::-1], edges), _downward(moving, edges)):
        best = kept if len(kept) > len(best) else best
    return sorted(best)  # which one is largest depends on the alternative alone, not on what was seen


def _downward(order: Sequence[int], edges: Sequence[Sequence[int]]) -> list[int]:
    """Return the nodes, in an order, that have no edge to one kept before them: among those kept all edges then lead one way."""
    kept: set[int] = set()
    for node in order:
        if not kept.intersection(edges[node]):
            kept.add(node)
    return list(kept)


def _ends_of_back_edges(edges: Sequence[Sequence[int]]) -> set[int]:
    """Return the nodes that a depth-first walk in order meets again while they are on its way; without them the graph has no cycle."""
    found: set[int] = set()
    done: set[int] = set()
    for start in range(len(edges)):
        way: dict[int, int] = {}  # node -> next edge to follow; in the order of the walk
        if start not in done:
            way[start] = 0
        while way:
            node, at = way.popitem()
            if at == len(edges[node]):
                done.add(node)
                continue
            way[node] = at + 1
            follow = edges[node][at]
            if follow in way:
                found.add(follow)
            elif follow not in done:
                way[follow] = 0
    return found
