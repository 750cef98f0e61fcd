"""Manifests as Kubernetes' client knows them."""

import re

from kubernetes_asyncio import client as kubernetes


def unknown_fields(value, kind: str, where: str = "") -> list[str]:
    """The fields of a manifest that Kubernetes' model of it has not."""
    if listed := re.fullmatch(r"list\[(.*)\]", kind):
        return [name for item in value for name in unknown_fields(item, listed[1], where)]
    if not hasattr(kubernetes, kind):
        plain = {"str": str, "int": int, "bool": bool}
        if kind in plain:
            assert isinstance(value, plain[kind]), f"{where} is {value!r}, not a {kind}"
        return []
    model = getattr(kubernetes, kind)
    types = {json_name: model.openapi_types[name] for name, json_name in model.attribute_map.items()}
    return [
        name
        for key, inner in value.items()
        for name in (unknown_fields(inner, types[key], f"{where}.{key}") if key in types else [f"{where}.{key}"])
    ]
