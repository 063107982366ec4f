#!/usr/bin/env bash
# Makes .venv in the checkout and installs the pinned environment and this project into it.
# Called by `make`; does nothing when .venv is up to date. PYTHON=... names the interpreter to use, FOR_CUDA=12 takes
# requirements-cuda12.txt, for older GPUs and drivers; .venv keeps it until FOR_CUDA=13.
set -euo pipefail

readonly needed_gb=8
# The checkout's root, whatever folder this is called from. Nothing of another environment leaks in.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$(pwd -P)
unset VIRTUAL_ENV PYTHONPATH PYTHONHOME PIP_TARGET PIP_PREFIX PIP_USER PIP_CONSTRAINT

venv=.venv
venv_python=$root/$venv/bin/python
log=$root/$venv/install.log
heartbeat=

die() {
    printf 'install: %s\n' "$*" >&2
    exit 1
}

checksum() { # of the named files and the checkout's path: an environment cannot be moved
    { printf '%s\n' "$root" && cat "$@"; } | cksum
}

version_of() { # VERSION of a Python that really runs; a pyenv shim may exist and fail
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null </dev/null
}

locked() { # locked NAME...: writes these packages' lines of the lock, with their hashes, and prints the file's name
    awk -v names=" $* " '
        /^[a-z]/ { name = $1; sub(/==.*/, "", name); wanted = index(names, " " name " ") }
        wanted { print }' "$lock" >"$venv/locked.txt" && printf '%s\n' "$venv/locked.txt"
}

find_python() { # prints the interpreter to use
    local candidates=(python3.12 python3.11 python3.13 python3) candidate version without_venv=
    if [ -n "${PYTHON:-}" ]; then candidates=("$PYTHON"); fi
    for candidate in "${candidates[@]}"; do
        version=$(version_of "$candidate") || continue
        case $version in 3.11 | 3.12 | 3.13) ;; *) continue ;; esac
        if "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
        without_venv=$candidate
    done
    if [ -n "$without_venv" ]; then
        die "$without_venv has no venv module; install it (on Debian and Ubuntu: apt-get install python3-venv)."
    elif [ -n "${PYTHON:-}" ]; then
        die "PYTHON=$PYTHON does not run as Python 3.11, 3.12 or 3.13."
    fi
    die "no Python 3.11, 3.12 or 3.13 found on PATH; install one, or name it: make install PYTHON=/path/to/python3.12"
}

step() { # step NUMBER TEXT COMMAND...: runs the command into the log and says how long it took
    local text="[$1/$steps] $2" start=$SECONDS
    shift 2
    printf '%s ...\n' "$text"
    while sleep 20 >/dev/null 2>&1; do
        printf '      %d s: %s\n' $((SECONDS - start)) "$(tail -n 1 "$log" 2>/dev/null | cut -c 1-70)"
    done 9>&- &
    heartbeat=$!
    if ! "$@" >>"$log" 2>&1 </dev/null; then
        stop_heartbeat
        printf '%s FAILED after %d s. The last lines of %s:\n' "$text" $((SECONDS - start)) "$log" >&2
        tail -n 15 "$log" | cut -c 1-160 | sed 's/^/    /' >&2
        exit 1
    fi
    stop_heartbeat
    printf '      done in %d s\n' $((SECONDS - start))
}

stop_heartbeat() {
    if [ -n "$heartbeat" ]; then kill "$heartbeat" 2>/dev/null || true; fi
    heartbeat=
}
trap stop_heartbeat EXIT

pip_install() {
    "$venv_python" -m pip install --disable-pip-version-check --progress-bar off --no-deps "$@"
}

make_environment() {
    "$python" -m venv "$venv" && pip_install -r "$(locked pip setuptools wheel)"
}

install_classy_vision() { # vissl's wheel has an older copy in the same folder: the release is installed over it
    pip_install --force-reinstall -r "$(locked classy-vision)" &&
        "$venv_python" -I -c "import classy_vision as c; assert 'classy-vision==' + c.__version__ == '$classy_vision', c"
}

# Two terminals may call make at once: the second waits for the first.
if command -v flock >/dev/null; then
    exec 9>"$root/.venv.lock"
    flock -n 9 || { echo "Waiting for another install in $root to end ..." && flock 9; }
fi

case ${FOR_CUDA:-} in
'') lock=$(cat "$venv/lock.name" 2>/dev/null || echo requirements.txt) ;;
12) lock=requirements-cuda12.txt ;;
13) lock=requirements.txt ;;
*) die "FOR_CUDA=$FOR_CUDA has no lock; give 12 or 13." ;;
esac
lock_sum=$(checksum "$lock" pirl_plugin/commands/install_detectron2.py)
project_sum=$(checksum setup.py pyproject.toml)
environment_ok=no
if [ "$(cat "$venv/lock.stamp" 2>/dev/null)" = "$lock_sum" ] && version=$(version_of "$venv_python"); then
    # A PYTHON=... with another version than the environment's asks for a new one.
    if [ -z "${PYTHON:-}" ] || [ "$(version_of "$PYTHON")" = "$version" ]; then environment_ok=yes; fi
fi
if [ $environment_ok = yes ] && [ "$(cat "$venv/project.stamp" 2>/dev/null)" = "$project_sum" ]; then
    exit 0
fi

begun=$SECONDS
if [ $environment_ok = yes ]; then
    steps=1
    rm -f "$venv/project.stamp"
else
    steps=5
    python=$(find_python)
    rm -rf "$venv"
    free_gb=$(($(df -Pk . | awk 'NR == 2 { print $4 }') / 1048576))
    if [ "$free_gb" -lt $needed_gb ]; then
        die "$root has $free_gb GB of free disk, and the environment needs $needed_gb GB."
    fi
    mkdir "$venv"
    printf 'Installing into %s with Python %s (%s)\n' "$root/$venv" "$(version_of "$python")" "$python"
    step 1 "Making the environment and its build tools" make_environment
    step 2 "Installing $(grep -c '^[a-z].*==' "$lock") pinned packages, 5 GB: the long step" \
        pip_install --no-build-isolation -r "$lock"
    classy_vision=$(grep -o -m1 '^classy-vision==[^ ]*' "$lock")
    step 3 "Putting $classy_vision on top of vissl's copy" install_classy_vision
    step 4 "Adding Detectron2 (optional elsewhere; the tests use it)" \
        "$venv_python" -I pirl_plugin/commands/install_detectron2.py
    printf '%s\n' "$lock" >"$venv/lock.name"
    printf '%s\n' "$lock_sum" >"$venv/lock.stamp"
fi
step $steps "Installing this project, editable" pip_install --no-build-isolation -e .
printf '%s\n' "$project_sum" >"$venv/project.stamp"
printf 'Ready after %d s: %s\n' $((SECONDS - begun)) "$root/$venv"
