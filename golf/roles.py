"""Roles of parameters, and the tables that map roles to optimizer groups or storage formats.

A module that owns parameters declares their roles: `roles = {"weight": "matrix"}` on the class or the instance. Tables
map roles, not names; a name pattern may override; what neither claims goes to `default`. Every parameter is claimed
exactly once.
"""

from fnmatch import fnmatchcase

from torch import nn

from golf.errors import UserError
from golf.suggestions import hint


def roles_of(model: nn.Module) -> dict[str, str]:
    """name -> role of every parameter, each once (a tied tensor under its first name).

    Raises UserError where a module owns a parameter without declaring its role.
    """
    roles: dict[str, str] = {}
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        declared = getattr(module, "roles", {})
        for name, parameter in module.named_parameters(recurse=False):
            full = f"{prefix}.{name}" if prefix else name
            if name not in declared:
                cls = f"{type(module).__module__}.{type(module).__qualname__}"
                raise UserError(
                    f"{cls}: declares no role for its parameter {name} ({full}); add to the class, or to the object: "
                    f'roles = {{"{name}": "matrix"}} (or scalar, embedding, head: see optimizer.roles, quant.roles)'
                )
            if id(parameter) not in seen:
                seen.add(id(parameter))
                roles[full] = declared[name]
    return roles


def check_table(roles: dict[str, str], names: dict[str, str], default: str | None, choices: dict) -> None:
    """Raise ValueError where a table points to a name that `choices` does not have."""
    pointers = {f"roles.{key}": name for key, name in roles.items()}
    pointers |= {f"names.{key}": name for key, name in names.items()}
    for key, name in [*pointers.items(), ("default", default)]:
        if name is not None and name not in choices:
            raise ValueError(f"{key}={name}: no such entry; there are {', '.join(choices)}{hint(name, choices)}")


def assign(
    parameter_roles: dict[str, str], *, roles: dict[str, str], names: dict[str, str], default: str | None, path: str
) -> dict[str, str]:
    """name -> table entry for every parameter: the first name pattern that fits, else its role, else `default`.

    Raises UserError for an unclaimed parameter and for a name pattern that fits no parameter.
    """
    claimed: dict[str, str] = {}
    for name, role in parameter_roles.items():
        by_name = next((entry for pattern, entry in names.items() if fnmatchcase(name, pattern)), None)
        entry = by_name or roles.get(role) or default
        if entry is None:
            raise UserError(f"{path}.roles: nothing claims {name} (role {role}); add the role or set {path}.default")
        claimed[name] = entry
    for pattern in names:
        if not any(fnmatchcase(name, pattern) for name in parameter_roles):
            raise UserError(f"{path}.names.{pattern}: fits no parameter; names look like {next(iter(parameter_roles))}")
    return claimed
