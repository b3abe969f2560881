//! Protection against pages of other sites that use a visitor's browser while no API key is
//! required.
//!
//! A browser on the machine, or in the network, of the service reaches it where the page's author
//! cannot. Two rules keep such a page out:
//!
//! - A request that changes something must come from this very site, according to the browser.
//!   Requests of other sites arrive without our permission, although those sites cannot read the
//!   answer.
//! - A request must be for a name of this service. The author of a page can point the page's own
//!   name at the address of the service (DNS rebinding), which makes the service part of that site
//!   to the browser.
//!
//! Programs that are not browsers send neither header of the first rule, and pass. With API keys
//! the rules are unnecessary: no browser sends a key by itself.

use std::{net::Ipv4Addr, sync::Arc};

use poem::{
    Request,
    http::{Method, StatusCode, header, uri::Authority},
};

use super::problem::Problem;
use crate::config::{AuthMode, Config};

/// The relation of the requesting page to this site, which no page can set.
const SEC_FETCH_SITE: &str = "sec-fetch-site";

/// The reason why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Foreign {
    #[error("without authentication, pages of other sites may change nothing here")]
    Page,
    #[error(
        "without authentication, the service answers to addresses, `localhost`, names without a \
         dot, and those in `server.allowed_hosts`"
    )]
    Name,
}

impl Foreign {
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::Page => StatusCode::FORBIDDEN,
            Self::Name => StatusCode::MISDIRECTED_REQUEST,
        }
    }

    pub(super) fn problem(self) -> Problem {
        let (kind, title) = match self {
            Self::Page => ("cross-site", "The request comes from a page of another site"),
            Self::Name => ("misdirected", "The request is for another host"),
        };
        Problem { detail: Some(self.to_string()), ..Problem::new(self.status(), kind, title) }
    }
}

/// Keeps foreign pages out.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    /// The names of this service in lower case; `None` where API keys are required.
    allowed: Option<Arc<[String]>>,
}

impl Gate {
    pub(super) fn new(config: &Config) -> Self {
        let is_needed = config.auth.mode == AuthMode::None;
        let names = || config.server.allowed_hosts.iter().map(|name| plain(name)).collect();
        Self { allowed: is_needed.then(names) }
    }

    /// # Errors
    /// When a foreign page may have sent the request. `any_name` marks a route that answers under
    /// any name of the service.
    pub(super) fn admit(&self, request: &Request, any_name: bool) -> Result<(), Foreign> {
        let Some(allowed) = &self.allowed else { return Ok(()) };
        let reads = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
        if reads && any_name {
            return Ok(());
        }
        // A name that cannot be read is not ours.
        let called = called(request).ok_or(Foreign::Name)?;
        if !any_name && !called.iter().all(|name| is_ours(&plain(name.host()), allowed)) {
            return Err(Foreign::Name);
        }
        if !reads && is_cross_site(request, &called) {
            return Err(Foreign::Page);
        }
        Ok(())
    }
}

/// The names by which the request calls this service: in `Host`, in its target as in HTTP/2, or in
/// both. `None` if one cannot be read.
fn called(request: &Request) -> Option<Vec<Authority>> {
    let target = request.uri().authority().cloned().map(Some);
    let hosts = request.headers().get_all(header::HOST).iter();
    let hosts = hosts.map(|host| Authority::try_from(host.as_bytes()).ok());
    target.into_iter().chain(hosts).collect()
}

