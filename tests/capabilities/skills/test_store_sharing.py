"""The stores of several principals, and what they share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mcpruntime_server.capabilities.skills import store
from mcpruntime_server.capabilities.skills.model import (
    RecordedCase,
    Skill,
    SkillState,
    pick_version,
)
from mcpruntime_server.capabilities.skills.store import SkillStore
from mcpruntime_server.capabilities.skills.usage import count_uses
from mcpruntime_server.errors import InvalidRequest, NotFound, SkillRefused, Unavailable
from mcpruntime_server.journal.rows import SkillUseRow

SECRET = "the secret of ann"
SOURCE = 'def run(city: str) -> str:\n    """Greet."""\n    return city + " {n}"\n'


@pytest.fixture
def stores(tmp_path: Path) -> SkillStore:
    return SkillStore(tmp_path / "skills")


def add(
    stores: SkillStore,
    owner: str,
    name: str = "greet",
    n: int = 1,
    state: SkillState = "active",
    uses: str = "",
) -> Skill:
    source = f"import skills\n{SOURCE}".replace("{n}", str(n))
    if uses:
        source = source.replace("city +", f"skills.{uses}(city) +")
    case = RecordedCase({"city": SECRET}, stdout=SECRET)
    skill = Skill(
        name,
        "Greet.",
        source,
        (case,),
        state=state,
        origin="r_ann",
    )
    return stores.of_principal(owner).add_version(skill)


def share(stores: SkillStore, skill: Skill) -> None:
    stores.of_principal(skill.owner).share_skill(skill)


def owner_finder(stores: SkillStore) -> Callable[[str, str], str]:
    return lambda principal, name: stores.of_principal(principal).find_owner(name)


def seen(stores: SkillStore, principal: str) -> dict[str, list[tuple[str, int]]]:
    found = stores.of_principal(principal).visible_versions()
    return {name: [(each.owner, each.version) for each in found[name]] for name in found}


def test_each_principal_has_its_own_skills(stores: SkillStore) -> None:
    add(stores, "local")
    add(stores, "ann")
    add(stores, "ann", n=2)
    add(stores, "bob", "other")
    assert seen(stores, "local") == {"greet": [("local", 1)]}
    assert seen(stores, "ann") == {"greet": [("ann", 1), ("ann", 2)]}
    assert seen(stores, "bob") == {"other": [("bob", 1)]}
    assert seen(stores, "eve") == {}
    again = SkillStore(stores.folder)
    assert again.list_principals() == ["local", "ann", "bob"]
    assert seen(again, "ann") == seen(stores, "ann")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ann", "Ann"),
        ("a.b", "a-b"),
        ("https://idp#ann", "ann"),
        ("../../local", "local"),
        ("local", "LOCAL"),
        ("x" * 400, "x" * 401),
    ],
)
def test_similar_principals_are_different(stores: SkillStore, one: str, other: str) -> None:
    add(stores, one)
    assert seen(stores, other) == {}
    assert one in SkillStore(stores.folder).list_principals()
    outside = [path for path in stores.folder.parent.iterdir() if path != stores.folder]
    assert outside == []


def test_of_a_shared_skill_others_get_the_code_and_nothing_else(stores: SkillStore) -> None:
    share(stores, add(stores, "ann"))
    add(stores, "ann", n=2)
    add(stores, "ann", n=3, state="draft")
    assert seen(stores, "bob") == {"greet": [("ann", 1), ("ann", 2)]}
    skill = pick_version(stores.of_principal("bob").visible_versions(), "greet")
    assert (skill.version, skill.source) == (2, f"import skills\n{SOURCE}".replace("{n}", "2"))
    files = stores.of_principal("bob").read_files(skill)
    assert sorted(files) == ["SKILL.md", "skill.py"]
    assert SECRET not in f"{skill} {files}"
    assert "r_ann" not in str(skill)
    assert "cases" not in files["SKILL.md"].decode()
    own = pick_version(stores.of_principal("ann").visible_versions(), "greet@2")
    assert SECRET in str(own)
    assert "cases/0001.json" in stores.of_principal("ann").read_files(own)
    assert own.digest != skill.digest  # which covers what was recorded


def test_versions_that_are_not_in_use_are_not_there_for_others(stores: SkillStore) -> None:
    first = add(stores, "ann")
    add(stores, "ann", n=2, state="draft")
    share(stores, first)
    with pytest.raises(NotFound) as unused:
        pick_version(stores.of_principal("bob").visible_versions(), "greet@2")
    with pytest.raises(NotFound) as missing:
        pick_version(stores.of_principal("bob").visible_versions(), "greet@3")
    assert str(unused.value).replace("2", "3") == str(missing.value)
    stores.of_principal("ann").record_event(first, "retired", (SECRET,))
    assert seen(stores, "bob") == {}


def test_a_use_counts_for_the_skill_that_its_principal_has(stores: SkillStore) -> None:
    uses = [
        SkillUseRow("greet", 1, False, 0.0, f"r_{name}", f"s_{name}", name)
        for name in ("ann", "bob", "cid")
    ]
    private = add(stores, "ann")
    records = count_uses(uses, owner_finder(stores), stores.shared_skills().items())
    assert records["ann", "greet", 1].failing_principals == 1
    add(stores, "bob")
    share(stores, private)
    records = count_uses(uses, owner_finder(stores), stores.shared_skills().items())
    assert records["ann", "greet", 1].failing_principals == 2
    assert records["ann", "greet", 1].is_shared
    assert records["bob", "greet", 1].failing_principals == 1


def test_a_store_is_bounded(stores: SkillStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MAX_SKILLS", 1)
    monkeypatch.setattr(store, "MAX_VERSIONS", 2)
    add(stores, "ann")
    with pytest.raises(SkillRefused, match="at most 1 skills with 2 versions"):
        add(stores, "ann", "other")
    add(stores, "ann", n=2)
    with pytest.raises(SkillRefused):
        add(stores, "ann", n=3)
    add(stores, "bob", "other")


def test_an_own_skill_hides_a_shared_one(stores: SkillStore) -> None:
    share(stores, add(stores, "ann"))
    assert stores.of_principal("bob").find_owner("greet") == "ann"
    add(stores, "bob")
    assert seen(stores, "bob") == {"greet": [("bob", 1)]}
    assert stores.of_principal("bob").find_owner("greet") == "bob"
    assert seen(stores, "cid") == {"greet": [("ann", 1)]}


def test_one_principal_shares_a_name_until_it_unshares_it(stores: SkillStore) -> None:
    share(stores, add(stores, "ann"))
    bobs = add(stores, "bob")
    with pytest.raises(InvalidRequest, match="ann shares a skill greet already"):
        share(stores, bobs)
    with pytest.raises(InvalidRequest, match="bob does not share a skill greet"):
        stores.of_principal("bob").unshare_skill("greet")
    stores.of_principal("ann").unshare_skill("greet")
    assert seen(stores, "cid") == {}
    share(stores, bobs)
    assert seen(stores, "cid") == {"greet": [("bob", 1)]}


def test_what_a_shared_skill_uses_is_shared_first(stores: SkillStore) -> None:
    used = add(stores, "ann", "used")
    user = add(stores, "ann", "user", uses="used.v1")
    with pytest.raises(InvalidRequest, match="user uses the skill used, which is not shared"):
        share(stores, user)
    share(stores, used)
    share(stores, user)
    assert sorted(seen(stores, "bob")) == ["used", "user"]


def test_a_draft_is_not_shared(stores: SkillStore) -> None:
    with pytest.raises(InvalidRequest, match="greet@1 is not in use"):
        share(stores, add(stores, "ann", state="draft"))


@pytest.mark.parametrize("text", ["", "[", "[]", '{"greet": 1}', "[" * 10_000])
def test_a_damaged_list_shares_nothing_and_is_not_overwritten(
    stores: SkillStore, text: str
) -> None:
    shared = add(stores, "ann")
    own = add(stores, "bob", "own")
    share(stores, shared)
    file = stores.folder / "shared.json"
    file.write_text(text)
    assert seen(stores, "bob") == {"own": [("bob", 1)]}
    assert "shared.json" in stores.of_principal("bob").problems
    with pytest.raises(Unavailable, match="nothing is shared"):
        share(stores, own)
    assert file.read_text() == text
