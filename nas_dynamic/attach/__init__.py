"""Attachment: the lr and the momentum of each update, set by an optimizer's step hooks."""

from __future__ import annotations

from nas_dynamic.attach.ranks import RankAgreement
from nas_dynamic.attach.training import DynamicTraining
from nas_dynamic.attach.update_rule import Subnet, Update

__all__ = ["DynamicTraining", "RankAgreement", "Subnet", "Update"]
