"""Which packages of tools have changed, so that code that has imported them imports them again."""

from __future__ import annotations


class PackageChanges:
    """The packages that have changed since the server started, by their last change."""

    def __init__(self) -> None:
        self._count = 0
        self._last_changes: dict[str, int] = {}  # by package: the number of its last change

    def record_change(self, package: str) -> None:
        """Note that the functions of a package are not what they were."""
        self._count += 1
        self._last_changes[package] = self._count

    def names_since(self, number: int) -> tuple[list[str], int]:
        """Return the packages that changed after change `number`, sorted, and the last number."""
        names = [name for name, last in self._last_changes.items() if last > number]
        return sorted(names), self._count


class StalePackages:
    """The packages that the interpreter of one session may have imported before they changed."""

    def __init__(self, changes: PackageChanges) -> None:
        self._changes = changes
        self._seen = 0  # the number of the last change that the interpreter knows

    def take(self) -> list[str]:
        """Return the stale packages, sorted; the caller has them imported again."""
        names, self._seen = self._changes.names_since(self._seen)
        return names

    def reset(self) -> None:
        """Count every change since the start of the server: an older state may be restored."""
        self._seen = 0
