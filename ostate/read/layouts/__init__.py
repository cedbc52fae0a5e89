"""One module a layout on disk, each with `detect` and `read`."""
