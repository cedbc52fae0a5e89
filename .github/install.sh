#!/bin/sh
# Install what CI works with: every file but torch's by its digest, torch by its version from PyTorch's own index of builds for CPUs.
set -eu
cd "$(dirname "$0")/.."
python -m pip install --no-deps -c constraints.txt --index-url https://download.pytorch.org/whl/cpu torch
python -m pip install --no-deps --require-hashes -r .github/locked.txt
python -m pip install --no-deps --no-build-isolation -e .
python -m pip check
