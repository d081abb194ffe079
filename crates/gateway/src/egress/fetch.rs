//! One GET for a host tool, under the same verdicts, guards and records as the agent's own
//! requests; redirects are followed, each judged anew.

use super::exchange::SILENCE;
use super::link::Sender;
use super::request::{self, Judged, line, unveiled};
use super::start::{self, Letter, Started};
use super::upload::Upload;
use super::{Origin, Refusal};
use crate::authority;
use crate::door::DoorState;
use crate::http::head::{Framing, Head, Version};
use hyper::body::Incoming;
use hyper::{HeaderMap, Response};
use model::HostName;

/// Redirects followed for one fetch.
const REDIRECTS_MAX: usize = 5;
/// Longest URL.
const URL_BYTES_MAX: usize = 4 * 1024;

/// What was fetched. Untrusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fetched {
    pub(crate) status: u16,
    /// The `Content-Type` field, empty without one.
    pub(crate) content_type: String,
    /// Where the last redirect led.
    pub(crate) final_url: String,
    pub(crate) body: Vec<u8>,
    /// Whether the body goes on after `max_bytes`.
    pub(crate) cut: bool,
}

/// An `http://` or `https://` URL: where, and path with query. Userinfo and addresses are refused.
fn parse(url: &str) -> Result<(Origin, String), String> {
    let url = url.split('#').next().unwrap_or("");
    if url.len() > URL_BYTES_MAX || !url.bytes().all(|b| b.is_ascii_graphic() && b != b'\\') {
        return Err("the URL is too long or has characters that must be escaped".into());
    }
    let (scheme, rest) = url.split_once("://").ok_or("the URL must begin with https://")?;
    let tls = match scheme.to_ascii_lowercase().as_str() {
        "https" => true,
        "http" => false,
        _ => return Err("only https:// and http:// are fetched".into()),
    };
    let (at, target) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let (host, port) = if at.contains(':') {
        let to = authority::parse(at).map_err(|e| e.to_string())?;
        (to.host, to.port)
    } else {
        let host = HostName::parse(at).map_err(|e| e.to_string())?;
        (host, if tls { 443 } else { 80 })
    };
    let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
    Ok((Origin { host, port, tls }, target))
}

/// Where a redirect leads (RFC 3986 §5.2, as far as servers use it).
fn follow(to: &Origin, target: &str, location: &str) -> String {
    let path = target.split('?').next().unwrap_or("/");
    let scheme = if to.tls { "https" } else { "http" };
    if location.contains("://") {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{}{location}", to.base())
    } else if location.starts_with('?') {
        format!("{}{path}{location}", to.base())
    } else {
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{}{folder}/{location}", to.base())
    }
}

fn head(to: &Origin, target: &str) -> Head {
    let field = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    Head {
        method: "GET".into(),
        target: target.to_owned(),
        version: Version::Http11,
        fields: vec![
            field("host", &to.authority()),
            field("accept", "text/html, text/plain, application/json, */*;q=0.5"),
            field("accept-encoding", "identity"),
            field("user-agent", "nanoclaw"),
        ],
        framing: Framing::None,
        keep_alive: true,
    }
}

/// Fetches `url`, at most `max_bytes` of its body.
///
/// # Errors
/// A [`Refusal`], already on record, for what no rule permits, what cannot be reached, and too
/// many redirects.
pub(crate) async fn fetch(
    door: &DoorState,
    url: &str,
    max_bytes: usize,
) -> Result<Fetched, Refusal> {
    let mut url = url.to_owned();
    for _ in 0..=REDIRECTS_MAX {
        let (to, target) = match parse(&url) {
            Ok(parsed) => parsed,
            Err(why) => {
                let refusal = Refusal::new(400, "web_fetch", why);
                refusal.record(door, authority::quoted(&url), None).await;
                return Err(refusal);
            }
        };
        let got = match get(door, &to, &target, max_bytes).await {
            Ok(got) => got,
            Err(refusal) => {
                refusal.record(door, to.base(), Some(line(&head(&to, &target), &target))).await;
                return Err(refusal);
            }
        };
        match got {
            Got::Page(fetched) => return Ok(Fetched { final_url: url, ..fetched }),
            Got::Redirect(location) => url = follow(&to, &target, &location),
        }
    }
    let refusal = Refusal::new(502, "web_fetch", format!("more than {REDIRECTS_MAX} redirects"));
    refusal.record(door, authority::quoted(&url), None).await;
    Err(refusal)
}

enum Got {
    Page(Fetched),
    Redirect(String),
}

