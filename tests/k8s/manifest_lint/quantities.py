"""Kubernetes' quantities, such as 500m and 8Gi, which schemas take as any string."""

import re

PATTERN = re.compile(r"(\d+(?:\.\d+)?)(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?")
FACTORS = (
    {None: 1.0, "m": 1e-3} | {each: 1e3**i for i, each in enumerate("kMGTPE", 1)} | {f"{e}i": 1024.0**i for i, e in enumerate("KMGTPE", 1)}
)


def amount(quantity: object) -> float | None:
    """Its value; None if it is none."""
    found = PATTERN.fullmatch(str(quantity))
    return float(found[1]) * FACTORS[found[2]] if found else None


def problem(name: str, quantity: object) -> str | None:
    """What is wrong with an amount of the resource `name`."""
    value = amount(quantity)
    if value is None:
        return f"{name} = {quantity} is no quantity"
    whole = name.endswith(("memory", "storage", "sizeLimit")) or "/" in name
    return f"{name} = {quantity} is not a whole number" if whole and value != int(value) else None
