#!/usr/bin/env bash
# Sets up everything (see tools/setup.sh), then runs the tests. Arguments go to pytest; without any, all tests run, slow ones too.
set -euo pipefail
cd "$(dirname "$0")/.."
bash tools/setup.sh
if [ $# -eq 0 ]; then set -- -q -m "" --numprocesses 2; fi
exec .venv/bin/python -m pytest "$@"
