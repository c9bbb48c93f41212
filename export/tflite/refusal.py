"""The error that sends a network to another road: our own writer has no place for some of its operators."""

from __future__ import annotations

from ...models.errors import UserError


class RefusalError(UserError):
    """TFLite, or our writer, has no place for some operators of a network."""
