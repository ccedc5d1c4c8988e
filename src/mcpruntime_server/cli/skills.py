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

from ..capabilities.skills.archives import MAX_ARCHIVE_BYTES, import_archive, pack_skill
from ..capabilities.skills.model import Skill, format_signature
from ..capabilities.skills.selection import active_skills, describe_state, pick_version
from ..capabilities.skills.signing import (
    create_signature,
    describe_signature,
    load_or_create_key,
    public_key_hex,
)
from ..capabilities.skills.store import SkillStore
from ..config import Config
from ..errors import InvalidRequest, Unavailable
from .console import ConsoleWriter, escape_text, format_time, open_stdout, print_json

Options = argparse.Namespace
RETIRED_REASON = "Retired by hand."


def add_skills_command(verbs: Any) -> None:
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
    check = actions.add_parser(
        "check", help="have skills prove themselves again; exit with 1 if one does not"
    )
    check.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="NAME or NAME@VERSION; without, those in use or quarantined",
    )
    check.set_defaults(verb=check_skills)
    promote = actions.add_parser(
        "promote", help="put a draft or a retired version in use, if it proves itself"
    )
    promote.set_defaults(verb=promote_skill)
    retire = actions.add_parser(
        "retire", help="take a version out of use; its exact version can still be imported"
    )
    retire.set_defaults(verb=retire_skill)
    export = actions.add_parser(
        "export", help="write a version into a zip, to be imported elsewhere"
    )
    sign = actions.add_parser(
        "sign", help="sign a version with a key of yours, which is made if it is not there"
    )
    for action in (show, promote, retire, export, sign):
        action.add_argument("name", metavar="NAME", help="NAME or NAME@VERSION")
    export.add_argument("file", type=Path, metavar="FILE.zip")
    export.add_argument("--force", action="store_true", help="replace the file if it is there")
    export.set_defaults(verb=export_skill)
    sign.add_argument("--key", type=Path, required=True, metavar="FILE", help="of the private key")
    sign.set_defaults(verb=sign_skill)
    taking = actions.add_parser(
        "import", help="read a skill from a zip: a draft, which then proves itself"
    )
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
    store = SkillStore(config.skills.folder)
    found = store.all_versions()
    listed = list(active_skills(found).values())
    if options.all:
        listed = [skill for versions in found.values() for skill in versions]
    if options.json:
        print_json([serialize_skill(skill) for skill in listed])
    else:
        screen = ConsoleWriter(open_stdout())
        for skill in listed:
            screen.write_line(
                f"{screen.style_text(skill.id, 'bold')}{escape_text(format_signature(skill.signature))}  {describe_state(skill.state)}"
            )
            screen.write_line(f"    {escape_text(skill.summary)}")
        drafts = sum(versions[-1].state == "draft" for versions in found.values())
        if not options.all:
            screen.write_line(
                f"{len(listed)} in use, drafts: {drafts}; `skills list --all` has everything."
            )
        screen.write_footer()
    for place, problem in store.problems.items():
        print(f"problem: {escape_text(place)}: {escape_text(problem)}", file=sys.stderr)
    return 0


def show_skill(config: Config, options: Options) -> int:
    """Print all of one version."""
    skill = pick_version(SkillStore(config.skills.folder).all_versions(), options.name)
    if options.json:
        print_json({**serialize_skill(skill), "source": skill.source})
        return 0
    screen = ConsoleWriter(open_stdout())
    screen.write_line(
        f"{screen.style_text(skill.id, 'bold')} is {describe_state(skill.state)}, kept {format_time(skill.saved_at)}, from {escape_text(skill.origin)}"
    )
    for reason in skill.reasons:
        screen.write_line(f"  {escape_text(reason)}")
    screen.write_line(f"{skill.name}{escape_text(format_signature(skill.signature))}")
    screen.write_line(f"  {escape_text(skill.summary)}")
    screen.write_line(
        f"  uses {', '.join(map(escape_text, skill.call_targets)) or 'nothing'}; recorded cases: {len(skill.cases)}; {skill.digest}"
    )
    screen.write_line(f"  {describe_signature(skill, config.skills.trusted_keys)}")
    screen.write_block("code", skill.source)
    screen.write_footer()
    return 0


def diff_skills(config: Config, options: Options) -> int:
    """Print how the code of two versions differs; exit with 1 if it does."""
    found = SkillStore(config.skills.folder).all_versions()
    one, other = pick_version(found, options.one), pick_version(found, options.other)
    lines = list(
        difflib.unified_diff(
            one.source.splitlines(), other.source.splitlines(), one.id, other.id, lineterm=""
        )
    )
    for line in lines:
        print(escape_text(line))
    return 1 if lines else 0


