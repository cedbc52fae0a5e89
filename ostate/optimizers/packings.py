"""Ways in which moments are packed into few bits, and what that costs. `read.quantized` unpacks them."""

from __future__ import annotations

from typing import NamedTuple


class Packing(NamedTuple):
    """What is known of one packing."""

    text: str
    bits: int
    block: int | None
    """Elements a block in the library's default; None: the whole tensor."""
    relative_error: float
    """Of v, |decoded - true| / true: the median over the elements after a hundred steps, each of which unpacks and packs again."""
    source: str
    caution: str = ""
    """What the packing does beside rounding."""

    @property
    def cost(self) -> str:
        """The block size and what a person must expect of v, for a message."""
        size = "one scale a tensor" if self.block is None else f"blocks of {self.block}"
        return f"{size}, v off by about {self.relative_error:.0%}" + (f", {self.caution}" if self.caution else "")


PACKINGS: dict[str, Packing] = {
    "bitsandbytes-8bit": Packing(
        text="bitsandbytes, 8 bits, a scale for each block", bits=8, block=256, relative_error=0.06, source="bitsandbytes/functional.py",
    ),
    "bitsandbytes-8bit-tensor": Packing(
        text="bitsandbytes, 8 bits, one scale for the tensor", bits=8, block=None, relative_error=0.07,
        source="bitsandbytes 0.42, optim/optimizer.py",
    ),
    "torchao-8bit": Packing(text="torchao, 8 bits", bits=8, block=256, relative_error=0.06, source="torchao/optim/subclass_8bit.py"),
    "torchao-4bit": Packing(
        text="torchao, 4 bits", bits=4, block=128, relative_error=1.0, source="torchao/optim/subclass_4bit.py",
        caution="no v comes out below 1/16 of the largest in its block of 128",
    ),
    "torchao-fp8": Packing(text="torchao, 8-bit floats", bits=8, block=256, relative_error=0.08, source="torchao/optim/subclass_fp8.py"),
    "auto8bit": Packing(
        text="ai-toolkit, 8 bits, one scale for the tensor", bits=8, block=None, relative_error=1.0, source="toolkit/optimizers/optimizer_utils.py",
        caution="every v below 1/254 of the largest in its tensor is zero",
    ),
}  # fmt: skip
"""By `Slot.encoding`; `plain` slots need none."""
