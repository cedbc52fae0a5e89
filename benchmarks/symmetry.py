"""Draw what the proof rests on: one module with its own moments and with another's, and how all 384 gauges fit.

python benchmarks/symmetry.py        # seconds; writes docs/pictures/symmetry.svg
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from ostate.evidence import gauge  # noqa: E402
from tests.evidence.small_runs import products, train  # noqa: E402

RANK = 4
ROWS = (("its own moments", 0), ("another module's moments", 1))


def main() -> None:
    """Train two small modules on shared data and draw both pairings of the first one's weights."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "ostate"
    import matplotlib.pyplot as plt

    runs = train(np.random.default_rng(6), 2, RANK, steps=10, shared=0.9)
    figure, axes = plt.subplots(2, 4, figsize=(11, 5), width_ratios=(1, 1, 1, 1.9))
    for line, (whose, origin) in zip(axes, ROWS):
        pair = products(runs._replace(**{name: getattr(runs, name)[:1] for name in ("a", "b")}).moments_of(np.array([origin])))
        for axis, matrix, title in zip(line, (pair.displacement[0], pair.left[0], pair.right[0]), ("D = -BᵀuB", "L = BᵀmB", "R = mA Aᵀ")):
            largest = np.abs(matrix).max()
            axis.imshow(matrix, cmap="RdBu_r", vmin=-largest, vmax=largest)
            axis.set(xticks=[], yticks=[], title=title)
        line[0].set_ylabel(whose)
        scaled = gauge._scaled(pair)
        values = gauge._whole(scaled, gauge._group(RANK, False))[0]
        ((found,),) = gauge.whole(pair)
        line[3].hist(values, bins=40, color="#9db8d6")
        line[3].axvline(values[0], color="#b5382a")
        line[3].set_title(f"as it stands: rank {found.rank} of {found.size}", color="#b5382a", fontsize=10)
        line[3].set(yticks=[], xlabel="fit, over all 384 gauges of the moments")
    figure.tight_layout()
    figure.savefig(ROOT / "docs" / "pictures" / "symmetry.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
