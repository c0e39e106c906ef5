"""Changes to functions of mmengine, mmcv and torch, each with its reason."""