def retire_skill(config: Config, options: Options) -> int:
    """Take a version out of use."""
    store = SkillStore(config.skills.folder)
    skill = store.set_state(
        pick_version(store.all_versions(), options.name), "retired", (RETIRED_REASON,)
    )
    print(f"{skill.id} is retired. skills.{skill.name}.v{skill.version} imports it all the same.")
    if other := active_skills(store.all_versions()).get(skill.name):
        print(f"{other.id} is in use now.")
    return 0


def export_skill(config: Config, options: Options) -> int:
    """Write a version into an archive."""
    store = SkillStore(config.skills.folder)
    skill = pick_version(store.all_versions(), options.name)
    try:
        data = pack_skill(skill, store.read_all_files(skill))
        with options.file.open("wb" if options.force else "xb") as file:
            file.write(data)
    except FileExistsError:
        raise InvalidRequest(
            f"{options.file} is there already.", remedy="--force replaces it."
        ) from None
    except OSError as exc:
        raise Unavailable(
            f"{skill.id} cannot be written to {options.file}: {exc.strerror}."
        ) from exc
    print(
        f"{skill.id} is in {options.file}: {len(data):,} bytes, {describe_signature(skill, config.skills.trusted_keys)}."
    )
    return 0


def import_skill(config: Config, options: Options) -> int:
    """Read a skill from an archive, and have it prove itself."""
    try:
        with options.file.open("rb") as file:
            data = file.read(MAX_ARCHIVE_BYTES + 1)
    except OSError as exc:
        raise Unavailable(f"{options.file} cannot be read: {exc.strerror}.") from exc
    packages = None if config.sandbox.image else config.sandbox.packages
    skill, is_known = import_archive(SkillStore(config.skills.folder), data, packages)
    print(
        f"{skill.id}: {'here already' if is_known else 'imported'}, {describe_signature(skill, config.skills.trusted_keys)}."
    )
    if options.no_check or skill.state != "draft":
        print(f"{skill.id} is {describe_state(skill.state)}.")
        return 0
    return report_checked(anyio.run(check_versions, config, [skill]), options)


def sign_skill(config: Config, options: Options) -> int:
    """Sign a version."""
    store = SkillStore(config.skills.folder)
    skill = pick_version(store.all_versions(), options.name)
    key = load_or_create_key(options.key)
    skill = store.set_signature(skill, create_signature(skill, key), public_key_hex(key))
    print(f"{skill.id} is signed. The public key, for [skills] trusted_keys: {skill.signer_key}")
    return 0


def promote_skill(config: Config, options: Options) -> int:
    """Put a draft, or what was retired, in use if it passes the gate."""
    skill = pick_version(SkillStore(config.skills.folder).all_versions(), options.name)
    if skill.state == "active":
        raise InvalidRequest(f"{skill.id} is in use already.")
    return report_checked(
        anyio.run(partial(check_versions, config, [skill], revives=True)), options
    )


def check_skills(config: Config, options: Options) -> int:
    """Have skills pass the gate again."""
    found = SkillStore(config.skills.folder).all_versions()
    chosen = [pick_version(found, name) for name in options.names]
    if not options.names:
        newest = [
            versions[-1] for versions in found.values() if versions[-1].state == "quarantined"
        ]
        chosen = [*active_skills(found).values(), *newest]
    return report_checked(anyio.run(check_versions, config, chosen), options)


def report_checked(checked: list[Skill], options: Options) -> int:
    """Print what became of versions; return 1 if one is not in use."""
    if options.json:
        print_json([serialize_skill(skill) for skill in checked])
    for skill in checked if not options.json else ():
        print(
            f"{skill.id} is {describe_state(skill.state)}."
            + "".join(f"\n    {escape_text(reason)}" for reason in skill.reasons)
        )
    return 0 if all(skill.state == "active" for skill in checked) else 1


async def check_versions(
    config: Config, chosen: list[Skill], *, revives: bool = False
) -> list[Skill]:
    """Return versions as they are when they have passed the gate, or not; the servers that they use are started."""
    from ..app import open_app

    checked = []
    async with open_app(config, resume_runs=False) as app:
        servers = {tool.partition(".")[0] for skill in chosen for tool in skill.tool_digests}
        await app.catalog.start_upstreams(servers & set(app.catalog.package_names()))
        for number, skill in enumerate(chosen, 1):
            print(f"checking {skill.id} ({number} of {len(chosen)})", file=sys.stderr)
            checked.append(await app.library.recheck(skill, may_revive=revives))
    return checked


def serialize_skill(skill: Skill) -> dict[str, Any]:
    """Return a version for programs."""
    return {
        "name": skill.name,
        "version": skill.version,
        "state": skill.state,
        "reasons": list(skill.reasons),
        "signature": format_signature(skill.signature),
        "summary": skill.summary,
        "tools": dict(skill.tool_digests),
        "skills": dict(skill.skill_digests),
        "cases": len(skill.cases),
        "origin": skill.origin,
        "at": skill.saved_at,
        "digest": skill.digest,
    }
