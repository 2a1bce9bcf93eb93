#!/usr/bin/env bash
# Make the virtual environment $1 and fill it from the locks beside this file. Called by the Makefile.
#
#   PYTHON       interpreter to use; without it the first of python3.11, python3.12, python3 that fits
#   TORCH        what to install as torch instead of what the locks name: a wheel's path, or pip arguments such as
#                "--index-url URL torch==2.13.0+cpu"
#   PIP_FIND_LINKS, `pip config get global.find-links`: folders with wheels; uv is told about them too
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
venv=$1
say() { printf '\033[1m%s\033[0m\n' "$*" >&2; }

fits() { "$1" -c 'import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; }

find_python() {
    for candidate in ${PYTHON:-python3.11 python3.12 python3 /usr/bin/python3}; do
        if fits "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    say "No usable Python: ${PYTHON:-python3.11, python3.12 or python3} must be 3.11 or 3.12 and able to make a venv"
    say "(on Debian: apt install python3-venv). Name another one with PYTHON=/path/to/python3.12."
    return 1
}

keep_venv() {
    fits "$venv/bin/python" || return
    [ -z "${PYTHON:-}" ] || [ "$("$PYTHON" --version)" = "$("$venv/bin/python" --version)" ]
}

if ! keep_venv; then
    python=$(find_python)
    say "Making $venv with $("$python" --version)"
    rm -rf "$venv"
    "$python" -m venv "$venv"
fi
python=$venv/bin/python
"$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip >/dev/null

# pip separates folders by blanks and line ends, uv by commas.
links=$(printf '%s\n' $("$python" -m pip config get global.find-links 2>/dev/null) ${PIP_FIND_LINKS:-} | sort -u)
export UV_FIND_LINKS=${UV_FIND_LINKS:-$(echo $links | tr ' ' ',')}
[ -n "$UV_FIND_LINKS" ] || unset UV_FIND_LINKS

if ! "$python" -m uv --version >/dev/null 2>&1; then
    "$python" -m pip install --quiet --require-hashes --no-deps -r "$here/installer.lock" ||
        say "uv could not be installed: going on with pip, which takes minutes longer"
fi

export UV_NO_CONFIG=1 # a uv.toml in some folder above is not about this project
install() { # arguments of `pip install`, through uv when it can; into the environment of $into
    if "$python" -m uv --version >/dev/null 2>&1 && "$python" -m uv pip install --python "${into:-$python}" "$@"; then
        return
    fi
    "${into:-$python}" -m pip install --progress-bar on "$@"
}

tag=$("$python" -c 'import sys; print(f"cp{sys.version_info[0]}{sys.version_info[1]}")')
has_gpu() { [ -e /dev/nvidiactl ] || [ -e /dev/nvidia0 ]; }
has_cpu_wheel() { for folder in $links; do compgen -G "$folder/torch-2.13.0+cpu-$tag-*.whl" >/dev/null && return; done; false; }
installed_torch() { "$python" -c 'from importlib.metadata import version; print(version("torch"))' 2>/dev/null; }

if [ -n "${TORCH:-}" ]; then
    # shellcheck disable=SC2086  # several arguments are meant
    install $TORCH
elif [ -z "$(installed_torch)" ]; then
    if has_cpu_wheel && ! has_gpu; then
        install --require-hashes --no-deps -r "$here/torch-cpu.lock"
    else
        if ! has_gpu; then
            say "This machine shows no GPU, but no CPU build of torch 2.13.0 for $tag is at hand: the CUDA build follows,"
            say "about 4 GB on disk. To avoid it put torch-2.13.0+cpu-$tag-….whl into a folder and set PIP_FIND_LINKS"
            say "to that folder, or set TORCH=/path/to/the.whl, and run make again."
        fi
        # Without the folders: a CPU build among them would be taken first and then refused for its hash.
        (unset UV_FIND_LINKS && install --require-hashes --no-deps -r "$here/torch.lock")
    fi
fi
locks=(-r "$here/dev.lock" -r "$here/triton.lock")
case ${TORCH:-}$(installed_torch) in 2.13.0) locks+=(-r "$here/torch-cuda.lock") ;; esac
install --require-hashes --no-deps "${locks[@]}"
install --no-deps --no-build-isolation -e "$here/.."

# One client that is tested wants an older `openai` than all others, so it lives apart.
[ -x "$venv/clients/bin/python" ] || "$python" -m venv "$venv/clients"
into=$venv/clients/bin/python install --require-hashes --no-deps -r "$here/clients.lock"
