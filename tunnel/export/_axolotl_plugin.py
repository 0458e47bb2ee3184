# mypy: ignore-errors
"""Axolotl's plugin that ends a job which, at steps 0 or 10, is not what the bundle says."""

import selfcheck
from axolotl.integrations.base import BasePlugin


class Selfcheck(BasePlugin):
    def add_callbacks_post_trainer(self, cfg, trainer):
        return [selfcheck.Callback()]
