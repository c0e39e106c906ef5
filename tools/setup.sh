#!/usr/bin/env bash
# Makes .venv in the repository and installs the stack of tools/constraints.txt in it, then the package (editable).
#   bash tools/setup.sh           everything (builds mmcv once, about 8 minutes on two cores, and keeps its wheel)
#   bash tools/setup.sh --light   without mmengine, mmcv and mmdet
# A .venv that is up to date is used as it is. NORTON_PYTHON names the interpreter to make it from.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
venv=.venv
python=$venv/bin/python
mmcv=2.1.0
start=$SECONDS

say() { printf '[setup] %s\n' "$*"; }
die() { printf '[setup] error: %s\n' "$*" >&2; exit 1; }

mode=full
case "${1:-}" in
    "") ;;
    --light) mode=light ;;
    -h | --help) sed -n '2,5s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) die "unknown option '$1': the only one is --light" ;;
esac

right_version() { "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 13))' >/dev/null 2>&1; }

find_python() {
    local name
    if [ -n "${NORTON_PYTHON:-}" ]; then
        right_version "$NORTON_PYTHON" || die "NORTON_PYTHON=$NORTON_PYTHON is not a Python 3.10, 3.11 or 3.12; name one that is"
        echo "$NORTON_PYTHON"
        return
    fi
    for name in python3 python3.12 python3.11 python3.10; do
        if right_version "$name"; then
            command -v "$name"
            return
        fi
    done
    die "no Python 3.10, 3.11 or 3.12 found (python3 is $(python3 --version 2>&1 || true)); install one or set NORTON_PYTHON"
}

make_venv() {
    if [ -x "$python" ] && right_version "$python"; then return; fi
    local base
    base=$(find_python)
    say "making $venv with $base ($("$base" --version 2>&1))"
    "$base" -m venv --clear "$venv" || die "'$base -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv"
}

fingerprint() {  # changes when the pins, the metadata, this script or the interpreter change
    "$python" - tools/constraints.txt setup.cfg tools/setup.sh <<'PY'
import hashlib, pathlib, sys
digest = hashlib.sha256(sys.version.encode())
for name in sys.argv[1:]:
    digest.update(pathlib.Path(name).read_bytes())
print(digest.hexdigest())
PY
}

work=
job=
clean_up() {
    if [ -n "$job" ]; then kill -- "-$job" 2>/dev/null || true; fi
    if [ -n "$work" ]; then rm -rf "$work"; fi
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# Runs a long command and says every 30 s that it goes on. $1: what it does, $2: a log with ninja's [n/m], the rest: the command.
patiently() {
    local what=$1 log=$2 began=$SECONDS next=30
    shift 2
    set -m  # its own process group, so that an interrupt ends its children (compilers) too
    "$@" </dev/null &
    job=$!
    set +m
    while kill -0 "$job" 2>/dev/null; do
        sleep 1
        if [ $((SECONDS - began)) -ge "$next" ]; then
            say "$what: $((SECONDS - began)) s $(grep -oE '\[[0-9]+/[0-9]+\]' "$log" | tail -n 1 || true)"
            next=$((next + 30))
        fi
    done
    local status=0
    wait "$job" || status=$?
    job=
    return "$status"
}

install() {
    patiently "installing" /dev/null \
        "$python" -m pip install -qq --disable-pip-version-check -c tools/constraints.txt "$@"
}

wheel_of_mmcv() {  # $1: where the wheel goes, $2: folder for temporary files, $3: log, $4: parallel compilers
    PATH="$root/$venv/bin:$PATH" TMPDIR="$2" MMCV_WITH_OPS=1 FORCE_CUDA=0 MAX_JOBS="$4" \
        "$python" -m pip wheel -v --disable-pip-version-check --no-cache-dir --no-build-isolation --no-deps \
        "mmcv==$mmcv" --wheel-dir "$1" >"$3" 2>&1
}

build_mmcv() {  # $1: folder of the finished wheel. Built beside it and moved: an interrupted build leaves nothing
    local began=$SECONDS cores jobs
    cores=$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
    jobs=${MAX_JOBS:-$((cores < 8 ? cores : 8))}
    work=$(mktemp -d "$1/.build.XXXXXX")
    mkdir "$work/tmp" "$work/out"
    : >"$work/log"
    say "building mmcv $mmcv with $jobs jobs: once, about 8 minutes on two cores"
    patiently "building mmcv" "$work/log" wheel_of_mmcv "$work/out" "$work/tmp" "$work/log" "$jobs" || {
        tail -n 40 "$work/log" >&2
        die "mmcv $mmcv did not build (last lines of its log above)"
    }
    mv "$work"/out/mmcv-*.whl "$1/"
    rm -rf "$work"
    work=
    say "built mmcv in $((SECONDS - began)) s"
}

mmcv_wheel() {  # sets $wheel
    local key folder
    key=$("$python" -c "
import sys, sysconfig, torch
print(f'cp{sys.version_info[0]}{sys.version_info[1]}-torch{torch.__version__}-mmcv$mmcv-{sysconfig.get_platform()}')")
    folder=${XDG_CACHE_HOME:-$HOME/.cache}/norton_plugin/wheels/$key
    mkdir -p "$folder"
    wheel=$(find "$folder" -maxdepth 1 -name "mmcv-$mmcv-*.whl" | head -n 1)
    if [ -z "$wheel" ]; then
        build_mmcv "$folder"
        wheel=$(find "$folder" -maxdepth 1 -name "mmcv-$mmcv-*.whl" | head -n 1)
    else
        say "using the mmcv wheel built earlier in $folder"
    fi
}

# A compiler is wanted after some gigabytes of downloads: better to miss it now.
check_compiler() {
    command -v c++ >/dev/null 2>&1 || die "no C++ compiler (c++) to build mmcv; on Debian and Ubuntu: apt-get install build-essential"
    "$python" -c "
import pathlib, sysconfig
raise SystemExit(not (pathlib.Path(sysconfig.get_paths()['include']) / 'Python.h').exists())" ||
        die "no Python headers (Python.h) to build mmcv; on Debian and Ubuntu: apt-get install python3-dev"
}

if command -v flock >/dev/null 2>&1; then  # one set-up at a time in one tree
    exec 9<"$root"
    flock -n 9 || { say "another set-up runs here; waiting for it"; flock 9; }
fi

make_venv
stamp=$venv/norton-setup
want=$(fingerprint)
have=$(cat "$stamp" 2>/dev/null || true)
if [ "$have" = "$want full" ] || [ "$have" = "$want $mode" ]; then
    exit 0
fi
case "$have" in *" full") mode=full ;; esac  # never take away what a full set-up gave
rm -f "$stamp"

if [ "$mode" = full ]; then check_compiler; fi
say "installing ($mode; torch is large: the first time takes minutes)"
install setuptools wheel ninja numpy torch torchvision
if [ "$mode" = full ]; then
    say "torch is in place after $((SECONDS - start)) s"
    mmcv_wheel
    install --no-build-isolation "$wheel" -e ".[all,dev]"
else
    install --no-build-isolation -e ".[demo,timm]"
fi

# opencv-python (asked for by mmengine and mmcv) needs libGL, which bare machines lack. The headless build has the
# same cv2; pip check then names opencv-python as missing, which is only its name.
if [ "$mode" = full ] && ! "$python" -c "import cv2" >/dev/null 2>&1; then
    say "cv2 does not load here (no libGL): taking opencv-python-headless instead"
    "$python" -m pip uninstall --quiet --yes opencv-python
    install --force-reinstall --no-deps opencv-python-headless
    "$python" -c "import cv2"
fi

if [ "$mode" = full ]; then
    "$python" -c "import mmcv.ops, mmdet, timm, torchvision" || die "the installed stack does not import (see above); remove .venv and try again"
else
    "$python" -c "import timm, torchvision" || die "the installed stack does not import (see above); remove .venv and try again"
fi
echo "$want $mode" >"$stamp"
say "ready in $((SECONDS - start)) s: $venv ($mode)"
