#!/usr/bin/env bash
# Build the wheel of this checkout with the hashed tools of requirements/dev.lock.
#
#   build.sh prepare        make an environment with the build backend, in .build-image
#   build.sh wheel FOLDER   put the wheel into FOLDER
set -euo pipefail
cd "$(dirname "$0")/../.."
venv=${BUILD_VENV:-.build-image}
case $1 in
prepare)
    python3 -m venv "$venv"
    # The backend and what it stands on, by name; their versions and hashes are the lock's.
    python3 deploy/image/pick.py requirements/dev.lock hatchling packaging pathspec pluggy trove-classifiers >"$venv/backend.lock"
    "$venv/bin/python" -m pip install --quiet --require-hashes --no-deps -r "$venv/backend.lock"
    ;;
wheel)
    "$venv/bin/python" -m hatchling build --target wheel --directory "$2"
    ;;
*)
    echo "build.sh prepare | wheel FOLDER" >&2
    exit 2
    ;;
esac
