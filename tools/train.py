"""Train a classifier (or anything else an mmengine config describes); flags as in mmdet's tools/train.py.

python tools/train.py configs/timm/resnet18_norton.py --cfg-options train_dataloader.dataset.root=data/train
"""

from norton_plugin.mm.runner.launch import train

if __name__ == "__main__":
    train()
