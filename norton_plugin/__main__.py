"""``python -m norton_plugin``: the same as ``norton``."""

from norton_plugin.cli import main

if __name__ == "__main__":
    main()
