"""Why something was left as it was, as data: codes, texts, and whether they keep a result from being full."""

from norton_plugin.reasons.cause import Cause
from norton_plugin.reasons.reason import Reason

__all__ = ["Cause", "Reason"]