/// The form in which names are compared.
fn plain(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// True when no outsider can point this name at the service.
fn is_ours(name: &str, allowed: &[String]) -> bool {
    // Addresses involve no lookup, and IPv6 is written in brackets.
    let is_address = name.starts_with('[') || name.parse::<Ipv4Addr>().is_ok();
    // Names of one label, such as `localhost` and those of containers, belong to the local network:
    // nobody can register one in the public DNS and point it here.
    let is_local = !name.contains('.') || name.ends_with(".localhost");
    is_address || is_local || allowed.iter().any(|known| fits(name, known))
}

fn fits(name: &str, known: &str) -> bool {
    match known.strip_prefix('*') {
        Some(domain) => name.len() > domain.len() && name.ends_with(domain),
        None => name == known,
    }
}

/// True when a browser reports that the requesting page belongs to another site. Current browsers
/// send the relation over TLS or on their own machine; all of them send the page's origin with
/// requests that write.
fn is_cross_site(request: &Request, called: &[Authority]) -> bool {
    let headers = request.headers();
    if let Some(site) = headers.get(SEC_FETCH_SITE) {
        // Another port, or another name of the same domain, belongs to another service.
        return !matches!(site.as_bytes(), b"same-origin" | b"none");
    }
    let is_own = |origin: &[u8]| {
        let parsed = std::str::from_utf8(origin).ok().and_then(parse_origin);
        parsed.is_some_and(|(name, port, usual)| {
            let is_same = |own: &Authority| {
                plain(own.host()) == name && own.port_u16().unwrap_or(usual) == port
            };
            !called.is_empty() && called.iter().all(is_same)
        })
    };
    !headers.get_all(header::ORIGIN).iter().all(|origin| is_own(origin.as_bytes()))
}

/// The name, the port, and the port that the scheme implies. `None` for a page that hides its
/// origin, which is then `null`.
fn parse_origin(origin: &str) -> Option<(String, u16, u16)> {
    let (scheme, authority) = origin.split_once("://")?;
    let usual = match scheme {
        "http" => 80,
        "https" => 443,
        _ => return None,
    };
    let authority: Authority = authority.parse().ok()?;
    Some((plain(authority.host()), authority.port_u16().unwrap_or(usual), usual))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(mode: AuthMode, allowed: &[&str]) -> Gate {
        let mut config = Config::default();
        config.auth.mode = mode;
        config.server.allowed_hosts = allowed.iter().map(|&name| name.to_owned()).collect();
        Gate::new(&config)
    }

    fn request(method: Method, headers: &[(&str, &str)]) -> Request {
        let request = Request::builder().method(method).uri_str("/v1/events");
        let with = |request: poem::RequestBuilder, (name, value): &(&str, &str)| {
            request.header(*name, *value)
        };
        headers.iter().fold(request, with).finish()
    }

    #[test]
    fn a_name_is_ours_if_no_stranger_can_let_it_lead_here() {
        let gate = gate(AuthMode::None, &["API.example.org.", "*.inside.example.org"]);
        let asks = |host| gate.admit(&request(Method::GET, &[("host", host)]), false);
        for ours in [
            "127.0.0.1",
            "127.0.0.1:8000",
            "10.1.2.3",
            "[::1]:8000",
            "[::1]",
            "localhost:8000",
            "LocalHost.",
            "api.localhost",
            "agentarea-api:8000",
            "x",
            "api.example.org",
            "Api.Example.Org.:443",
            "a.inside.example.org",
            "a.b.inside.example.org:80",
        ] {
            assert_eq!(asks(ours), Ok(()), "{ours}");
        }
        for foreign in [
            "evil.example",
            "evil.example:8000",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "notlocalhost.example",
            "x.api.example.org",
            "inside.example.org",
            "evilinside.example.org",
            ".inside.example.org",
            "",
            "a b",
        ] {
            assert_eq!(asks(foreign), Err(Foreign::Name), "{foreign}");
        }
    }

    #[test]
    fn every_name_of_a_request_counts() {
        let gate = gate(AuthMode::None, &[]);
        let two = request(Method::GET, &[("host", "localhost"), ("host", "evil.example")]);
        assert_eq!(gate.admit(&two, false), Err(Foreign::Name));
        for (target, expected) in
            [("http://localhost:1/", Ok(())), ("http://evil.example/", Err(Foreign::Name))]
        {
            let uri = target.parse().unwrap();
            let request = Request::builder().uri(uri).header("host", "localhost:1").finish();
            assert_eq!(gate.admit(&request, false), expected, "{target}");
        }
        assert_eq!(gate.admit(&request(Method::GET, &[]), false), Ok(()), "no browser omits it");
    }

    #[test]
    fn a_page_of_another_site_reads_at_most() {
        let gate = gate(AuthMode::None, &[]);
        let host = ("host", "localhost:8000");
        let own = ("origin", "http://localhost:8000");
        let other = ("origin", "https://evil.example");
        for (headers, passes) in [
            (vec![host], true),
            (vec![host, own], true),
            (vec![host, ("sec-fetch-site", "same-origin")], true),
            (vec![host, ("sec-fetch-site", "none")], true),
            // The browser's own report of the relation counts, because a proxy may have changed the
            // host.
            (vec![host, ("sec-fetch-site", "same-origin"), other], true),
            (vec![host, ("sec-fetch-site", "cross-site")], false),
            (vec![host, ("sec-fetch-site", "same-site"), own], false),
            (vec![host, ("sec-fetch-site", "")], false),
            (vec![host, other], false),
            (vec![host, own, other], false),
            (vec![host, ("origin", "null")], false),
            (vec![host, ("origin", "http://localhost:3000")], false),
            (vec![host, ("origin", "http://localhost")], false),
            (vec![host, ("origin", "file://")], false),
            (vec![own], false),
            (vec![("host", "localhost"), ("origin", "https://localhost")], true),
            (vec![("host", "localhost:443"), ("origin", "https://LOCALHOST")], true),
            (vec![("host", "[::1]:8000"), ("origin", "http://[::1]:8000")], true),
        ] {
            let expected = if passes { Ok(()) } else { Err(Foreign::Page) };
            for method in [Method::POST, Method::PUT, Method::DELETE, Method::PATCH] {
                let asked = gate.admit(&request(method, &headers), false);
                assert_eq!(asked, expected, "{headers:?}");
            }
            for method in [Method::GET, Method::HEAD, Method::OPTIONS] {
                assert_eq!(gate.admit(&request(method, &headers), false), Ok(()), "{headers:?}");
            }
        }
    }

    #[test]
    fn probes_answer_to_any_name_and_keys_need_no_gate() {
        let foreign = [("host", "evil.example"), ("origin", "https://evil.example")];
        let reads = request(Method::GET, &foreign);
        assert_eq!(gate(AuthMode::None, &[]).admit(&reads, true), Ok(()));
        let crossing = [("host", "evil.example"), ("sec-fetch-site", "cross-site")];
        let writes = request(Method::POST, &crossing);
        assert_eq!(gate(AuthMode::ApiKey, &[]).admit(&writes, false), Ok(()));
    }
}
