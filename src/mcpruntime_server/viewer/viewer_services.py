"""What the pages work with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..capabilities.skills.saving import SkillSaver
from ..journal.store import Journal
from ..service.api_services import ApiServices
from .page_rendering import PageRenderer
from .web_access import WebAccess


@dataclass(frozen=True)
class ViewerServices:
    """What the handlers of pages get: the parts of the server, and how a page is made."""

    api: ApiServices
    find_saver: Callable[[str], SkillSaver]  # of a principal
    access: WebAccess
    renderer: PageRenderer

    @property
    def journal(self) -> Journal:
        """Where everything is recorded."""
        return self.api.runtime.journal
