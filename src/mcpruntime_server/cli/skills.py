"""The command `skills`: list, show, check, promote, retire and exchange skills.

Only checks need sandboxes; everything else reads and writes the skill store's folder.
"""

from __future__ import annotations

import difflib
import sys
from functools import partial
from pathlib import Path

import click

from ..capabilities.skills.archives import MAX_ARCHIVE_BYTES, import_archive, pack_skill
from ..capabilities.skills.model import Skill, active_skills, pick_version
from ..capabilities.skills.signing import (
    REPLACE_OPTION,
    create_signature,
    describe_signature,
    load_or_create_key,
    public_key_hex,
)
from ..capabilities.skills.skill_names import parse_skill_name
from ..capabilities.skills.store import SkillStore
from ..config import Config
from ..errors import InvalidRequest, Unavailable
from ..protocol.payloads import JsonObject
from .console import ConsoleWriter, create_console, format_time
from .options import ActionGroup, json_option, pass_config, principal_option
from .progress import show_progress
from .signals import run_until_signal
from .terminal_text import print_json, print_text

RETIRED_REASON = "Retired by hand."

name_argument = click.argument("name", metavar="NAME[@VERSION]")
name_only_argument = click.argument("name", metavar="NAME")


@click.group("skills", cls=ActionGroup)
def skills_command() -> None:
    """List the skills; show, compare, check or retire one.

    `skills` alone is `skills list`; `skills NAME` is `skills show NAME`.
    """


def open_store(config: Config, principal: str) -> SkillStore:
    """Return the store of a principal."""
    store = SkillStore(config.skills.folder, config.skills.trusted_keys)
    return store.of_principal(principal)


def pick_own_version(store: SkillStore, name: str) -> Skill:
    """Return a version that the principal may change; raises `NotFound`, `InvalidRequest`."""
    skill = pick_version(store.visible_versions(), name)
    if skill.owner != store.owner:
        raise InvalidRequest(
            f"{skill.owner} shares {skill.name}.", remedy=f"Add --principal {skill.owner}."
        )
    return skill


# reading ------------------------------------------------------------------------------------------


@skills_command.command("list")
@click.option("--all", "show_all", is_flag=True, help="List drafts and old versions, too.")
@json_option
@principal_option
@pass_config
def list_command(config: Config, *, principal: str, show_all: bool, as_json: bool) -> int:
    """List the skills in use, those that others share included."""
    store = open_store(config, principal)
    versions_by_name = store.visible_versions()
    shared = store.shared_skills()
    listed = list(active_skills(versions_by_name).values())
    if show_all:
        listed = [skill for versions in versions_by_name.values() for skill in versions]
    if as_json:
        print_json([serialize_skill(skill) for skill in listed])
    else:
        writer = ConsoleWriter()
        for skill in listed:
            signature, state = str(skill.signature), skill.state_words
            if skill.owner != principal:
                state += f", shared by {skill.owner}"
            elif shared.get(skill.name) == principal:
                state += ", shared"
            writer.write_line((skill.id, "bold"), f"{signature}  {state}")
            writer.write_line(f"    {skill.summary}")
        if not show_all:
            drafts = sum(versions[-1].state == "draft" for versions in versions_by_name.values())
            counts = f"{len(listed)} in use, drafts: {drafts}"
            writer.write_line(f"{counts}; `skills list --all` has everything.")
    for place, problem in store.problems.items():
        print_text(f"problem: {place}: {problem}", sys.stderr)
    return 0


@skills_command.command("show")
@name_argument
@json_option
@principal_option
@pass_config
def show_command(config: Config, *, name: str, principal: str, as_json: bool) -> int:
    """Show one version: state, reasons, signature, code."""
    store = open_store(config, principal)
    skill = pick_version(store.visible_versions(), name)
    if as_json:
        print_json({**serialize_skill(skill), "source": skill.source})
        return 0
    state, saved = skill.state_words, format_time(skill.saved_at)
    facts = [f"uses {', '.join(skill.call_targets) or 'nothing'}"]
    writer = ConsoleWriter(show_full=True)
    origin = f"from {skill.origin}"
    if skill.owner != principal:
        origin = f"shared by {skill.owner}"
    else:
        facts[0] += f"; recorded cases: {len(skill.cases)}; {skill.digest}"
        facts.append(describe_signature(skill, config.skills.trusted_keys))
        if store.shared_skills().get(skill.name) == principal:
            origin += ", shared"
    writer.write_line((skill.id, "bold"), f" is {state}, saved {saved}, {origin}")
    for reason in skill.reasons:
        writer.write_line(f"  {reason}")
    writer.write_line(f"{skill.name}{skill.signature}")
    writer.write_line(f"  {skill.summary}")
    for fact in facts:
        writer.write_line(f"  {fact}")
    writer.write_program(skill.source)
    return 0


