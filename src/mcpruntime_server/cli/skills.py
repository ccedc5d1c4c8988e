"""The verb `skills`: what is kept, and what becomes of it.

Only `check` needs sandboxes; everything else looks at the folder.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from ..config import Config
from ..errors import InvalidRequest, Unavailable
from ..skills.exchange import MAX_ARCHIVE, packed, take_in
from ..skills.listing import a, in_use, pick
from ..skills.model import Skill, signature_text
from ..skills.signing import key_in, public_of, sign, standing
from ..skills.store import Store
from .printing import Screen, print_json, printer, safe, when

Options = argparse.Namespace
BY_HAND = "Retired by hand."


def add_skills(verbs: Any) -> None:
    """Add the verb and its actions."""
    text = "list the skills; show, compare, check or retire one"
    found = verbs.add_parser("skills", help=text, description=f"{text[0].upper()}{text[1:]}.")
    found.set_defaults(verb=list_skills, json=False, all=False)
    actions = found.add_subparsers(title="actions", metavar="")
    listing = actions.add_parser("list", help="a line for each skill in use")
    listing.add_argument("--all", action="store_true", help="drafts, old and retired versions too")
    listing.set_defaults(verb=list_skills)
    show = actions.add_parser("show", help="all of one: state, reasons, signature, code")
    show.set_defaults(verb=show_skill)
    check = actions.add_parser("check", help="have skills prove themselves again; exit with 1 if one does not")
    check.add_argument(
        "names", nargs="*", metavar="NAME", help="NAME or NAME@VERSION; without, those in use or quarantined"
    )
    check.set_defaults(verb=check_skills)
    promote = actions.add_parser("promote", help="put a draft or a retired version in use, if it proves itself")
    promote.set_defaults(verb=promote_skill)
    retire = actions.add_parser("retire", help="take a version out of use; its exact version can still be imported")
    retire.set_defaults(verb=retire_skill)
    export = actions.add_parser("export", help="write a version into a zip, to be imported elsewhere")
    sign = actions.add_parser("sign", help="sign a version with a key of yours, which is made if it is not there")
    for action in (show, promote, retire, export, sign):
        action.add_argument("name", metavar="NAME", help="NAME or NAME@VERSION")
    export.add_argument("file", type=Path, metavar="FILE.zip")
    export.add_argument("--force", action="store_true", help="replace the file if it is there")
    export.set_defaults(verb=export_skill)
    sign.add_argument("--key", type=Path, required=True, metavar="FILE", help="of the private key")
    sign.set_defaults(verb=sign_skill)
    taking = actions.add_parser("import", help="read a skill from a zip: a draft, which then proves itself")
    taking.add_argument("file", type=Path, metavar="FILE.zip")
    taking.add_argument("--no-check", action="store_true", help="leave it a draft")
    taking.set_defaults(verb=import_skill, json=False)
    diff = actions.add_parser("diff", help="compare the code of two versions")
    diff.add_argument("one", metavar="NAME@VERSION")
    diff.add_argument("other", metavar="NAME@VERSION")
    diff.set_defaults(verb=diff_skills)
    for action in (listing, show, check):
        action.add_argument("--json", action="store_true", help="for programs")


def list_skills(config: Config, options: Options) -> int:
    """Print the skills, and what is wrong in their folder."""
    store = Store(config.skills.folder)
    found = store.all()
    listed = list(in_use(found).values())
    if options.all:
        listed = [skill for versions in found.values() for skill in versions]
    if options.json:
        print_json([data_of(skill) for skill in listed])
    else:
        screen = Screen(printer())
        for skill in listed:
            screen.line(f"{screen.paint(skill.id, 'bold')}{safe(signature_text(skill.signature))}  {a(skill.state)}")
            screen.line(f"    {safe(skill.summary)}")
        drafts = sum(versions[-1].state == "draft" for versions in found.values())
        if not options.all:
            screen.line(f"{len(listed)} in use, drafts: {drafts}; `skills list --all` has everything.")
        screen.end()
    for place, problem in store.problems.items():
        print(f"problem: {safe(place)}: {safe(problem)}", file=sys.stderr)
    return 0


def show_skill(config: Config, options: Options) -> int:
    """Print all of one version."""
    skill = pick(Store(config.skills.folder).all(), options.name)
    if options.json:
        print_json({**data_of(skill), "source": skill.source})
        return 0
    screen = Screen(printer())
    screen.line(
        f"{screen.paint(skill.id, 'bold')} is {a(skill.state)}, kept {when(skill.at)}, from {safe(skill.origin)}"
    )
    for reason in skill.reasons:
        screen.line(f"  {safe(reason)}")
    screen.line(f"{skill.name}{safe(signature_text(skill.signature))}")
    screen.line(f"  {safe(skill.summary)}")
    screen.line(
        f"  uses {', '.join(map(safe, skill.uses)) or 'nothing'}; recorded cases: {len(skill.cases)}; {skill.digest}"
    )
    screen.line(f"  {standing(skill, config.skills.trusted_keys)}")
    screen.block("code", skill.source)
    screen.end()
    return 0


def diff_skills(config: Config, options: Options) -> int:
    """Print how the code of two versions differs; exit with 1 if it does."""
    found = Store(config.skills.folder).all()
    one, other = pick(found, options.one), pick(found, options.other)
    lines = list(
        difflib.unified_diff(one.source.splitlines(), other.source.splitlines(), one.id, other.id, lineterm="")
    )
    for line in lines:
        print(safe(line))
    return 1 if lines else 0


def retire_skill(config: Config, options: Options) -> int:
    """Take a version out of use."""
    store = Store(config.skills.folder)
    skill = store.set_state(pick(store.all(), options.name), "retired", (BY_HAND,))
    print(f"{skill.id} is retired. skills.{skill.name}.v{skill.version} imports it all the same.")
    if other := in_use(store.all()).get(skill.name):
        print(f"{other.id} is in use now.")
    return 0


def export_skill(config: Config, options: Options) -> int:
    """Write a version into an archive."""
    store = Store(config.skills.folder)
    skill = pick(store.all(), options.name)
    try:
        data = packed(skill, store.files(skill))
        with options.file.open("wb" if options.force else "xb") as file:
            file.write(data)
    except FileExistsError:
        raise InvalidRequest(f"{options.file} is there already.", remedy="--force replaces it.") from None
    except OSError as exc:
        raise Unavailable(f"{skill.id} cannot be written to {options.file}: {exc.strerror}.") from exc
    print(f"{skill.id} is in {options.file}: {len(data):,} bytes, {standing(skill, config.skills.trusted_keys)}.")
    return 0


def import_skill(config: Config, options: Options) -> int:
    """Read a skill from an archive, and have it prove itself."""
    try:
        with options.file.open("rb") as file:
            data = file.read(MAX_ARCHIVE + 1)
    except OSError as exc:
        raise Unavailable(f"{options.file} cannot be read: {exc.strerror}.") from exc
    packages = None if config.sandbox.image else config.sandbox.packages
    skill, is_known = take_in(Store(config.skills.folder), data, packages)
    print(f"{skill.id}: {'here already' if is_known else 'imported'}, {standing(skill, config.skills.trusted_keys)}.")
    if options.no_check or skill.state != "draft":
        print(f"{skill.id} is {a(skill.state)}.")
        return 0
    return tell(anyio.run(check, config, [skill]), options)


def sign_skill(config: Config, options: Options) -> int:
    """Sign a version."""
    store = Store(config.skills.folder)
    skill = pick(store.all(), options.name)
    key = key_in(options.key)
    skill = store.sign(skill, sign(skill, key), public_of(key))
    print(f"{skill.id} is signed. The public key, for [skills] trusted_keys: {skill.signer}")
    return 0


def promote_skill(config: Config, options: Options) -> int:
    """Put a draft, or what was retired, in use if it passes the gate."""
    skill = pick(Store(config.skills.folder).all(), options.name)
    if skill.state == "active":
        raise InvalidRequest(f"{skill.id} is in use already.")
    return tell(anyio.run(partial(check, config, [skill], revives=True)), options)


def check_skills(config: Config, options: Options) -> int:
    """Have skills pass the gate again."""
    found = Store(config.skills.folder).all()
    chosen = [pick(found, name) for name in options.names]
    if not options.names:
        newest = [versions[-1] for versions in found.values() if versions[-1].state == "quarantined"]
        chosen = [*in_use(found).values(), *newest]
    return tell(anyio.run(check, config, chosen), options)


def tell(checked: list[Skill], options: Options) -> int:
    """Print what became of versions; return 1 if one is not in use."""
    if options.json:
        print_json([data_of(skill) for skill in checked])
    for skill in checked if not options.json else ():
        print(f"{skill.id} is {a(skill.state)}." + "".join(f"\n    {safe(reason)}" for reason in skill.reasons))
    return 0 if all(skill.state == "active" for skill in checked) else 1


async def check(config: Config, chosen: list[Skill], *, revives: bool = False) -> list[Skill]:
    """Return versions as they are when they have passed the gate, or not; the servers that they use are started."""
    from ..app import open_app

    checked = []
    async with open_app(config, resumes=False) as app:
        servers = {tool.partition(".")[0] for skill in chosen for tool in skill.tools}
        await app.catalog.start(servers & set(app.catalog.package_names()))
        for number, skill in enumerate(chosen, 1):
            print(f"checking {skill.id} ({number} of {len(chosen)})", file=sys.stderr)
            checked.append(await app.library.check(skill, revives=revives))
    return checked


def data_of(skill: Skill) -> dict[str, Any]:
    """Return a version for programs."""
    return {
        "name": skill.name,
        "version": skill.version,
        "state": skill.state,
        "reasons": list(skill.reasons),
        "signature": signature_text(skill.signature),
        "summary": skill.summary,
        "tools": dict(skill.tools),
        "skills": dict(skill.skills),
        "cases": len(skill.cases),
        "origin": skill.origin,
        "at": skill.at,
        "digest": skill.digest,
    }
