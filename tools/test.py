"""Test a checkpoint; flags as in mmdet's tools/test.py.

python tools/test.py configs/timm/resnet18_norton.py work_dirs/resnet18_norton/epoch_30.pth
"""

from norton_plugin.mm.runner.launch import evaluate

if __name__ == "__main__":
    evaluate()
