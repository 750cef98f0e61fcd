"""Checks that the versions of packages and servers are those that the project needs."""

from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from deployments.checks.finding import Finding

DISTRIBUTION = "bincount-pipeline"


def check_installed(name: str) -> Finding:
    """Check the version of a package in this environment."""
    try:
        return check_version(f"{name} here", name, version(name))
    except PackageNotFoundError:
        return Finding(f"{name} here", "missing", _install(_requirement(name)))


def check_version(what: str, name: str, found: str) -> Finding:
    """Check a version that was found, such as a server's, against the requirement on the package of this name."""
    requirement = _requirement(name)
    is_right = requirement.specifier.contains(found, prereleases=True)
    return Finding(what, found, "" if is_right else _install(requirement))


def _install(requirement: Requirement) -> str:
    return (
        f"needs {requirement}: `make setup` where it runs, or `pip install '{requirement}'`, "
        "and start the servers again"
    )


def _requirement(name: str) -> Requirement:
    needed = map(Requirement, requires(DISTRIBUTION) or ())
    return next(requirement for requirement in needed if requirement.name == name)
