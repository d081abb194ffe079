//! Lets a judged request out: the only function after which bytes reach another host.
//!
//! budget ─► ask ─► intent (durable) ─► resolve, judge, pin ─► connect ─► inject ─► request

use super::carried::Carried;
use super::link::{Kept, Link, Sharing};
use super::reach::{self, Intent};
use super::request::{Judged, line};
use super::upload::{Allowance, Upload};
use super::{Origin, Refusal, fields};
use crate::asks;
use crate::door::DoorState;
use crate::http::head::{Framing, Head};
use crate::inject::{Injector as _, Outgoing};
use crate::mask::Masker;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Request, Version};
use model::RequestLine;
use zeroize::Zeroizing;

/// A request on a connection, ready to be sent.
pub(crate) struct Started {
    pub(crate) link: Link,
    pub(crate) request: Request<Upload>,
    pub(crate) carried: Carried,
    pub(crate) allowance: Allowance,
    pub(crate) masker: Masker,
    /// Whether the connection was used before, so that it may just have been closed.
    pub(crate) reused: bool,
}

/// What is being let out.
pub(crate) struct Letter<'a> {
    pub(crate) to: &'a Origin,
    pub(crate) head: &'a Head,
    pub(crate) judged: &'a Judged<'a>,
}

/// Does everything up to the first byte. `fresh` wants a new connection.
pub(crate) async fn start(
    door: &DoorState,
    letter: &Letter<'_>,
    upload: Upload,
    fresh: bool,
) -> Result<Started, Refusal> {
    let Letter { to, head, judged } = letter;
    let rule = judged.rule;
    let mut allowance = Allowance::new(door, rule);
    let head_bytes = head_bytes(head, &judged.cleared.target);
    let body_bytes = if let Framing::Length(n) = head.framing { n } else { 0 };
    allowance.reserve(head_bytes + body_bytes).await?;
    let request = line(&head.method, &judged.cleared.target);
    let reusable = judged.secret.is_none() && !judged.websocket && !judged.ask && !fresh;
    let sharing = match (judged.websocket, reusable) {
        (true, _) => Sharing::OnlyH1,
        (false, true) => Sharing::Shared,
        (false, false) => Sharing::Alone,
    };
    let kept = match reusable {
        true => door.links.take(to, head.framing != Framing::None || !idempotent(head)).await,
        false => Kept::Nothing { _turn: None },
    };
    consent(door, letter, &request).await?;
    let intent = Intent { rule, to, request: Some(request) };
    let (link, carried, reused) = match kept {
        Kept::Link(link) if reach::judge_address(rule, to, link.ip).is_ok() => {
            let carried = intent.record(door, Some(link.ip)).await?;
            (link, carried, true)
        }
        // The turn to open a connection is held until it is there.
        _turn => {
            let (link, carried) = dial(door, &intent, sharing).await?;
            (link, carried, false)
        }
    };
    allowance.spend(head_bytes).await?;
    let built = build(letter, upload, link.sender.is_h2());
    let request = built.inspect_err(|refusal| carried.fail(refusal.reason.as_str()))?;
    let masker = Masker::new(judged.secret.as_ref().map(|s| s.bytes.expose()));
    Ok(Started { link, request, carried, allowance, masker, reused })
}

/// Asks a human, where the rule wants it.
async fn consent(
    door: &DoorState,
    letter: &Letter<'_>,
    request: &RequestLine,
) -> Result<(), Refusal> {
    if !letter.judged.ask {
        return Ok(());
    }
    let mut summary = format!("{} {}{}", request.method, letter.to.base(), request.path);
    if !request.query_keys.is_empty() {
        summary.push_str(&format!(" (with {})", request.query_keys.join(", ")));
    }
    asks::ask(door, letter.judged.rule, summary.chars().take(1_000).collect()).await
}

async fn dial(
    door: &DoorState,
    intent: &Intent<'_>,
    sharing: Sharing,
) -> Result<(Link, Carried), Refusal> {
    let (stream, ip, carried) = intent.connect(door).await?;
    match door.links.open(intent.to, (stream, ip), sharing).await {
        Ok(link) => Ok((link, carried)),
        Err(e) => {
            carried.fail(e.to_string());
            Err(Refusal::new(502, &intent.rule.id, e.to_string()).on_record())
        }
    }
}

/// Whether sending it twice comes to the same as once (RFC 9110 §9.2.2).
pub(super) fn idempotent(head: &Head) -> bool {
    matches!(head.method.as_str(), "GET" | "HEAD" | "OPTIONS" | "PUT" | "DELETE")
}

fn head_bytes(head: &Head, target: &str) -> u64 {
    let fields: usize = head.fields.iter().map(|(n, v)| n.len() + v.len() + 4).sum();
    (head.method.len() + target.len() + fields + 12) as u64
}

fn build(letter: &Letter<'_>, upload: Upload, h2: bool) -> Result<Request<Upload>, Refusal> {
    let Letter { to, head, judged } = letter;
    let bad = |why: String| Refusal::new(400, &judged.rule.id, why).on_record();
    let connection = head.field("connection").unwrap_or("").to_ascii_lowercase();
    let mut outgoing = Outgoing {
        target: Zeroizing::new(judged.cleared.target.clone()),
        fields: HeaderMap::with_capacity(judged.cleared.fields.len() + 4),
    };
    for (name, value) in &judged.cleared.fields {
        // The answer must be readable to be masked, and whole to be masked completely.
        let hidden = judged.secret.is_some()
            && matches!(
                name.as_str(),
                "accept-encoding" | "range" | "if-range" | "sec-websocket-extensions"
            );
        if fields::passes(name, &connection) && !hidden {
            let odd = || bad(format!("the field {name:?} cannot be forwarded"));
            let field = HeaderName::from_bytes(name.as_bytes()).map_err(|_| odd())?;
            let value = HeaderValue::from_str(value).map_err(|_| odd())?;
            outgoing.fields.append(field, value);
        }
    }
    let put = |fields: &mut HeaderMap, name: &'static str, value: &str| {
        let value = HeaderValue::from_str(value).map_err(|_| bad(format!("{name} is odd")))?;
        fields.insert(HeaderName::from_static(name), value);
        Ok::<(), Refusal>(())
    };
    if let (Some(secret), Some(grant)) = (&judged.secret, &judged.rule.secret) {
        put(&mut outgoing.fields, "accept-encoding", "identity")?;
        let injected = grant.inject.inject(&mut outgoing, &secret.bytes);
        injected.map_err(|e| bad(format!("the secret {}: {e}", grant.name)))?;
    }
    let uri = if h2 {
        Zeroizing::new(format!("https://{}{}", to.authority(), *outgoing.target))
    } else {
        put(&mut outgoing.fields, "host", &to.authority())?;
        if judged.websocket {
            put(&mut outgoing.fields, "connection", "upgrade")?;
            put(&mut outgoing.fields, "upgrade", "websocket")?;
        } else if judged.secret.is_some() {
            put(&mut outgoing.fields, "connection", "close")?;
        }
        Zeroizing::new(outgoing.target.to_string())
    };
    let mut request = Request::new(upload);
    *request.uri_mut() = uri.parse().map_err(|_| bad("the target cannot be forwarded".into()))?;
    let method = head.method.parse().map_err(|_| bad("the method cannot be forwarded".into()))?;
    *request.method_mut() = method;
    *request.version_mut() = if h2 { Version::HTTP_2 } else { Version::HTTP_11 };
    *request.headers_mut() = outgoing.fields;
    Ok(request)
}
