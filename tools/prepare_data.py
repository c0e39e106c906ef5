"""Unpack the archives of a data folder into the user's cache, outside the repository.

Example:
    python tools/prepare_data.py FOLDER/cifar10_jpeg
"""

import argparse
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

from norton_plugin.mm.classification.packed import cache_folder


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder that holds train.tar.xz, test.tar.xz and the like")
    parser.add_argument("--target", type=Path, help="where to unpack (default: a folder of the same name in the cache)")
    return parser.parse_args()


def main() -> int:
    """Unpack each archive unless its folder is there."""
    args = parse_args()
    archives = sorted(args.source.glob("*.tar.xz"))
    if not archives:
        print(f"{args.source} holds no .tar.xz archive", file=sys.stderr)
        return 2
    target = args.target or cache_folder() / args.source.resolve().name
    target.mkdir(parents=True, exist_ok=True)
    for archive in archives:
        folder = target / archive.name.removesuffix(".tar.xz")
        if folder.is_dir():
            print(f"{folder} is there")
            continue
        # unpacked beside its place and renamed, so that an interrupted run leaves no half folder
        with tempfile.TemporaryDirectory(dir=target) as draft, tarfile.open(archive) as packed:
            packed.extractall(draft, filter="data")
            shutil.move(str(Path(draft) / folder.name), folder)
        print(f"{folder} unpacked")
    return 0


if __name__ == "__main__":
    sys.exit(main())
