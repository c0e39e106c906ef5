#!/usr/bin/env bash
# Sets up the light part (see tools/setup.sh), then trains, compresses and fine-tunes a small network, and writes a page about it. Arguments go to `norton demo`.
set -euo pipefail
cd "$(dirname "$0")/.."
bash tools/setup.sh --light
exec .venv/bin/norton demo "$@"
