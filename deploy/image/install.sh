#!/usr/bin/env bash
# Fill the environment of an image from the hashed locks.
#
#   install.sh router VENV          what a router needs
#   install.sh worker VENV [cpu]    what a worker needs: torch with CUDA (or its CPU build, from a folder of wheels), Ray
#   install.sh shoal VENV WHEELS    shoal itself, and the list of everything that is installed (VENV/sbom.json)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
locks=$here/../../requirements
venv=$2
pip() { "$venv/bin/python" -m pip "$1" --quiet --disable-pip-version-check --no-cache-dir "${@:2}"; }
case $1 in
router)
    python3 -m venv "$venv"
    pip install --require-hashes --no-deps -r "$locks/router.lock"
    ;;
worker)
    python3 -m venv "$venv"
    case ${3:-cuda} in
    cuda) pip install --require-hashes --no-deps -r "$locks/torch.lock" -r "$locks/torch-cuda.lock" -r "$locks/triton.lock" ;;
    cpu) pip install --require-hashes --no-deps -r "$locks/torch-cpu.lock" ;;
    *) echo "install.sh: torch is cuda or cpu, not $3" >&2 && exit 2 ;;
    esac
    pip install --require-hashes --no-deps -r "$locks/worker.lock"
    # The head of a cluster also speaks to Redis and is asked for its health.
    pip install --require-hashes --no-deps -r "$locks/router.lock"
    ;;
shoal)
    pip install --no-deps --no-index --find-links "$3" shoal
    "$venv/bin/python" "$here/sbom.py" >"$venv/sbom.json"
    ;;
*)
    echo "install.sh router VENV | worker VENV [cpu] | shoal VENV WHEELS" >&2
    exit 2
    ;;
esac
