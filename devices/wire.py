"""What both ends of the wire to a runner agree on."""

from __future__ import annotations

PROTOCOL = 1
MARK = b"@trimtab "
"""What answers begin with."""