@skills_command.command("diff")
@click.argument("a", metavar="NAME@VERSION")
@click.argument("b", metavar="NAME@VERSION")
@principal_option
@pass_config
def diff_command(config: Config, *, a: str, b: str, principal: str) -> int:
    """Compare the code of two versions; exit with 1 if it differs."""
    versions = open_store(config, principal).visible_versions()
    left, right = pick_version(versions, a), pick_version(versions, b)
    left_lines, right_lines = left.source.splitlines(), right.source.splitlines()
    diff = list(difflib.unified_diff(left_lines, right_lines, left.id, right.id, lineterm=""))
    ConsoleWriter(show_full=True).write_diff("\n".join(diff), margin="")
    return 1 if diff else 0


def serialize_skill(skill: Skill) -> JsonObject:
    """Return a version as JSON data."""
    return {
        "name": skill.name,
        "version": skill.version,
        "state": skill.state,
        "reasons": list(skill.reasons),
        "signature": str(skill.signature),
        "summary": skill.summary,
        "tools": dict(skill.tool_digests),
        "skills": list(skill.used_skills),
        "packages": [each.requirement for each in skill.packages],
        "cases": len(skill.cases),
        "origin": skill.origin,
        "at": skill.saved_at,
        "digest": skill.digest,
        "owner": skill.owner,
    }


# checking -----------------------------------------------------------------------------------------


@skills_command.command("check")
@click.argument("names", nargs=-1, metavar="[NAME[@VERSION]]...")
@json_option
@principal_option
@pass_config
def check_command(config: Config, *, names: tuple[str, ...], principal: str, as_json: bool) -> int:
    """Run the gate again, by default on all skills in use or quarantined.

    Exits with 1 if one does not pass.
    """
    store = open_store(config, principal)
    versions_by_name = store.all_versions()
    skills = [pick_own_version(store, name) for name in names]
    if not names:
        newest = [versions[-1] for versions in versions_by_name.values()]
        quarantined = [skill for skill in newest if skill.state == "quarantined"]
        skills = [*active_skills(versions_by_name).values(), *quarantined]
    with show_progress(f"Checking {', '.join(names) or 'all skills'}"):
        checked = run_until_signal(check_versions, config, principal, skills)
    if as_json:
        print_json([serialize_skill(skill) for skill in checked])
        return exit_code_of(checked)
    return report_checked(checked)


@skills_command.command("promote")
@name_argument
@click.option(REPLACE_OPTION, is_flag=True, help="Let it take the place of a signed version.")
@principal_option
@pass_config
def promote_command(config: Config, *, name: str, principal: str, replace_signed: bool) -> int:
    """Put a draft or a retired version in use, if it passes the gate."""
    skill = pick_own_version(open_store(config, principal), name)
    if skill.is_active:
        raise InvalidRequest(f"{skill.id} is in use already.")
    check = partial(
        check_versions, config, principal, [skill], is_promoted=True, replaces_signed=replace_signed
    )
    with show_progress(f"Checking {name}"):
        checked = run_until_signal(check)
    return report_checked(checked)


@skills_command.command("retire")
@name_argument
@principal_option
@pass_config
def retire_command(config: Config, *, name: str, principal: str) -> int:
    """Take a version out of use; code can still import exactly this version."""
    store = open_store(config, principal)
    skill = pick_own_version(store, name)
    skill = store.record_event(skill, "retired", (RETIRED_REASON,))
    print_text(f"{skill.id} is retired. skills.{skill.name}.v{skill.version} still imports it.")
    if other := active_skills(store.all_versions()).get(skill.name):
        print_text(f"{other.id} is in use now.")
    else:
        print_text(f"No version of {skill.name} is in use.")
    return 0


async def check_versions(
    config: Config,
    principal: str,
    skills: list[Skill],
    *,
    is_promoted: bool = False,
    replaces_signed: bool = False,
) -> list[Skill]:
    """Return the versions as they are after the gate; starts the upstreams that they use."""
    from rich.progress import track

    from ..app.composition import open_app
    from ..journal.call_scope import act_for

    act_for(principal)  # who may have upstreams of its own
    async with open_app(config, resume_runs=False) as app:
        servers = {tool.partition(".")[0] for skill in skills for tool in skill.tool_digests}
        await app.catalog.start_upstreams(servers & set(app.catalog.package_names()))
        console = create_console(sys.stderr)
        tracked = track(skills, "checking", console=console, disable=not console.is_terminal)
        saver = app.find_saver(principal)
        recheck = partial(saver.recheck, is_promoted=is_promoted, replaces_signed=replaces_signed)
        return [await recheck(skill) for skill in tracked]


