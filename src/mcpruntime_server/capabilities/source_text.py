"""Python source among the values of generated code: values appear as `repr`, source as it is."""

from __future__ import annotations


class SourceText(str):
    """Source text that enters generated code unchanged: it was generated and checked here."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)
