"""Which packages of tools have changed, so that code that has imported them imports them again."""

from __future__ import annotations


class PackageChanges:
    """The packages that have changed since the server started, by their last change.

    Some are the own ones of a principal: other principals have other packages of that name.
    """

    def __init__(self) -> None:
        self._count = 0
        self._last_changes: dict[tuple[str, str | None], int] = {}  # the number of the last change

    def record_change(self, package: str, principal: str | None = None) -> None:
        """Note that the functions of a package, or of a principal's own, are not what they were."""
        self._count += 1
        self._last_changes[package, principal] = self._count

    def names_since(self, number: int, principal: str) -> tuple[list[str], int]:
        """Return the packages that changed for a principal after change `number`, sorted.

        The second value is the number of the last change.
        """
        names = {
            name
            for (name, owner), last in self._last_changes.items()
            if last > number and owner in (None, principal)
        }
        return sorted(names), self._count


class StalePackages:
    """The packages that the interpreter of one session may have imported before they changed."""

    def __init__(self, changes: PackageChanges, principal: str) -> None:
        self._changes = changes
        self._principal = principal
        self._seen = 0  # the number of the last change that the interpreter knows

    def take(self) -> list[str]:
        """Return the stale packages, sorted; the caller has them imported again."""
        names, self._seen = self._changes.names_since(self._seen, self._principal)
        return names

    def reset(self) -> None:
        """Count every change since the start of the server: an older state may be restored."""
        self._seen = 0
