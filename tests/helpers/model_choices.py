"""Every YAML of conf/model, and which of them differ in classes and not in numbers alone."""

import re

from golf.conf_files import CONF

ALL = sorted(f"{path.parent.relative_to(CONF)}={path.stem}" for path in (CONF / "model").rglob("*.yaml"))


def override_of(choice: str) -> str | None:
    """The choice of a part that a whole model is the baseline with, if it is no more than that; model=baseline for the
    baseline's own parts."""
    group, _, name = choice.partition("=")
    lines = [line.split("#")[0].rstrip() for line in (CONF / group / f"{name}.yaml").read_text().splitlines()]
    own = [line for line in lines if line and line not in ("defaults:", "  - baseline", "  - _self_")]
    if group == "model":
        found = re.fullmatch(r"  - override (\S+): (\S+)", own[0])
        return f"model/{found[1]}={found[2]}" if found and len(own) == 1 else None
    part = f"  - {group.removeprefix('model/')}: {name}"
    return "model=baseline" if part in (CONF / "model/baseline.yaml").read_text().splitlines() else None


SAME = {choice: other for choice in ALL if (other := override_of(choice)) is not None}
CHOICES = [choice for choice in ALL if choice not in SAME]


def text_of(choice: str) -> str:
    group, _, name = choice.partition("=")
    return (CONF / group / f"{name}.yaml").read_text()


def changed_option(choice: str) -> str | None:
    """Return the option of its own group that an option of a part changes."""
    group = choice.partition("=")[0]
    found = re.search(r"^defaults:\n  - (\w+)\n", text_of(choice), flags=re.MULTILINE)
    return f"{group}={found[1]}" if found and group != "model" else None


def classes_of(choice: str) -> tuple[str, ...]:
    """Return what a YAML is made of: its own classes and those of the option that it changes; its own name where it
    only puts others together."""
    found, changed = re.findall(r"_target_: (\S+)", text_of(choice)), changed_option(choice)
    return (*found, *classes_of(changed)) if changed else tuple(found) or (choice,)


# One of those that differ in numbers and switches alone, and not one that changes another of them.
PLAIN_FIRST = sorted(CHOICES, key=lambda choice: changed_option(choice) is not None)
FIRST = {classes_of(choice): choice for choice in reversed(PLAIN_FIRST)}
