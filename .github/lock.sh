#!/bin/sh
# Write locked.txt and tools.txt anew, after a change of pyproject.toml, constraints.txt or tools.in. Needs uv.
# torch is left out: its build for CPUs lies on PyTorch's own index, one file a platform; it is pinned by version.
set -eu
cd "$(dirname "$0")/.."
compile() {
    uv pip compile --python-version 3.11 --python-platform x86_64-manylinux_2_28 --generate-hashes --no-annotate --no-header --quiet \
        --find-links https://download.pytorch.org/whl/cpu/torch/ "$@"
}
echo "setuptools>=77" | compile pyproject.toml - --extra test --extra docs -c constraints.txt --no-emit-package torch >.github/locked.new
{
    echo "# Everything that CI installs beside torch, each file by its digest: pip install --no-deps --require-hashes -r .github/locked.txt"
    echo "# Made by .github/lock.sh from pyproject.toml and constraints.txt."
    cat .github/locked.new
} >.github/locked.txt
compile .github/tools.in >.github/locked.new
{
    echo "# What builds and checks a release: pip install --require-hashes -r .github/tools.txt; made by .github/lock.sh from tools.in."
    cat .github/locked.new
} >.github/tools.txt
rm .github/locked.new