def report_checked(skills: list[Skill]) -> int:
    """Print the states of checked versions with the reasons; return the exit code."""
    for skill in skills:
        print_text(f"{skill.id} is {skill.state_words}.")
        for reason in skill.reasons:
            print_text(f"    {reason}")
    return exit_code_of(skills)


def exit_code_of(skills: list[Skill]) -> int:
    """Return 0 if all checked versions are in use, else 1."""
    return 0 if all(skill.state == "active" for skill in skills) else 1


# sharing ------------------------------------------------------------------------------------------


@skills_command.command("share")
@name_only_argument
@principal_option
@pass_config
def share_command(config: Config, *, name: str, principal: str) -> int:
    """Let all principals use a skill and read its code; nobody else can change it."""
    store = open_store(config, principal)
    skill = pick_own_version(store, name)
    store.share_skill(skill)
    print_text(f"{skill.id} is shared: all principals can import it and read its code.")
    parameters = skill.signature.parameters.values()
    values = ", ".join(
        f"{each.name}={each.default}" for each in parameters if each.default is not each.empty
    )
    if values:
        print_text(f"Its code has values of the run that it was made of: {values}.")
    return 0


@skills_command.command("unshare")
@name_only_argument
@principal_option
@pass_config
def unshare_command(config: Config, *, name: str, principal: str) -> int:
    """Keep a skill to its owner again."""
    name = parse_skill_name(name)
    open_store(config, principal).unshare_skill(name)
    print_text(f"{name} is no longer shared. Sessions that have imported it keep it.")
    return 0


# exchange -----------------------------------------------------------------------------------------


@skills_command.command("export")
@name_argument
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE.zip")
@click.option("--force", is_flag=True, help="Replace FILE.zip if it exists.")
@principal_option
@pass_config
def export_command(config: Config, *, name: str, file: Path, principal: str, force: bool) -> int:
    """Write a version into a zip, which `skills import` reads elsewhere."""
    store = open_store(config, principal)
    skill = pick_own_version(store, name)
    try:
        data = pack_skill(skill, store.read_files(skill))
        with file.open("wb" if force else "xb") as out:
            out.write(data)
    except FileExistsError:
        raise InvalidRequest(f"{file} exists already.", remedy="--force replaces it.") from None
    except OSError as exc:
        raise Unavailable(f"{skill.id} cannot be written to {file}: {exc.strerror}.") from exc
    signature = describe_signature(skill, config.skills.trusted_keys)
    print_text(f"{skill.id} is in {file}: {len(data):,} bytes, {signature}.")
    return 0


@skills_command.command("import")
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE.zip")
@click.option("--no-check", is_flag=True, help="Leave the skill a draft.")
@principal_option
@pass_config
def import_command(config: Config, *, file: Path, principal: str, no_check: bool) -> int:
    """Import a skill from a zip as a draft, then run the gate on it."""
    try:
        with file.open("rb") as archive:
            data = archive.read(MAX_ARCHIVE_BYTES + 1)
    except OSError as exc:
        raise Unavailable(
            f"{file} cannot be read: {exc.strerror}.",
            remedy="Name a file that `skills export` has written.",
        ) from exc
    packages = None if config.sandbox.image else config.sandbox.packages
    skill, is_known = import_archive(open_store(config, principal), data, packages)
    signature = describe_signature(skill, config.skills.trusted_keys)
    print_text(f"{skill.id}: {'here already' if is_known else 'imported'}, {signature}.")
    if no_check or skill.state != "draft":
        print_text(f"{skill.id} is {skill.state_words}.")
        return 0
    with show_progress(f"Checking {skill.id}"):
        checked = run_until_signal(check_versions, config, principal, [skill])
    return report_checked(checked)


@skills_command.command("sign")
@name_argument
@click.option(
    "--key",
    "key_file",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="File of the private key; created if it does not exist.",
)
@principal_option
@pass_config
def sign_command(config: Config, *, name: str, principal: str, key_file: Path) -> int:
    """Sign a version."""
    store = open_store(config, principal)
    skill = pick_own_version(store, name)
    key = load_or_create_key(key_file)
    skill = store.set_signature(skill, create_signature(skill, key), public_key_hex(key))
    print_text(
        f"{skill.id} is signed. The public key, for [skills] trusted_keys: {skill.signer_key}"
    )
    return 0
