"""Models of Ultralytics (YOLO): compressed in place; its own commands train, save and export them afterwards.

Ultralytics is licensed under AGPL-3.0 and is no dependency of this package: it is imported where a model of it is at
hand, and nowhere else (docs/ultralytics.md).
"""

from norton_plugin.yolo.compression import compress_yolo_

__all__ = ["compress_yolo_"]
