"""Whether the servers that a run needs answer: seconds before it starts, and not minutes after.

They are asked as their clients ask them: with the same sign-in, certificates and proxy.
"""

import base64
import http.client
import netrc
import os
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping, MutableMapping
from configparser import ConfigParser
from configparser import Error as ConfigParserError
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from bincount.errors import ServiceUnavailable, mask_credentials

__all__ = ["check_all", "check_mlflow", "check_prefect", "mask_credentials"]

TIMEOUT_SECONDS = 5
LOOPBACK = ("127.0.0.1", "localhost", "::1")
TRUE = ("true", "1", "t", "yes", "y", "on")
PREFECT_SIGN_IN = (
    "set PREFECT_API_AUTH_STRING, or PREFECT_API_KEY for Prefect Cloud, or `prefect profile use` what `bincount up` "
    "printed"
)
MLFLOW_SIGN_IN = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"


@dataclass(frozen=True)
class Access:
    """How a client gets at its server: sign-in and certificates. Secrets are not shown in its repr."""

    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    ca: str | None = None  # file or folder of certificates to trust, instead of certifi's
    client_certificate: str | None = None
    verify: bool = True
    signs: bool = False  # the client signs each request in a way of its own

    @classmethod
    def of_prefect(cls, environment: Mapping[str, str]) -> "Access":
        """Read what Prefect's client takes from the environment; a profile may have more."""
        return cls.make_prefect(
            auth_string=environment.get("PREFECT_API_AUTH_STRING"),
            key=environment.get("PREFECT_API_KEY"),
            ca=environment.get("PREFECT_API_SSL_CERT_FILE") or environment.get("SSL_CERT_FILE"),
            verify=environment.get("PREFECT_API_TLS_INSECURE_SKIP_VERIFY", "").lower() not in TRUE,
        )

    @classmethod
    def make_prefect(
        cls,
        auth_string: str | None,
        key: str | None,
        ca: str | None = None,
        verify: bool = True,
        headers: Mapping[str, str] | None = None,
    ) -> "Access":
        """Make the access of Prefect's settings; like the client it prefers the auth string to the key."""
        sign_in = _basic(auth_string) if auth_string else f"Bearer {key}" if key else None
        signed_in = {"Authorization": sign_in} if sign_in else {}
        return cls({**(headers or {}), **signed_in}, ca=ca or None, verify=verify)

    @classmethod
    def of_mlflow(cls, environment: Mapping[str, str]) -> "Access":
        """Read what MLflow's client takes from the environment and from ~/.mlflow/credentials."""
        kept = _kept_by_mlflow()
        user, password = (
            environment.get(f"MLFLOW_TRACKING_{name}") or kept.get(f"mlflow_tracking_{name.lower()}")
            for name in ("USERNAME", "PASSWORD")
        )
        token = environment.get("MLFLOW_TRACKING_TOKEN")
        sign_in = _basic(f"{user}:{password}") if user and password else f"Bearer {token}" if token else None
        ca = ("MLFLOW_TRACKING_SERVER_CERT_PATH", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
        return cls(
            {"Authorization": sign_in} if sign_in else {},
            ca=next((environment[name] for name in ca if environment.get(name)), None),
            client_certificate=environment.get("MLFLOW_TRACKING_CLIENT_CERT_PATH") or None,
            verify=environment.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() not in TRUE,
            signs=bool(environment.get("MLFLOW_TRACKING_AUTH"))
            or environment.get("MLFLOW_TRACKING_AWS_SIGV4", "").lower() in TRUE,
        )


@dataclass(frozen=True)
class _Service:
    """A server and what to say of it."""

    name: str
    url: str
    start: str  # the remedy where nothing answers
    address: str  # the remedy where something else answers
    sign_in: str
    certificates: str
    access: Access


def check_mlflow(tracking_uri: str) -> None:
    """Raise ServiceUnavailable unless the MLflow server answers; a database, or another scheme, is not asked."""
    if not tracking_uri.startswith(("http://", "https://")):
        return
    service = _Service(
        name=f"the MLflow server {mask_credentials(tracking_uri)}",
        url=tracking_uri.rstrip("/"),
        start="start it with `bincount up` or `mlflow server --app-name bincount`, correct --tracking-uri, "
        "or leave --tracking-uri out to use SQLite in the workspace",
        address="correct --tracking-uri",
        sign_in=MLFLOW_SIGN_IN,
        certificates="MLFLOW_TRACKING_SERVER_CERT_PATH",
        access=Access.of_mlflow(os.environ),
    )
    # Not /health, which answers whoever asks, and which a managed MLflow may lack.
    _ask(service, "/api/2.0/mlflow/experiments/search?max_results=1")


def check_prefect(api_url: str | None, access: Access | None = None) -> None:
    """Raise ServiceUnavailable unless the Prefect server answers; without one a run starts its own for its time.

    access: the client's, where its settings are known [default: that of the environment]
    """
    if not api_url:
        return
    service = _Service(
        name=f"the Prefect server {mask_credentials(api_url)}",
        url=api_url.rstrip("/"),
        start="start it with `bincount up` or `bincount server`, "
        "or run without one: `prefect config unset PREFECT_API_URL`",
        address="correct PREFECT_API_URL, which ends in /api",
        sign_in=PREFECT_SIGN_IN,
        certificates="PREFECT_API_SSL_CERT_FILE",
        access=access or Access.of_prefect(os.environ),
    )
    _ask(service, "/health")
    # An open server says to anybody that it is healthy. Prefect Cloud asks for the key there, and may lack this path.
    _ask(service, "/admin/version", may_lack=True)


def check_all(api_url: str | None, tracking_uri: str, prefect: Access | None = None) -> None:
    """Ask both servers. Raises ServiceUnavailable naming every one that does not answer."""
    problems = []
    for check in (lambda: check_prefect(api_url, prefect), lambda: check_mlflow(tracking_uri)):
        try:
            check()
        except ServiceUnavailable as error:
            problems.append(str(error))
    if problems:
        raise ServiceUnavailable("\n".join(problems))


def reach_loopback_directly(environment: MutableMapping[str, str]) -> None:
    """Except this machine from the proxy that an environment names; what it excepts already stays."""
    names = {name.lower() for name, value in environment.items() if value}
    if not names & {"http_proxy", "https_proxy", "all_proxy"}:
        return
    for name, other in (("NO_PROXY", "no_proxy"), ("no_proxy", "NO_PROXY")):
        given = environment.get(name) or environment.get(other) or ""
        hosts = [host.strip() for host in given.split(",") if host.strip()]
        environment[name] = ",".join(dict.fromkeys([*hosts, *(() if "*" in hosts else LOOPBACK)]))


def get(url: str, access: Access, timeout: float) -> http.client.HTTPResponse:
    """Open a URL as a client with this access does: never through a proxy on loopback, and never to another host.

    Raises OSError (urllib.error.HTTPError among them), http.client.HTTPException, or ValueError for what is no URL.
    """
    address = urlsplit(url)
    request = urllib.request.Request(_without_userinfo(address), headers={"User-Agent": "bincount", **access.headers})
    if sign_in := _of_address(address, access):
        request.add_unredirected_header("Authorization", sign_in)
    proxies = {} if _is_loopback(address.hostname) else None  # None: those of the environment
    handlers = [urllib.request.ProxyHandler(proxies), _NoRedirects()]
    if address.scheme == "https":
        handlers.append(urllib.request.HTTPSHandler(context=_context(access)))
    return urllib.request.build_opener(*handlers).open(request, timeout=timeout)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Take a redirect for an answer: it would carry the sign-in elsewhere, and a client's POST does not survive it."""

    def redirect_request(self, *_: object) -> None:
        return None


def _ask(service: _Service, path: str, may_lack: bool = False) -> None:
    try:
        with get(service.url + path, service.access, TIMEOUT_SECONDS) as answer:
            if answer.headers.get_content_type() == "text/html" and "Content-Type" in answer.headers:
                raise ServiceUnavailable(f"{service.name} answers with a web page; {service.address}")
    except urllib.error.HTTPError as error:
        with error:
            problem = "" if may_lack and error.code == 404 else _explain_status(service, error)
            if problem:
                raise ServiceUnavailable(f"{service.name} {problem}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: not an address
        raise ServiceUnavailable(f"{service.name} does not answer{_explain_failure(service, error)}") from None


def _explain_status(service: _Service, error: urllib.error.HTTPError) -> str:
    """Say what an answer other than 2xx means, and what to do; empty where it is good enough."""
    code, said, sign_in = error.code, _said(error), service.sign_in
    if code in (401, 403) and service.access.signs:  # in a way that is not known here
        return ""
    wants = "does not accept the sign-in" if _signs_in(service) else "wants a sign-in"
    to = mask_credentials(error.headers.get("Location", "somewhere else"))
    known = {
        401: f"{wants} (401){said}; {sign_in}",
        403: f"does not let this client in (403){said}; {sign_in}, of a user who may use it",
        404: f"has no such API at this address (404); {service.address}",
        405: f"has no such API at this address (405); {service.address}",
        407: f"is behind a proxy that wants a sign-in (407){said}; write it into HTTPS_PROXY, or use NO_PROXY",
        429: f"is asked too often (429){said}; try again in a moment",
        300: f"sends its clients to {to} ({code}); {service.address}, or where that page is a sign-in: {sign_in}",
        400: f"refuses to answer ({code}){said}; {service.address}",
        500: f"has an error of its own ({code}){said}; its log says more, and it may answer in a moment",
    }
    return known.get(code) or known.get(code // 100 * 100, f"gives an answer of status {code}; {service.address}")


def _said(error: urllib.error.HTTPError) -> str:
    """Return the first words of an answer, where they are for people to read."""
    if error.headers.get_content_type() == "text/html":
        return ""
    with suppress(OSError, http.client.HTTPException):
        words = " ".join(error.read(1000).decode(errors="replace").split())[:200]
        return f": {mask_credentials(words)}" if words else ""
    return ""


def _explain_failure(service: _Service, error: Exception) -> str:
    reason = getattr(error, "reason", error)
    address = _split(service.url)
    if isinstance(reason, ssl.SSLCertVerificationError):
        return (
            f": its certificate is not trusted ({reason.verify_message}); "
            f"name the file of its authority in {service.certificates}"
        )
    if isinstance(reason, socket.gaierror):
        return f": there is no host {address.hostname}; {service.start}"
    if isinstance(reason, TimeoutError):
        return f" within {TIMEOUT_SECONDS} s (timed out); {service.start}"
    proxy = "" if _is_loopback(address.hostname) else urllib.request.getproxies().get(address.scheme)
    with suppress(OSError):
        if proxy and not urllib.request.proxy_bypass(address.hostname or ""):
            return (
                f" through the proxy {mask_credentials(proxy)} ({mask_credentials(reason)}); correct the proxy, "
                f"list the host in NO_PROXY, or {service.start}"
            )
    return f" ({mask_credentials(reason)}); {service.start}"


def _signs_in(service: _Service) -> bool:
    return "Authorization" in service.access.headers or bool(_of_address(_split(service.url), service.access))


def _of_address(address: SplitResult, access: Access) -> str | None:
    """Return the sign-in that the URL holds, which clients prefer, or else ~/.netrc where there is no other."""
    if address.username or address.password:
        return _basic(f"{unquote(address.username or '')}:{unquote(address.password or '')}")
    if "Authorization" in access.headers:
        return None
    with suppress(OSError, netrc.NetrcParseError, RuntimeError):
        if found := netrc.netrc().authenticators(address.hostname or ""):
            return _basic(f"{found[0]}:{found[2]}")
    return None


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:  # such as half an IPv6 address
        return urlsplit("")


def _without_userinfo(address: SplitResult) -> str:
    return address._replace(netloc=address.netloc.rpartition("@")[2]).geturl()


def _is_loopback(host: str | None) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host or "").is_loopback
    except ValueError:
        return False


def _context(access: Access) -> ssl.SSLContext:
    import certifi  # as both clients do

    if not access.verify:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    else:
        ca = access.ca or certifi.where()
        context = ssl.create_default_context(**{"capath" if Path(ca).is_dir() else "cafile": ca})
    if access.client_certificate:
        context.load_cert_chain(access.client_certificate)
    return context


def _basic(user_and_password: str) -> str:
    return "Basic " + base64.b64encode(user_and_password.encode()).decode()


def _kept_by_mlflow() -> Mapping[str, str]:
    config = ConfigParser()
    with suppress(OSError, ConfigParserError, UnicodeDecodeError, RuntimeError):
        config.read(Path("~/.mlflow/credentials").expanduser())
        return dict(config["mlflow"]) if "mlflow" in config else {}
    return {}
