"""What kind of file this is, by its first bytes alone: what people give in place of a state, an adapter or a named file, by a mistake."""

from __future__ import annotations

_AGAIN = "the download or the copy went wrong: fetch the file again"
_STARTS: tuple[tuple[bytes, str, str], ...] = (
    # first bytes, what it is, what to do
    (b"version https://git-lfs.github.com/spec/", "a git-lfs pointer: the file itself was never downloaded", "git lfs pull"),
    (b"# xet version", "a pointer to a file of Xet storage: the file itself was never downloaded", "download it with huggingface_hub"),
    (b"PK\3\4", "a zip archive, as torch.save writes", ""),
    (b"\x80", "a pickle, as torch.save wrote until 2020", ""),
    (b"\x1f\x8b", "compressed with gzip", "gunzip it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "unzstd it first"),
    (b"\xfd7zXZ\0", "compressed with xz", "unxz it first"),
    (b"BZh", "compressed with bzip2", "bunzip2 it first"),
    (b"\x04\x22\x4d\x18", "compressed with lz4", "unlz4 it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first, and give what was in it"),
    (b"Rar!", "a RAR archive", "unpack it first, and give what was in it"),
    (b"\x93NUMPY", "a numpy array (.npy)", ""),
    (b"\x89HDF\r\n", "an HDF5 file", ""),
    (b"GGUF", "a model in llama.cpp's GGUF format, which keeps no optimizer state", ""),
    (b"PAR1", "a Parquet table", ""),
    (b"ARROW1", "an Arrow table", ""),
    (b"\x7fELF", "a program", ""),
    (b"%PDF", "a PDF document", ""),
    (b"SQLite format 3\0", "a SQLite database", ""),
)
_TEXTS: tuple[tuple[bytes, str, str], ...] = (
    # the same for texts: lower case, after spaces
    (b"<!doctype html", "a web page, saved in place of the file", _AGAIN),
    (b"<html", "a web page, saved in place of the file", _AGAIN),
    (b"<?xml", "an XML document: a server's answer, saved in place of the file", _AGAIN),
    (b"<error", "a server's error, saved in place of the file", _AGAIN),
    (b"{", "JSON text", ""),
    (b"[", "JSON text", ""),
)
_CONTROL = frozenset(range(32)) - frozenset(b"\t\n\r\f\x1b")


def kind_of_head(head: bytes) -> tuple[str, str] | None:
    """Return what a file is and what to do about it (or nothing), by its first bytes; None where these do not tell.

    Args:
        head: the first 512 bytes, or all there are.
    """
    if not head:
        return "empty: it has no bytes", "the save was interrupted, or the disk was full: take another checkpoint"
    if not head.strip(b"\0"):
        return "nothing but zeros at its start", "the save or the copy was interrupted: copy it again, or take another checkpoint"
    if head[8:9] == b"{" and not head[5:8].strip(b"\0"):  # first: the length of its header may look like any other start
        return "a safetensors file", ""
    for start, what, fix in _STARTS:
        if head.startswith(start):
            return what, fix
    if head[257:262] == b"ustar":
        return "a tar archive (torch.save wrote these until 2017)", "unpack it first, and give what was in it"
    text = head.lstrip().lower()
    for start, what, fix in _TEXTS:
        if text.startswith(start):
            return what, fix
    if not _CONTROL.intersection(head):
        return "a text file", ""
    return None
