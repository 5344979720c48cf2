//! The HTTP API under `/godoxy/agent`: who this agent is and what it can reach.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use super::health::Health;
use crate::http::{Request, Response, SOFTWARE};

/// The path in front of every endpoint.
pub const PREFIX: &str = "/godoxy/agent";

/// The GoDoxy release whose agent we match: the one that the stream protocol's description names.
/// Servers parse it as generation, major and minor and warn when their own generation or major is
/// newer, so it moves only when a newer release's agent was compared with ours.
pub const GODOXY_VERSION: &str = "v0.31.0";

/// The container runtime beside the agent, as servers want it named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Runtime {
    /// Docker, also where there is neither: servers know no third name.
    #[default]
    Docker,
    /// Podman.
    Podman,
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
        })
    }
}

impl FromStr for Runtime {
    type Err = UnknownRuntime;

    fn from_str(name: &str) -> Result<Self, UnknownRuntime> {
        match name {
            "docker" => Ok(Self::Docker),
            "podman" => Ok(Self::Podman),
            _ => Err(UnknownRuntime(name.to_owned())),
        }
    }
}

/// A runtime that is neither `docker` nor `podman`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownRuntime(String);

impl fmt::Display for UnknownRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown runtime {:?}: give docker or podman", self.0)
    }
}

impl std::error::Error for UnknownRuntime {}

/// What the API tells about this agent.
#[derive(Debug)]
pub struct Api {
    /// The agent's name, shown by the server.
    pub name: String,
    /// The container runtime.
    pub runtime: Runtime,
    /// The GoDoxy release we match, see [`GODOXY_VERSION`].
    pub version: &'static str,
    /// Whether this agent forwards TCP streams.
    pub supports_tcp_stream: bool,
    /// Whether this agent forwards UDP streams.
    pub supports_udp_stream: bool,
    /// How destinations are checked.
    pub health: Health,
}

#[derive(Serialize)]
struct Info<'a> {
    version: &'a str,
    name: &'a str,
    runtime: String,
    software: String,
    supports_tcp_stream: bool,
    supports_udp_stream: bool,
}

impl Api {
    /// Answers one request. Blocks for a health check, at most
    /// [`super::health::TIMEOUT_MAX`].
    pub fn answer(&self, request: &Request) -> Response {
        let endpoint = match request.path().strip_prefix(PREFIX) {
            Some(endpoint @ ("/info" | "/version" | "/name" | "/runtime" | "/health")) => endpoint,
            _ => return Response::text(404, "no such endpoint"),
        };
        if !matches!(request.method(), "GET" | "HEAD") {
            let response = Response::text(405, "this endpoint only answers GET and HEAD");
            return response.with_header("Allow", "GET, HEAD");
        }
        match endpoint {
            "/version" => Response::text(200, self.version),
            "/name" => Response::text(200, self.name.as_str()),
            "/runtime" => Response::text(200, self.runtime.to_string()),
            "/health" => self.health(request),
            _ => json(&Info {
                version: self.version,
                name: &self.name,
                runtime: self.runtime.to_string(),
                software: SOFTWARE.replace('/', " "),
                supports_tcp_stream: self.supports_tcp_stream,
                supports_udp_stream: self.supports_udp_stream,
            }),
        }
    }

    fn health(&self, request: &Request) -> Response {
        match request.query() {
            Err(error) => Response::text(400, error.to_string()),
            Ok(query) => match self.health.check(&query) {
                Err(error) => Response::text(400, error.to_string()),
                Ok(checked) => json(&checked),
            },
        }
    }
}

fn json(value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => Response::json(200, body),
        Err(error) => {
            log::error!("an answer of the HTTP API cannot be written as JSON: {error}");
            Response::text(500, "the answer cannot be written as JSON")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::health::tests::unreachable_health;

    fn answer(request_line: &str) -> (u16, String, Response) {
        let api = Api {
            name: "box \"1\"".to_owned(),
            runtime: Runtime::Podman,
            version: GODOXY_VERSION,
            supports_tcp_stream: true,
            supports_udp_stream: false,
            health: unreachable_health(),
        };
        let head = format!("{request_line} HTTP/1.1\r\nHost: godoxy.agent\r\n\r\n");
        let response = api.answer(&Request::parse(head.as_bytes()).unwrap());
        (response.status, String::from_utf8(response.body.clone()).unwrap(), response)
    }

    #[test]
    fn info_has_the_fields_that_servers_read() {
        let (status, body, response) = answer("GET /godoxy/agent/info?x=y");
        assert_eq!((status, response.content_type), (200, "application/json"));
        let info: serde_json::Value = serde_json::from_str(&body).unwrap();
        let expected = serde_json::json!({
            "version": "v0.31.0", "name": "box \"1\"", "runtime": "podman",
            "software": format!("adit {}", env!("CARGO_PKG_VERSION")),
            "supports_tcp_stream": true, "supports_udp_stream": false,
        });
        assert_eq!(info, expected);
    }

    #[test]
    fn older_servers_get_bare_values() {
        for (path, value) in [("version", "v0.31.0"), ("name", "box \"1\""), ("runtime", "podman")]
        {
            let (status, body, response) = answer(&format!("GET {PREFIX}/{path}"));
            assert_eq!((status, body.as_str()), (200, value));
            assert_eq!(response.content_type, "text/plain; charset=utf-8");
        }
    }

    #[test]
    fn unknown_paths_and_other_methods_are_told_apart() {
        for path in [
            "/",
            "/info",
            "/godoxy/agent",
            "/godoxy/agent/",
            "/godoxy/agent/info/",
            "/godoxy/agent/inf%6f",
            "/x/godoxy/agent/info",
        ] {
            assert_eq!(answer(&format!("GET {path}")).0, 404, "{path}");
        }
        for method in ["POST", "OPTIONS", "get", "TRACE"] {
            let (status, _, response) = answer(&format!("{method} /godoxy/agent/info"));
            assert_eq!(status, 405, "{method}");
            assert_eq!(response.headers, [("Allow", "GET, HEAD".to_owned())]);
        }
        assert_eq!(answer("CONNECT godoxy.agent:443").0, 404);
        assert_eq!(answer("HEAD /godoxy/agent/info").0, 200);
    }

    #[test]
    fn a_check_that_cannot_be_understood_is_400_and_one_that_fails_is_unhealthy() {
        assert_eq!(answer("GET /godoxy/agent/health?scheme=%").0, 400);
        assert_eq!(answer("GET /godoxy/agent/health").0, 400);
        let (status, body, _) = answer("GET /godoxy/agent/health?scheme=tcp&host=h:1");
        assert_eq!(status, 200);
        let checked: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(
            (&checked["healthy"], &checked["detail"]),
            (&false.into(), &"unreachable".into())
        );
        assert!(checked["latency"].is_u64() && checked.as_object().unwrap().len() == 3);
    }

    #[test]
    fn a_runtime_is_one_of_two() {
        assert_eq!("docker".parse(), Ok(Runtime::Docker));
        let error = "lxc\n".parse::<Runtime>().unwrap_err().to_string();
        assert_eq!(error, "unknown runtime \"lxc\\n\": give docker or podman");
    }
}
