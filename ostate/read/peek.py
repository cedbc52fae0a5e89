"""One safe look at a path, shared by all readers: names in a folder, or what a file holds, each read at most once."""

from __future__ import annotations

import os
from functools import cached_property

from ostate.core import names_list
from ostate.core.files import is_folder, is_remote, names_in, parent, read_at, size_of
from ostate.core.tensors import TensorRef

from .checkpoint_folder import checkpoint_folder, facts_of
from .container.torchsave import Stored, load, starts_as_legacy


class Peek:
    """A file or folder, looked into without running anything of it. Everything is read when first asked for."""

    def __init__(self, path: str, asked: str | None = None) -> None:
        self.path = path
        self.asked = path if asked is None else asked
        """The path that the person gave."""

    @cached_property
    def is_folder(self) -> bool:
        """True for a folder."""
        return is_folder(self.path)

    @property
    def place(self) -> str:
        """The folder, or the folder that the file lies in."""
        return self.path if self.is_folder else parent(self.path) if is_remote(self.path) else os.path.dirname(self.path) or "."

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What lies in the folder, sorted; nothing for a file."""
        return tuple(names_in(self.path)) if self.is_folder else ()

    @cached_property
    def head(self) -> bytes:
        """The first 512 bytes of a file; nothing for a folder."""
        return b"" if self.is_folder else read_at(self.path, 0, min(512, size_of(self.path)))

    @property
    def is_torch(self) -> bool:
        """True when the file starts as torch.save's do."""
        return self.head[:4] == b"PK\3\4" or starts_as_legacy(self.head)

    @cached_property
    def stored(self) -> Stored:
        """What the torch.save file holds.

        Raises:
            ReadError: it is none, or damaged.
            UnsafePickle: it asks for something that no checkpoint needs.
        """
        return load(self.path, unknown_classes=True, digest=False)

    @property
    def value(self) -> object:
        """The plain data of a torch.save file; None for anything else."""
        return self.stored.value if self.is_torch else None

    @property
    def keys(self) -> frozenset[str]:
        """Top-level keys of a torch.save file."""
        return frozenset(key for key in self.value if type(key) is str) if type(self.value) is dict else frozenset()

    @cached_property
    def header(self) -> tuple[dict[str, TensorRef], dict[str, str]]:
        """Tensors and metadata of a safetensors file; empty for anything else."""
        if self.is_folder or self.head[8:9] != b"{":
            return {}, {}
        from ostate.core.safetensors import read_head  # json, which inspect of a torch file needs not

        head = read_head(self.path)
        return head.tensors, head.metadata

    @cached_property
    def facts(self) -> dict[str, object]:
        """What the checkpoint folder's small files say."""
        return facts_of(checkpoint_folder(self.place))

    @cached_property
    def names_file(self) -> tuple[str, list[list[str]]] | None:
        """File name and names by group, of a names file beside the state; None where there is none.

        Raises:
            ReadError: it is no list of names.
        """
        path = names_list.names_file_in(self.place)
        if path is None:
            return None
        return os.path.basename(path), names_list.read_names(path, fix="remove the file, or write one list of names for each parameter group")