async fn get(
    door: &DoorState,
    to: &Origin,
    target: &str,
    max_bytes: usize,
) -> Result<Got, Refusal> {
    let head = head(to, target);
    let judged = request::judge(door, to, &head, target)?;
    // It is read as text here anyway.
    let own = judged.rule.secret.as_ref().map(|s| s.name.as_str());
    let veil = door.veil.everywhere(to.host.as_str(), own);
    let veil = veil.map_err(|e| unveiled(judged.rule, &e))?;
    let judged = Judged { veil, ..judged };
    let letter = Letter { to, head: &head, judged: &judged };
    let started = start::start(door, &letter, Upload::empty(), true).await?;
    let Started { mut link, request, carried, mut masker, .. } = started;
    let failed = |why: String| {
        let why = format!("{} {why}", to.host);
        carried.fail(why.as_str());
        Refusal::new(502, &judged.rule.id, why).on_record()
    };
    let sent = tokio::time::timeout(SILENCE, link.sender.send(request)).await;
    let response = sent
        .map_err(|_| failed("did not answer".into()))?
        .map_err(|e| failed(format!("broke the exchange off: {e}")))?;
    let status = response.status().as_u16();
    carried.answered(status);
    let mut text = |headers: &HeaderMap, name: &str| {
        let value = headers.get(name).map(|v| masker.whole(v.as_bytes()));
        value.and_then(|v| String::from_utf8(v).ok()).unwrap_or_default()
    };
    let location = text(response.headers(), "location");
    if matches!(status, 301 | 302 | 303 | 307 | 308) && !location.is_empty() {
        return Ok(Got::Redirect(location));
    }
    if super::fields::is_encoded(response.headers()) {
        return Err(failed("sent a compressed answer, which was not accepted".into()));
    }
    let content_type = text(response.headers(), "content-type");
    let (body, cut) =
        read(&mut link.sender, response, &carried, max_bytes).await.map_err(failed)?;
    // A secret that the end cut in two is not recognised, so what may be its beginning goes too.
    let body = if cut { masker.feed(&body) } else { masker.whole(&body) };
    Ok(Got::Page(Fetched { status, content_type, final_url: String::new(), body, cut }))
}

async fn read(
    sender: &mut Sender,
    response: Response<Incoming>,
    carried: &super::carried::Carried,
    max_bytes: usize,
) -> Result<(Vec<u8>, bool), String> {
    let mut body = response.into_body();
    let mut kept = Vec::new();
    loop {
        let frame = tokio::time::timeout(SILENCE, sender.frame(&mut body)).await;
        let Some(frame) = frame.map_err(|_| "fell silent".to_owned())? else {
            return Ok((kept, false));
        };
        let frame = frame.map_err(|e| format!("broke its answer off: {e}"))?;
        let Ok(data) = frame.into_data() else { continue };
        carried.received(&data);
        let room = max_bytes - kept.len();
        if data.len() > room {
            kept.extend_from_slice(&data[..room]);
            return Ok((kept, true));
        }
        kept.extend_from_slice(&data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart_and_odd_ones_refused() {
        let (to, target) = parse("HTTPS://A.test:8443?q=1#f").expect("valid");
        assert_eq!((to.base().as_str(), target.as_str()), ("https://a.test:8443", "/?q=1"));
        for bad in [
            "",
            "a.test",
            "file:///etc/passwd",
            "ftp://a.test/",
            "https://",
            "https://u:p@a.test/",
            "https://127.0.0.1/",
            "https://[::1]/",
            "https://2130706433/",
            "https://a.test:0/",
            "https://a.test\\@b.test/",
            "https://a.test/ b",
            "https://a.test/\r\nx",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn redirects_are_resolved_against_where_they_came_from() {
        let (to, target) = parse("https://a.test/x/y?z").expect("valid");
        for (location, expected) in [
            ("https://b.test/", "https://b.test/"),
            ("//b.test/q", "https://b.test/q"),
            ("/q", "https://a.test/q"),
            ("?q", "https://a.test/x/y?q"),
            ("q", "https://a.test/x/q"),
        ] {
            assert_eq!(follow(&to, &target, location), expected);
        }
    }

    #[test]
    fn random_urls_never_yield_an_address() {
        let parts = [
            "https://", "http://", "a.test", "@", ":", "1", "0x7f.1", "/", "?", "#", "[::1]", "\\",
            "%",
        ];
        let mut state = 0x2545_F491_4F6C_DD1D_u64;
        for _ in 0..50_000 {
            let mut url = String::new();
            for _ in 0..6 {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                url.push_str(parts[(state % parts.len() as u64) as usize]);
            }
            if let Ok((to, target)) = parse(&url) {
                assert!(to.host.as_str().parse::<std::net::IpAddr>().is_err(), "{url}");
                assert!(target.starts_with('/') && !target.contains('#'));
                let _ = follow(&to, &target, &url);
            }
        }
    }
}
