"""`python -m trimtab`, and so `accelerate launch -m trimtab train …`."""

from .app import entry

entry()
