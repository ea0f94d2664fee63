"""Decisions kept on disk with all that they depend on, for the next run that asks for the same."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from mrecg_onnx.converters.errors import DataError
from mrecg_onnx.converters.files import irregular, write_whole

__all__ = ["NOTHING_KEPT", "Kept", "short_digest"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Changes where entries are written in another form, or decisions of the same name are made in another way.
FORMAT = 2
#: A larger file is not read: no run writes one.
LARGEST = 16 << 20
#: Decisions of a kind that are kept for each thing decided on: of as many runs, the last ones.
EACH = 8


@dataclass(frozen=True)
class Kept:
    """What earlier runs decided, a JSON file in ``folder`` for each kind of decision.

    An entry holds where everything that it depends on is as it was. It has a digest of its own: one that is damaged counts as
    not there, as a file does that cannot be read.

    Attributes:
        folder: made when something is kept; None keeps nothing.
        of: what all decisions depend on, as plain JSON data.
        here: what those depend on, beyond that, that look at a network or at images.
    """

    folder: Path | None = None
    of: Mapping[str, Any] = field(default_factory=dict)
    here: Mapping[str, Any] = field(default_factory=dict)

    def on(self, more: Mapping[str, Any]) -> Kept:
        """The same with ``more`` in :attr:`here`."""
        return replace(self, here={**self.here, **more})

    def recall(
        self,
        kind: str,
        wanted: Mapping[str, Mapping[str, Any]],
        make: Callable[[list[str]], Mapping[str, T]],
        *,
        plain: Callable[[T], Any],
        restored: Callable[[str, Any], T],
        anywhere: bool = False,
    ) -> dict[str, T]:
        """One decision for each name in ``wanted``, from an earlier run or made now and kept for the next.

        Args:
            kind: what is decided, for people; also the file's name.
            wanted: what each decision depends on beyond :attr:`of` and :attr:`here`, as plain JSON data.
            make: decides on the names that are not there; without a decision on one, none is kept.
            plain: a decision as plain JSON data.
            restored: the decision on a name from that; raises ValueError, TypeError or KeyError where it cannot be one.
            anywhere: it does not depend on :attr:`here`.

        Returns:
            The decisions by name, in the order of ``wanted``.

        Raises:
            DataError: the folder cannot be written.
        """
        if self.folder is None:
            return dict(make(list(wanted)))
        entries = self._read(kind)
        shared = {"format": FORMAT, **self.of, **({} if anywhere else self.here)}
        depends = {name: _plain({**shared, **more}) for name, more in wanted.items()}
        found: dict[str, T] = {}
        for name in wanted:
            for entry in entries.get(name, ()):
                if entry["of"] == depends[name]:
                    try:
                        found[name] = restored(name, entry["value"])
                    except (ValueError, TypeError, KeyError):
                        logger.warning(
                            "%s kept in %s: that of '%s' is no such thing and made anew", kind, self.folder, name
                        )
                    break
        missing = [name for name in wanted if name not in found]
        if missing:
            self._tell(kind, missing, depends, entries)
            found |= make(missing)
            for name in (n for n in missing if n in found):
                entry = {"of": depends[name], "value": _plain(plain(found[name]))}
                others = [e for e in entries.get(name, ()) if e["of"] != depends[name]]
                entries[name] = [{**entry, "digest": _digest(name, entry)}, *others][:EACH]
            self._write(kind, entries)
        else:
            logger.info("%s kept in %s: all %d hold", kind, self.folder, len(wanted))
        return {name: found[name] for name in wanted if name in found}

    def _tell(
        self, kind: str, missing: list[str], depends: Mapping[str, Any], entries: Mapping[str, list[dict[str, Any]]]
    ) -> None:
        """One line: how much is made anew, and what has changed since the nearest that is kept."""
        changed: set[str] = set()
        for name in missing:
            now = depends[name]
            before = [{k for k in {*now, *e["of"]} if now.get(k) != e["of"].get(k)} for e in entries.get(name, ())]
            changed |= min(before, key=len, default=set())
        if changed:
            count, different = f"{len(missing)} of {len(depends)}", ", ".join(sorted(changed))
            logger.warning("%s kept in %s: %s made anew (different: %s)", kind, self.folder, count, different)

    def _path(self, kind: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{kind.replace(' ', '-')}.json"

    def _read(self, kind: str) -> dict[str, list[dict[str, Any]]]:
        """Sound entries by name, the newest first."""
        path = self._path(kind)
        try:
            if not path.exists():
                return {}
            problem = irregular(path)
            size = path.stat().st_size
            if problem is None and size > LARGEST:
                problem = f"{size} bytes long"
            if problem is not None:
                logger.warning("%s is %s: %s made anew", path, problem, kind)
                return {}
            stored = json.loads(path.read_text(encoding="utf-8"))
            entries = {name: [e for e in several if _sound(name, e)] for name, several in stored.items()}
            lost = sum(map(len, stored.values())) - sum(map(len, entries.values()))
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            logger.warning("%s cannot be read (%s): %s made anew", path, str(error).split("\n", maxsplit=1)[0], kind)
            return {}
        if lost:
            logger.warning("%s is damaged: %d of its entries are not used", path, lost)
        return {name: several for name, several in entries.items() if several}

    def _write(self, kind: str, entries: Mapping[str, list[dict[str, Any]]]) -> None:
        path = self._path(kind)
        text = json.dumps(entries, separators=(",", ":"))
        if len(text) > LARGEST:  # as much as a run needs, if that can be kept at all
            text = json.dumps({name: several[:1] for name, several in entries.items()}, separators=(",", ":"))
        if len(text) > LARGEST:
            logger.warning("%s are too many to be kept in %s", kind, self.folder)
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, text)
        except OSError as error:
            raise DataError(f"--checkpoint: '{path}' cannot be written ({error.strerror})") from error


NOTHING_KEPT = Kept()


def short_digest(parts: Iterable[bytes | str]) -> str:
    """SHA-256 of ``parts`` and their borders, in hexadecimal."""
    found = hashlib.sha256()
    for part in parts:
        found.update(hashlib.sha256(part.encode() if isinstance(part, str) else part).digest())
    return found.hexdigest()


def _plain(value: Any) -> Any:
    """``value`` as it comes back from a file."""
    return json.loads(json.dumps(value))


def _digest(name: str, entry: Mapping[str, Any]) -> str:
    return short_digest([name, json.dumps([entry["of"], entry["value"]], sort_keys=True)])


def _sound(name: str, entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and entry.keys() == {"of", "value", "digest"}
        and isinstance(entry["of"], dict)
        and (entry["digest"] == _digest(name, entry))
    )
